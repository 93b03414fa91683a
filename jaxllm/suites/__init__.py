"""Suites: runs that belong together, declared in one gin file and trained by one command."""
