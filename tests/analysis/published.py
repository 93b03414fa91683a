"""Published runs beside the checkout, as trajectory tables."""

import gzip
import json
from pathlib import Path

import numpy as np
import pandas as pd

from jaxllm.run.records import COLUMNS

_SIZES = {"d=96_l=8_h=4": 11e6, "d=512_l=8_h=4": 79e6, "d=576_l=24_h=8": 154e6,
          "d=1024_l=24_h=8": 411e6, "open_lm_1b": 1.4e9, "open_lm_7b": 6.9e9}  # fmt: skip
_METRICS = {"downstream": "accuracy", "downstream_bpb": "bits_per_byte"}


def dclm(shared: Path) -> pd.DataFrame:
    """Finished models of 0.4B to 7B on many data sets (DCLM); a recipe is a data set."""
    wide = pd.read_csv(shared / "reference/dclm/DCLM_model_database.csv.gz")
    meta = _meta(shared / "reference/dclm/eval_meta_data.csv.gz")
    wide = wide.rename(columns={"Model JSON": "run", "Dataset": "family"})
    key = ["run", "family", "params", "tokens"]
    tasks = [name for name in wide if name in meta.index]
    return _finished(wide[[*key, *tasks]].melt(key, tasks, "task", "value").dropna(), meta)


def overtrained(shared: Path) -> pd.DataFrame:
    """Finished models on C4 and on RedPajama at 0.25 to 32 times 20 tokens per parameter."""
    folder, rows = shared / "reference/scaling_overtraining", []
    models = _lines(folder / "models.jsonl.gz")
    tokens = {
        one["name"]: (one["dataset_name"], one["hyperparameters"]["tokens"]) for one in models
    }
    for one in _lines(folder / "evals.jsonl.gz"):
        run = one["file"].removeprefix("evaluation_").removesuffix("_heavy.json")
        for task, value in one["eval_metrics"]["icl"].items():
            rows.append((run, tokens[run][0], _SIZES[one["model"]], tokens[run][1], task, value))
    columns = ["run", "family", "params", "tokens", "task", "value"]
    meta = _meta(folder / "eval_metadata.csv.gz")
    return _finished(pd.DataFrame(rows, columns=columns), meta)


def ladder(shared: Path, names: str = "*xC*") -> pd.DataFrame:
    """The runs of the OLMo ladder, 5-shot accuracy and bits per byte."""
    folder, parts = shared / "reference/olmo_ladder", []
    sizes = pd.read_csv(folder / "models.csv.gz").set_index("files").n
    for path in sorted(folder.glob(f"{names}.csv.gz")):
        run = path.name.removesuffix(".csv.gz")
        if run.startswith("published"):
            continue
        wide = pd.read_csv(path)
        named = [name.split("/") for name in wide if name.startswith("eval/downstream")]
        for _, kind, task in [name for name in named if name[1] in _METRICS]:
            values = wide[f"eval/{kind}/{task}"]
            one = {"run": run, "family": run.split("-", 1)[1], "params": sizes[run.split("-")[0]],
                   "task": task.split("_rc_")[0], "metric": _METRICS[kind], "step": wide._step,
                   "primary": kind == "downstream", "value": values,
                   "tokens": wide["throughput/total_tokens"].astype(float)}  # fmt: skip
            parts.append(pd.DataFrame(one))
    return _records(pd.concat(parts, ignore_index=True))


def _meta(path: Path) -> pd.DataFrame:
    table = pd.read_csv(path).set_index("Eval Task")
    return pd.DataFrame({"chance": table["Random baseline"] / 100, "n": table["#datapoints"]})


def _finished(long: pd.DataFrame, meta: pd.DataFrame) -> pd.DataFrame:
    long = long.join(meta, on="task")
    stderr = np.sqrt((long.value * (1 - long.value)).clip(lower=1e-9) / long.n)
    return _records(long.assign(stderr=stderr, metric="accuracy", primary=True, step=1))


def _records(frame: pd.DataFrame) -> pd.DataFrame:
    known = {"shots": 0, "domain": "d", "stderr": np.nan, "n": 0, "chance": np.nan, "flops": 0.0,
             "task_version": "1", "seconds": np.nan, "status": "ok"}  # fmt: skip
    missing = {name: value for name, value in known.items() if name not in frame}
    return frame.assign(**missing).reindex(columns=list(COLUMNS))


def _lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in gzip.decompress(path.read_bytes()).splitlines()]
