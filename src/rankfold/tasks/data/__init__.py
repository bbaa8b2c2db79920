"""Data: read files and hub datasets, find columns and labels, and make splits."""
