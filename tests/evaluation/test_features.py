"""Features for MAUVE are Transformers' last hidden states; what the command refuses."""

import numpy as np
import pytest

from jaxllm import mauve
from jaxllm.analysis.mauve import mauve as score
from jaxllm.errors import UserError
from jaxllm.evaluation.features import last_states


class Letters:
    bos_id, eos_id, vocab_size = 3, 1, 97

    def encode(self, s: str) -> list[int]:
        return [4 + ord(letter) % 90 for letter in s]


def test_features_are_the_last_hidden_states_of_transformers(tmp_path) -> None:
    torch = pytest.importorskip("torch")
    from jaxllm.interop import huggingface
    from tests.interop.huggingface.helpers import mesh, save

    model = save("llama", tmp_path)
    config, params = huggingface.load(tmp_path, mesh())
    texts = ["", "a text", "a text that the context does not hold, " * 3, "b"]
    features = last_states(config, params, Letters(), mesh(), texts)
    for text, ours in zip(texts, features, strict=True):
        ids = [3, *Letters().encode(text)[:63]]
        with torch.no_grad():
            theirs = model.model(torch.tensor([ids])).last_hidden_state[0, -1].numpy()
        np.testing.assert_allclose(ours, theirs, atol=1e-4, rtol=1e-4)


def test_mistakes_are_named(tmp_path, monkeypatch) -> None:
    for name, content in (("one", '{"text": "a"}\n'), ("other", '{"text": "a"}\n{"texts": 1}\n')):
        (tmp_path / name).write_text(content)
    for name, said in (
        ("one", "1 texts, and MAUVE needs two"),
        ("other", "other:2: no field 'text'"),
        ("none", "no file"),
    ):
        file = tmp_path / name
        with pytest.raises(UserError, match=said):
            mauve.main([f"--human={file}", f"--generated={file}", "--model_dir=hf:x"])
    monkeypatch.setitem(__import__("sys").modules, "mauve", None)
    with pytest.raises(UserError, match=r"pip install jaxllm\[mauve\]"):
        score(np.zeros((2, 2)), np.zeros((2, 2)))
