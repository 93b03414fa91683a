"""Which data: design a swarm of proxies, fit laws from mixture to loss, propose, and check.

    python -m jaxllm.mix run SUITE_DIR --gin_file=suites/proxies.gin --count=32 --stack=16
    python -m jaxllm.mix design SUITE_DIR --gin_file=suites/proxies.gin --count=32
    python -m jaxllm.mix fit SUITE_DIR
    python -m jaxllm.mix propose SUITE_DIR --objective=heldout_wiki/bits_per_byte --output=best.gin
    python -m jaxllm.mix check best.gin CHECK_DIR --gin_file=suites/proxies.gin --times=4
    python -m jaxllm.mix fit TABLE.csv --name=run --shares='train_*' --targets='loss_*'

`design` writes the suite of a swarm of mixtures around the natural shares, which `jaxllm.suite`
trains. `fit` prints how well each law predicts and ranks mixtures that it was not fitted to; with
--larger, how well the proxies rank the mixtures of larger models. `propose` prints the best mixture
that the swarm supports. `check` writes the suite that trains it and the natural mixture as new
runs, and, once that is trained, says whether the prediction held. `run` does all of it in turn, and
goes on where it was stopped. Exit code 1 if nothing is proposed, a prediction did not hold, or a
run failed.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import shlex
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from jaxllm import cli, runtime
from jaxllm.errors import UserError

if TYPE_CHECKING:
    from jaxllm.analysis.mixtures.choice import Fit
    from jaxllm.analysis.mixtures.swarm import Swarm
    from jaxllm.interop.mixture_tables import Columns

Flags = tuple[tuple[str, Any, str, str], ...]  # name, default, metavar, help; None is a number
_MIXTURES: Flags = (
    ("count", 32, "N", "mixtures, the natural one included"),
    ("temperature", 0.5, "POWER", "of the natural shares"),
    ("weakest", 0.1, "STRENGTH", "of the Dirichlet: single domains"),
    ("strongest", 5.0, "STRENGTH", "of the Dirichlet: nearly natural"),
    ("floor", 0.002, "SHARE", "that a domain has at least"),
)
_REPETITION: Flags = (
    ("tokens", "", "DOMAIN=N,…", "that there are"),
    ("budget", None, "N", "tokens of the run to come"),
    ("repetition", 4.0, "EPOCHS", "of a domain, at most"),
)
_COLUMNS: Flags = (
    ("shares", "", "NAMES", "of the domains in the mixture: names or patterns, with commas"),
    ("targets", "", "NAMES", "losses or metrics, the less the better"),
    ("higher", "", "NAMES", "targets of which more is better"),
    ("losses", "", "FILE", "table of the targets"),
    ("name", "", "COLUMN", "the runs' names"),
    ("params", "", "COLUMN", "the runs' sizes"),
    ("steps", "", "COLUMN", "the runs' steps"),
    ("where", [], "COLUMN=VALUE", "rows to read; repeatable"),
)
_LAWS: Flags = (
    ("laws", "", "NAMES", "to choose from: linear, log_linear, exponential, power, kernel, trees "
     "(needs jaxllm[trees]); or bimix alone"),
    ("at_steps", None, "N", "extrapolate each mixture first"),
    ("at_params", None, "N", "extrapolate each mixture first"),
    ("draws", 50, "N", "of the bootstrap"),
)  # fmt: skip
_LARGER: Flags = (
    ("larger", "", "TABLE", "mixtures of larger models"),
    ("larger_losses", "", "FILE", "their targets"),
)
_GOAL: Flags = (
    ("objective", "", "TARGET[=WEIGHT],…", "default: the mean of all targets"),
    ("natural", "", "DOMAIN=SHARE,…", "shares to stay near to; default: those of the swarm's "
     "run named natural, or the swarm's mean"),
)  # fmt: skip
_SIZE: Flags = (
    ("times", 4.0, "N", "parameters and tokens of its runs, in those of the proxies"),
    ("seeds", 2, "N", "of each mixture"),
)
_TRAINING: Flags = (
    ("jobs", 1, "N", "runs (or stacks) at a time"),
    ("stack", 1, "N", "runs of equal shapes in one program"),
)
_SEED: Flags = (("seed", 0, "N", "of all that is drawn"),)
_OUTPUT: Flags = (("output", "", "FILE", ".csv, .json, or for a proposal .gin with .json"),)


def main(argv: Sequence[str] | None = None) -> int:
    """Do what the verb says."""
    flags = argparse.ArgumentParser(
        "python -m jaxllm.mix", None, __doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    verbs = flags.add_subparsers(required=True, metavar="VERB")
    swarm, table = ("directory", "SUITE_DIR"), ("source", "TABLE|SUITE_DIR")
    whole = _MIXTURES + _REPETITION + _COLUMNS + _LAWS + _GOAL + _SIZE + _TRAINING + _SEED
    for act, about, (name, metavar), known in (
        (_run, "all that follows, in turn", swarm, whole),
        (_design, "write the suite of a swarm", swarm, _MIXTURES + _REPETITION + _SEED),
        (_fit, "fit laws to a swarm", table, _COLUMNS + _LAWS + _LARGER + _SEED + _OUTPUT),
        (_propose, "propose a mixture", table,
         _COLUMNS + _LAWS + _GOAL + _REPETITION + _SEED + _OUTPUT),
        (_check, "train a proposal and compare", ("proposal", "PROPOSAL"), _SIZE),
    ):  # fmt: skip
        verb = verbs.add_parser(act.__name__[1:], help=about, description=about)
        verb.set_defaults(act=act)
        verb.add_argument(name, metavar=metavar)
        if act is _check:
            beside = "default: check/ beside the proposal"
            verb.add_argument("directory", metavar="SUITE_DIR", nargs="?", help=beside)
        _add(verb, known)
        if act in (_run, _design, _check):
            cli.add_gin_flags(verb)
    args = cli.parse(flags, argv)
    return args.act(args)


def _add(parser: argparse.ArgumentParser, flags: Flags) -> None:
    for name, default, metavar, about in flags:
        known: dict[str, Any] = {"default": default, "metavar": metavar, "help": about}
        several, kind = isinstance(default, list), float if default is None else type(default)
        known |= {"action": "append"} if several else {"type": kind}
        parser.add_argument(f"--{name}", **known)


def _run(args: argparse.Namespace) -> int:
    """Do each step, after the command that does it by hand."""
    from jaxllm.run.suite_layout import SuiteLayout

    def given(flags: Flags) -> list[str]:
        values = [(name, getattr(args, name)) for name, default, *_ in flags
                  if getattr(args, name) != default]  # fmt: skip
        several = ((name, v if isinstance(v, list) else [v]) for name, v in values)
        return [f"--{name}={one}" for name, value in several for one in value]

    swarm = SuiteLayout(args.directory)
    new = SuiteLayout(swarm.check)
    path = [f"--gin_search_paths={args.gin_search_paths}"] if args.gin_search_paths else []
    laws, training = given(_COLUMNS + _LAWS + _SEED), [*given(_TRAINING), *path]
    goal = [*given(_GOAL + _REPETITION), f"--output={swarm.proposal}"]
    check = ["check", str(swarm.proposal), *given(_SIZE), *path]
    for verb, *words in (
        ["design", args.directory, *given(_MIXTURES + _REPETITION + _SEED), *cli.gin_words(args)],
        ["suite", f"--gin_file={swarm.gin_file}", *training],
        ["fit", args.directory, *laws],
        ["propose", args.directory, *laws, *goal],
        *([] if new.runs_file.exists() else [check]),
        ["suite", f"--gin_file={new.gin_file}", *training],
        check,
    ):
        command = ["suite", *words] if verb == "suite" else ["mix", verb, *words]
        print(f"\n$ python -m jaxllm.{' '.join(map(_quoted, command))}", flush=True)
        if code := _train(words) if verb == "suite" else main([verb, *words]):
            return code
    return 0


def _quoted(word: str) -> str:
    """A word for a shell, readable where it holds gin's quotes."""
    return f'"{word}"' if "'" in word and not set(word) & set('"$`\\!') else shlex.quote(word)


def _train(words: Sequence[str]) -> int:
    """Train a suite here, as `jaxllm.suite` does."""
    from tqdm import tqdm

    from jaxllm.suites.launchers import Local
    from jaxllm.suites.suite import Suite
    from jaxllm.suites.training import train

    flags = cli.parser("")
    _add(flags, _TRAINING)
    args = cli.parse(flags, words)
    suite = Suite.configured(functools.partial(cli.load_gin, args), cli.gin_words(args))
    suite.begin()
    with runtime.exit_by_signals():
        failed = train(suite, Local(), args.jobs, args.stack, tqdm.write)
    print(f"{len(suite.members) - len(failed)} of {len(suite.members)} runs are finished")
    return int(bool(failed))


def _design(args: argparse.Namespace) -> int:
    cli.load_gin(args)

    from jaxllm.data.config import DataConfig
    from jaxllm.report import terminal
    from jaxllm.suites.mixtures import Draw, spread, swarm, write_suite

    natural = DataConfig().weights or {}
    tokens = _tokens(args, list(natural))
    limits = [] if tokens is None else (args.repetition * tokens / args.budget).tolist()
    known = (args.seed, args.temperature, args.weakest, args.strongest, args.floor)
    how = Draw(*known, dict(zip(natural, limits, strict=False)))
    mixtures, about = swarm(natural, args.count, how), f"jaxllm.mix design: {how}"
    file = write_suite(args.directory, args.gin_file, args.gin_bindings, mixtures, about=about)
    table = spread(mixtures)
    if tokens is not None:
        table["epochs at most"] = table["max"].to_numpy() * args.budget / tokens
    print(f"{len(mixtures)} mixtures\n{terminal.table(table)}")
    print(f"next: python -m jaxllm.suite --gin_file={file}")
    return 0


def _fit(args: argparse.Namespace) -> int:
    swarm, columns = _swarm(args, (".csv", ".json"))

    from jaxllm.interop import mixture_tables, proposals
    from jaxllm.report import terminal

    if args.laws == "bimix":
        from jaxllm.analysis.mixtures.horizon import bimix_table

        tables = {"bimix": bimix_table(swarm, mixture_tables.own_domains(swarm))}
        print(terminal.table(tables["bimix"]))
    else:
        fitted = _fitted(swarm, args)
        tables = {"scores": fitted.scores}
        print(*terminal.scores(fitted.scores), sep="\n")
        if args.larger:
            from jaxllm.analysis.mixtures.transfer import predictions, transfer

            own = dataclasses.replace(
                columns, losses=args.larger_losses, params="", steps="", where=()
            )
            larger = mixture_tables.read_swarm(args.larger, own)
            ranks = tables["transfer"] = transfer(predictions(fitted, larger), larger, args.seed)
            print(f"\nranks of {len(larger)} larger runs by what is predicted from the proxies")
            print(terminal.table(ranks[(ranks.metric == ranks.target) | ranks.best]))
    if args.output:
        proposals.write_tables(args.output, tables)
    return 0


def _propose(args: argparse.Namespace) -> int:
    swarm, _ = _swarm(args, (".csv", ".json", ".gin"))
    fitted = _fitted(swarm, args)

    from jaxllm.analysis.mixtures.propose import propose
    from jaxllm.interop import proposals
    from jaxllm.report import terminal

    natural = _numbers(args.natural, swarm.domains, "natural", 0.0)
    tokens = _tokens(args, swarm.domains)
    objective, budget = cli.numbers(args.objective, "objective", 1.0) or None, args.budget or 1.0
    found = propose(fitted, objective, natural, budget, tokens, args.repetition, args.seed)
    table = found.table if args.budget else found.table.drop(columns="epochs")
    for part in (table, found.predicted, found.guards):
        print(terminal.table(part), end="\n\n")
    if natural is None and swarm.natural is None:
        print("note: without --natural, the mean of the swarm stands for it", file=sys.stderr)
    if found.within_noise:
        print("note: the interval of the difference to natural includes 0: train both",
              file=sys.stderr)  # fmt: skip
    print(f"{found.status}{': ' * bool(found.reason)}{found.reason}")
    if found.status != "refused":
        print(proposals.binding(found))
    if args.output:
        proposals.write(args.output, found)
    return int(found.status == "refused")


def _check(args: argparse.Namespace) -> int:
    """Write the suite that trains a proposal and the natural mixture; of a trained one, compare."""
    from etils import epath

    from jaxllm.analysis.mixtures.check import FAILED, check
    from jaxllm.interop import proposals
    from jaxllm.report import terminal
    from jaxllm.run.suite_layout import SuiteLayout

    found, swarm = proposals.read(args.proposal), SuiteLayout(epath.Path(args.proposal).parent)
    new = SuiteLayout(args.directory or swarm.check)
    if new.runs_file.exists():
        result = check(found, proposals.results(found, str(new.root)))
        print(terminal.table(result.table), end="\n\n")
        print(*result.notes, result.sentence, sep="\n")
        return int(result.verdict == FAILED)
    args.gin_file = args.gin_file or [str(swarm.gin_file)]
    cli.load_gin(args)

    from jaxllm.suites.mixtures import write_suite

    mixtures = {name: proposals.weights(found, name) for name in ("natural", "proposed")}
    bound, size = (args.gin_file, args.gin_bindings), (args.times, args.seeds)
    about = f"jaxllm.mix check of {args.proposal}"
    file = write_suite(str(new.root), *bound, mixtures, *size, about)
    print(f"next: python -m jaxllm.suite --gin_file={file}, and then the same command again")
    return 0


def _swarm(args: argparse.Namespace, formats: tuple[str, ...]) -> tuple[Swarm, Columns]:
    """The swarm that flags name, and its columns; UserError for another format of --output."""
    if args.output and not args.output.endswith(formats):
        raise UserError(f"--output={args.output}: need a name in {', '.join(formats)}")

    from jaxllm.analysis.mixtures.horizon import extrapolated
    from jaxllm.interop.mixture_tables import Columns, read_swarm

    columns = Columns(
        _list(args.shares), _list(args.targets), _list(args.higher), args.losses, args.name,
        args.params, args.steps, [cli.pair(one, "where") for one in args.where],
    )  # fmt: skip
    swarm = read_swarm(args.source, columns)
    for axis in ("steps", "params"):
        if (to := getattr(args, f"at_{axis}")) is not None:
            swarm = extrapolated(swarm, axis, to)
    for note in swarm.notes:
        print(f"note: {note}", file=sys.stderr)
    return swarm, columns


def _fitted(swarm: Swarm, args: argparse.Namespace) -> Fit:
    from jaxllm.analysis.mixtures.choice import DEFAULT, fit

    fitted = fit(swarm, _list(args.laws) or DEFAULT, args.draws, args.seed)
    print(f"{len(swarm)} runs, {len(swarm.domains)} domains, {len(swarm.targets)} targets\n")
    return fitted


def _tokens(args: argparse.Namespace, domains: Sequence[str]) -> Any:
    """[k] tokens that there are of each domain, inf where not known; None without a budget."""
    tokens = _numbers(args.tokens, domains, "tokens", float("inf"))
    if (tokens is None) != (args.budget is None):
        raise UserError("--budget and --tokens go together: they tell how often data is repeated")
    return tokens


def _numbers(text: str, domains: Sequence[str], flag: str, absent: float) -> Any:
    """[k] numbers of `domain=number,…`; None for no text."""
    import numpy as np

    given = cli.numbers(text, flag)
    for name in given:
        if name not in domains:
            raise UserError(f"--{flag}: no domain {name}; domains: {', '.join(domains)}")
    numbers = np.array([given.get(domain, absent) for domain in domains])
    if given and not ((numbers >= 0).all() and numbers.sum() > 0 and (not absent or numbers.all())):
        raise UserError(f"--{flag}={text}: need numbers above 0")
    return numbers if given else None


def _list(text: str) -> list[str]:
    return [part for part in text.split(",") if part]


if __name__ == "__main__":
    cli.run(main)
