"""What a machine can build and serve, and what keeps it from the rest."""
