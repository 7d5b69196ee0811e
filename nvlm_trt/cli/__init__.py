"""The command line: one module a verb; heavy imports are made inside the verb."""
