"""Laws that every factor, preset and composition obeys."""
