"""One run: its request, preparation, training, evaluation and record."""
