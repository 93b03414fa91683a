"""Shared by all commands: t5x's gin flags, and one-line messages for user errors.

    --gin_file=openllama.gin        a gin file (repeatable, later ones win); a bare name is
                                    found in the packaged `gin/` and in its `runs/`
    --gin.NAME=VALUE                one binding or macro; text that is not a gin value
                                    (a path, a word) is taken as a string
    --gin_search_paths=DIR,DIR      where else to look for gin files and their includes
    --safe_gin                      gin files of others: no imports, no code (docs, evaluation)

Only light config modules are imported here, so that `--help` and misspelt names respond at once.
"""

from __future__ import annotations

import argparse
import importlib
import io
import logging
import os
import re
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from jaxllm import runtime
from jaxllm.errors import UserError, nearest, one_line

# Modules with gin configurables, to be imported before gin parses.
CONFIG_MODULES = (
    "jaxllm.models.config",
    "jaxllm.sharding.mesh",
    "jaxllm.data.config",
    "jaxllm.training.config",
    "jaxllm.training.learning_rate",
    "jaxllm.run.checkpoint_schedule",
    "jaxllm.evaluation.config",
    "jaxllm.suites.config",
    "jaxllm.report.delivery",
)

_GIN_FLAG = re.compile(r"^--gin\.([^=]+)=(.*)$", re.DOTALL)


def parser(description: str) -> argparse.ArgumentParser:
    """An argument parser with t5x's gin flags; commands add their own."""
    flags = parser_without_gin(description)
    add_gin_flags(flags)
    return flags


def parser_without_gin(description: str) -> argparse.ArgumentParser:
    """An argument parser of a command that reads no settings."""
    raw = argparse.RawDescriptionHelpFormatter
    return argparse.ArgumentParser(description=description, formatter_class=raw)


def add_gin_flags(flags: argparse.ArgumentParser) -> None:
    """Add t5x's gin flags to a parser."""
    several: dict[str, Any] = {"action": "append", "default": []}
    add = flags.add_argument_group("gin").add_argument
    add("--gin_file", metavar="FILE", help="a gin file; repeatable, later files win", **several)
    add("--gin_bindings", metavar="BINDING", help="one binding, as --gin.NAME=VALUE", **several)
    add("--gin_search_paths", default="", metavar="DIR,DIR", help="where to look for gin files")
    add("--safe_gin", action="store_true", help="refuse gin files that import modules or run code")


def gin_words(args: argparse.Namespace) -> list[str]:
    """The gin flags of a command as words, for another command."""
    words = [f"--gin_file={file}" for file in args.gin_file]
    for binding in args.gin_bindings:
        name, equals, value = binding.partition(" = ")
        words.append(f"--gin.{name}={value}" if equals else f"--gin_bindings={binding}")
    if args.gin_search_paths:
        words.append(f"--gin_search_paths={args.gin_search_paths}")
    return words + ["--safe_gin"] * args.safe_gin


def parse(flags: argparse.ArgumentParser, argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse `argv`, with `--gin.NAME=VALUE` rewritten to gin bindings as in t5x."""
    rewritten = []
    for argument in sys.argv[1:] if argv is None else argv:
        match = _GIN_FLAG.match(argument)
        if match:
            rewritten.append(f"--gin_bindings={match[1]} = {_gin_value(match[2])}")
        elif argument.startswith("--gin."):
            raise UserError(f"{argument}: write --gin.NAME=VALUE")
        else:
            rewritten.append(argument)
    return flags.parse_args(rewritten)


def pair(text: str, flag: str) -> tuple[str, str]:
    """The two sides of NAME=VALUE; UserError for another text."""
    name, equals, value = text.partition("=")
    if not equals:
        raise UserError(f"--{flag}: {text}: write NAME=VALUE")
    return name, value


def numbers(text: str, flag: str, default: float | None = None) -> dict[str, float]:
    """The numbers of NAME=NUMBER,…; a name alone has the default, where there is one."""
    found = {}
    for one in filter(None, text.split(",")):
        bare = default is not None and "=" not in one
        name, value = (one, str(default)) if bare else pair(one, flag)
        try:
            found[name] = float(value)
        except ValueError:
            raise UserError(f"--{flag}: {value} is not a number") from None
    return found


def refuse_unread(args: argparse.Namespace, names: Sequence[str], mode: str) -> None:
    """Raise UserError for a flag that a command does not read in this `mode`."""
    for name in names:
        if getattr(args, name) not in (None, False, []):
            raise UserError(f"--{name} is not read {mode}: leave it out")


def load_gin(args: argparse.Namespace, run: str | None = None) -> None:
    """Parse the config of the run directory `run`, then the command line's files and bindings.

    UserError for a missing file, a syntax error, an unknown name, or as `stored_config.parse`.
    """
    import gin
    from etils import epath

    from jaxllm.run import stored_config

    for module in CONFIG_MODULES:
        importlib.import_module(module)
    paths = [p for p in args.gin_search_paths.split(",") if p] + packaged_gin_directories()
    for path in paths:
        gin.add_config_file_search_path(path)
    # gin's default readers also search Python packages, and mistake a directory runs/ for one.
    is_remote_file = lambda path: "://" in path and epath.Path(path).exists()
    opened: list[str] = []

    def read(path: str) -> Any:
        opened.append(path)
        if args.safe_gin:
            return stored_config.checked(epath.Path(path), includes=True)
        return epath.Path(path).open() if "://" in path else open(path)

    gin.config._FILE_READERS[:] = [(read, os.path.isfile), (read, is_remote_file)]
    logging.disable(logging.ERROR)  # gin logs every directory that a file is not in
    try:
        if run is not None:
            stored_config.parse(run)
        gin.parse_config_files_and_bindings(args.gin_file, [], finalize_config=False)
        if args.safe_gin:
            stored_config.withdraw_permissions("--gin_file", "it with --safe_gin")
        files = gin.config_str(max_line_length=10_000)
        gin.parse_config(args.gin_bindings)
    except OSError as error:
        from jaxllm.io import is_store_error

        if is_store_error(error):
            raise
        raise UserError(_missing_file_message(error, paths)) from error
    except RecursionError as error:
        before = max(i for i, path in enumerate(opened[:-1]) if path == opened[-1])
        circle = " includes ".join(opened[before:])
        raise UserError(f"gin files include each other in a circle: {circle}") from error
    except (ValueError, SyntaxError, NameError, AttributeError, ImportError) as error:
        raise UserError(_parse_message(error)) from error
    finally:
        logging.disable(logging.NOTSET)
    _check_macros(gin.config_str(max_line_length=10_000), files)


def packaged_gin_directories() -> list[str]:
    """Directories of jaxllm's own gin files: a checkout's, or a wheel's copy."""
    package = Path(__file__).resolve().parent
    roots = [d for d in (package.parent / "gin", package / "gin") if (d / "runs").is_dir()]
    return [str(directory) for root in roots[:1] for directory in (root, root / "runs")]


def run(main: Callable[[Sequence[str] | None], int | None]) -> None:
    """Run a command and exit with its code.

    2, with one `error:` line, for a user error, one of an object store, or the system's of a file
    (missing, not writable, a directory); 130 for Ctrl-C, at the second one at once; 1, with a
    traceback, for any other exception.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
    for library in ("gcsfs", "fsspec", "asyncio"):  # they raise what they log
        logging.getLogger(library).setLevel(logging.CRITICAL)
    # TensorStore prints it for each array that it was writing when a save has failed.
    echo, hook = "Event loop is closed", sys.unraisablehook
    sys.unraisablehook = lambda of: None if str(of.exc_value) == echo else hook(of)
    runtime.end_at_second_interrupt()
    runtime.tune_malloc()
    runtime.silence_libtpu()
    for stream in (sys.stdout, sys.stderr):  # for characters that a terminal lacks
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    failed = True
    try:
        code, failed = main(None) or 0, False
    except UserError as error:
        sys.stdout.flush()
        # gin adds "In call to configurable …" on lines of its own: the message names the field.
        message = str(error).split("\n  In call to configurable")[0]
        print(f"error: {one_line(message)}", file=sys.stderr)
        code = 2
    except KeyboardInterrupt:
        sys.stdout.flush()
        print("\ninterrupted", file=sys.stderr)  # below a bar, and what the terminal echoes
        code = 130
    except Exception as error:
        from jaxllm.io import is_store_error

        code = 2
        if isinstance(error, OSError) and error.strerror and error.filename:
            print(f"error: {error.filename}: {error.strerror}", file=sys.stderr)
        elif is_store_error(error):
            print(f"error: an object store answers: {one_line(error)}", file=sys.stderr)
        else:
            code = 1
            traceback.print_exc()
    sys.stdout.flush()
    if failed:
        runtime.abort(code)
    sys.exit(code)


def _gin_value(text: str) -> str:
    """`text` as a gin value: as it is if it parses, a literal in other letters, or a string."""
    from gin import config_parser

    from jaxllm.run.stored_config import References

    text = {"true": "True", "false": "False"}.get(text.lower(), text)
    try:
        list(config_parser.ConfigParser(f"x = {text}", References()))
    except (SyntaxError, ValueError):
        return repr(text)
    return text


def _missing_file_message(error: OSError, paths: Sequence[str]) -> str:
    match = re.search(r"Unable to open file: (.+?)\. ", f"{error} ")
    name = match[1] if match else str(error)
    known = {str(file.relative_to(path)) for path in paths for file in Path(path).rglob("*.gin")}
    looked = ", ".join([".", *(p for p in paths if p not in packaged_gin_directories())])
    return f"no gin file {name} in {looked} or the packaged gin/{nearest(name, known)}"


def _parse_message(error: Exception) -> str:
    """gin's message on one line, with the nearest known name where one is unknown."""
    import gin

    text = " ".join(str(error).split())
    configurables = {
        selector.rsplit(".", 1)[-1]: wrapper
        for selector, wrapper in gin.config._REGISTRY.items()
        if selector.startswith("jaxllm")
    }
    place = re.search(r'In file "([^"]+)", line (\d+)', text)
    where = f"(file {place[1]}, line {place[2]})" if place else "(on the command line)"
    if unknown := re.search(r"No configurable matching '(?:[^']+\.)?([^'.]+)'", text):
        name = unknown[1]
        return f"gin: no configurable named {name}{nearest(name, configurables)} {where}"
    has_no = r"Configurable '(?:[^']+\.)?([^'.]+)' doesn't have a parameter named '([^']+)'"
    if parameter := re.search(has_no, text):
        owner, name = parameter.groups()
        fields = getattr(configurables[owner].wrapped, "__dataclass_fields__", {})
        return f"gin: {owner} has no parameter {name}{nearest(name, fields)} {where}"
    return f"gin: {text}"


def _check_macros(config: str, files: str) -> None:
    """Check that every macro is read: an unread one is misspelt, and would have no effect.

    In `files`, the config without the command line's bindings, which may override what reads it.
    """
    defined = set(re.findall(r"^([A-Za-z_][\w/]*) = ", config, re.MULTILINE))
    read = set(re.findall(r"%([A-Za-z_][\w/]*)", config + files))
    for name in sorted(defined - read):
        raise UserError(f"gin: nothing reads the macro {name}{nearest(name, read)}")
