"""Probes for small models, and the corpora with the matching held-out splits."""
