"""The shared evaluation data in the form of the benchmarks' authors.

Some sets lie there as another project republished them; these functions turn those back, so that
the real parsers run on all of their rows. `python -m tests.evals.adapters SHARED_DATA EVAL_DIR`
makes a whole EVAL_DIR.
"""

from __future__ import annotations

import collections
import csv
import gzip
import itertools
import json
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

Rows = Iterable[dict[str, Any]]
STAND_INS = 40


def lines(path: Path) -> list[str]:
    return gzip.decompress(path.read_bytes()).decode("utf-8-sig").split("\n")


def rows(path: Path) -> Iterator[dict[str, Any]]:
    return (json.loads(line) for line in lines(path) if line)


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def write_rows(path: Path, made: Rows) -> None:
    write(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in made))


def write_labelled(folder: Path, split: str, made: Rows, label: str) -> None:
    """`made` without the field `label`, which goes into a list of its own."""
    made = list(made)
    write(folder / f"{split}-labels.lst", "".join(f"{row[label]}\n" for row in made))
    asked = ({k: v for k, v in row.items() if k != label} for row in made)
    write_rows(folder / f"{split}.jsonl", asked)


def mmlu(shared: Path, into: Path) -> None:
    """Tables without a header, one for each subject."""
    for split in ("dev", "test"):
        subjects = collections.defaultdict(list)
        for row in rows(shared / f"evals/mmlu/{split}.jsonl.gz"):
            subjects[row["subject"]].append(
                [row["question"], *row["choices"], "ABCD"[row["answer"]]]
            )
        for subject, table in subjects.items():
            path = into / f"mmlu/{split}/{subject}_{split}.csv"
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("w", newline="", encoding="utf-8") as file:
                csv.writer(file).writerows(table)


def arc(shared: Path, into: Path) -> None:
    """Choices with letters; the rows lack them, and any would do."""
    for level in ("Easy", "Challenge"):
        for split in ("train", "test"):
            source = shared / f"evals/arc_{level.lower()}/{split}.jsonl.gz"
            made = (_science(row) for row in rows(source))
            write_rows(into / f"arc/ARC-{level}-{split.title()}.jsonl", made)


def openbookqa(shared: Path, into: Path) -> None:
    """As ARC; the answer's cue was put behind the questions."""
    for split in ("train", "test"):
        made = (_science(row) for row in rows(shared / f"evals/openbookqa/{split}.jsonl.gz"))
        write_rows(into / f"openbookqa/{split}.jsonl", made)


def _science(row: dict[str, Any]) -> dict[str, Any]:
    stem = row["query"].removeprefix("Question: ").removesuffix("\nAnswer:")
    return _question(row["id"], stem, row["choices"], "ABCDE"[row["gold"]])


def _question(name: str, stem: str, texts: list[str], answer: str) -> dict[str, Any]:
    choices = [{"text": text, "label": "ABCDE"[i]} for i, text in enumerate(texts)]
    return {"id": name, "question": {"stem": stem, "choices": choices}, "answerKey": answer}


def commonsense_qa(shared: Path, into: Path) -> None:
    """The train rows are in the form of ARC's."""
    folder = shared / "evals/commonsense_qa"
    made = (
        _question(row["id"], row["question"], row["choices"]["text"], row["answerKey"])
        for row in rows(folder / "validation.jsonl.gz")
    )
    write_rows(into / "commonsense_qa/dev_rand_split.jsonl", made)
    made = (_science(row) for row in rows(folder / "train.jsonl.gz"))
    write_rows(into / "commonsense_qa/train_rand_split.jsonl", made)


def piqa(shared: Path, into: Path) -> None:
    """Labels in a file of their own."""
    for split, ours in (("dev", "validation"), ("train", "train")):
        made = (
            {name: row[name] for name in ("goal", "sol1", "sol2", "label")}
            for row in rows(shared / f"evals/piqa/{ours}.jsonl.gz")
        )
        write_labelled(into / "piqa", split, made, "label")


def siqa(shared: Path, into: Path) -> None:
    """Labels in a file of their own."""
    made = rows(shared / "evals/siqa/validation.jsonl.gz")
    write_labelled(into / "siqa", "dev", made, "label")


def winogrande(shared: Path, into: Path) -> None:
    """Only the names of the files differ, and there are no ids."""
    for split, ours in (("dev", "validation"), ("train_xl", "train")):
        made = rows(shared / f"evals/winogrande/{ours}.jsonl.gz")
        write_rows(into / f"winogrande/{split}.jsonl", made)


def copa(shared: Path, into: Path) -> None:
    """Only the name of the file differs."""
    write_rows(into / "superglue/COPA/val.jsonl", rows(shared / "evals/copa/validation.jsonl.gz"))


def hellaswag(shared: Path, into: Path) -> None:
    """Six lines each; they do not say where ctx_a ends, so ctx_b is empty."""
    text = lines(shared / "evals/hellaswag/hellaswag_val_full.txt.gz")
    made = []
    for start in range(0, len(text) - 5, 6):
        context, label, *endings = text[start : start + 6]
        activity, _, beginning = context.partition(": ")
        made.append({
            "ind": start // 6, "activity_label": activity, "ctx_a": beginning, "ctx_b": "",
            "label": int(label), "endings": endings,
        })  # fmt: skip
    write_rows(into / "hellaswag/hellaswag_val.jsonl", made)


def triviaqa(shared: Path, into: Path) -> None:
    """A sample of 3,000; the first half stands for the web's questions."""
    made = [
        {
            "QuestionId": f"sample_{number}",
            "Question": row["context"].removeprefix("Question: ").removesuffix("\nAnswer:"),
            "Answer": {"Value": row["answer"], "Aliases": row["aliases"]},
        }
        for number, row in enumerate(rows(shared / "evals/triviaqa/triviaqa_sm_sub.jsonl.gz"))
    ]
    for part, half in (("web", made[:1500]), ("wikipedia", made[1500:])):
        write(into / f"triviaqa/qa/{part}-dev.json", json.dumps({"Data": half}))


def nq_open(shared: Path, into: Path) -> None:
    """Only the name of the file differs."""
    write_rows(
        into / "nq_open/NQ-open.dev.jsonl", rows(shared / "evals/nq_open/validation.jsonl.gz")
    )


def truthfulqa(shared: Path, into: Path) -> None:
    """The table of questions as the multiple-choice file, which ends answers with a full stop."""

    def answers(text: str) -> list[str]:
        found = (answer.strip() for answer in text.split(";"))
        return [answer if answer.endswith(".") else f"{answer}." for answer in found if answer]

    made = []
    for row in csv.DictReader(lines(shared / "evals/truthfulqa/TruthfulQA.csv.gz")):
        best, right = answers(row["Best Answer"])[:1], answers(row["Correct Answers"])
        wrong = dict.fromkeys(answers(row["Incorrect Answers"]), 0)
        made.append({
            "question": row["Question"],
            "mc1_targets": dict.fromkeys(best, 1) | wrong,
            "mc2_targets": dict.fromkeys(right, 1) | wrong,
        })  # fmt: skip
    write(into / "truthfulqa/mc_task.json", json.dumps(made))


def as_they_are(shared: Path, into: Path) -> None:
    """The sets that lie there in their authors' form."""
    for source, folder in (
        ("evals/agieval", "agieval"),
        ("evals_noncommercial/logiqa", "agieval"),
        ("evals_noncommercial/cmmlu", "cmmlu"),
        ("evals/copycolors", "copycolors"),
    ):
        shutil.copytree(shared / source, into / folder, dirs_exist_ok=True)


ADAPTERS: tuple[Callable[[Path, Path], None], ...] = (
    mmlu, arc, openbookqa, commonsense_qa, piqa, siqa, winogrande, copa, hellaswag, triviaqa,
    nq_open, truthfulqa, as_they_are,
)  # fmt: skip


def eval_dir(shared: Path, into: Path) -> Path:
    """Fills `into` with every set of `shared` in its authors' form; returns it."""
    from tests.evals import adapters_passages

    for adapt in (*ADAPTERS, *adapters_passages.ADAPTERS):
        adapt(shared, into)
    return into


def add_stand_ins(into: Path) -> None:
    """Questions as solved examples of the sets of an EVAL_DIR that the shared data have none of."""
    for name, source in (
        ("superglue/COPA/train.jsonl", "superglue/COPA/val.jsonl"),
        ("hellaswag/hellaswag_train.jsonl", "hellaswag/hellaswag_val.jsonl"),
        ("nq_open/NQ-open.train.jsonl", "nq_open/NQ-open.dev.jsonl"),
        ("siqa/train.jsonl", "siqa/dev.jsonl"),
    ):
        with open(into / source) as file:
            write_rows(into / name, map(json.loads, itertools.islice(file, STAND_INS)))
    labels = (into / "siqa/dev-labels.lst").read_text().split()[:STAND_INS]
    (into / "siqa/train-labels.lst").write_text("\n".join(labels))
    for part in ("web", "wikipedia"):
        data = json.loads((into / f"triviaqa/qa/{part}-dev.json").read_text())["Data"]
        text = json.dumps({"Data": data[:STAND_INS]})
        (into / f"triviaqa/qa/{part}-train.json").write_text(text)


if __name__ == "__main__":
    made = eval_dir(Path(sys.argv[1]), Path(sys.argv[2]))
    add_stand_ins(made)
    print(made)
