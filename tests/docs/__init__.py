"""Does what we show run, and does the site build?"""
