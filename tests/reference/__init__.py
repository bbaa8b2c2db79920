"""The papers' formulas, naive, in the papers' own symbols. Nothing here imports rankfold."""
