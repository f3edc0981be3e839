"""The one exception that means: the user's input is wrong, say so in one line and stop."""

import difflib


class InputError(ValueError):
    """Bad input (argument, dataset or checkpoint); the scripts print its message and exit with status 2."""


def check_choice(what: str, value: str, choices) -> None:
    """Raise InputError, naming the nearest of `choices`, unless `value` is one of them."""
    choices = list(choices)
    if value not in choices:
        near = difflib.get_close_matches(str(value), choices, n=1, cutoff=0.4)
        hint = f"; did you mean '{near[0]}'?" if near else ""
        raise InputError(f"unknown {what} '{value}' (choose from {', '.join(choices)}){hint}")
