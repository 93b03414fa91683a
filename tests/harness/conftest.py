"""The benchmarks' files in their authors' form."""

from tests.evals.conftest import eval_dir, eval_dir_with_shots

__all__ = ["eval_dir", "eval_dir_with_shots"]
