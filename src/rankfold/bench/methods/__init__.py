"""Methods as the bench trains them: a preset, one of PEFT's own, or a head alone."""
