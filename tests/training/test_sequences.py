"""The sample of a run's batches is what its loader gives at these steps."""

import numpy as np
import pytest

from jaxllm.data.loader import open_batches, open_source
from jaxllm.training import sequences
from jaxllm.training.config import StageConfig
from tests.data.conftest import config, corpus_dir  # noqa: F401
from tests.training.helpers import MODEL, experiment


@pytest.mark.parametrize(
    ("steps", "sampled"),
    [(6, [1, 2, 3, 4, 5, 6]), (17, [4, 8, 12, 16]), (32, [4, 8, 12, 16, 20, 24, 28, 32])],
)
def test_a_sample_is_of_batches_of_the_loader(tmp_path, config, monkeypatch, steps, sampled):  # noqa: F811
    monkeypatch.setattr(sequences, "BATCHES", 8)
    source, size = open_source(config), config.batch_size
    tokens = 5.0 * size * config.sequence_length
    e = experiment(tmp_path, data=config, steps=steps)
    staged = experiment(
        tmp_path, data=config, steps=steps,
        stages=(StageConfig(tokens=tokens), StageConfig(batch_size=2)),
    )  # fmt: skip
    for run, sources, second in (e, [source], size), (staged, [source, source], 2):
        found = sequences.sample(run, sources, 3)
        assert list(dict.fromkeys(one.step for one in found)) == sampled
        loader = open_batches(source, size)
        batches = [next(loader) for _ in range(5)]
        loader.close()
        loader = open_batches(source, second, start=5 * size)
        batches += [next(loader) for _ in range(steps - 5)]
        loader.close()
        for step in sampled:
            own = [one for one in found if one.step == step]
            batch = batches[step - 1]
            assert len(own) == min(3, len(batch.inputs))
            for place, one in enumerate(own):
                assert one.id == f"{step}/{place}"
                assert one.domain == source.domains[batch.domains[place]]
                for name in ("inputs", "targets", "weights", "segment_ids"):
                    np.testing.assert_array_equal(getattr(one, name), getattr(batch, name)[place])
    assert MODEL
