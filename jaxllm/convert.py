"""Convert checkpoints between run directories and the Hugging Face format, a tensor at a time.

    python -m jaxllm.convert --from=hf:DIR --to=MODEL_DIR
    python -m jaxllm.convert --from=hf:series.csv --to=MODEL_DIR
    python -m jaxllm.convert --from=MODEL_DIR --step=1000 --to=hf:DIR
    python -m jaxllm.convert --from=MODEL_DIR --steps=all --to=hf:DIR

DIR holds config.json, safetensors (or PyTorch) files and a tokenizer. series.csv lists a series of
checkpoints: the columns `directory` and `step`, and optionally `tokens` and `revision`; or the same
as JSON, {"checkpoints": [{"directory": …, "step": …}, …]}. jaxllm.evaluate, generate and analyze
read the resulting MODEL_DIR as a run. With --steps the export writes one directory per step,
DIR/step<N>. A failed conversion leaves nothing behind.
"""

from __future__ import annotations

from collections.abc import Sequence

from jaxllm import cli
from jaxllm.errors import UserError
from jaxllm.io import location


def main(argv: Sequence[str] | None = None) -> int:
    """Convert in the direction that --from and --to state."""
    flags = cli.parser(__doc__ or "")
    flags.add_argument("--from", dest="source", type=location, required=True, metavar="WHERE",
                       help="hf:DIR, hf:FILE (a series), or a run directory")  # fmt: skip
    flags.add_argument("--to", dest="target", type=location, required=True, metavar="WHERE",
                       help="a run directory, or hf:DIR; it must not exist")  # fmt: skip
    flags.add_argument("--step", type=int, metavar="N", help="the checkpoint; of hf:DIR: default 0")
    flags.add_argument("--steps", metavar="all|N,N", help="several checkpoints of a run")
    flags.add_argument("--tokens", type=float, metavar="N",
                       help="tokens that the checkpoint of hf:DIR has seen")  # fmt: skip
    flags.add_argument("--dtype", choices=("float32", "bfloat16", "float16"),
                       help="of the parameters (default: as they are)")  # fmt: skip
    flags.add_argument("--architecture", metavar="NAME",
                       help="of hf:DIR (default: the one it came from, or fits)")  # fmt: skip
    flags.add_argument("--max_shard_size", metavar="SIZE", help="of a file (default: 5GB)")
    args = cli.parse(flags, argv)
    incoming, outgoing = (x.startswith("hf:") for x in (args.source, args.target))
    if incoming == outgoing:
        raise UserError("one of --from and --to is hf:DIR, and the other a run directory")
    source, target = (x.removeprefix("hf:") for x in (args.source, args.target))
    if incoming:
        unread = ("steps", "architecture", "max_shard_size", "gin_file", "gin_bindings")
        cli.refuse_unread(args, unread, "into a run directory")

        from jaxllm.interop.huggingface.importing import import_run

        import_run(source, target, args.step or 0, int(args.tokens or 0), args.dtype)
        return 0
    cli.refuse_unread(args, ("tokens",), "out of a run directory")
    if (args.step is None) == (args.steps is None):
        raise UserError("name the checkpoint with --step=N, or several with --steps=all or N,N")
    cli.load_gin(args, source)

    from jaxllm.interop.huggingface.exporting import export_run
    from jaxllm.run.run import Run
    from jaxllm.training.experiment import Experiment

    experiment = Experiment.configured()
    model = lambda step: experiment.at(step).model
    export_run(
        Run(source), target, model, step=args.step, steps=args.steps, dtype=args.dtype,
        architecture=args.architecture, max_shard_size=args.max_shard_size or "5GB",
    )  # fmt: skip
    return 0


if __name__ == "__main__":
    cli.run(main)
