"""A report for people: Markdown, plots, and the comparison of two reports."""
