"""One adapter: its description, its making, its arithmetic, and what it costs."""
