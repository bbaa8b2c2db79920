"""Base models: find one by its name, load it, read GGUF files, and detect the hardware."""
