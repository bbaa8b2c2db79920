"""Does a packed adapter keep what its docstrings promise?"""
