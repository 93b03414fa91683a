"""The labels of the axes, as they are drawn."""

import re

import altair as alt
import pandas as pd
import pytest
import vl_convert

from jaxllm.report.charts import marks
from jaxllm.report.charts.axes import COUNT_LABEL


def labels(chart) -> set[str]:
    svg = vl_convert.vegalite_to_svg(chart.to_dict())
    return set(re.findall(r"<text[^>]*>([^<]+)</text>", svg))


def test_counts_below_a_thousand_have_no_unit() -> None:
    values = [0.8, 0.9, 1, 70, 2000, 3e9]
    axis = alt.Axis(values=values, labelExpr=COUNT_LABEL, labelOverlap=False)
    x = alt.X("v:Q", axis=axis, scale=alt.Scale(type="log"))
    chart = alt.Chart(pd.DataFrame({"v": values})).mark_point().encode(x=x)
    assert {"0.8", "0.9", "1", "70", "2K", "3B"} <= labels(chart)


@pytest.mark.parametrize(("field", "expected"), [("flops", "2e11"), ("tokens", "200B")])
def test_flops_are_powers_of_ten_at_any_size(field, expected) -> None:
    table = pd.DataFrame({field: [2e11, 3e11]})
    axis = marks._amounts(table[field])
    axis.values = [2e11]
    chart = alt.Chart(table).mark_point().encode(x=alt.X(f"{field}:Q", axis=axis))
    assert expected in labels(chart)
