"""Whether two mathematical answers are the same text once LaTeX's spellings are evened out.

The rules are those of AGIEval and MATH (Hendrycks et al. 2021, 2103.03874), as
lm-evaluation-harness applies them to the answer and to the target alike.
"""

from __future__ import annotations

import re

_REMOVED = ("\n", "\\!", "\\left", "\\right", "^{\\circ}", "^\\circ", "\\$", "\\%")
_NUMBER = re.compile(r"\$?\d+(?:\.\d+)?(?!\w)")


def equivalent(answer: str, target: str) -> bool:
    """Whether the answers found in two texts are the same."""
    return _found_text(answer) == _found_text(target)


def _found_text(text: str) -> str | None:
    found = final(text)
    return None if found is None else normalise(found)


def final(text: str) -> str | None:
    """The answer in a text: the last \\boxed{…}, else between the first and the last $ of its last
    such line, else what follows the last =, else the last number; None without any."""
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
    """What the last \\boxed{…} holds, with the braces inside it; None where it does not close."""
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
    """One spelling for fractions, roots, decimals and units."""
    for mark in _REMOVED[:2]:
        text = text.replace(mark, "")
    text = text.replace("\\\\", "\\").replace("tfrac", "frac").replace("dfrac", "frac")
    for mark in _REMOVED[2:]:
        text = text.replace(mark, "")
    text = text.split("\\text{ ")[0]  # units stand last
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
