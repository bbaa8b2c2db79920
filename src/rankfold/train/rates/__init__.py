"""Learning rates by role: groups of parameters, their ratios, and the correction of LoRA-FA."""
