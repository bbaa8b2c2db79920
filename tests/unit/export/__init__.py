"""What an adapter is as plain LoRA."""
