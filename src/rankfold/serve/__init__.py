"""Many adapters, one batch; until then, the LoRA resolver for vLLM."""
