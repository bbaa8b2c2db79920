"""One adapter."""
