"""Many adapters, one file: a SQLite database that stays whole whatever happens to its processes."""
