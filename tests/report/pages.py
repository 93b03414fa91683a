"""Pages of the report for tests: made as `analyze` makes them, and read as a browser does."""

import json
import re
from html.parser import HTMLParser
from pathlib import Path

from jaxllm.analyze import main as analyze


def build(run_dirs, output=None) -> Path:
    """The index.html that `analyze` writes on some runs."""
    folder = output or Path(run_dirs[0]) / "report"
    assert analyze([*map(str, run_dirs), "--output", str(folder)]) == 0
    return Path(folder) / "index.html"


class Page(HTMLParser):
    """Collects the addresses, the text outside of scripts, and the headings of the charts."""

    def __init__(self, text: str):
        super().__init__()
        self.addresses: list[str] = []
        self.words: list[str] = []
        self.tags: list[str] = []
        self._script = False
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self._script = tag in ("script", "style")
        self.addresses += [v for k, v in attributes if k in ("src", "href", "srcset", "action")]

    def handle_endtag(self, tag):
        self._script = False

    def handle_data(self, data):
        if not self._script:
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join("".join(self.words).split())


def data_of(text: str) -> dict:
    found = re.search(r'<script type="application/json" id="report-data">(.*?)</script>', text)
    data = json.loads(found[1])
    data["records"] = unfold(data["records"])
    for chart in data["charts"].values():
        if "spec" in chart:
            datasets = chart.pop("data").items()
            unfolded = {name: unfold(table) for name, table in datasets}
            chart["spec"]["datasets"] = unfolded | chart["spec"].get("datasets", {})
    return data


def unfold(table: dict) -> list[dict]:
    """The rows of a table, as the page's script makes them."""
    columns = [
        [c["words"][i] for i in c["at"]] if isinstance(c, dict) else c for c in table.values()
    ]
    return [dict(zip(table, row, strict=True)) for row in zip(*columns, strict=True)]


def charts_of(text: str) -> dict:
    return {c["name"]: c["spec"] for c in data_of(text)["charts"].values() if "spec" in c}
