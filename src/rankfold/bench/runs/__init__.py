"""One run: prepared, trained, evaluated, put into its folder whole, or gone on with."""
