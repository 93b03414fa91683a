"""Pretrain language models in JAX and watch their capabilities grow."""

__version__ = "0.1.0"

import os
import sys

# etils.epath, which Orbax and TFDS use, too, reads gs:// through gcsfs: TensorFlow's own client
# knows neither s3:// nor appends as others do.
os.environ.setdefault("EPATH_USE_TF", "false")
# fsspec never lists a directory twice by default, and would not see what other hosts have written.
for _system in ("GCS", "S3"):
    os.environ.setdefault(f"FSSPEC_{_system}", '{"use_listings_cache": false}')
if "fsspec" in sys.modules:  # which has read the variables by now
    sys.modules["fsspec"].config.set_conf_env(sys.modules["fsspec"].config.conf)
