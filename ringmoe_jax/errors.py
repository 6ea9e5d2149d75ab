"""Errors that a user can act on. Command-line programs print them as one line."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

LISTED = 8  # names that a message lists


class UserError(Exception):
    """What was got, what was wanted and how to fix it, in one line."""


class ConfigError(UserError):
    """A configuration value is unknown, of the wrong type or contradicts another."""


class DataError(UserError):
    """A file, a record or an array is not what its metadata or the config says."""


class TrainingError(UserError):
    """Training cannot go on, for example because a loss is not finite."""


def nearest(name: str, choices: Iterable[str], most: int = LISTED) -> str:
    """Returns a hint such as `did you mean "red"? (known: blue, green, red)`.

    Of many names the nearest ones are listed, the nearest first: `(known: red, reed, ..., rod and 2,792 more)`.

    Args:
        name: the name that was not found.
        choices: every name that exists.
        most: names that are listed.
    """
    choices = sorted(map(str, choices))
    close = difflib.get_close_matches(str(name), choices, n=1, cutoff=0.5)
    hint = f'did you mean "{close[0]}"? ' if close else ""
    more = len(choices) - most
    if more > 0:
        choices = difflib.get_close_matches(str(name), choices, n=most, cutoff=0.0)
    listed = ", ".join(choices) or "none"
    return f"{hint}(known: {listed}{f' and {more:,} more' if more > 0 else ''})"
