"""Equivalence of mathematical answers, up to LaTeX spelling.

The rules are those of AGIEval and MATH (Hendrycks et al. 2021, 2103.03874), applied to answer and
target as in lm-evaluation-harness.
"""

from __future__ import annotations

import re

_REMOVED = ("\n", "\\!", "\\left", "\\right", "^{\\circ}", "^\\circ", "\\$", "\\%")
_NUMBER = re.compile(r"\$?\d+(?:\.\d+)?(?!\w)")


def equivalent(answer: str, target: str) -> bool:
    """Whether the final answers in two texts are equal after normalization."""
    return _found_text(answer) == _found_text(target)


def _found_text(text: str) -> str | None:
    found = final(text)
    return None if found is None else normalise(found)


def final(text: str) -> str | None:
    """The final answer in a text: the last \\boxed{…}, else the text between the first and last $
    of the last line with $, else after the last =, else the last number; None without any."""
    if "\\boxed" in text:
        return _boxed(text)
    dollars = re.findall(r"\$(.*)\$", text)
    if dollars and dollars[-1]:
        return dollars[-1].split("=")[-1].lstrip(" ") if "=" in dollars[-1] else dollars[-1]
    if "=" in text:
        return text.split("=")[-1].lstrip(" ").rstrip(".").split("\\n")[0]
    numbers = _NUMBER.findall(text)
    return numbers[-1] if numbers else None


def _boxed(text: str) -> str | None:
    """The content of the last \\boxed{…}, nested braces included; None if it is not closed."""
    start = text.rfind("\\boxed{")
    if start < 0:
        return None
    start, depth = start + len("\\boxed{"), 1
    for end in range(start, len(text)):
        depth += {"{": 1, "}": -1}.get(text[end], 0)
        if depth == 0:
            inside = text[start:end]
            return inside.split("=")[-1].lstrip(" ") if "=" in inside else inside
    return None


def normalise(text: str) -> str:
    """Normalize the spelling of fractions, roots, decimals and units."""
    for mark in _REMOVED[:2]:
        text = text.replace(mark, "")
    text = text.replace("\\\\", "\\").replace("tfrac", "frac").replace("dfrac", "frac")
    for mark in _REMOVED[2:]:
        text = text.replace(mark, "")
    text = text.split("\\text{ ")[0]  # units come last
    text = text.replace(" .", " 0.").replace("{.", "{0.")
    text = f"0{text}" if text.startswith(".") else text
    name, equals, value = text.partition("=")
    if equals and len(name) <= 2 and "=" not in value:
        text = value
    text = re.sub(r"\\sqrt([^{])", r"\\sqrt{\1}", text).replace(" ", "")
    text = re.sub(r"\\frac([^{])([^{])", r"\\frac{\1}{\2}", text)
    text = re.sub(r"\\frac([^{])(?={)", r"\\frac{\1}", text)
    if text == "0.5":
        return "\\frac{1}{2}"
    whole = re.fullmatch(r"(-?\d+)/(-?\d+)", text)
    return f"\\frac{{{whole[1]}}}{{{whole[2]}}}" if whole else text
