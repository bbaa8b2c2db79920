"""What an adapter is as plain LoRA, exactly or with a measured error."""
