"""Import the published results of the Pythia suite (Biderman et al. 2023, arXiv 2304.01373).

Reads the `evals/` directory of the Pythia repository or any part of it: a file per checkpoint,
`pythia-v1/pythia-160m/zero-shot/160m_step3000.json`, or all files of a run as lines of one
`.jsonl` or `.jsonl.gz`, where `path` is the original path of each. A line without a step (the
finished OPT and BLOOM models in the same directory) is a run with one checkpoint.

Shots come from the folder name, because `num_fewshot` is always 0 in the v0 files. Runs have their
Hugging Face names: `pythia-160m-deduped`, `pythia-160m-deduped-v0`, `pythia-1b-0.5MtokBS`; the
members of a family differ only in size: `pythia`, `pythia-deduped`, `pythia-v0`,
`pythia-0.5MtokBS`.

Tokens are steps x 2,097,152, except in the batch-size runs (`0.25MtokBS` is an eighth of it) and
in the v0 runs of 160M, 410M and 1.4B, which took twice as many tokens in half the steps. Params
are all parameters, embeddings included; FLOPs are 6 x params x tokens with that number.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping

from etils import epath

from jaxllm.errors import UserError
from jaxllm.interop.importers.harness import results, task_rows
from jaxllm.interop.importers.table import (
    COMMON,
    Row,
    Settings,
    family_of,
    from_rows,
    size_in_name,
)
from jaxllm.run.records import Results

TOKENS_PER_STEP = 2_097_152
_TWICE_THE_BATCH = ("160m", "410m", "1.4b")  # in v0
_BATCHES = {"0.25MtokBS": 2**18, "0.5MtokBS": 2**19, "1MtokBS": 2**20}

# Total and non-embedding parameters, from the Pythia README.
PARAMS: Mapping[str, tuple[int, int]] = {
    "14m": (14_067_712, 1_189_888),
    "31m": (30_494_720, 4_739_072),
    "70m": (70_426_624, 18_915_328),
    "160m": (162_322_944, 85_056_000),
    "410m": (405_334_016, 302_311_424),
    "1b": (1_011_781_632, 805_736_448),
    "1.4b": (1_414_647_808, 1_208_602_624),
    "2.8b": (2_775_208_960, 2_517_652_480),
    "6.9b": (6_857_302_016, 6_444_163_072),
    "12b": (11_846_072_320, 11_327_027_200),
}

# Training tokens of the finished models: OPT (arXiv 2205.01068, 2.3 and appendix C), BLOOM
# (arXiv 2211.05100, table 3, its sizes below 176B).
_FINISHED = {"opt": 300e9, "bloom": 341e9}

_RUN = re.compile(
    r"pythia-(?:v[\d.]+-)?(?P<size>[\d.]+[mb])(?P<rest>(?:-[\w.]+?)?)"
    r"(?=[/_,\s:]|\.(?:zero|five|root|json)|$)"
)
_STEP = re.compile(r"step_?(\d+)")
_SHOTS = {"zero": 0, "five": 5}


def read(path: epath.Path, settings: Settings) -> Results:
    """Read all runs at `path`; the settings are the common ones.

    Raises:
      UserError: there are no results.
    """
    settings.check(COMMON)
    problems: list[str] = []
    rows: list[Row] = []
    for where, result in results(path, problems):
        config = result.get("config") or {}
        arguments = str(config.get("model_args") or "")
        common = _run(where, arguments, result.get("step"), settings, problems)
        if common is None:
            problems.append(f"{where}: neither its path nor its settings name a Pythia model")
            continue
        match = re.search(r"(zero|five)-shot|\b(\d+)-?shot", where)
        shots = None
        if match:
            shots = _SHOTS[match[1]] if match[1] else int(match[2])
        found: list[str] = []
        rows += [common | row for row in task_rows(result, shots, found)]
        problems += [f"{where}: {problem}" for problem in found]
    if not rows:
        raise UserError(f"{settings.where}: no results of Pythia models are in it")
    return from_rows(settings, rows, problems)


def _run(
    where: str, arguments: str, given: object, settings: Settings, problems: list[str]
) -> Row | None:
    """The columns shared by all records of one file; None for a model outside the suite."""
    match = _RUN.search(where) or _RUN.search(arguments)
    steps = _STEP.search(where.rsplit("/", 1)[-1]) or _STEP.search(arguments)
    step = given if isinstance(given, int) else int(steps[1]) if steps else 0
    if match is None:
        return _finished(where, step, settings, problems)
    size, rest = match["size"], match["rest"]
    old = "-v0" if "pythia-v0" in where and not rest.endswith("-v0") else ""
    params = PARAMS[size][0] if size in PARAMS else size_in_name(size)
    batches = [tokens for name, tokens in _BATCHES.items() if rest == f"-{name}"]
    twice = (old or rest.endswith("-v0")) and size in _TWICE_THE_BATCH
    per_step = batches[0] if batches else TOKENS_PER_STEP * (2 if twice else 1)
    # The published pythia-1b is the bfloat16 run: float16 diverged at this size.
    family = family_of(f"pythia{rest.replace('-bf16', '')}{old}")
    tokens = step * settings.number("tokens_per_step", per_step)
    return settings.checkpoint(f"pythia-{size}{rest}{old}", family, params, step, tokens)


def _finished(where: str, step: int, settings: Settings, problems: list[str]) -> Row | None:
    name = re.sub(r"\.jsonl?(\.gz)?(:\d+)?$", "", where.rsplit("/", 1)[-1])
    family = name.split("-")[0]
    params = size_in_name(name)
    if family not in _FINISHED or math.isnan(params):
        return None
    line = f"{family}: only the finished models are there; their step is not known and stands as 0"
    if line not in problems:
        problems.append(line)
    return settings.checkpoint(name, family, params, step, _FINISHED[family])
