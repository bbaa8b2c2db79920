"""Methods as values."""
