"""One file for each preset: is it the paper's method?"""
