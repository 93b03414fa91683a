"""Health checks of finished runs and runs in progress."""
