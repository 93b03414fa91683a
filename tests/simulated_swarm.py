"""A swarm of mixtures with its proposal, its check and a DoReMi run, all simulated.

The bits per byte of each domain fall with its own share by a mixing law, and with those of kindred
domains, so that the effects and the best mixture are known.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from jaxllm import mix
from jaxllm.run.manifest import ManifestEntry
from jaxllm.run.records import Record
from jaxllm.run.trajectory import TrajectoryStore
from jaxllm.suites.mixtures import swarm

NATURAL = {"web": 0.6, "code": 0.2, "books": 0.14, "math": 0.06}
DOMAINS = tuple(NATURAL)
KINDRED = {("books", "web"): 0.3, ("math", "code"): 0.3}
LEVELS = {"web": 1.3, "code": 0.9, "books": 1.4, "math": 1.0}
NOISE = 0.006


def bits_per_byte(shares: Mapping[str, float], size: float = 1.0) -> dict[str, float]:
    """The true values of a run of `size` times the parameters."""
    useful = {
        d: shares[d] + sum(KINDRED.get((d, other), 0.0) * shares[other] for other in DOMAINS)
        for d in DOMAINS
    }
    return {d: size**-0.05 * (LEVELS[d] + 0.8 * np.exp(-6 * useful[d])) for d in DOMAINS}


def write(
    suite: Path, mixtures: Mapping[str, Mapping[str, float]], steps: int = 200, size: float = 1.0
) -> None:
    """Runs on mixtures with the records of their last checkpoint, as a suite that was trained."""
    rng = np.random.default_rng(len(mixtures))
    settings = {}
    for name, shares in mixtures.items():
        settings[name] = {"DataConfig.weights": repr(dict(shares))}
        folder = suite / name
        for domain, value in bits_per_byte(shares, size).items():
            record = Record(
                run=name, family=name, params=int(1e5 * size), step=steps, tokens=steps * 4096,
                flops=6e5 * size * steps * 4096, task=f"heldout_{domain}", domain="language",
                shots=0, metric="bits_per_byte", value=value + rng.normal(0, NOISE), stderr=0.01,
                n=100, primary=True,
            )  # fmt: skip
            TrajectoryStore(folder).write(steps, record.task, [record])
        _begun(folder, steps)
        (folder / "config.gin").write_text(f"DataConfig.weights = {dict(shares)!r}\n")
    (suite / "suite.json").write_text(json.dumps({"rule": "", "runs": settings}))


def simulate(root: Path, runs: int = 24) -> Path:
    """A swarm with proposal.gin and a check of four times the parameters; its directory."""
    suite = root / "swarm"
    write(suite, swarm(NATURAL, runs))
    flags = ["--laws=exponential,log_linear", "--draws=20", f"--output={suite}/proposal.gin"]
    assert mix.main(["propose", str(suite), *flags]) == 0
    weights = json.loads((suite / "proposal.json").read_text())["weights"]
    ends = {"natural": NATURAL, "proposed": {**dict.fromkeys(DOMAINS, 0.0), **weights}}
    seeds = {f"{name}_seed{seed}": one for name, one in ends.items() for seed in (1, 2, 3)}
    write(suite / "check", seeds, steps=400, size=4.0)
    return suite


def doremi(folder: Path) -> Path:
    """A run that has learned the weights of its domains."""
    folder.mkdir(parents=True)
    (folder / "domain_weights.gin").write_text(
        "DataConfig.weights = {'web': 0.3, 'code': 0.2, 'books': 0.3, 'math': 0.2}\n"
    )
    _begun(folder, 200)
    return folder


def _begun(folder: Path, step: int) -> None:
    """A manifest with one checkpoint."""
    entry = ManifestEntry(step, step * 4096, 0.0, 1e-3, 2.0, 0, "float32", 0.0, 0.0, "", 0, "final")
    (folder / "checkpoints.jsonl").write_text(json.dumps(dataclasses.asdict(entry)) + "\n")
