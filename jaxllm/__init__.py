"""Pretrain language models in JAX and watch their capabilities grow."""

__version__ = "0.1.0"
