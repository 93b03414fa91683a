"""Text that every Python installation carries, as a corpus: no network, no files of ours.

    code         source of the standard library, a document per class, function or description
    docstrings   what its modules, classes and functions say about themselves
    reference    the language reference (`pydoc_data.topics`) and what built-in names say of theirs
    modules      which names belong to which module, written out in several ways

Sources are parsed, never imported. Whole modules are held out by a hash of their name, so the code
and the docstrings of a held-out module are both unseen in training. A docstring that also occurs
in a held-out module is left out of training. `modules` is the exception: every fact occurs in
training, and what is held out is one way of writing it (`import_line`), for some of the facts.

Works from a directory or a zip of sources, and with modules missing; figures differ a little
between Python versions because their libraries do.
"""

from __future__ import annotations

import ast
import builtins
import functools
import hashlib
import inspect
import os
import random
import re
import sys
import sysconfig
import zipfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from jaxllm.errors import UserError

DOMAINS = ("code", "docstrings", "reference", "modules")
SPLITS = ("train", "validation", "test")

# Not prose or code that someone would read: tests, vendored packages, tables, generated files.
_SKIPPED_FOLDERS = re.compile(
    r"(test|tests|site-packages|dist-packages|idlelib|lib2to3|turtledemo|ensurepip|encodings"
    r"|pydoc_data|_pyrepl|__phello__|__pycache__|lib-dynload|distutils|tkinter|config-.*)$"
)
_SKIPPED_FILES = re.compile(r"(_sysconfigdata|__phello__|_pydecimal|stringprep|html/entities)")
_LARGEST_FILE = 150_000  # bytes; what is larger is a table, or would outweigh all others
_LONGEST_CODE, _LONGEST_TOPIC = 3_000, 40_000  # characters of a document
_FACT_REPEATS = 12  # documents per module in `modules`
_MEMBERS_PER_MODULE = 12


def documents(domain: str, split: str) -> Iterator[dict[str, str]]:
    """The documents of an embedded domain: `text` and `id`, the same ones every time.

    Raises:
      KeyError: no such domain.
      ValueError: no such split.
      UserError: this Python carries no sources of its standard library.
    """
    read = {
        "code": _code,
        "docstrings": _docstrings,
        "reference": _reference,
        "modules": _module_facts,
    }[domain]
    if split not in SPLITS:
        raise ValueError(f"split {split!r}: one of {', '.join(SPLITS)}")
    for name, text in read(split):
        yield {"id": f"{domain}/{name}", "text": text}


def split_of(name: str, test_share: float = 0.15) -> str:
    """The split of a module, topic or fact, from a hash of its name: 10 % are validation."""
    digest = hashlib.blake2b(name.encode(), digest_size=8).digest()
    place = int.from_bytes(digest, "big") / 2**64
    return "test" if place < test_share else "validation" if place < test_share + 0.1 else "train"


def modules() -> Iterator[tuple[str, str]]:
    """(module name, source text) of the standard library, in the order of the names."""
    sources = _sources()
    for path in sorted(sources):
        yield _module_name(path), sources[path]


@functools.cache
def _sources() -> dict[str, str]:
    """Relative path -> text of every source file worth reading."""
    for place in _places():
        found = _read_zip(place) if place.is_file() else _read_directory(place)
        if found:
            return found
    raise UserError(
        f"{sys.executable} carries no sources of its standard library (looked in"
        f" {', '.join(map(str, _places()))}); use a Python that does, or a corpus of your own"
        " through CORPUS_DIR"
    )


def _places() -> list[Path]:
    """Where the standard library may lie: its directory, or a zip on the path."""
    folders = [sysconfig.get_paths()["stdlib"], os.path.dirname(os.__file__)]
    zips = [path for path in sys.path if path.endswith(".zip")]
    return [p for p in dict.fromkeys(map(Path, folders + zips)) if p.exists()]


def _read_directory(root: Path) -> dict[str, str]:
    found: dict[str, str] = {}
    for folder, subfolders, files in os.walk(root):
        subfolders[:] = [name for name in subfolders if not _SKIPPED_FOLDERS.match(name)]
        for name in files:
            path = Path(folder, name)
            relative = path.relative_to(root).as_posix()
            if _wanted(relative) and path.stat().st_size <= _LARGEST_FILE:
                found |= _decoded(relative, path.read_bytes())
    return found


def _read_zip(path: Path) -> dict[str, str]:
    found: dict[str, str] = {}
    with zipfile.ZipFile(path) as archive:
        for entry in archive.infolist():
            if _wanted(entry.filename) and entry.file_size <= _LARGEST_FILE:
                found |= _decoded(entry.filename, archive.read(entry))
    return found


def _wanted(relative: str) -> bool:
    path = PurePosixPath(relative)
    return (
        path.suffix == ".py"
        and not any(map(_SKIPPED_FOLDERS.match, path.parts[:-1]))
        and not _SKIPPED_FILES.search(relative)
    )


def _decoded(relative: str, data: bytes) -> dict[str, str]:
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError:
        return {}
    return {relative: text.replace("\r\n", "\n")} if text.strip() else {}


def _module_name(relative: str) -> str:
    parts = PurePosixPath(relative).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)


def _parsed(split: str) -> Iterator[tuple[str, str, ast.Module]]:
    for name, text in modules():
        if split_of(name) == split:
            try:
                yield name, text, ast.parse(text)
            except (SyntaxError, ValueError):  # a template, or meant for another version
                continue


def _code(split: str) -> Iterator[tuple[str, str]]:
    """A document per top-level definition; what stands before and between them is kept together."""
    for name, text, tree in _parsed(split):
        lines = text.splitlines(keepends=True)
        start, description = 0, []
        for node in tree.body:
            if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                continue
            first = min([node.lineno] + [d.lineno for d in node.decorator_list]) - 1
            description += lines[start:first]
            start = node.end_lineno or first
            yield f"{name}.{node.name}", _beginning("".join(lines[first:start]))
        rest = re.sub(r"\n{3,}", "\n\n", "".join(description + lines[start:])).strip()
        if len(rest) > 80:
            yield name, _beginning(rest + "\n")


def _beginning(text: str) -> str:
    """The first lines of a text: without a limit, half of the corpus would be a few classes."""
    return text if len(text) <= _LONGEST_CODE else text[: text.rindex("\n", 0, _LONGEST_CODE) + 1]


def _docstrings(split: str) -> Iterator[tuple[str, str]]:
    found = dict(_all_docstrings(split))
    if split == "train":
        unseen = {text for held_out in SPLITS[1:] for _, text in _all_docstrings(held_out)}
        found = {name: text for name, text in found.items() if text not in unseen}
    seen = set()
    for name, text in found.items():
        if text not in seen:
            seen.add(text)
            yield name, text + "\n"


def _all_docstrings(split: str) -> Iterator[tuple[str, str]]:
    for module, _, tree in _parsed(split):
        yield from _docstrings_below(module, tree)


def _docstrings_below(
    name: str, node: ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
) -> Iterator[tuple[str, str]]:
    text = ast.get_docstring(node)
    if text and len(text) >= 40:
        yield name, inspect.cleandoc(text)
    for child in node.body:
        if isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield from _docstrings_below(f"{name}.{child.name}", child)


def _reference(split: str) -> Iterator[tuple[str, str]]:
    built_in = [
        part for part in vars(builtins).values() if inspect.isclass(part) or inspect.isbuiltin(part)
    ]
    texts = {f"builtins.{part.__name__}": _all_about(part.__name__, part) for part in built_in}
    try:
        from pydoc_data.topics import topics

        texts |= {name: text for name, text in topics.items() if len(text) <= _LONGEST_TOPIC}
    except ImportError:  # some distributions leave pydoc's data out
        pass
    unique = {text: name for name, text in sorted(texts.items(), reverse=True)}  # topics repeat
    for text, name in sorted(unique.items(), key=lambda item: item[1]):
        if split_of(name) == split and len(text) >= 200:
            yield name, re.sub(r"\n{3,}", "\n\n", text).strip() + "\n"


def _all_about(name: str, built_in: object) -> str:
    """A built-in and its own public attributes, with what they say about themselves."""
    parts: dict[str, object] = {name: built_in}
    if isinstance(built_in, type):
        own = sorted(key for key in vars(built_in) if not key.startswith("_"))
        parts |= {f"{name}.{key}": getattr(built_in, key) for key in own}
    described = ((key, inspect.getdoc(part)) for key, part in parts.items())
    return "\n\n".join(f"{key}\n{text}" for key, text in described if text)


@functools.cache
def facts() -> tuple[tuple[str, tuple[str, ...]], ...]:
    """(module, some of its public names) for modules that declare `__all__`."""
    found = []
    for name, text in modules():
        if name.startswith("_") or "." in name or "__all__" not in text:
            continue
        members = [m for m in _declared(text) if re.fullmatch(r"[A-Za-z][A-Za-z0-9]*", m)]
        if len(members) >= 4:
            random.Random(f"members/{name}").shuffle(members)
            found.append((name, tuple(sorted(members[:_MEMBERS_PER_MODULE]))))
    return tuple(found)


def _declared(text: str) -> list[str]:
    """The strings of a module's literal `__all__ = [...]`."""
    try:
        body = ast.parse(text).body
    except (SyntaxError, ValueError):
        return []
    for node in body:
        if (
            isinstance(node, ast.Assign)
            and any(isinstance(t, ast.Name) and t.id == "__all__" for t in node.targets)
            and isinstance(node.value, ast.List | ast.Tuple)
        ):
            return [e.value for e in node.value.elts if isinstance(e, ast.Constant)]  # type: ignore
    return []


def import_line(module: str, member: str) -> str:
    """The way of writing a fact that is held out for some of the facts."""
    return f"from {module} import {member}"


def fact_split(module: str, member: str) -> str:
    """Where the import line of a fact belongs: half of them are never seen in training."""
    return split_of(f"{module}.{member}", test_share=0.4)


def _module_facts(split: str) -> Iterator[tuple[str, str]]:
    """Facts in other words for `train`; the held-out import lines for the other splits."""
    if split != "train":
        for module, members in facts():
            lines = [import_line(module, m) for m in members if fact_split(module, m) == split]
            if lines:
                yield module, "\n".join(lines) + "\n"
        return
    for module, members in facts():
        for repeat in range(_FACT_REPEATS):
            rng = random.Random(f"facts/{module}/{repeat}")
            yield f"{module}/{repeat}", _in_other_words(rng, module, members)


def _in_other_words(rng: random.Random, module: str, members: tuple[str, ...]) -> str:
    lines = []
    for member in rng.sample(members, len(members)):
        ways = [f"{module}.{member}", f"{member} is in {module}", f"help({module}.{member})"]
        if fact_split(module, member) == "train":
            ways += [import_line(module, member)] * 2
        lines.append(rng.choice(ways))
    return "\n".join(lines) + "\n"
