"""Suites: variants under several conditions and seeds, tuned equally, with claims on their results."""
