"""Comparisons: tasks, runs and their records, suites, and the statistics that say what they are worth."""
