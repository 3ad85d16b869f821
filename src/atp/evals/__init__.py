"""Evaluation: items, a runner over the public API, paired statistics, and the table of methods."""
