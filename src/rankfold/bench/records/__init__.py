"""What a run was and what came of it, read strictly; finding, keeping and naming many of them."""
