"""The GPU benchmark runs, small, on the CPU: both sides learn, and its arithmetic is right."""

import importlib.util
import math
import re
import subprocess
import sys

import pytest

from tests.conftest import REPOSITORY

FOLDER = REPOSITORY / "benchmarks"


@pytest.mark.slow
def test_it_runs_on_a_cpu() -> None:
    pytest.importorskip("transformers")
    command = [sys.executable, str(FOLDER / "gpu_train.py"), "--tiny", "--set", "remat=full"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "on cpu" in done.stdout
    losses = re.findall(r"loss (\S+) -> (\S+)", done.stdout)
    assert len(losses) == 2
    for first, last in losses:
        assert float(first) == pytest.approx(math.log(256), abs=0.1)
        assert float(last) < float(first)
    speeds = [float(speed) for speed in re.findall(r"(\d+) tokens/s", done.stdout)]
    ratio = float(re.findall(r"ratio of speeds .*: (\S+)", done.stdout)[0])
    assert ratio == pytest.approx(speeds[0] / speeds[1], rel=0.1)


def test_mfu_of_a_7b_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """8192 tokens in 1 s: 6 x 6.6e9 matrix parameters, and 12 x 32 x 4096 x 2048 for attention."""
    monkeypatch.syspath_prepend(str(FOLDER))
    spec = importlib.util.spec_from_file_location("gpu_train", FOLDER / "gpu_train.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    timing = module.Timing(1.0, 10.4, 10.3, "NVIDIA H200", 989e12)
    line = module.report("jaxllm", module.SIZES["7b"], timing)
    flops = 8192 * (6 * (6_738_415_616 - 32_000 * 4096 - 65 * 4096) + 12 * 32 * 4096 * 2048)
    assert f"MFU {flops / 989e12:.1%} (" in line
    assert f"{flops / 1e12:.2f} TFLOP/s" in line
    assert "8192 tokens/s" in line
