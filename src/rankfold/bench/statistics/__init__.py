"""Metrics with their doubt, comparisons corrected together, and what they say to a claim."""
