"""The one exception for a user's mistake, and text of others as a terminal may show it."""

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """A mistake of the user: one line that names the culprit and the way out.

    Commands print it as `error: …` and exit with code 2, without a stack trace.
    """


def printable(text: str) -> str:
    """`text` with control characters as escapes: a name must not command the terminal."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def one_line(text: object) -> str:
    """`text`, perhaps an exception, on one line of printable characters."""
    return printable(" ".join(str(text).split()))


def first_line(error: BaseException) -> str:
    """The first line of an exception's text, at most 200 characters."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines or [type(error).__name__])[0][:200]


def nearest(name: str, known: Iterable[str]) -> str:
    """`; did you mean A, B?` from the known names closest to `name`, or nothing."""
    close = difflib.get_close_matches(name, list(known), n=3, cutoff=0.5)
    return f"; did you mean {', '.join(close)}?" if close else ""
