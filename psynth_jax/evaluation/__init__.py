"""Measured quality: tasks, methods of answering, scores with their intervals, and the run that puts them together."""
