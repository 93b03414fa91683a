"""report/tokens.html: what it stores can be read back, and what it shows is right in a browser."""

import base64
import json
import re
import zlib

import numpy as np
import pytest

from jaxllm.analysis.tokens.runs import TokenRun, TokenStudy
from jaxllm.report import microscope
from jaxllm.run.token_losses import TokenSet
from tests.report.browser import CHROMIUM, Browser

TEXTS = {
    "prose": ("A day in June, 1874.", "</script><b>naïve</b> café 🦊!", "x\ny  z"),
    "code": ("for i in x:\n  f(i)",),
}


def token_set(name: str, size: int = 3) -> TokenSet:
    """Tokens of `size` bytes, so that some begin or end inside a character."""
    ends = [[*range(size, len(t.encode()), size), len(t.encode())] for t in TEXTS[name]]
    return TokenSet.of(name, TEXTS[name], [list(range(len(e))) for e in ends], ends)


def study(name: str, runs: int = 2, checkpoints: int = 40) -> TokenStudy:
    rng, tokens = np.random.default_rng(0), token_set(name)
    steps = np.arange(1, checkpoints + 1) * 10
    falls = np.linspace(6, 0, checkpoints)[:, None] + rng.uniform(0, 2, (checkpoints, 1))
    losses = np.abs(falls + rng.normal(0, 0.1, (checkpoints, len(tokens.tokens))))
    rest = (1e6, steps, steps * 1e3, steps * 1e9, losses.astype(np.float32))
    return TokenStudy(tokens, tuple(TokenRun(f"run{k}", *rest) for k in range(runs)))


def stored(html: str) -> dict:
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', html, re.S)
    assert found
    return json.loads(found[1])


def unpacked(text: str, dtype: str) -> np.ndarray:
    return np.frombuffer(zlib.decompress(base64.b64decode(text)), dtype)


def test_the_losses_are_stored_within_the_stated_error() -> None:
    studies = [study("prose"), study("code")]
    data = stored(microscope.render(studies))
    n = sum(len(each.token_set.tokens) for each in studies)
    steps = list(studies[0].runs[0].steps)
    for run in data["runs"]:
        rows = [steps.index(step) for step in run["steps"]]
        assert len(rows) == microscope.CHECKPOINTS and rows[0] == 0 and rows[-1] == len(steps) - 1
        q = np.cumsum(unpacked(run["losses"], "u1").reshape(-1, n), axis=0, dtype=np.uint8)
        exact = np.concatenate([each.runs[0].losses[rows] for each in studies], axis=1)
        error = np.expm1(0.5 / data["levels"])
        assert np.all(abs(np.expm1(q / data["levels"]) - exact) <= (error + 1e-6) * (1 + exact))


def test_many_losses_are_stored_with_a_larger_error_that_the_page_states(monkeypatch) -> None:
    exact = microscope.render([study("prose")])
    monkeypatch.setattr(microscope, "BYTES", 0)
    coarse = microscope.render([study("prose")])
    assert stored(exact)["levels"] == 16 and "to within 3.2% of" in exact
    assert stored(coarse)["levels"] == 4 and "to within 13.3% of" in coarse
    assert len(coarse) < len(exact)


def test_the_tokens_make_up_the_documents() -> None:
    studies = [study("prose"), study("code")]
    data = stored(microscope.render(studies))
    lengths = np.split(unpacked(data["lengths"], "<u2"), np.cumsum(data["sizes"])[:-1])
    for document, sizes in zip(data["documents"], lengths, strict=True):
        assert sizes.sum() == len(document["text"].encode("utf-16-le")) // 2
    assert [d["text"] for d in data["documents"]] == [*TEXTS["prose"], *TEXTS["code"]]


def test_a_run_without_one_of_the_sets_is_left_out_and_said() -> None:
    html = microscope.render([study("prose", runs=3), study("code", runs=2)])
    assert [run["name"] for run in stored(html)["runs"]] == ["run0", "run1"]
    assert "2 runs; 1 are left out" in html


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium")
def test_the_page_in_a_browser(tmp_path) -> None:
    page = tmp_path / "tokens.html"
    page.write_text(microscope.render([study("prose"), study("code")]))
    with Browser(tmp_path) as browser:
        browser.open(page)
        browser.wait_for("document.querySelectorAll('.pane').length === 2")
        passage = "document.querySelector('.passage').textContent"
        assert browser.evaluate(passage) == TEXTS["prose"][0]
        key = lambda name: (
            f"document.dispatchEvent(new KeyboardEvent('keydown', {{key: '{name}'}}))"
        )
        browser.evaluate(key("n"))
        assert browser.evaluate(passage) == TEXTS["prose"][1]
        browser.evaluate(
            "document.dispatchEvent(new KeyboardEvent('keydown', {key: 'ArrowRight'}))"
        )
        assert browser.evaluate("document.querySelectorAll('.passage .now').length") == 2
        assert "nats" in browser.evaluate("document.getElementById('inspector').textContent")
        browser.evaluate("document.querySelector('[value=change]').click()")
        better = "document.querySelectorAll('.passage span[style*=solid]').length"
        assert browser.evaluate(better) == 2 * stored(page.read_text())["sizes"][1]
        assert "prose" in browser.evaluate("document.getElementById('tables').textContent")
        assert browser.complaints() == []
        assert browser.requests() == []
