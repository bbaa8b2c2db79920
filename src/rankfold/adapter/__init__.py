"""One adapter: its description, its making, its arithmetic, and its cost."""

ROLES = ("down", "core", "up", "scale", "router")
"""The parts of an adapter that may have parameters, by their attribute."""
