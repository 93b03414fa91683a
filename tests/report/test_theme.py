"""Every series colour and every text stands out from its background (WCAG 2.1: 3:1, text 4.5:1)."""

import pytest

from jaxllm.report.theme import COLOURS


def luminance(colour: str) -> float:
    channels = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return sum(w * c for w, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def contrast(one: str, other: str) -> float:
    low, high = sorted([luminance(one), luminance(other)])
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("theme", sorted(COLOURS))
def test_contrast(theme) -> None:
    colours = COLOURS[theme]
    for colour in (*colours["series"], *colours["sizes"]):
        assert contrast(colour, colours["card"]) >= 3, colour
    for text in ("ink", "soft", "warn", "accent"):
        for background in ("card", "paper"):
            assert contrast(colours[text], colours[background]) >= 4.5, (text, background)
