"""Pretrain language models in JAX and watch their capabilities grow."""

__version__ = "0.1.0"

import os

# etils.epath, which Orbax and TFDS use, too, reads gs:// through gcsfs: TensorFlow's own client
# knows neither s3:// nor appends as others do.
os.environ.setdefault("EPATH_USE_TF", "false")
