"""Continue prompts with the model of a run or of a Hugging Face directory, or several combined.

    python -m jaxllm.generate --model_dir=runs/mine --prompt="Once upon a time"
    python -m jaxllm.generate --model_dir=hf:DIR --prompts_file=prompts.txt --temperature=0.8 \\
        --top_p=0.95 --seed=1 --output=answers.jsonl
    python -m jaxllm.generate --models=runs/small,runs/large@1000 --combine=probabilities:1,-1 \\
        --prompt="Once upon a time"

--combine draws each token from a combination of models of one vocabulary, in one compiled step:
probabilities:W,W and logits:W,W (weighted sums), contrastive:S (of LARGE,SMALL), emulated:S
(fine-tuning, of BASE,TUNED,SMALL) or value:S (of BASE,VALUE); see `jaxllm.models.combination`.

A single prompt streams to the terminal. Prompts of a file (a line each, or the `prompt` of JSON
lines) are continued in batches. As in training and evaluation, a prompt begins with the token that
begins a document; as in evaluation, trailing spaces are removed.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from jaxllm import cli, runtime
from jaxllm.errors import UserError
from jaxllm.io import atomic_write, location

if TYPE_CHECKING:
    from jaxllm.evaluation.inference import Generator


def main(argv: Sequence[str] | None = None) -> int:
    """Continue the prompts of the flags."""
    flags = cli.parser(__doc__ or "")
    models = flags.add_mutually_exclusive_group(required=True)
    models.add_argument("--model_dir", type=location, metavar="DIR", help="the run, or hf:DIR")
    models.add_argument("--models", metavar="DIR,DIR",
                        help="the models to combine; RUN@STEP is a checkpoint")  # fmt: skip
    flags.add_argument("--combine", metavar="RULE:W,W", help="how --models are combined")
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
    if bool(args.models) != bool(args.combine):
        raise UserError("--models and --combine go together")
    if args.model_dir and args.model_dir.startswith("hf:"):
        cli.refuse_unread(args, ("step",), "of hf:DIR, which is one checkpoint")
    if args.models:
        cli.refuse_unread(args, ("step",), "with --models: write RUN@STEP")
    prompts = [args.prompt] if args.prompt is not None else read_prompts(args.prompts_file)
    generator = make_generator(args)
    if args.prompt is not None and not args.output:
        for chunk in generator.stream(args.prompt):
            print(chunk, end="", flush=True)
        print()
        return 0
    texts = generator.generate(prompts, args.batch_size)
    write(prompts, texts, args.output, settings(args))
    return 0


def read_prompts(name: str) -> list[str]:
    """The prompts of a file: a line each, or the `prompt` of each JSON line of a .jsonl file.

    UserError if there is no such file, it holds none, or a line has no `prompt`.
    """
    from jaxllm.evals.rows import field, read_rows, read_text

    if name.removesuffix(".gz").endswith(".jsonl"):
        prompts = [field(row, "prompt") for row in read_rows(name)]
    else:
        lines = read_text(name).split("\n")
        prompts = [line.removesuffix("\r") for line in lines if line.strip()]
    if not prompts:
        raise UserError(f"--prompts_file={name}: has no prompts")
    return prompts


def settings(args: argparse.Namespace) -> dict[str, Any]:
    """The checkpoints and flags that determine the texts."""
    names = ("checkpoints", "model_dir", "models", "combine", "max_new_tokens", "temperature",
             "top_k", "top_p", "stop", "seed")  # fmt: skip
    return {name: getattr(args, name) for name in names if getattr(args, name)}


def write(
    prompts: Sequence[str], texts: Sequence[str], output: str | None, settings: dict[str, Any]
) -> None:
    """Print prompts with their continuations, or write them with `settings` as JSON lines."""
    if output is None:
        for prompt, text in zip(prompts, texts, strict=True):
            # a continuation begins after the last word, and includes the spaces
            print(f"{prompt.rstrip(' ')}{text}\n{'-' * 20}")
        return
    pairs = zip(prompts, texts, strict=True)
    rows = [{"prompt": p, "text": t, "settings": settings} for p, t in pairs]
    atomic_write(output, "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in rows))
    print(f"wrote {len(rows)} continuations to {output}", file=sys.stderr)


def make_generator(args: argparse.Namespace) -> Generator:
    """The generator for the flags: models, vocabulary, mesh and sampling."""
    from jaxllm.models.combination import Combination, CombinedModel
    from jaxllm.models.sampling import Sampling

    names = [args.model_dir if args.step is None else f"{args.model_dir}@{args.step}"]
    if args.models:
        names = [location(name) for name in args.models.split(",")]
    sampling = Sampling(args.temperature, args.top_k, args.top_p)  # checked before the models
    combination = Combination.parse(args.combine, len(names)) if args.combine else None
    runtime.enable_compilation_cache()

    from jaxllm.interop.opening import open_models

    opened, mesh = open_models(names, lambda run: cli.load_gin(args, run))
    args.checkpoints = [each.name for each in opened]

    from jaxllm.evaluation.inference import Decoding, Generator

    model: Any
    _, model, params, vocabulary = opened[0]
    if combination:
        model = CombinedModel(tuple(each.model for each in opened), combination)
        params = tuple(each.params for each in opened)
    count = args.max_new_tokens or min(128, model.max_length // 2)
    seeds = lambda number: (args.seed, number)
    return Generator(model, params, mesh, Decoding(vocabulary, count, args.stop, sampling, seeds))


if __name__ == "__main__":
    cli.run(main)
