"""Comparisons: what is asked of a run (`request`), and all that runs, keeps, counts and compares."""
