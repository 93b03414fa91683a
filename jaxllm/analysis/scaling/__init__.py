"""Scaling laws: how losses and scores depend on parameters, tokens, FLOPs and data mixtures."""
