"""From corpora to packed token batches, by global index.

SeqIO tasks name the corpora (`corpora`), `prepare` tokenizes them once into ArrayRecord shards
(`store`), and `loader` reads sequence i of a run as a pure function of (seed, i): `mixture` gives
its domain, `permutation` its index in the domain, `packing` its tokens.
"""
