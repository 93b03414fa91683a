"""Other systems: Hugging Face checkpoints, t5x, and other people's results."""
