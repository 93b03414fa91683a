"""When to save, how to save, what was saved, and how to get it back."""
