"""Device meshes, logical axis rules, and per-chip tables."""
