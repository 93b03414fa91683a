"""SHA-256 of upstream files, by their name in EVAL_DIR, from `sha256.txt`, `sha256sum`'s format.

Computed from the repositories at the commits named in the modules; those of HellaSwag, SQuAD and
NQ-open's train split, and those of archives in the modules, are TensorFlow Datasets 4.9.10's for
the same URLs.
"""

from importlib import resources

_LINES = resources.files("jaxllm.evals").joinpath("sha256.txt").read_text().splitlines()
SHA256 = {name: digest for digest, name in map(str.split, _LINES)}
