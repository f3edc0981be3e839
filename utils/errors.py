"""The one exception that means: the user's input is wrong, say so in one line and stop."""

import difflib
import sys


class InputError(ValueError):
    """Bad input (argument, dataset or checkpoint); the scripts print its message and exit with status 2."""


def check_choice(what: str, value: str, choices) -> None:
    """Raise InputError, naming the nearest of `choices`, unless `value` is one of them."""
    choices = list(choices)
    if value not in choices:
        near = difflib.get_close_matches(str(value), choices, n=1, cutoff=0.4)
        hint = f"; did you mean '{near[0]}'?" if near else ""
        raise InputError(f"unknown {what} '{value}' (choose from {', '.join(choices)}){hint}")


def check_numbers(args: dict, least: dict, most: dict) -> None:
    """Raise InputError for numbers among the flags that are too small or too large.

    Where `least` does not say otherwise, whole numbers are at least 1 and others above 0; where `most` does
    not, two whole numbers have a sum of 64 bits, and others are finite.
    """
    for name, value in args.items():
        flag = f"--{name.replace('_', '-')}"
        if type(value) is int and value < least.get(name, 1):
            raise InputError(f"{flag} must be at least {least.get(name, 1)}, not {value}")
        if type(value) is int and value > most.get(name, 2**62 - 1):
            raise InputError(f"{flag} {value} is too large")
        if type(value) is float:
            low, high = least.get(name, sys.float_info.min), most.get(name, sys.float_info.max)
            if not low <= value <= high:
                raise InputError(f"{flag} {value} is out of range")
