"""Evaluation of a model on SeqIO tasks: log-likelihoods, generation and records."""
