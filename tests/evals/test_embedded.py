"""The embedded corpus: found on any Python, the same every time, and honestly held out."""

import hashlib
import heapq
import importlib
import inspect
import json
import os
import re
import shutil
import subprocess
import sys
import textwrap
import zipfile
from pathlib import Path

import pytest

from jaxllm.errors import UserError
from jaxllm.evals.probes import embedded

HELD_OUT = ("validation", "test")


@pytest.fixture(scope="module")
def corpus() -> dict[tuple[str, str], dict[str, str]]:
    return {
        (domain, split): {d["id"]: d["text"] for d in embedded.documents(domain, split)}
        for domain in embedded.DOMAINS
        for split in embedded.SPLITS
    }


@pytest.fixture
def library(tmp_path, monkeypatch):
    """A small standard library in a directory, which the module then reads."""
    root = tmp_path / "lib"
    (root / "json").mkdir(parents=True)
    for module in (json, textwrap, heapq):
        relative = Path(*module.__name__.split("."), *(["__init__"] if module is json else []))
        shutil.copy(inspect.getsourcefile(module), root / relative.with_suffix(".py"))
    monkeypatch.setattr(embedded, "_places", lambda: [root])
    embedded._sources.cache_clear()
    yield root
    embedded._sources.cache_clear()


def everything(domain: str) -> list[dict[str, str]]:
    return [d for split in embedded.SPLITS for d in embedded.documents(domain, split)]


@pytest.mark.parametrize("domain", embedded.DOMAINS)
def test_every_split_has_text_under_unique_ids(corpus, domain):
    for split in embedded.SPLITS:
        documents = corpus[domain, split]
        assert documents and all(documents.values())
        assert all(key.startswith(f"{domain}/") for key in documents)
    sizes = [sum(map(len, corpus[domain, split].values())) for split in embedded.SPLITS]
    assert sizes[0] > 100_000 and sizes[0] > 2 * sizes[2]


def test_a_held_out_module_gives_training_neither_code_nor_docstrings(corpus):
    names = [name for name, _ in embedded.modules()]
    test = {name for name in names if embedded.split_of(name) == "test"}
    assert 0.08 < len(test) / len(names) < 0.25

    def owner(document: str) -> str:
        parts = document.split("/", 1)[1].split(".")
        prefixes = [".".join(parts[:n]) for n in range(len(parts), 0, -1)]
        return next(prefix for prefix in prefixes if prefix in set(names))

    for domain in ("code", "docstrings"):
        assert not test & {owner(key) for key in corpus[domain, "train"]}
        assert {owner(key) for key in corpus[domain, "test"]} <= test


@pytest.mark.parametrize("domain", ["docstrings", "reference"])
def test_no_held_out_text_is_trained_on(corpus, domain):
    train = set(corpus[domain, "train"].values())
    for split in HELD_OUT:
        assert not train & set(corpus[domain, split].values())


def test_docstrings_are_those_that_inspect_shows(corpus):
    found = {k: v for split in embedded.SPLITS for k, v in corpus["docstrings", split].items()}
    for function in (textwrap.dedent, textwrap.indent, json.dumps, shutil.copytree):
        key = f"docstrings/{function.__module__}.{function.__name__}"
        assert found[key] == inspect.getdoc(function) + "\n"


def test_code_is_source_that_compiles(corpus):
    documents = {k: t for k, t in corpus["code", "train"].items() if len(t) < 2000}
    assert len(documents) > 500
    broken = 0
    for text in documents.values():
        try:
            compile(text, "document", "exec", dont_inherit=True)
        except SyntaxError:  # a description whose `if` lost the definition in it
            broken += 1
    assert broken < 0.02 * len(documents)


def test_facts_are_true():
    for module, members in embedded.facts():
        if module in ("json", "textwrap", "shutil", "heapq", "random", "string"):
            loaded = importlib.import_module(module)
            assert all(hasattr(loaded, member) for member in members)


def test_facts_of_the_probe_are_trained_on_in_other_words_only(corpus):
    text = "\n".join(corpus["modules", "train"].values())
    lines = set(text.split("\n"))
    tested = 0
    for module, members in embedded.facts():
        for member in members:
            stated = re.search(
                rf"^(help\()?{module}\.{member}\)?$|^{member} is in {module}$", text, re.MULTILINE
            )
            if embedded.fact_split(module, member) == "test":
                tested += 1
                assert stated
                assert embedded.import_line(module, member) not in lines
    assert tested > 100


def test_reading_imports_no_module_of_the_library():
    code = (
        "import sys\nfrom jaxllm.evals.probes import embedded\nbefore = set(sys.modules)\n"
        "for domain in embedded.DOMAINS:\n    list(embedded.documents(domain, 'test'))\n"
        "print(sorted(set(sys.modules) - before))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    imported = {name for name in eval(done.stdout) if not name.startswith("_sysconfigdata")}
    assert imported <= {"pydoc_data", "pydoc_data.topics"}


def test_the_same_documents_in_every_process():
    def digest(seed: str) -> str:
        code = (
            "import hashlib\nfrom jaxllm.evals.probes import embedded\n"
            "rows = [repr(d) for n in embedded.DOMAINS for d in embedded.documents(n, 'test')]\n"
            "print(hashlib.sha256('\\n'.join(rows).encode()).hexdigest())"
        )
        environment = {**os.environ, "PYTHONHASHSEED": seed}
        command = [sys.executable, "-c", code]
        return subprocess.run(
            command, capture_output=True, text=True, check=True, env=environment
        ).stdout.strip()

    rows = [repr(d) for n in embedded.DOMAINS for d in embedded.documents(n, "test")]
    here = hashlib.sha256("\n".join(rows).encode()).hexdigest()
    assert digest("1") == digest("2") == here


def test_a_zip_gives_what_its_directory_gives(library, tmp_path, monkeypatch):
    wanted = {domain: everything(domain) for domain in ("code", "docstrings")}
    assert {d["id"].split("/")[1].split(".")[0] for d in wanted["code"]} == {
        "json", "textwrap", "heapq",
    }  # fmt: skip
    archive = tmp_path / "python.zip"
    with zipfile.ZipFile(archive, "w") as out:
        for path in sorted(library.rglob("*.py")):
            out.write(path, path.relative_to(library))
    monkeypatch.setattr(embedded, "_places", lambda: [tmp_path / "empty", archive])
    (tmp_path / "empty").mkdir()
    embedded._sources.cache_clear()
    assert {domain: everything(domain) for domain in wanted} == wanted


def test_tests_tables_and_broken_files_are_left_out(library):
    before = [name for name, _ in embedded.modules()]
    for name, data in {
        "test/test_it.py": b"x = 1\n",
        "site-packages/other.py": b"x = 1\n",
        "encodings/cp1.py": b"x = 1\n",
        "large.py": b"#" * 200_000,
        "latin.py": b"name = '\xe9'\n",
        "module.pyc": b"\0",
    }.items():
        (library / name).parent.mkdir(exist_ok=True)
        (library / name).write_bytes(data)
    (library / "template.py").write_text("def {name}(:\n")
    embedded._sources.cache_clear()
    assert [name for name, _ in embedded.modules()] == sorted([*before, "template"])
    assert all("template" not in d["id"] for d in everything("code") + everything("docstrings"))


def test_without_pydoc_data_the_reference_still_has_every_split(monkeypatch):
    monkeypatch.setitem(sys.modules, "pydoc_data.topics", None)
    for split in embedded.SPLITS:
        assert list(embedded.documents("reference", split))


def test_a_python_without_sources_is_a_clear_error(tmp_path, monkeypatch):
    monkeypatch.setattr(embedded, "_places", lambda: [tmp_path])
    embedded._sources.cache_clear()
    try:
        with pytest.raises(UserError, match="CORPUS_DIR"):
            list(embedded.documents("code", "train"))
    finally:
        embedded._sources.cache_clear()


def test_unknown_names_are_refused():
    with pytest.raises(KeyError):
        next(embedded.documents("poems", "train"))
    with pytest.raises(ValueError, match="dev"):
        next(embedded.documents("code", "dev"))
