"""Serve many adapters in one batch; so far, the LoRA resolver for vLLM."""
