"""Interoperability: Hugging Face checkpoints, t5x, and published results."""
