"""Records become curves: nothing is joined that is not comparable, and what is left out is said."""

import numpy as np
import pandas as pd
import pytest

from jaxllm.analysis.curves import curves, is_share, lower_is_better, with_gaps
from jaxllm.run.records import COLUMNS
from tests.analysis.planted import broken, table


def test_scores_grow_with_quality() -> None:
    perplexity = table({"p": [100.0, 10.0]}, metric="perplexity", stderr=1.0, chance=50.0)
    bits = table({"b": [2.0, 1.0]}, metric="bits_per_byte", chance=np.nan)
    b, p = curves(pd.concat([perplexity, bits]))
    np.testing.assert_allclose(p.scores, [-np.log(100), -np.log(10)])
    np.testing.assert_allclose(p.score_stderr, [0.01, 0.1])
    assert p.chance_score == pytest.approx(-np.log(50)) and p.chance == 50
    np.testing.assert_allclose(b.scores, [-2.0, -1.0])
    assert lower_is_better("word_perplexity") and not lower_is_better("accuracy")
    assert is_share("accuracy_per_char") and not is_share("error_f1")


def test_versions_and_shots_are_never_joined() -> None:
    old = table({"a": [0.3, 0.4, 0.5]}, tokens=[1, 2, 3])
    new = table({"a": [0.7, 0.8]}, tokens=[3, 4]).assign(task_version="2", step=[3, 4])
    few = table({"a": [0.1]}, tokens=[4]).assign(shots=5, step=1)
    every = curves(pd.concat([old, new, few]))
    assert [(c.task_version, c.shots, len(c.values)) for c in every] == [
        ("1", 0, 3), ("2", 0, 2), ("1", 5, 1),
    ]  # fmt: skip
    main = every.main()
    (curve,) = main
    assert any("change the version" in note for note in main.notes)
    assert curve.task_version == "2" and list(curve.values) == [0.7, 0.8]


def test_runs_scored_on_different_versions_are_not_compared() -> None:
    one = table({"a": [0.3, 0.4], "b": [0.3, 0.4]}, run="one")
    two = table({"a": [0.7, 0.8], "b": [0.3, 0.4]}, run="two")
    two.loc[two.task == "a", "task_version"] = "2"
    found = curves(pd.concat([one, two])).main().comparable()
    assert set(found.points.task) == {"a (version 1)", "a (version 2)", "b"}
    assert any("different versions of a" in note for note in found.notes)


def test_of_several_metrics_the_primary_one_is_the_main_one() -> None:
    frame = pd.concat([table({"t": [0.9, 0.8]}, metric="brier"), table({"t": [0.3, 0.4]})])
    assert len(curves(frame)) == 2
    (curve,) = curves(frame).main()
    assert curve.metric == "accuracy" and list(curve.scores) == [0.3, 0.4]
    (first,) = curves(frame.assign(primary=False)).main()
    assert first.metric == "accuracy"  # none is primary: the first in the alphabet


def test_what_is_left_out_is_said() -> None:
    found = curves(broken(table({"a": np.linspace(0.3, 0.8, 12)})))
    said = " ".join(found.notes)
    assert "have no value" in said and "repeated" in said
    assert np.isfinite(found.points.value).all()
    assert not found.points.duplicated(["curve", "step"]).any()
    assert len(curves(pd.DataFrame(columns=COLUMNS)).main().comparable()) == 0


def test_records_without_tokens_have_curves_by_step_only() -> None:
    frame = table({"a": [0.3, 0.5, 0.4]}).assign(tokens=np.nan)
    found = curves(frame).main()
    assert list(next(iter(found)).values) == [0.3, 0.5, 0.4]
    assert len(found.comparable()) == 0
    assert any("how many tokens" in note for note in found.comparable().notes)


def test_gaps_stand_where_a_task_failed_or_was_not_scored() -> None:
    records = table({"a": [0.3, 0.4, 0.5], "b": [0.3, np.nan, 0.5], "c": [np.nan] * 3})
    records.loc[(records.task == "c"), "status"] = "it crashed"
    records = records[~((records.task == "a") & (records.step == 1))]
    shown = with_gaps(curves(records).main(), records).set_index(["task", "step"])
    assert shown.status["a", 1] == "no record" and np.isnan(shown.value["a", 1])
    assert shown.tokens["a", 1] == 100 and shown.chance["a", 1] == 0.25
    assert shown.status["b", 1] == "ok" and np.isnan(shown.value["b", 1])
    assert (shown.loc["c"].status == "it crashed").all() and len(shown) == 9


def test_a_task_of_every_other_checkpoint_has_no_gaps() -> None:
    records = table({"a": [0.3, 0.4, 0.5, 0.6], "b": [0.3, 0.4, 0.5, 0.6]})
    records = records[(records.task == "a") | (records.step % 2 == 0)]
    shown = with_gaps(curves(records).main(), records)
    assert shown.groupby("task").size().to_dict() == {"a": 4, "b": 2}
