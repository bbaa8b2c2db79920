"""Does the store keep what its docstrings promise?"""
