"""Confidence intervals, comparisons corrected together, and verdicts on claims."""
