"""From corpora to packed token batches, by global index.

SeqIO tasks name the corpora (`corpora`), `prepare` tokenises them once into ArrayRecord shards
(`store`), and `loader` reads row i of a run as a pure function of (seed, i): `mixture` says which
domain it comes from, `permutation` which chunk of the domain, `packing` how a row is laid out.
"""
