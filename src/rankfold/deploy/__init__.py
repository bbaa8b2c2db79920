"""Adapters for other programs: opened with their base model, written as those programs read them."""
