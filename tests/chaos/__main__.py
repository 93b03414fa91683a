"""The long form of the chaos suite: `make chaos`, or

    python -m tests.chaos --signals=200 --seed=0 --minutes=60 --home=DIR

Runs are disturbed one after another until each has ended, and compared with one that nothing
disturbed. Prints what was done, and exits with 1 if anything was lost or changed.
"""

from __future__ import annotations

import argparse
import itertools
import shutil
import sys
import tempfile
import time
from pathlib import Path

from tests.chaos.driver import POINTS, SIGNALS, Chaos, assert_same_run, left_over


def main() -> int:
    flags = argparse.ArgumentParser(description=__doc__)
    flags.add_argument("--signals", type=int, default=200)
    flags.add_argument("--seed", type=int, default=0)
    flags.add_argument("--minutes", type=float, default=600.0)
    flags.add_argument("--home", type=Path)
    flags.add_argument("--hosts", type=int, default=2, help="of every fourth run")
    args = flags.parse_args()
    chaos = Chaos(args.home or Path(tempfile.mkdtemp()), args.seed)
    end, runs, changed, leftovers = time.monotonic() + 60 * args.minutes, 0, [], []
    began = time.monotonic()
    assert chaos.wait(chaos.start("whole")) == [0], (chaos.home / "whole.log").read_text()
    chaos.typical = time.monotonic() - began
    for number in itertools.count():
        if len(chaos.events) >= args.signals or time.monotonic() > end:
            break
        name, finished = f"run{number}", False
        hosts = args.hosts if number % 4 == 3 else 1
        for _ in range(8):  # as often, then let it end
            point = chaos.random.choice(["uniform"] * 4 + list(POINTS))
            finished = chaos.disturb(name, chaos.random.choice(SIGNALS), point, hosts)
            done = len(chaos.events) >= args.signals or time.monotonic() > end
            if finished or done:
                break
        if not finished and chaos.wait(chaos.start(name)) != [0]:
            changed.append(f"{name} does not end: {(chaos.home / f'{name}.log').read_text()}")
        runs += 1
        try:
            assert_same_run(chaos.home / name, chaos.home / "whole")
        except AssertionError as error:
            changed.append(f"{name}: {error}")
        leftovers += [f"{name}/{file}" for file in left_over(chaos.home / name)]
        if not changed:
            shutil.rmtree(chaos.home / name)
        print(f"{len(chaos.events)} signals in {runs} runs, {len(changed)} changed", flush=True)
    print(chaos.table())
    print(*changed, *chaos.problems, sep="\n")
    print(f"temporary files that stayed: {leftovers}")
    print(f"{len(chaos.events)} signals in {runs} runs: {len(changed)} lost or changed, "
          f"{len(chaos.problems)} ends that are not as promised")  # fmt: skip
    return int(bool(changed or chaos.problems))


if __name__ == "__main__":
    sys.exit(main())
