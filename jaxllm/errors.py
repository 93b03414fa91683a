"""The one exception for a user's mistake."""


class UserError(Exception):
    """A mistake of the user: one line that names the culprit and the way out.

    Commands print it as `error: …` and exit with code 2, without a stack trace.
    """
