"""Base models: found, loaded, quantised; saved adapters back on them; the hardware they are on."""
