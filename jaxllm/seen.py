"""What a checkpoint has seen of its corpora: which documents, when and how often.

    python -m jaxllm.seen runs/mine --step=1000
    python -m jaxllm.seen runs/mine --step=1000 --text="It was the best of times"
    python -m jaxllm.seen runs/mine --document=books:17
    python -m jaxllm.seen runs/mine --steps=990:1000 --output=batches.csv
    python -m jaxllm.seen runs/mine --ngrams=heldout_books:50x2048
    python -m jaxllm.seen runs/mine --memorized=memorization --by=runs/small

Without a question, how much of each domain. --text finds the documents with a text, --document
takes one by its number in the domain, as the tables have it, and --steps lists what updates a to b
read. `times`: 0.5 of a document of which half was read; of a text, over all its places. `skipped`:
of these, without effect. --ngrams tells when the run was most like n-gram models of its corpora,
and which tokens have a trend, by their frequency there, how predictable n-grams make them, ….
--memorized takes the results of a task: what is memorized by age, and how well the checkpoints
before, or those of another run (--by), tell which sequences are.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from jaxllm import cli, runtime
from jaxllm.errors import UserError
from jaxllm.io import atomic_write, location

if TYPE_CHECKING:
    import argparse

    from jaxllm.run.run import Run

SHOWN = 20  # documents of a table; --output has all


def main(argv: Sequence[str] | None = None) -> int:
    """Answer the question of the flags."""
    flags = cli.parser(__doc__ or "")
    flags.add_argument("run", type=location, metavar="RUN", help="a run directory")
    flags.add_argument("--step", type=int, metavar="N", help="up to this step (default: the last)")
    asked = flags.add_mutually_exclusive_group()
    asked.add_argument("--text", help="the documents with this text")
    asked.add_argument("--document", metavar="DOMAIN:NUMBER", help="this document")
    asked.add_argument("--steps", metavar="A:B", help="the documents of these updates")
    asked.add_argument("--ngrams", metavar="TOKEN_SET", help="the phases on this token set")
    asked.add_argument("--memorized", metavar="TASK", help="what is memorized, by age")
    flags.add_argument("--by", type=location, metavar="RUN", help="whose checkpoints tell it")
    flags.add_argument("--output", type=location, metavar="FILE", help="the table as CSV, too")
    args = cli.parse(flags, argv)
    first, _, last = (args.steps or "1:1").partition(":")
    if not (first.isdigit() and last.isdigit() and 0 < int(first) <= int(last)):
        raise UserError(f"--steps={args.steps}: write A:B, two steps from 1 on")
    if args.by and not args.memorized:
        raise UserError(f"--by={args.by} is for --memorized=TASK")

    from jaxllm.analysis.tokens.kinds import trends_by_corpus
    from jaxllm.analysis.tokens.ngrams import correlations, log_scores, peaks
    from jaxllm.data.seen import PASSED_OVER, SKIPPED, history
    from jaxllm.run.run import Run

    run = Run.open(args.run)
    if args.memorized:
        print_memorized(run, args)
        return 0
    cli.load_gin(args, args.run)
    runtime.import_seqio()

    from jaxllm.training.experiment import Experiment
    from jaxllm.training.sequences import open_data

    entries, sources = run.record(), open_data(Experiment.configured(args.run))[0]
    end = max((entry.step for entry in entries), default=0) if args.step is None else args.step
    without = {r["step"]: SKIPPED for r in run.skipped_lines.read()[0] if r["effect"] == SKIPPED}
    without |= dict.fromkeys(run.passed_over(), PASSED_OVER)
    seen, nothing = history(entries, sources, end, without), "the run has not read it"
    if args.text is not None:
        found = list(seen.search(args.text))
        table, nothing = seen.reads(found), "the run never saw this text: no document has it"
        if found:
            nothing = f"the run never saw this text: the {len(found)} places with it are to come"
    elif args.ngrams:
        text = (losses := run.token_losses(args.ngrams)).token_set()
        counts, total = seen.count_ngrams(text.tokens, text.documents)
        scores, steps = log_scores(counts, text.documents, total), losses.steps()
        table = peaks(np.array(steps), correlations(values := losses.read(), scores))
        try:
            by_kind = trends_by_corpus(values, steps, text, counts[0], scores[-1])
            print(by_kind.to_string(float_format="{:.1f} %".format))
        except UserError as error:
            print(f"no {error}")
    elif args.document:
        table = seen.reads([seen.document(args.document)])
    else:
        table = seen.updates(int(first), int(last)) if args.steps else seen.domains()
    if args.output:
        atomic_write(args.output, table.to_csv(index=False))
    for entry in entries:
        if entry.kind == "branched":
            print(f"since step {entry.step}, where it began at {entry.parent}")
            print(f"(of the parent, {entry.skipped_steps} steps without an update count as read)")
    if of := [kind for step, kind in without.items() if step <= end]:
        print(f"until step {end:,}, {of.count(PASSED_OVER):,} steps are passed over: not read; and "
              f"{of.count(SKIPPED):,} skipped: read without effect (in `times`, too)")  # fmt: skip
    shown = table.head(SHOWN).to_string(index=False, float_format="{:,.2f}".format)
    print(nothing if table.empty else shown)
    if len(table) > SHOWN:
        print(f"… {len(table):,} documents; --output=FILE has all")
    return 0


def print_memorized(run: Run, args: argparse.Namespace) -> None:
    """Print what a checkpoint has memorized by age, and how well others tell what it has."""
    from jaxllm.analysis.tokens.memorization import by_age, predictions
    from jaxllm.run.run import Run

    task, known = args.memorized, run.trajectory.example_steps(args.memorized)
    step = max(known or run.trajectory.steps(), default=0) if args.step is None else args.step
    if step not in known:
        remedy = f"python -m jaxllm.evaluate --model_dir={args.run} --tasks={task}"
        raise UserError(f"{args.run} has no results of {task} at step {step}: {remedy}")
    other, late = Run.open(args.by) if args.by else run, run.trajectory.read_examples(step, task)
    earlier = [at for at in other.trajectory.example_steps(task) if args.by or at < step]
    early = {at: other.trajectory.read_examples(at, task) for at in earlier}
    table, told = by_age(late, step), predictions(early, late)
    told = told.rename(columns={"step": f"told by {other.name}, step"})
    ages = table.age.map("{:,.0f} steps".format).where(table.age > -1, "not read")
    for shown in (table.assign(age=ages), told):
        if len(shown):
            print(shown.to_string(index=False, float_format="{:,.3f}".format))
    if args.output:
        atomic_write(args.output, table.to_csv(index=False))


if __name__ == "__main__":
    cli.run(main)
