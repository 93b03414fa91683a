"""The page in a browser: controls by mouse and keyboard, themes, narrow windows, downloads."""

import io
import re

import pandas as pd
import pytest
from PIL import Image

from jaxllm.run.run import Run
from tests.report.browser import CHROMIUM, Browser
from tests.report.pages import build
from tests.simulated_run import STEPS, TASKS, simulate

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium")

DRAWN = "[...document.querySelectorAll('.plot')].every((plot) => plot.querySelector('svg.marks'))"


def figure(name: str) -> str:
    return f"[...document.querySelectorAll('figure')].find((f) => f.querySelector('h4').textContent === '{name}')"  # fmt: skip # noqa: E501


def axis_title(name: str) -> str:
    return f"{figure(name)}.querySelector('.role-axis-title text')?.textContent"


def lines(name: str) -> str:
    return f"{figure(name)}.querySelectorAll('.mark-line path').length"


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    one = simulate(folder / "one")
    return one, simulate(folder / "two", run="larger", seed=1, params=12_000_000, skill=1.8)


@pytest.fixture(scope="module")
def index(runs):
    return build(runs[:1])


@pytest.fixture(scope="module")
def index_of_two(runs, tmp_path_factory):
    return build(runs, tmp_path_factory.mktemp("both"))


@pytest.fixture
def browser(tmp_path):
    with Browser(tmp_path) as opened:
        yield opened
        assert opened.complaints() == []
        assert opened.requests() == []


def test_the_axis_changes_at_a_click(browser, index) -> None:
    browser.open(index)
    browser.wait_for(DRAWN)
    width = f"{figure('copying')}.querySelector('.mark-line path').getAttribute('d')"
    drawn = {browser.evaluate(width)}
    for clock, title in (("flops", "Training FLOPs"), ("step", "Step"), ("loss", "Training loss")):
        browser.click(f"document.querySelector('input[value={clock}] + span')")
        browser.wait_for(f"{axis_title('copying')} === '{title}'")
        browser.wait_for(f"{axis_title('Share of the gain')} === '{title}'")
        drawn.add(browser.evaluate(width))
    browser.click("document.querySelector('input[value=tokens] + span')")
    browser.wait_for(f"{axis_title('copying')} === 'Training tokens'")
    before = browser.evaluate(width)
    browser.click("document.querySelector('input[value=linear] + span')")
    browser.wait_for(f"{width} !== '{before}'")
    assert len(drawn) >= 3  # tokens, FLOPs and steps are in proportion; the loss is not
    assert "Tasks that tell early" in browser.evaluate("document.body.innerText")


def test_a_series_is_hidden_at_a_press_and_comes_back(browser, index_of_two) -> None:
    browser.open(index_of_two)
    browser.wait_for(DRAWN)
    button = "document.querySelector('#controls button[data-toggle=larger]')"
    assert browser.evaluate(lines("copying")) == 2
    browser.click(button)
    for name in ("copying", "Training loss"):
        browser.wait_for(f"{lines(name)} === 1")
    assert browser.evaluate(f"{button}.getAttribute('aria-pressed')") == "false"
    browser.click(button)
    for name in ("copying", "Training loss"):
        browser.wait_for(f"{lines(name)} === 2")
    for every in ("simulated", "larger"):  # nothing left is no error
        browser.click(f"document.querySelector('#controls button[data-toggle={every}]')")
    browser.wait_for(f"{figure('copying')}.innerText.includes('All that it shows is hidden')")
    browser.click(button)
    browser.wait_for(f"{lines('copying')} === 1")


def test_a_series_of_one_chart_is_hidden_there_alone(browser, index) -> None:
    browser.open(index)
    browser.wait_for(DRAWN)
    assert browser.evaluate(lines("Training loss by domain")) == 4
    browser.click(f"{figure('Training loss by domain')}.querySelector('button[data-toggle=code]')")
    browser.wait_for(f"{lines('Training loss by domain')} === 3")
    assert browser.evaluate(lines("copying")) == 1


def test_every_control_has_the_focus_in_turn_and_works_by_keyboard(browser, index) -> None:
    browser.open(index)
    browser.wait_for(DRAWN)
    wanted = browser.evaluate(
        "document.querySelectorAll('a, summary, button, .scroll, fieldset').length"
    )
    reached = []
    name = (
        "(({tagName, textContent, ariaLabel, href}) => [tagName, ariaLabel ?? textContent, href])"
    )
    for _ in range(2 * wanted):
        browser.press("Tab")
        at = browser.evaluate(f"{name}(document.activeElement)")
        if at[0] == "BODY":
            break
        # What has the focus shows it: itself, or the label of a radio button.
        assert browser.evaluate(
            "document.activeElement.matches(':focus-visible') && [document.activeElement, "
            "document.activeElement.nextElementSibling].some((e) => e && "
            "getComputedStyle(e).outlineStyle !== 'none')"
        ), at
        reached.append(tuple(at))
    assert len(reached) == wanted

    browser.evaluate("document.querySelector('input[value=tokens]').focus()")
    browser.press("ArrowRight")
    browser.wait_for(f"{axis_title('copying')} === 'Training FLOPs'")
    toggle = f"{figure('Training loss by domain')}.querySelector('[data-toggle]')"
    for key, shown in ((" ", 3), ("Enter", 4)):
        browser.evaluate(f"{toggle}.focus()")
        browser.press(key)
        browser.wait_for(f"{lines('Training loss by domain')} === {shown}")
    browser.evaluate("document.querySelector('summary').focus()")
    browser.press("Enter")
    assert browser.evaluate("document.querySelector('details').open") is False


def test_downloads_hold_the_data(browser, index, runs) -> None:
    browser.open(index)
    browser.wait_for(DRAWN)

    def saved(name: str, press: str):
        browser.click(press)
        path = browser.downloads / name
        browser.wait_for("new Promise((done) => setTimeout(() => done(true), 300))")
        for _ in range(100):
            if path.exists() and path.stat().st_size:
                break
            browser.wait_for("new Promise((done) => setTimeout(() => done(true), 100))")
        return path

    table = pd.read_csv(saved("copying.csv", f"{figure('copying')}.querySelector('[data-csv]')"))
    stored = Run.open(runs[0]).records().query("task == 'copying' and primary")
    assert list(table.step) == list(STEPS)
    assert list(table.value) == pytest.approx(list(stored.value))
    found = pd.read_csv(
        saved(
            "tasks-that-tell-early.csv",
            f"{figure('Tasks that tell early')}.querySelector('[data-csv]')",
        )
    )
    assert {task.name for task in TASKS} == set(found.task)
    everything = pd.read_csv(saved("records.csv", "document.querySelector('[data-all]')"))
    assert len(everything) == len(TASKS) * len(STEPS)
    picture = saved("copying.png", f"{figure('copying')}.querySelector('[data-png]')")
    assert Image.open(picture).size[0] > 200


def test_hovering_tells_the_point(browser, index) -> None:
    browser.open(index)
    browser.wait_for(DRAWN)
    place = f"{figure('copying')}.querySelector('.plot svg')"
    browser.evaluate(f"{place}.scrollIntoView({{block: 'center'}})")
    box = browser.evaluate(f"{place}.getBoundingClientRect().toJSON()")
    browser.pointer("mouseMoved", box["x"] + 0.5 * box["width"], box["y"] + 0.4 * box["height"])
    told = "document.querySelector('#vg-tooltip-element')?.innerText ?? ''"
    browser.wait_for(f"({told}).includes('simulated')")
    text = browser.evaluate(told)
    assert "undefined" not in text
    assert "95% from" in text


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_and_its_charts_follow_the_theme(browser, index, tmp_path, scheme) -> None:
    browser.prefer(scheme)
    browser.open(index)
    browser.wait_for(DRAWN)
    browser.screenshot(tmp_path / "page.png")
    shades = Image.open(io.BytesIO((tmp_path / "page.png").read_bytes())).convert("L")
    assert (sum(shades.tobytes()) / len(shades.tobytes()) > 128) == (scheme == "light")
    card = f"getComputedStyle({figure('copying')}.querySelector('.plot svg')).backgroundColor"
    ground = browser.evaluate(card)
    assert (int(re.findall(r"\d+", ground)[0]) > 128) == (scheme == "light")
    other = "dark" if scheme == "light" else "light"
    browser.prefer(other)  # while it is open
    browser.wait_for(f"{card} !== '{ground}'")


@pytest.mark.parametrize("width", [320, 390, 768])
@pytest.mark.parametrize("many", [False, True])
def test_no_window_is_too_narrow(browser, index, index_of_two, width, many) -> None:
    browser.resize(width, 740)
    browser.open(index_of_two if many else index)
    browser.wait_for(DRAWN)
    assert browser.evaluate("document.documentElement.scrollWidth") <= width
    cut = (
        "[...document.querySelectorAll('figure, h1, h4, button, .sentence')].filter((e) => "
        "e.getBoundingClientRect().right > innerWidth + 1 && !e.closest('.scroll')).length"
    )
    assert browser.evaluate(cut) == 0
