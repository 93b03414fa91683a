"""Health checks of finished runs and runs in progress, and the value of the remaining budget."""
