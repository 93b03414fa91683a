"""The benchmarks' files in their authors' form."""

from tests.evals.conftest import eval_dir

__all__ = ["eval_dir"]
