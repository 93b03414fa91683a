"""Two processes score what one does, and leave together when one of them is asked to stop."""

import json
import os

import pytest

from tests import zygote
from tests.conftest import REPOSITORY
from tests.devices import xla_flags
from tests.hosts import free_port


def run(count):
    port, env = free_port(), {**os.environ, "XLA_FLAGS": xla_flags(4 // count)}
    module = "tests.evaluation.one_of_hosts"
    processes = [
        zygote.Process([module, str(port), str(rank), str(count)], REPOSITORY, env)
        for rank in range(count)
    ]
    outputs = [process.communicate() for process in processes]
    assert all(process.returncode == 0 for process in processes), outputs
    return [json.loads(out.split("RESULT", 1)[1]) for out, _ in outputs]


@pytest.mark.slow
def test_two_hosts_score_and_stop_as_one():
    ((scores, said, left),) = run(1)
    assert left == 2
    for others in run(2):
        assert others[0] == pytest.approx(scores, rel=1e-6)
        assert others[1:] == [said, left]
