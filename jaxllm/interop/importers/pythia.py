"""Import the published results of the Pythia suite (Biderman et al. 2023, arXiv 2304.01373).

Reads the `evals/` directory of the Pythia repository or any part of it: a file per checkpoint,
`pythia-v1/pythia-160m/zero-shot/160m_step3000.json`, or all files of a run as lines of one
`.jsonl` or `.jsonl.gz`, where `path` is the original path of each. A line without a step (the
finished OPT and BLOOM models in the same directory) is a run with one checkpoint.

Shots are those of `num_fewshot`: the five-shot folders of 160M, 410M and 1.4B in v0 hold zero-shot
results. Runs have their Hugging Face names: `pythia-160m-deduped`, `pythia-160m-deduped-v0`,
`pythia-1b-0.5MtokBS`; interventions on the data and their baselines, which left a run late, are
runs of their own: `pythia-1.4b-deduped-intervention-long`. The members of a family differ only in
size: `pythia`, `pythia-deduped`, `pythia-v0`, `pythia-0.5MtokBS`.

Tokens are steps x 2,097,152, except in the batch-size runs (`0.25MtokBS` is an eighth of it) and
in the v0 runs of 160M, 410M and 1.4B, which took twice as many tokens in half the steps. Params
are all parameters, embeddings included; FLOPs are 6 x params x tokens with that number.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

from etils import epath

from jaxllm.interop.importers import harness
from jaxllm.interop.importers.table import COMMON, Row, Settings, family_of, size_in_name
from jaxllm.run.records import Results

TOKENS_PER_STEP = 2_097_152
_TWICE_THE_BATCH = ("160m", "410m", "1.4b")  # in v0
_BATCHES = {"0.25MtokBS": 2**18, "0.5MtokBS": 2**19, "1MtokBS": 2**20}

# Parameters, embeddings included, from the Pythia README.
PARAMS: Mapping[str, int] = {
    "14m": 14_067_712, "31m": 30_494_720, "70m": 70_426_624, "160m": 162_322_944,
    "410m": 405_334_016, "1b": 1_011_781_632, "1.4b": 1_414_647_808, "2.8b": 2_775_208_960,
    "6.9b": 6_857_302_016, "12b": 11_846_072_320,
}  # fmt: skip

# Training tokens of the finished models: OPT (arXiv 2205.01068, 2.3 and appendix C), BLOOM
# (arXiv 2211.05100, table 3, its sizes below 176B).
_FINISHED = {"opt": 300e9, "bloom": 341e9}

_RUN = re.compile(
    r"pythia-(?:v[\d.]+-)?(?P<size>[\d.]+[mb])(?P<rest>(?:-[\w.]+?)?)"
    r"(?=[/_,\s:]|\.(?:zero|five|root|json)|$)"
)
_STEP = re.compile(r"step_?(\d+)")
_SHOTS = {"zero": 0, "five": 5}
_BRANCH = re.compile(r"(?:^|/)(intervention|baseline)-[^/_]*?(-long)?_step")


def read(path: epath.Path, settings: Settings) -> Results:
    """Read all runs at `path`, at `step` where a file states none; UserError without results."""
    settings.check((*COMMON, "step"))
    return harness.read_files(path, settings, _checkpoint, "Pythia")


def _checkpoint(result: dict[str, Any], where: str, settings: Settings) -> Row | None:
    arguments = str((result.get("config") or {}).get("model_args") or "")
    steps = _STEP.search(where.rsplit("/", 1)[-1]) or _STEP.search(arguments)
    step = result.get("step")
    if not isinstance(step, int):
        step = int(steps[1]) if steps else settings.number("step")
    match = _RUN.search(where) or _RUN.search(arguments)
    row = _trained(match, where, step, settings) if match else _finished(where, step)
    found = re.search(r"(zero|five)-shot|\b(\d+)-?shot", where)
    if row and found:
        shots = _SHOTS[found[1]] if found[1] else int(found[2])
        stated = (result.get("config") or {}).get("num_fewshot")
        if not isinstance(stated, int):
            row["shots"] = shots
        elif stated != shots:
            folder = f"{row['run']}: files in a folder of {shots} shots"
            row["problem"] = f"{folder} state {stated}, which is believed"
    return row


def _trained(match: re.Match[str], where: str, step: float, settings: Settings) -> Row:
    size, rest = match["size"], match["rest"]
    v0 = "pythia-v0" in where or rest.endswith("-v0")
    rest = rest.removesuffix("-v0")
    twice = 2 if v0 and size in _TWICE_THE_BATCH else 1
    per_step = _BATCHES.get(rest.removeprefix("-"), TOKENS_PER_STEP * twice)
    branch = _BRANCH.search(where)
    suffix = f"-{branch[1]}{branch[2] or ''}" if branch else ""
    suffix += "-v0" if v0 else ""
    return {
        "run": f"pythia-{size}{rest}{suffix}",
        # The published pythia-1b is the bfloat16 run: float16 diverged at this size.
        "family": family_of(f"pythia{rest.replace('-bf16', '')}{suffix}"),
        "params": PARAMS.get(size, size_in_name(size)),
        "step": step,
        "tokens": step * settings.number("tokens_per_step", per_step),
    }


def _finished(where: str, step: float) -> Row | None:
    name = re.sub(r"\.jsonl?(\.gz)?(:\d+)?$", "", where.rsplit("/", 1)[-1])
    family, params = name.split("-")[0], size_in_name(name)
    if family not in _FINISHED or math.isnan(params):
        return None
    tokens = _FINISHED[family]
    return {"run": name, "family": family, "params": params, "step": step, "tokens": tokens}
