"""Kinds of tasks: classification, regression, instructions."""
