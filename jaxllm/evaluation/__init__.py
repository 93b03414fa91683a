"""Scoring a model on SeqIO tasks: log-likelihoods, generation, and the records they give."""
