"""Is the code base still itself?"""
