"""MAUVE: how close generated texts come to human ones, by the features of a model.

    python -m jaxllm.mauve --human=human.jsonl --generated=answers.jsonl --model_dir=hf:DIR

Both files have a `text` per line, after its `prompt` if there is one (as `jaxllm.generate --output`
writes them). The features are the model's last hidden states (a run, RUN@STEP or hf:DIR); scores by
different models do not compare. --record=RUN@STEP, whose texts they are, writes the score as its
task mauve_<file>, from where the run's report shows it. Needs `pip install jaxllm[mauve]`.
"""

from __future__ import annotations

from collections.abc import Sequence

from jaxllm import cli, runtime
from jaxllm.errors import UserError
from jaxllm.io import location


def main(argv: Sequence[str] | None = None) -> int:
    """Print the score of the flags' files, with its interval."""
    flags = cli.parser(__doc__ or "")
    flags.add_argument("--human", required=True, metavar="FILE", help="JSON lines with a text")
    flags.add_argument("--generated", required=True, metavar="FILE", help="likewise")
    flags.add_argument("--model_dir", type=location, required=True, help="the features' model")
    flags.add_argument("--record", type=location, metavar="RUN", help="whose texts they are")
    flags.add_argument("--seed", type=int, default=0, help="of the clusters")
    args = cli.parse(flags, argv)
    texts = [read(args.human), read(args.generated)]
    runtime.enable_compilation_cache()

    from jaxllm.analysis.mauve import Z95, mauve
    from jaxllm.interop.opening import open_models, split
    from jaxllm.run.records import Record
    from jaxllm.run.run import Run
    from jaxllm.training.experiment import Experiment

    if args.record:
        directory, step = split(args.record)
        entry = (run := Run.open(directory)).select(None if step is None else str(step))[-1]
        cli.load_gin(args, directory)
        info = Experiment.configured(directory).run_info
    (opened,), mesh = open_models([args.model_dir], lambda run: cli.load_gin(args, run))

    from jaxllm.evaluation.features import last_states

    human, generated = (last_states(*opened[1:], mesh, of) for of in texts)
    score = mauve(human, generated, args.seed)
    low, high = (min(max(score.value + z * score.stderr, 0), 1) for z in (-Z95, Z95))
    print(f"MAUVE {score.value:.3f} (95 % interval {low:.3f} to {high:.3f})")
    print(f"{len(generated):,} texts against {len(human):,}, in {score.clusters} clusters;")
    print(f"corrected for the bias of few texts: {score.corrected:.3f}")
    if args.record:
        record = Record(
            **vars(info), step=entry.step, tokens=entry.tokens, flops=entry.flops, shots=0,
            task=f"mauve_{args.generated.rpartition('/')[2].partition('.')[0]}", domain="generated",
            metric="mauve", value=score.value, stderr=score.stderr, n=len(generated), primary=True,
            task_version=args.model_dir,
        )  # fmt: skip
        run.trajectory.write(entry.step, record.task, [record], checkpoint=entry.wall_time)
    return 0


def read(name: str) -> list[str]:
    """The texts of a file, after their prompts; UserError for fewer than two."""
    from jaxllm.evals.rows import field, read_rows

    rows = list(read_rows(name))
    if len(rows) < 2:
        raise UserError(f"{name}: {len(rows)} texts, and MAUVE needs two or more")
    return [str(row.get("prompt", "")).rstrip(" ") + field(row, "text") for row in rows]


if __name__ == "__main__":
    cli.run(main)
