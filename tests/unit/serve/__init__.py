"""Does the server keep what its docstrings promise?"""
