"""Is a bad file refused before it costs anything?"""
