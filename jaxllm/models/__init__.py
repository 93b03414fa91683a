"""The decoder: parameters and tokens in, log-likelihoods and continuations out."""
