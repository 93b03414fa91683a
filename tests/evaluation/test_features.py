"""Features for MAUVE are Transformers' last hidden states; what the command refuses."""

import json

import gin
import numpy as np
import pandas as pd
import pytest

from jaxllm import mauve
from jaxllm.analysis.mauve import Mauve, text_scores
from jaxllm.analysis.mauve import mauve as score
from jaxllm.analysis.registry import Study
from jaxllm.errors import UserError
from jaxllm.evaluation.features import last_states
from jaxllm.interop import opening
from jaxllm.report.charts import findings as charts
from jaxllm.report.tables import gather
from jaxllm.run.run import Run
from jaxllm.training.loop import train
from tests.training.helpers import MODEL, experiment, stages
from tests.training.helpers import mesh as one_device


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


def test_scores_are_records_of_the_run_whose_texts_they_are(tmp_path, monkeypatch) -> None:
    e = experiment(tmp_path / "run", steps=4)
    names = "vocab_size", "num_layers", "embed_dim", "mlp_dim", "num_heads", "max_length"
    said = "\n".join(f"ModelConfig.{name} = {getattr(MODEL, name)}" for name in names)
    train(e, one_device(), stages(e), config_text=said)
    monkeypatch.setattr(opening, "open_models", lambda names, load: ([(*names, 0, 0, 0)], None))
    monkeypatch.setattr("jaxllm.evaluation.features.last_states", lambda *of: of[-1])
    (tmp_path / "human.jsonl").write_text('{"text": "a"}\n{"text": "b"}\n')
    for name, value in (("sub", 0.6), ("large", 0.9), ("sub", 0.7)):  # the last replaces the first
        texts = tmp_path / f"{name}.jsonl"
        texts.write_text("".join(json.dumps({"text": text}) + "\n" for text in "abc"))
        found = Mauve(value, 0.1, value, 2)
        monkeypatch.setattr("jaxllm.analysis.mauve.mauve", lambda *of, found=found: found)
        flags = [f"--human={tmp_path}/human.jsonl", f"--generated={texts}", "--model_dir=hf:x"]
        for of in ("run", "run@0") if value == 0.9 else ("run",):
            assert mauve.main([*flags, f"--record={tmp_path / of}"]) == 0
            gin.clear_config()
    with pytest.raises(UserError, match="no checkpoint of step 9; it has"):
        mauve.main([*flags, f"--record={tmp_path}/run@9"])
    run = Run(tmp_path / "run")
    rows = run.trajectory.read()
    columns = ["step", "task", "value", "n", "task_version"]
    assert sorted(rows[columns].itertuples(index=False, name=None)) == [
        (0, "mauve_large", 0.9, 3, "hf:x"),
        (4, "mauve_large", 0.9, 3, "hf:x"),
        (4, "mauve_sub", 0.7, 3, "hf:x"),
    ]
    assert set(rows.run) == {"run"} and set(rows.params) == {MODEL.num_params}
    assert [*rows[rows.step == 4].tokens] == 2 * [run.entries()[-1].tokens]
    study = gather([run]).study
    (card,) = text_scores(study)
    assert [*card.table.task] == ["mauve_large", "mauve_sub"]
    np.testing.assert_allclose(card.table[["low", "high"]], [[0.704, 1], [0.504, 0.896]])
    assert "0.90 for mauve_large of run, the highest, and 0.70 for mauve_sub" in card.sentence
    assert charts.text_scores(card, study) is not None


def test_scores_by_the_features_of_different_models_are_not_compared() -> None:
    about = {"run": "r", "metric": "mauve", "stderr": 0.1}
    rows = [
        about | {"step": 1, "task": "a", "value": 0.9, "task_version": "hf:x"},
        about | {"step": 1, "task": "b", "value": 0.2, "task_version": "hf:y"},
        about | {"step": 2, "task": "b", "value": 0.3, "task_version": "hf:y"},
    ]
    one, other = text_scores(Study(pd.DataFrame(rows)))
    assert one.sentence == "MAUVE is 0.90 for a of r." and "by hf:x" in one.title
    assert other.sentence == "MAUVE is 0.30 for b of r." and "by hf:y" in other.title
