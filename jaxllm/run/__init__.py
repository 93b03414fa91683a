"""The run directory: layout, manifest, checkpoints, metrics, trajectory records, identity."""
