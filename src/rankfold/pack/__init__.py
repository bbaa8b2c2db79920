"""One adapter, one file: the container, the packed form of a saved adapter, and where its bytes go."""
