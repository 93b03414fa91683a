"""Compare the layers of checkpoints by their hidden states on a token set: linear CKA and SVCCA.

    python -m jaxllm.similarity runs/mine --token_set=heldout_books
    python -m jaxllm.similarity runs/small@2000 runs/large@2000 --token_set=heldout_books

Of a run, its checkpoints with the last of them: when does each layer settle? Of two checkpoints,
whose runs share the token set: which layers correspond? Writes OUTPUT.csv, and OUTPUT.png of CKA;
without OUTPUT into RUN/similarity, from where the run's report shows them.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

from jaxllm import cli
from jaxllm.errors import UserError
from jaxllm.io import atomic_write, location

ROWS, LENGTH = 4, 2048  # documents of a batch, and tokens that are read of each


def main(argv: Sequence[str] | None = None) -> int:
    """Write the similarities of the checkpoints."""
    flags = cli.parser(__doc__ or "")
    flags.add_argument("checkpoints", nargs="+", metavar="RUN", help="a run, or two RUN@STEP")
    flags.add_argument("--token_set", required=True, metavar="NAME")
    flags.add_argument("--output", type=location, metavar="NAME")
    args = cli.parse(flags, argv)
    table, run = compare(args)

    from jaxllm.analysis.tokens import findings
    from jaxllm.report.charts import findings as charts
    from jaxllm.report.charts.specs import picture

    name = " ".join([args.token_set, *(c.rpartition("/")[2] for c in args.checkpoints)])
    output = args.output or run.layout.similarity(name)
    (finding,) = findings.layer_similarity(study := findings.Study(table, layers=(table,)))
    chart: Any = charts.layer_similarity(finding, study)
    atomic_write(f"{output}.csv", table.to_csv(index=False))
    atomic_write(f"{output}.png", picture(chart, finding.title, finding.sentence))
    print(f"{finding.sentence}\nFiles: {output}.csv, {output}.png")
    return 0


def compare(args: Any) -> tuple[Any, Any]:
    """A row per pair of layers, see `jaxllm.run.run.SIMILARITY`, and the first run."""
    import numpy as np
    import pandas as pd

    from jaxllm.run.branch import parse
    from jaxllm.run.run import SIMILARITY, Run

    logging.getLogger("absl").setLevel(logging.ERROR)  # Orbax's; its errors are raised as well
    args.checkpoints = names = [str(name).rstrip("/") for name in args.checkpoints]
    if len(names) == 1:
        names = [f"{names[0]}@{entry.step}" for entry in Run.open(names[0]).available()]
    if len(names) < 2 or len(args.checkpoints) > 2:
        raise UserError("name a run with two checkpoints or more, or two checkpoints RUN@STEP")
    paths = [parse(name, "checkpoint")[0] for name in (names[0], names[-1])]
    text, other = (Run.open(path).token_losses(args.token_set).token_set() for path in paths)
    if text.fingerprint != other.fingerprint:
        raise UserError(f"{args.token_set}: {names[0]} and {names[-1]} have other texts or tokens")
    cli.load_gin(args, paths[0])

    import jax

    from jaxllm.analysis.representations import similarities
    from jaxllm.models.decoder import layer_states
    from jaxllm.sharding.mesh import MeshConfig, make_mesh
    from jaxllm.sharding.rules import partitioning
    from jaxllm.training.experiment import Experiment
    from jaxllm.training.reference import Reference

    mesh, like = make_mesh(MeshConfig()), Experiment.configured().model
    opened = [Reference.open(name, like, "checkpoint") for name in names]

    def states(of: Reference) -> Callable[[Any], Any]:
        """Function of texts [B, T] to the hidden states [L, B * T, D] of a checkpoint."""
        params, layers = of.params(mesh), of.model.num_layers
        compute = jax.jit(lambda params, tokens: layer_states(of.model, params, tokens))
        return lambda t: np.asarray(compute(params, t), np.float32).reshape(layers, t.size, -1)

    scored = text.positions < min(LENGTH, *(one.model.max_length for one in opened))
    batches = -(-len(text.texts) // ROWS)
    rows = np.full((batches * ROWS, text.positions[scored].max() + 1), -1, np.int32)
    rows[text.documents[scored], text.positions[scored]] = text.tokens[scored]
    last, parts = states(opened[-1]), []
    for name, one in zip(names, opened[:-1], strict=False):
        own, rng = states(one), np.random.default_rng(0)
        with partitioning(mesh):
            cka, svcca = similarities(
                (own(batch)[:, known], last(batch)[:, known])
                for batch in np.split(rows, batches)
                for known in [rng.permutation(np.flatnonzero(batch >= 0))]
                if len(known) > 3
            )
        layers = np.indices(cka.shape).reshape(2, -1) + 1
        row = (args.token_set, name, names[-1], *layers, cka.ravel(), svcca.ravel())
        parts.append(pd.DataFrame(dict(zip(SIMILARITY, row, strict=True))))
    return pd.concat(parts, ignore_index=True), opened[0].run


if __name__ == "__main__":
    cli.run(main)
