"""Files that 0.1.0 wrote still load, with the same outputs."""
