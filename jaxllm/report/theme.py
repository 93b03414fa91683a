"""Light and dark colours of the page, the charts and the exported figures.

The series colours are Okabe and Ito's, which colour-blind readers can distinguish, with yellow and
black replaced and the lightness adapted to the background. Every colour has a contrast of at least
3:1 with its background.
"""

from __future__ import annotations

from typing import Any

FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', sans-serif"

# Number of runs that can be distinguished by colour.
DISTINCT = 8

COLOURS: dict[str, dict[str, Any]] = {
    "light": {
        "paper": "#f7f7f5", "card": "#ffffff", "ink": "#1b1f24", "soft": "#5b6470",
        "line": "#e3e4e1", "grid": "#eeefec", "accent": "#0067a8", "warn": "#8a4b00",
        "series": ["#0072b2", "#d55e00", "#00875f", "#b5558e", "#b07d00", "#2f93c9", "#6b5bb3",
                   "#5f6b76"],
        "sizes": ["#7f93a8", "#3f9bd0", "#1f7fc0", "#00875f", "#7d8a00", "#c77700", "#cf4a1f",
                  "#9c1f54"],
        "ramp": ["#eef1f4", "#c5dbeb", "#8bbcdc", "#4a97c6", "#1670ab", "#084a7d"],
        "diverging": ["#1670ab", "#eef1f4", "#c75a12"],  # better, as it was, worse
    },
    "dark": {
        "paper": "#101418", "card": "#181d23", "ink": "#e8ebee", "soft": "#9aa5b1",
        "line": "#2b323a", "grid": "#232a31", "accent": "#62b5ea", "warn": "#f0b35e",
        "series": ["#56b4e9", "#ee8647", "#2fc39a", "#dd8fc0", "#e6b422", "#8fd0f5", "#a99cf0",
                   "#a7b1bb"],
        "sizes": ["#7d8b9a", "#5aa9d6", "#7cc7f2", "#35c79d", "#b9c43c", "#efad3a", "#f27f55",
                  "#f08bb6"],
        "ramp": ["#222931", "#1d4261", "#1f6493", "#2f8bc6", "#6db6e8", "#c4e4fb"],
        "diverging": ["#6db6e8", "#222931", "#ee8647"],
    },
}  # fmt: skip


def chart_config(theme: str, palette: str = "series") -> dict[str, Any]:
    """Vega-Lite `config` in the colours of `theme`, with light axes and no frame.

    `palette` has the colours of the lines: "series", or "sizes" for ordered ones.
    """
    colour = COLOURS[theme]
    return {
        "background": colour["card"],
        "font": FONT,
        "padding": {"left": 2, "top": 6, "right": 8, "bottom": 2},
        "view": {"stroke": None},
        "mark": {"color": colour["accent"]},
        "axis": {
            "domainColor": colour["line"], "gridColor": colour["grid"], "ticks": False,
            "labelColor": colour["soft"], "titleColor": colour["soft"], "labelFontSize": 11,
            "titleFontSize": 11, "titleFontWeight": "normal", "labelPadding": 5,
            "titlePadding": 6, "labelOverlap": "greedy", "labelSeparation": 8,
        },
        "axisX": {"grid": False, "tickCount": 4},
        "axisY": {"domain": False, "tickCount": 4},
        "range": {"category": colour[palette], "heatmap": colour["ramp"], "ramp": colour["ramp"],
                  "diverging": colour["diverging"]},
        "legend": {"labelColor": colour["soft"], "titleColor": colour["soft"],
                   "titleFontWeight": "normal", "labelFontSize": 11, "titleFontSize": 11,
                   "orient": "top", "titleLimit": 400, "gradientThickness": 9,
                   "gradientLength": 150},
        "title": {"color": colour["ink"], "fontSize": 12, "fontWeight": 600, "anchor": "start",
                  "subtitleColor": colour["soft"], "subtitleFontSize": 11},
        "style": {
            "chance": {"color": colour["soft"], "strokeDash": [4, 4], "strokeWidth": 1.2},
            "onset": {"color": colour["ink"], "strokeWidth": 1.5},
            "onset-tick": {"color": colour["ink"], "stroke": colour["card"]},
            "interval": {"color": colour["accent"], "strokeWidth": 2, "opacity": 0.55},
            "cell-text": {"color": colour["ink"], "fontSize": 10.5},
            "cell-text-on-dark": {"color": colour["card"], "fontSize": 10.5},
            "hover": {"stroke": colour["card"], "strokeWidth": 1.5},
            "row-value": {"color": colour["soft"], "fontSize": 11},
        },
    }  # fmt: skip


def style_variables(palette: str = "series") -> str:
    """CSS custom properties of the same colours, dark where the reader prefers it."""

    def block(theme: str) -> str:
        colour = COLOURS[theme]
        names = [k for k in colour if isinstance(colour[k], str)]
        pairs = [f"--{name}:{colour[name]}" for name in names]
        for name, of in (("series", palette), ("finding", "series")):
            pairs += [f"--{name}-{i}:{c}" for i, c in enumerate(colour[of])]
        return f":root{{color-scheme:{theme};{';'.join(pairs)}}}"

    return f"{block('light')}\n@media (prefers-color-scheme:dark){{{block('dark')}}}"
