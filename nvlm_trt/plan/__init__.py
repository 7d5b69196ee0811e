"""What a recipe needs of GPUs and how fast it can be at best, without a GPU and without weights."""
