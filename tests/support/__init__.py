"""Doubles and toys shared by tests."""
