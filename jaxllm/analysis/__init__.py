"""Pure functions from the trajectory table to findings: no files, no plots, no devices."""
