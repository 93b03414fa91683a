"""Tokenises a run's corpora into the cache, as `jaxllm.train` does by itself when it has to.

    python -m jaxllm.prepare --gin_file=quickstart.gin

It takes the gin files and bindings of a run, and prints what each domain holds.
"""

from __future__ import annotations

from collections.abc import Sequence

from jaxllm import cli


def main(argv: Sequence[str] | None = None) -> int:
    """Prepares the splits that were asked for."""
    flags = cli.parser(__doc__ or "")
    flags.add_argument(
        "--split", action="append", choices=("train", "validation", "test"),
        help="which split; repeatable (default: train)",
    )  # fmt: skip
    args = cli.parse(flags, argv)
    cli.load_gin(args)

    from jaxllm.data import corpora
    from jaxllm.data.config import DataConfig
    from jaxllm.data.prepare import prepare, summary

    config = DataConfig()
    corpora.resolve(config)
    for split in args.split or ["train"]:
        print(f"{split}\n{summary(prepare(config, split))}")
    return 0


if __name__ == "__main__":
    cli.run(main)
