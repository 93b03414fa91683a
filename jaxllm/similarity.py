"""Compare the layers of checkpoints by their hidden states on a token set: linear CKA and SVCCA.

    python -m jaxllm.similarity runs/mine --token_set=heldout_books
    python -m jaxllm.similarity runs/small@2000 runs/large@2000 --token_set=heldout_books

Of a run, its checkpoints with the last of them: when does each layer settle? Of two checkpoints,
whose runs share the token set: which layers correspond? Writes OUTPUT.csv, and OUTPUT.png of CKA;
without OUTPUT into RUN/similarity, from where the run's report shows them.

Compared are --tokens tokens, drawn from the set: tokens x layers x width hidden states of each of
two checkpoints are in memory, in the model's dtype (7B in bfloat16: 1 GB each), and up to as many
numbers in float32 of their principal directions.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from jaxllm import cli
from jaxllm.errors import UserError
from jaxllm.io import atomic_write, location


def main(argv: Sequence[str] | None = None) -> int:
    """Write the similarities of the checkpoints."""
    flags = cli.parser(__doc__ or "")
    flags.add_argument("checkpoints", nargs="+", metavar="RUN", help="a run, or two RUN@STEP")
    flags.add_argument("--token_set", required=True, metavar="NAME")
    flags.add_argument("--tokens", type=int, default=4096, help="number of tokens (4096)")
    flags.add_argument("--seed", type=int, default=0, help="of that draw")
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

    from jaxllm.run.branch import parse
    from jaxllm.run.run import Run

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

    from jaxllm.analysis.representations import compare as compare_layers
    from jaxllm.evaluation.features import states_at
    from jaxllm.sharding.mesh import MeshConfig, make_mesh
    from jaxllm.training.experiment import Experiment
    from jaxllm.training.reference import Reference

    mesh, like = make_mesh(MeshConfig()), Experiment.configured().model
    opened = [Reference.open(name, like, "checkpoint") for name in names]
    limit = min(one.model.max_length for one in opened)
    (known,) = np.nonzero(text.positions < limit)
    if min(args.tokens, len(known)) < 4:
        raise UserError(f"{args.token_set}, --tokens={args.tokens}: four tokens at least")
    chosen = np.random.default_rng(args.seed).permutation(known)[: args.tokens]
    states = lambda one: states_at(one.model, one.params(mesh), mesh, text, chosen)
    return compare_layers(args.token_set, names, lambda i: states(opened[i])), opened[0].run


if __name__ == "__main__":
    cli.run(main)
