"""The parts of an adapter, by what they are to it."""

ROLES = ("down", "core", "up", "scale", "router")
