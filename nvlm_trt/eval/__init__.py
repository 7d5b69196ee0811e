"""How well an engine answers: tasks of images and questions, metrics as the released evaluation scores, runs."""
