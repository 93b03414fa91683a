"""Probes for small models, and the corpora that their tasks are held out of."""
