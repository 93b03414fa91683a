"""Training: the state of a run, one update of it, and the loop."""
