"""A damaged suite.json is one line that names it, for whatever reads a suite."""

import pytest

from jaxllm.errors import UserError
from jaxllm.run.suite_layout import SuiteLayout, runs_in
from jaxllm.training.sweep import rule_of


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "{}", '{"rule": ""}', '{"runs": []}', '{"runs": {"a": 1}}']
)
def test_a_damaged_suite_is_named(tmp_path, text):
    (tmp_path / "suite.json").write_text(text)
    for read in (runs_in, rule_of, lambda path: SuiteLayout(path).declared()):
        with pytest.raises(UserError, match=r"suite\.json is damaged"):
            read(str(tmp_path))


def test_a_suite_without_a_rule_has_the_default_one(tmp_path):
    (tmp_path / "suite.json").write_text('{"runs": {"a": {"SEED": 1}}}')
    declared = SuiteLayout(tmp_path).declared()
    assert declared is not None
    assert (declared.runs, declared.rule) == ({"a": {"SEED": 1}}, "deepseek")
