"""Per-token losses over checkpoints -> which tokens a model learns, forgets, has learned."""
