"""CLAIMS: tasks, runs and their records, and the statistics that say what a comparison is worth."""
