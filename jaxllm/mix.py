"""Which data: fit laws from mixture to loss to a swarm of proxies, and propose the best mixture.

    python -m jaxllm.mix fit SUITE_DIR
    python -m jaxllm.mix propose SUITE_DIR --objective=heldout_wiki/bits_per_byte --output=best.gin
    python -m jaxllm.mix fit TABLE.csv --name=run --shares='train_*' --targets='loss_*'
    python -m jaxllm.mix fit MIXTURES.csv --losses=LOSSES.csv --name=index

`fit` prints how well each law predicts and ranks mixtures that it was not fitted to; with --larger,
how well the proxies rank the mixtures of larger models. `propose` prints the best mixture that the
swarm can vouch for. Exit code 1 if it refuses to propose one.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from jaxllm import cli
from jaxllm.errors import UserError

if TYPE_CHECKING:
    import pandas as pd

    from jaxllm.analysis.mixtures.propose import Proposal
    from jaxllm.analysis.mixtures.swarm import Swarm

_SMALLEST = 1e-4  # share of a proposal below which a domain is left out


def main(argv: Sequence[str] | None = None) -> int:
    """Fit laws to a swarm, or propose a mixture, as the flags say."""
    args = _flags().parse_args(argv)
    formats = {"fit": (".csv", ".json"), "propose": (".csv", ".json", ".gin")}[args.verb]
    if args.output and not args.output.endswith(formats):
        raise UserError(f"--output={args.output}: need a name in {', '.join(formats)}")

    from jaxllm.analysis.mixtures.choice import DEFAULT, fit
    from jaxllm.analysis.mixtures.horizon import extrapolated
    from jaxllm.interop.mixture_tables import Columns, read_swarm

    columns = Columns(
        _list(args.shares), _list(args.targets), _list(args.higher), args.losses, args.name,
        args.params, args.steps, [_pair(one, "where") for one in args.where],
    )  # fmt: skip
    swarm = read_swarm(args.source, columns)
    for axis in ("steps", "params"):
        if (to := getattr(args, f"at_{axis}")) is not None:
            swarm = extrapolated(swarm, axis, to)
    for note in swarm.notes:
        print(f"note: {note}", file=sys.stderr)
    laws = _list(args.laws) or list(DEFAULT)
    if laws == ["bimix"] and args.verb == "fit":
        return _bimix(swarm, args)
    fitted = fit(swarm, laws, args.draws, args.seed)
    print(f"{len(swarm)} runs, {len(swarm.domains)} domains, {len(swarm.targets)} targets\n")
    if args.verb == "propose":
        return _propose(fitted, args)
    scores, tables = fitted.scores, {"scores": fitted.scores}
    best = scores[scores.chosen]
    if len(best):
        print(_text(best.drop(columns=["chosen", "refused"])))
    for law, rows in scores[scores.refused != ""].groupby("law", sort=False):
        print(f"{law} refused for {len(rows)} of {len(swarm.targets)}: {rows.refused.iloc[0]}")
    if args.larger:
        from jaxllm.analysis.mixtures.transfer import predictions, transfer

        there = Columns(
            columns.shares, columns.targets, columns.higher, args.larger_losses, args.name
        )
        larger = read_swarm(args.larger, there)
        tables["transfer"] = transfer(predictions(fitted, larger), larger, args.seed)
        own = tables["transfer"].metric == tables["transfer"].target
        shown = tables["transfer"][own | tables["transfer"].best]
        print(f"\nranks of {len(larger)} larger runs by what is predicted from the proxies")
        print(_text(shown))
    _write(args.output, tables)
    return 0


def _flags() -> argparse.ArgumentParser:
    flags = argparse.ArgumentParser(
        prog="python -m jaxllm.mix", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    flags.add_argument("verb", choices=("fit", "propose"))
    flags.add_argument("source", metavar="TABLE|SUITE_DIR", help="CSV, Parquet, or a suite")
    table = flags.add_argument_group("columns (names or patterns, separated by commas)")
    table.add_argument("--shares", default="", help="of the domains in the mixture")
    table.add_argument("--targets", default="", help="losses or metrics, the less the better")
    table.add_argument("--higher", default="", help="targets of which more is better")
    table.add_argument("--losses", default="", metavar="FILE", help="table of the targets")
    table.add_argument("--name", default="", metavar="COLUMN", help="the runs' names")
    table.add_argument("--params", default="", metavar="COLUMN", help="the runs' sizes")
    table.add_argument("--steps", default="", metavar="COLUMN", help="the runs' steps")
    table.add_argument("--where", action="append", default=[], metavar="COLUMN=VALUE",
                       help="rows to read; repeatable")  # fmt: skip
    law = flags.add_argument_group("laws")
    law.add_argument("--laws", default="", help="to choose from: linear, log_linear, exponential, "
                     "power, kernel, trees (needs jaxllm[trees]); or bimix alone")  # fmt: skip
    law.add_argument("--at_steps", type=float, metavar="N", help="extrapolate each mixture first")
    law.add_argument("--at_params", type=float, metavar="N", help="extrapolate each mixture first")
    law.add_argument("--draws", type=int, default=50, metavar="N", help="of the bootstrap")
    law.add_argument("--seed", type=int, default=0, metavar="N")
    law.add_argument("--larger", default="", metavar="TABLE", help="mixtures of larger models")
    law.add_argument("--larger_losses", default="", metavar="FILE", help="their targets")
    goal = flags.add_argument_group("propose")
    goal.add_argument("--objective", default="", metavar="TARGET[=WEIGHT],…",
                      help="default: the mean of all targets")  # fmt: skip
    goal.add_argument("--natural", default="", metavar="DOMAIN=SHARE,…",
                      help="shares to stay near to (default: the mean of the swarm)")  # fmt: skip
    goal.add_argument("--tokens", default="", metavar="DOMAIN=N,…", help="that there are")
    goal.add_argument("--budget", type=float, metavar="N", help="tokens of the run to come")
    goal.add_argument("--repetition", type=float, default=4.0, metavar="EPOCHS",
                      help="of a domain, at most")  # fmt: skip
    flags.add_argument("--output", default="", metavar="FILE", help=".csv, .json, or .gin")
    return flags


def _propose(fitted: Any, args: argparse.Namespace) -> int:
    import numpy as np

    from jaxllm.analysis.mixtures.propose import propose

    domains = fitted.swarm.domains
    natural = _numbers(args.natural, domains, "natural", 0.0)
    tokens = _numbers(args.tokens, domains, "tokens", np.inf)
    if (tokens is None) != (args.budget is None):
        raise UserError("--budget and --tokens go together: they tell how often data is repeated")
    objective = None
    if args.objective:
        pairs = [one.partition("=") for one in _list(args.objective)]
        objective = {name: _number(weight or "1", "objective") for name, _, weight in pairs}
    found = propose(
        fitted, objective, natural, args.budget or 1.0, tokens, args.repetition, args.seed
    )
    table = found.table if args.budget else found.table.drop(columns="epochs")
    for part in (table, found.predicted, found.guards):
        print(_text(part), end="\n\n")
    for law, value in found.rivals.items():
        print(f"{law} predicts {value:.4g}")
    if natural is None:
        print("note: without --natural, the mean of the swarm stands for it", file=sys.stderr)
    if found.predicted.set_index("mixture").high["difference"] >= 0:
        print(
            "note: the interval of the difference to natural includes 0: train both",
            file=sys.stderr,
        )
    print(f"{found.status}{': ' * bool(found.reason)}{found.reason}")
    if found.status != "refused":
        print(_binding(found))
    _write(args.output, {"mixture": found.table, "predicted": found.predicted,
                         "guards": found.guards}, found)  # fmt: skip
    return int(found.status == "refused")


def _bimix(swarm: Swarm, args: argparse.Namespace) -> int:
    from jaxllm.analysis.mixtures.horizon import bimix_table
    from jaxllm.interop.mixture_tables import LOSS

    own = {t: t.removesuffix(LOSS) for t in swarm.targets if t.removesuffix(LOSS) in swarm.domains}
    if not own:
        raise UserError("bimix is of a domain's own share: no target has the name of a domain")
    table = bimix_table(swarm, own)
    print(_text(table))
    _write(args.output, {"bimix": table})
    return 0


def _write(path: str, tables: Mapping[str, pd.DataFrame], found: Proposal | None = None) -> None:
    """The first table as CSV, all as JSON, or a proposal as a gin binding."""
    from etils import epath

    from jaxllm.io import atomic_write

    if not path:
        return
    if path.endswith(".json"):
        known = {
            name: json.loads(table.to_json(orient="records")) for name, table in tables.items()
        }
        if found is not None:
            known |= {"status": found.status, "reason": found.reason}
            known |= {"weights": _weights(found)} if found.status != "refused" else {}
        text = json.dumps(known, indent=1) + "\n"
    elif path.endswith(".csv"):
        text = next(iter(tables.values())).to_csv(index=False)
    elif found is None or found.status == "refused":
        return
    else:
        text = _binding(found) + "\n"
    atomic_write(epath.Path(path), text)


def _weights(found: Proposal) -> dict[str, float]:
    """The shares of a proposal as DataConfig takes them: above 0."""
    selected = found.table[found.table.proposed >= _SMALLEST]
    return {str(row.domain): round(float(row.proposed), 6) for row in selected.itertuples()}


def _binding(found: Proposal) -> str:
    return f"DataConfig.weights = {_weights(found)!r}"


def _numbers(text: str, domains: Sequence[str], flag: str, absent: float) -> Any:
    """[k] numbers of `domain=number,…`; None for no text."""
    import numpy as np

    if not text:
        return None
    given = dict(_pair(one, flag) for one in _list(text))
    for name in given:
        if name not in domains:
            raise UserError(f"--{flag}: no domain {name}; domains: {', '.join(domains)}")
    numbers = np.array([_number(given[d], flag) if d in given else absent for d in domains])
    if not (numbers >= 0).all() or not numbers.sum() > 0 or (absent and not numbers.all()):
        raise UserError(f"--{flag}={text}: need numbers above 0")
    return numbers


def _number(text: str, flag: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise UserError(f"--{flag}: {text} is not a number") from None


def _pair(text: str, flag: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals:
        raise UserError(f"--{flag}: {text}: write NAME=VALUE")
    return name, value


def _list(text: str) -> list[str]:
    return [part for part in text.split(",") if part]


def _text(table: pd.DataFrame) -> str:
    return table.to_string(index=False, float_format=lambda x: f"{x:.4g}", na_rep="–")


if __name__ == "__main__":
    cli.run(main)
