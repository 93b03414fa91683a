"""The state of a run, one step of it, and the loop."""
