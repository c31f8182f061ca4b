"""One file for each task, and the table of tasks."""
