"""The small files that the documentation's placeholders stand for."""

import json
import random
import shutil
from pathlib import Path

import numpy as np
import pandas as pd

from jaxllm.run.records import Record
from jaxllm.run.trajectory import TrajectoryStore
from jaxllm.suites.mixtures import draw
from tests.conftest import REPOSITORY

DOMAINS = ("wiki", "books", "code", "math", "qa", "web")
PROSE = "the of a model reads text and learns what comes next in every line it has seen before"
WORDS = tuple(PROSE.split())


def prose(seed: int, words: int = 120) -> str:
    """Text that is no text, the same for a seed."""
    draw = random.Random(seed)
    return " ".join(draw.choice(WORDS) for _ in range(words)) + "."


def write(path: Path, content: object) -> None:
    """Text as it is, anything else as JSON lines."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = content if isinstance(content, str) else "\n".join(map(json.dumps, content)) + "\n"
    path.write_text(lines)


def corpora(root: Path) -> None:
    """A directory per domain, each with two splits."""
    for number, domain in enumerate(DOMAINS):
        for split, documents in (("train", 60), ("valid", 12)):
            texts = [{"text": prose(1000 * number + i + len(split))} for i in range(documents)]
            write(root / domain / f"{split}.jsonl", texts)


def benchmarks(root: Path) -> None:
    """Four questions of two benchmarks, as their authors lay them out."""
    choices = [{"label": label, "text": word} for label, word in zip("ABCD", WORDS, strict=False)]
    questions = [
        {"id": f"q{i}", "question": {"stem": prose(i, 8), "choices": choices}, "answerKey": "B"}
        for i in range(4)
    ]
    passages = [
        {"passage": prose(i, 20), "question": prose(i, 6), "label": bool(i % 2), "idx": i}
        for i in range(4)
    ]
    for split in ("Train", "Test"):
        write(root / "arc" / f"ARC-Easy-{split}.jsonl", questions)
    for split in ("train", "val"):
        write(root / "superglue" / "BoolQ" / f"{split}.jsonl", passages)


def results(path: Path, pythia: Path, table: Path, mapped: Path, exports: Path) -> None:
    """Results of others: the harness' files, Pythia's folder, two tables, charts as exported."""
    for step in (0, 512, 1000, 3000, 8000):
        accuracy = 0.25 + step / 20_000
        scores = {
            "arc_easy": {"acc": accuracy, "acc_stderr": 0.01},
            "piqa": {"acc": accuracy + 0.25},
        }
        result = {
            "results": scores, "versions": {"arc_easy": 0, "piqa": 0},
            "config": {"model": "hf", "num_fewshot": 0,
                       "model_args": f"pretrained=org/tiny-125m,revision=step{step}"},
        }  # fmt: skip
        write(path / f"step{step}.json", json.dumps(result))
        for size in ("70m", "160m"):
            folder = pythia / "pythia-v1" / f"pythia-{size}" / "zero-shot"
            write(folder / f"{size}_step{step}.json", json.dumps(result))
    rows = [f"a,1e8,{100 * 2**n}e6,{0.5 + n / 40},0.01" for n in range(8)]
    write(table, "\n".join(["run,params,tokens,piqa,stderr", *rows]) + "\n")
    rows = [f"b-{n}B,{n},{n * 20},{0.25 + n / 20},{0.3 + n / 30}" for n in (1, 3, 7)]
    write(mapped, "\n".join(["Model,Size (B),Tokens (B),MMLU,ARC", *rows]) + "\n")
    rows = [f"{n},{n * 35}e8,piqa,acc,0,{50 + n}" for n in range(8)]
    write(exports, "\n".join(["checkpoint,tokens,task,metric,shots,value", *rows]) + "\n")


def swarm(suite: Path, mixtures: Path, losses: Path, runs: int = 24) -> None:
    """A suite of scored proxies, whose losses fall with a domain of their own; also as tables."""
    named = {f"mix{number:03}": mixture for number, mixture in enumerate(
        draw({"code": 3, "wiki": 5, "web": 2}, runs))}  # fmt: skip
    settings = {name: {"DataConfig.weights": repr(mixture)} for name, mixture in named.items()}
    write(suite / "suite.json", json.dumps({"rule": "", "runs": settings}))
    scored = {}
    for name, mixture in named.items():
        values = {f"heldout_{d}": 1 + np.exp(-3 * share) for d, share in mixture.items()}
        scored[name] = values
        for task, value in values.items():
            record = Record(
                run=name, family="swarm", params=1000, step=50, tokens=5000, flops=3e7, task=task,
                domain="language", shots=0, metric="bits_per_byte", value=value, stderr=0.01,
                n=10, chance=float("nan"), primary=True,
            )  # fmt: skip
            TrajectoryStore(suite / name).write(50, task, [record])
    pd.DataFrame.from_dict(named, orient="index").to_csv(mixtures, index_label="run")
    pd.DataFrame.from_dict(scored, orient="index").to_csv(losses, index_label="run")


def make(root: Path) -> None:
    """All of it below `root`, and the gin files of docs/data.md."""
    corpora(root / "CORPORA")
    benchmarks(root / "EVALS")
    exports = root / "AMBER" / "downstream.csv"
    results(root / "RESULTS", root / "PATH", root / "TABLE.csv", root / "MAPPED.csv", exports)
    swarm(root / "SWARM", root / "MIXTURES.csv", root / "LOSSES.csv")
    equal = dict.fromkeys(("code", "arithmetic", "copying"), 0.333333)
    write(root / "runs" / "proxy" / "domain_weights.gin", f"DataConfig.weights = {equal}\n")
    write(root / "PROMPTS.txt", "def main():\nimport os\n")
    write(root / "answers.jsonl", [{"prompt": "def main():", "text": " pass"}] * 2)
    gin_files(root)
    shutil.copy(root / "mine.gin", root / "RUN.gin")
    (root / "docs").mkdir()
    for study in ("study", "mixture_study"):
        (root / "docs" / study).symlink_to(REPOSITORY / "docs" / study)


def gin_files(root: Path) -> None:
    """The gin files of docs/data.md, and of docs/resume.md one of fewer steps."""
    page = (REPOSITORY / "docs" / "data.md").read_text()
    blocks = [block.partition("```")[0] for block in page.split("```gin\n")[1:]]
    for name, block in zip(("mine", "sources", "fineweb"), blocks, strict=True):
        write(root / f"{name}.gin", block)
    write(root / "staged.gin", stages().replace("2048000", "2048").replace("700", "2"))


def stages() -> str:
    """The gin file of docs/resume.md with stages."""
    page = (REPOSITORY / "docs" / "resume.md").read_text()
    blocks = [part.partition("```")[0] for part in page.split("```gin\n")[1:]]
    return next(block for block in blocks if "TrainConfig.stages" in block)
