"""What a claim is, its verdict, and what theory_checks.py writes: the table and theory.json."""

import json
import platform
import sys
import textwrap
from collections import namedtuple
from functools import partial
from pathlib import Path

import torch
from tabulate import tabulate

from theory.dec_mdps import exact
from utils.files import atomic, current_commit

HOLDS, CONDITION, FAILS = "holds", "holds with a condition", "fails"
PAPER, READING = "the paper's words", "a natural reading"  # what a claim that fails is
ROUNDING = {"<=": 1e-11, "=": 1e-9}  # relative: what separates a broken claim from float64 noise
CLAIMS = []


# function(*case) is (value, bound) for every case of cases(sweep); bound may be a tuple of terms to sum. A
# claim that fails pins its counterexample: numbers are all values and bounds of its few cases.
Claim = namedtuple("Claim", "name statement cases function expected relation note words numbers")


def claim(name, statement, cases, expected=HOLDS, relation="<=", note="", words="", numbers=(), **options):
    """Register the decorated function, with its options, as a claim; of several the upper comes first."""

    def register(function):
        called = partial(function, **options)
        made = Claim(name, statement, cases, called, expected, relation, note, words, numbers)
        same = (i for i, c in enumerate(CLAIMS) if c.function.func is function)
        CLAIMS.insert(next(same, len(CLAIMS)), made)
        return function

    return register


def fails(name, statement, cases, numbers, relation="<=", note="", words=READING, **options):
    """Register a claim that fails on these cases, with these numbers."""
    return claim(name, statement, lambda _: cases, FAILS, relation, note, words, numbers, **options)


def evaluate(claim, sweep):
    """(value, bound) of all cases, flat and of one length."""
    values, bounds = [], []
    for case in claim.cases(sweep):
        value, bound = claim.function(*case)
        bound = sum(bound) if isinstance(bound, tuple) else bound
        value, bound = torch.broadcast_tensors(exact(value), exact(bound))
        values.append(value.flatten())
        bounds.append(bound.flatten())
    return torch.cat(values), torch.cat(bounds)


def judge(claim, sweep):
    """A row: it fails where a value exceeds its bound (or, for "=", differs from it); where that is expected
    it must be with the pinned numbers."""
    value, bound = evaluate(claim, sweep)
    slack = bound - value if claim.relation == "<=" else -(bound - value).abs()
    broken = ~(slack >= -ROUNDING[claim.relation] * (1 + bound.abs()))
    worst, ratio = int(slack.argmin()), (value / bound)[bound > ROUNDING["<="]]
    tight = claim.relation == "<=" and len(ratio) > 0
    verdict, note = claim.expected, " ".join(claim.note.split())
    if not slack.isfinite().all():
        verdict = "not a number"
    elif claim.expected == FAILS:
        found, pinned = torch.stack([value, bound], 1), exact(claim.numbers)
        same = found.shape == pinned.shape and found.allclose(pinned, 1e-6, 1e-6)
        verdict = HOLDS if not broken.any() else FAILS if same else "fails in another way"
        note += " Found: " + ", ".join(f"{v:.4g} for {b:.4g}" for v, b in found.tolist()) + "."
    elif broken.any():
        verdict = FAILS
        note += f" Found: {float(value[worst]):.6g} for {float(bound[worst]):.6g}."
    row = dict(claim=claim.name, statement=claim.statement, words=claim.words, expected=claim.expected)
    tightness = [float(ratio.median()), float(ratio.max())] if tight else None
    row |= dict(verdict=verdict, tried=len(value), worst_slack=float(slack[worst]), tightness=tightness)
    return row | dict(note=note.strip())


def table(rows) -> str:
    """The terminal's table: a line per row, and below it notes and counterexamples, by number."""
    lines, notes = [], []
    for number, r in enumerate(rows, 1):
        verdict = r["verdict"] + ("" if r["verdict"] == r["expected"] else " (!)")
        statement = r["statement"] + (f" ({r['words']})" if r["words"] else "")
        tightness = r["tightness"] or [None, None]
        lines.append((number, r["claim"], verdict, r["tried"], r["worst_slack"], *tightness, statement))
        if r["note"]:
            notes.append(textwrap.fill(f"{number}. {r['note']}", 110, subsequent_indent="   "))
    titles = ("", "claim", "verdict", "tried", "worst slack", "median", "max value / bound", "statement")
    return "\n".join([tabulate(lines, titles, "simple", floatfmt=".4g"), "", *notes])


def save(folder: Path, args: dict, rows, headline) -> None:
    """Write theory.json, which appears when complete."""
    report = dict(command=f"python {' '.join(sys.argv)}", args=args, commit=current_commit())
    report |= dict(torch=torch.__version__, machine=platform.machine(), rows=rows, headline=headline)
    with atomic(folder / "theory.json") as partial:
        partial.write_text(json.dumps(report, indent=1) + "\n")
