"""The trained miniature: the pictures and questions that it learns from, and is judged by."""
