"""The record store: the one table that every evaluation writes and every report reads."""
