"""Continue prompts with the model of a run or of a Hugging Face directory.

    python -m jaxllm.generate --model_dir=runs/mine --prompt="Once upon a time"
    python -m jaxllm.generate --model_dir=hf:DIR --prompts_file=prompts.txt --temperature=0.8 \\
        --top_p=0.95 --seed=1 --output=answers.jsonl

A single prompt streams to the terminal. Prompts of a file (a line each, or the `prompt` of JSON
lines) are continued in batches. As in training and evaluation, a prompt begins with the token that
begins a document; as in evaluation, trailing spaces are removed.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from jaxllm import cli, runtime
from jaxllm.errors import UserError
from jaxllm.io import fetched, location

if TYPE_CHECKING:
    from jaxllm.evaluation.inference import Generator

HF = "hf:"


def main(argv: Sequence[str] | None = None) -> int:
    """Continue the prompts of the flags."""
    flags = cli.parser(__doc__ or "")
    flags.add_argument("--model_dir", type=location, required=True, metavar="DIR",
                       help="the run, or hf:DIR")  # fmt: skip
    flags.add_argument("--step", type=int, metavar="N",
                       help="the checkpoint of a run (default: newest)")  # fmt: skip
    source = flags.add_mutually_exclusive_group(required=True)
    source.add_argument("--prompt", metavar="TEXT", help="one prompt")
    source.add_argument("--prompts_file", metavar="FILE", help="a prompt per line, or JSON lines")
    flags.add_argument("--output", type=location, metavar="FILE",
                       help="write JSON lines here, not the terminal")  # fmt: skip
    flags.add_argument("--max_new_tokens", type=int, metavar="N",
                       help="default: 128, or half of a shorter context")  # fmt: skip
    flags.add_argument("--batch_size", type=int, default=8, metavar="PROMPTS")
    flags.add_argument("--temperature", type=float, default=0.0, help="0 takes the likeliest token")
    flags.add_argument("--top_k", type=int, default=0, metavar="K", help="0 leaves all tokens")
    flags.add_argument("--top_p", type=float, default=1.0, metavar="P")
    flags.add_argument("--stop", action="append", default=[], metavar="TEXT",
                       help="ends before this text; repeatable")  # fmt: skip
    flags.add_argument("--seed", type=int, default=0, help="same seed, same prompt, same text")
    args = cli.parse(flags, argv)
    if args.batch_size < 1 or (args.max_new_tokens is not None and args.max_new_tokens < 1):
        raise UserError("--max_new_tokens and --batch_size need 1 or more")
    if "" in args.stop:
        raise UserError("--stop needs a text that is not empty")
    prompts = [args.prompt] if args.prompt is not None else read_prompts(args.prompts_file)
    generator = make_generator(args)
    if args.prompt is not None and not args.output:
        for chunk in generator.stream(args.prompt, args.stop):
            print(chunk, end="", flush=True)
        print()
        return 0
    write(prompts, generator.generate(prompts, args.batch_size, args.stop), args.output)
    return 0


def read_prompts(name: str) -> list[str]:
    """The prompts of a file: a line each, or the `prompt` of each JSON line of a .jsonl file.

    Raises:
      UserError: there is no such file, it holds none, or a line has no `prompt`.
    """
    from etils import epath

    path = epath.Path(name)
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--prompts_file={name}: {error}") from error
    lines = [line.removesuffix("\r") for line in text.split("\n") if line.strip()]
    if path.suffix == ".jsonl":
        lines = [_prompt_of(line, f"{name}:{number}") for number, line in enumerate(lines, 1)]
    if not lines:
        raise UserError(f"--prompts_file={name}: has no prompts")
    return lines


def _prompt_of(line: str, where: str) -> str:
    try:
        prompt = json.loads(line)["prompt"]
    except (ValueError, KeyError, TypeError, RecursionError):
        prompt = None
    if not isinstance(prompt, str):
        raise UserError(f"{where}: no JSON object with a text as its prompt")
    return prompt


def write(prompts: Sequence[str], texts: Sequence[str], output: str | None) -> None:
    """Print prompts with their continuations, or write them to `output` as JSON lines."""
    if output is None:
        for prompt, text in zip(prompts, texts, strict=True):
            # a continuation begins after the last word, and includes the spaces
            print(f"{prompt.rstrip(' ')}{text}\n{'-' * 20}")
        return
    from jaxllm.io import atomic_write

    rows = [{"prompt": p, "text": t} for p, t in zip(prompts, texts, strict=True)]
    try:
        atomic_write(output, "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in rows))
    except OSError as error:
        raise UserError(f"--output={output}: {error}") from error
    print(f"wrote {len(rows)} continuations to {output}", file=sys.stderr)


def make_generator(args: argparse.Namespace) -> Generator:
    """The generator for the flags: model, vocabulary, mesh and sampling."""
    hf = args.model_dir.startswith(HF)
    if hf:
        cli.refuse_unread(args, ("step",), "of hf:DIR, which is one checkpoint")
    cli.load_gin(args, None if hf else args.model_dir)

    from jaxllm.models.sampling import Sampling
    from jaxllm.sharding.mesh import MeshConfig, make_mesh

    sampling = Sampling(args.temperature, args.top_k, args.top_p)  # checked before the model
    runtime.import_seqio()
    runtime.enable_compilation_cache()
    mesh = make_mesh(MeshConfig())
    model, params, vocabulary = (from_huggingface if hf else from_run)(args, mesh)

    from jaxllm.evaluation.inference import Generator

    count = args.max_new_tokens or min(128, model.max_length // 2)
    return Generator(model, params, vocabulary, mesh, count, sampling, args.seed)


def from_run(args: argparse.Namespace, mesh: Any) -> tuple[Any, Any, Any]:
    """The model, parameters and vocabulary of a checkpoint of a run."""
    from jaxllm.data.tokenizer import with_saved_tokenizer
    from jaxllm.data.vocabularies import build_vocabulary
    from jaxllm.run.data_identity import saved_tokenizer
    from jaxllm.run.run import Run
    from jaxllm.training.experiment import Experiment

    logging.getLogger("absl").setLevel(logging.ERROR)  # Orbax's; its errors are raised as well
    run, experiment = Run(args.model_dir), Experiment.configured()
    entries = run.available() if args.step is None else run.select(str(args.step))
    if not entries:
        raise UserError(f"{args.model_dir} has no checkpoints")
    model = experiment.at(entries[-1].step).model
    params = run.restore_params(entries[-1].step, model, mesh)
    data = with_saved_tokenizer(experiment.data, saved_tokenizer(args.model_dir))
    return model, params, build_vocabulary(data)


def from_huggingface(args: argparse.Namespace, mesh: Any) -> tuple[Any, Any, Any]:
    """The model, parameters and vocabulary of a Hugging Face directory."""
    from jaxllm.data.vocabularies import from_directory
    from jaxllm.interop import huggingface

    directory = fetched(args.model_dir.removeprefix(HF))
    vocabulary = from_directory(directory)
    model, params = huggingface.load(directory, mesh)
    return model, params, vocabulary


if __name__ == "__main__":
    cli.run(main)
