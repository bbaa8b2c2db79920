"""Serve many adapters in one batch: a bank of slots, a session around a model, and a resolver for vLLM."""
