"""Export adapters: fold to plain LoRA, compress, merge, with the error certified."""
