"""The shared reading, reasoning and math sets in the form of their authors."""

from __future__ import annotations

import collections
import importlib.util
import json
import shutil
from collections.abc import Callable
from pathlib import Path

from tests.evals.adapters import rows, write, write_rows


def boolq(shared: Path, into: Path) -> None:
    """The val rows lack SuperGLUE's titles; the train rows are written out as prompts."""
    made = (
        {"question": row["question"], "passage": row["passage"], "idx": i, "label": row["answer"]}
        for i, row in enumerate(rows(shared / "evals/boolq/validation.jsonl.gz"))
    )
    write_rows(into / "superglue/BoolQ/val.jsonl", made)
    made = (
        {
            "question": row["query"].rpartition("\nQuestion: ")[2].removesuffix("?\nAnswer:"),
            "passage": row["query"].rpartition("\nQuestion: ")[0],
            "idx": row["idx"],
            "label": row["choices"][row["gold"]] == "yes",
        }
        for row in rows(shared / "evals/boolq/train.jsonl.gz")
    )
    write_rows(into / "superglue/BoolQ/train.jsonl", made)


def squad(shared: Path, into: Path) -> None:
    """A sample, written out as prompts; an article for each question."""
    articles = []
    for row in rows(shared / "evals/squad/validation_olmes1000.jsonl.gz"):
        _, _, text = row["query"].partition("\nBackground: ")
        passage, _, asked = text.rpartition("\nQuestion: ")
        answers = [{"text": t, "answer_start": passage.find(t)} for t in row["answers_text"]]
        asked = asked.removesuffix("\nAnswer:")
        qas = [{"id": row["id"], "question": asked, "answers": answers}]
        articles.append({"title": row["title"], "paragraphs": [{"context": passage, "qas": qas}]})
    write(into / "squad/dev-v1.1.json", json.dumps({"data": articles, "version": "1.1"}))


def coqa(shared: Path, into: Path) -> None:
    """A row for each turn; put back together into conversations."""
    turns = collections.defaultdict(list)
    for row in rows(shared / "evals/coqa/validation_wiki_gutenberg.jsonl.gz"):
        turns[row["id"].rpartition("_turn")[0]].append(row)

    def texts(several: list[str]) -> list[dict]:
        return [{"input_text": text, "turn_id": i} for i, text in enumerate(several, 1)]

    data = [
        {
            "source": told[0]["source"],
            "id": name,
            "story": told[0]["story"],
            "questions": texts([row["question"] for row in told]),
            "answers": texts([row["answers"][0] for row in told]),
            "additional_answers": {
                str(i): texts([row["answers"][i + 1] for row in told]) for i in range(3)
            },
        }
        for name, told in turns.items()
    ]
    write(into / "coqa/coqa-dev-v1.0.json", json.dumps({"version": "1.0", "data": data}))


def drop(shared: Path, into: Path) -> None:
    """A sample; all answers are lists of texts, here single ones that are digits are numbers."""
    stories: dict[str, dict] = {}

    def answer(found: list[str]) -> dict:
        number = found[0] if len(found) == 1 and found[0].isdigit() else ""
        date = {"day": "", "month": "", "year": ""}
        return {"number": number, "date": date, "spans": [] if number else found}

    for row in rows(shared / "evals/drop/validation_olmes1000.jsonl.gz"):
        story = stories.setdefault(row["passage"], {"passage": row["passage"], "qa_pairs": []})
        first, *others = map(answer, row["answers"])
        story["qa_pairs"].append({
            "question": row["question"], "query_id": row["query_id"],
            "answer": first, "validated_answers": others,
        })  # fmt: skip
    named = {f"story_{i}": story for i, story in enumerate(stories.values())}
    write(into / "drop/drop_dataset_dev.json", json.dumps(named))


def lambada(shared: Path, into: Path) -> None:
    """The passages without and with their last word."""
    made = (
        {"text": f"{row['context']} {row['continuation']}"}
        for row in rows(shared / "evals/lambada/lambada_openai.jsonl.gz")
    )
    write_rows(into / "lambada/lambada_test.jsonl", made)


def svamp(shared: Path, into: Path) -> None:
    """Three in ten of the problems; the question is their last sentence."""
    made = []
    for number, row in enumerate(rows(shared / "evals/svamp/svamp.jsonl.gz")):
        body, stop, asked = row["context"].rpartition(". ")
        made.append({
            "ID": f"chal-{number}", "Body": body + stop.strip(), "Question": asked,
            "Answer": float(row["answer"]),
        })  # fmt: skip
    write(into / "svamp/SVAMP.json", json.dumps(made))


def mgsm(shared: Path, into: Path) -> None:
    """Conversations of one turn as a table."""
    made = rows(shared / "evals/mgsm_zh/mgsm_zh.jsonl.gz")
    table = "".join(f"{row['messages'][0]['content']}\t{row['answer']}\n" for row in made)
    write(into / "mgsm/mgsm_zh.tsv", table)


def bigbench(shared: Path, into: Path) -> None:
    """Only the names of the files differ."""
    for path in (shared / "evals/bigbench/multiple_choice").glob("*.task.json.gz"):
        folder = into / "bigbench" / path.name.removesuffix(".task.json.gz")
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, folder / "task.json.gz")


def as_they_are(shared: Path, into: Path) -> None:
    """The sets that lie there in their authors' form, and the harness' solved problems."""
    for folder in ("basic_arithmetic", "basic_skills", "bbh", "gsm8k", "simple_arithmetic"):
        shutil.copytree(shared / "evals" / folder, into / folder, dirs_exist_ok=True)
    harness = importlib.util.find_spec("lm_eval")
    if harness and harness.origin:
        task = Path(harness.origin).parent / "tasks/gsm8k/gsm8k-cot.yaml"
        shutil.copy(task, into / "gsm8k/gsm8k-cot.yaml")


ADAPTERS: tuple[Callable[[Path, Path], None], ...] = (
    boolq, squad, coqa, drop, lambada, svamp, mgsm, bigbench, as_they_are,
)  # fmt: skip
