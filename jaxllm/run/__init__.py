"""The run directory: layout, manifest, checkpoints, metrics, trajectory records, identity."""

from absl import logging

# Orbax logs its progress and every failure; those that matter are raised as well.
logging.get_absl_logger().addFilter(lambda record: "orbax" not in record.pathname)
