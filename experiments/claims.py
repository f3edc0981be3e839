"""What the paper claims, and whether the runs bear it out: CLAIMS is the table, every verdict is computed.

A claim is tried on each of its datasets, for discrete actions and for forces and torques apart. A comparison is a
difference of interquartile means with its 95% interval (experiments/intervals.py), and its verdict

    holds             the whole interval lies above 0
    does not hold     the whole interval lies below 0
    cannot be told    otherwise, and where there are no three seeds of both sides

A claim over several comparisons ("above every other method", "on every dataset") does not hold as soon as one of them
does not, holds only where all do, and cannot be told otherwise. What has not been run is named. Nothing is corrected
for the number of comparisons.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from experiments.intervals import FEWEST, Estimate, difference, improvement
from experiments.plan import METHODS, QUALITIES, WIDE, Cell
from experiments.records import place

HOLDS, FAILS, OPEN = "holds", "does not hold", "cannot be told"
TASKS = {
    "discrete": ("simple_spread", "simple_tag", "simple_world"),
    "continuous": ("simple_spread", "simple_tag", "simple_world", "HalfCheetah-2x3"),
}
COMPARABLE = ("continuous", "simple_spread", "random")  # the one dataset with the paper's distribution and unit
PUBLISHED = {  # mean scores of five seeds on OMAR's data; None: not given
    ("simple_spread", "random"): (78.2, 77.7, 62.2, 45.6, 34.4, 5.5, 35.9),
    ("simple_spread", "medium-replay"): (71.9, None, 52.2, 25.5, 37.9, 10.8, 57.4),
    ("simple_spread", "expert"): (111.9, 97.2, 112.0, 12.2, 114.9, 103.7, 136.4),
    ("simple_tag", "random"): (89.4, None, 16.5, 25.2, 11.1, 1.3, None),
    ("simple_tag", "medium-replay"): (75.0, None, 71.1, 11.9, 47.1, 23.2, 65.4),
    ("simple_world", "random"): (94.3, 89.9, 68.0, 11.7, 5.9, 2.9, 13.1),
    ("simple_world", "medium-replay"): (105.2, None, 73.4, 13.2, 42.9, 41.5, 58.6),
    ("simple_world", "expert"): (112.3, 106.5, 119.7, None, None, None, None),
    ("HalfCheetah-2x3", "random"): (43.8, None, 39.7, 5.3, 13.5, 7.4, None),
    ("HalfCheetah-2x3", "medium-replay"): (66.1, None, 59.5, 37.0, 57.7, 58.8, None),
}
PUBLISHED = {
    dataset: dict(zip(("spacql", "icql-qs", "cfcql", "macql", "OMAR", "IQL", "DoF"), scores, strict=True))
    for dataset, scores in PUBLISHED.items()
}
PUBLISHED_DEVIATION = {  # of SPaCQL
    ("simple_spread", "random"): 14,
    ("simple_spread", "medium-replay"): 13.2,
    ("simple_tag", "random"): 13.7,
    ("simple_tag", "medium-replay"): 12.7,
    ("simple_world", "random"): 7.4,
    ("simple_world", "medium-replay"): 11.1,
    ("HalfCheetah-2x3", "random"): 4.9,
    ("HalfCheetah-2x3", "medium-replay"): 3.4,
}


class Scores:
    """The rows of all grids by cell: what claims, tables and figures are made from."""

    def __init__(self, cells: list[Cell], rows: dict[str, list[dict]]):
        """cells: the plan, in which a dataset's first size counts as the main one; rows: of each grid's table."""
        self.rows, self.main = {}, {}
        for grid, table in rows.items():
            for row in table:
                self.rows.setdefault((grid, *place(row)[:-1]), []).append(row)
        for cell in cells:
            key = (cell.grid, *map(str, cell.key.values()))
            self.main.setdefault(key[:4], key)

    def values(self, dataset: tuple, method: str, number: Callable = lambda row: float(row["score"])) -> list[float]:
        """A number of each seed's row, by default the last score: dataset is (grid, env_id, dataset)."""
        return [number(row) for row in self.rows.get(self.main.get((*dataset, method)), [])]


# ----------------------------------------------------------------------------------------- what is compared


class Side(NamedTuple):
    """One side of a comparison: a name, and a number of each seed."""

    name: str
    values: list[float]


def above(method: str, *rivals: str) -> Callable:
    """A method's scores against those of each rival."""

    def sides(scores, dataset):
        return [tuple(Side(name, scores.values(dataset, name)) for name in (method, rival)) for rival in rivals]

    return sides


def beaten(method: str, *rivals: str) -> Callable:
    """The scores of each rival against a method's."""
    return lambda scores, dataset: [pair[::-1] for pair in above(method, *rivals)(scores, dataset)]


def against_published(method: str) -> Callable:
    """A method's scores against the published one, which is taken for exact."""

    def sides(scores, dataset):
        published = PUBLISHED[dataset[1:]][method]
        return [
            (Side(method, scores.values(dataset, method)), Side(f"the published {published}", [published] * FEWEST))
        ]

    return sides


def weights(row: dict) -> np.ndarray:
    """The last weights w_k of SPaCQL, of all sizes that the task has."""
    return np.array([float(row[name]) for name in ("w1", "w2", "w3") if row[name] != ""])


def weight_of_one(combine: Callable, name: str) -> Callable:
    """w_1 against the other weights, combined, seed by seed."""

    def sides(scores, dataset):
        margins = scores.values(dataset, "spacql", lambda row: weights(row)[0] - combine(weights(row)[1:]))
        return [(Side("w_1 of spacql", margins), Side(name, [0.0] * FEWEST))]

    return sides


def larger_sizes(*qualities: str) -> Callable:
    """1 - w_1, the weight of all sizes above 1, against that on data of other qualities."""

    def sides(scores, dataset):
        places = [dataset, *((*dataset[:2], quality) for quality in qualities)]
        first, *others = (
            Side(f"1 - w_1 of spacql on {p[2]}", scores.values(p, "spacql", lambda row: 1 - weights(row)[0]))
            for p in places
        )
        return [(first, other) for other in others]

    return sides


# ------------------------------------------------------------------------------------------------ verdicts


def judge(interval: Estimate) -> str:
    """The verdict on "this difference is above 0"."""
    return HOLDS if interval.low > 0 else FAILS if interval.high < 0 else OPEN  # nan is neither


def all_of(verdicts: list[str]) -> str:
    """The verdict on several claims at once."""
    return FAILS if FAILS in verdicts else HOLDS if verdicts and set(verdicts) == {HOLDS} else OPEN


def any_of(verdicts: list[str]) -> str:
    """The verdict on "at least one of them holds"."""
    return HOLDS if HOLDS in verdicts else FAILS if verdicts and set(verdicts) == {FAILS} else OPEN


@dataclass(frozen=True)
class Claim:
    """A sentence, the qualities of data that it is about, and what it says is larger than what.

    sides(scores, (grid, env_id, dataset)) gives the comparisons, pairs of Sides; the sentence says that the first side
    is above the second in all of them, or with any_of in one of them.
    """

    text: str
    qualities: tuple[str, ...]
    sides: Callable
    combine: Callable = all_of
    digits: int = 1
    env_ids: tuple[str, ...] = TASKS["continuous"]
    grids: tuple[str, ...] = tuple(TASKS)


class Finding(NamedTuple):
    """What a claim comes to: its verdict, the deciding difference, who lacks seeds, and a verdict per comparison."""

    verdict: str
    said: str
    missing: list[str]
    comparisons: list[str]


def find(claim: Claim, pairs: list[tuple[str, str, list, list]]) -> Finding:
    """The finding from pairs (first name, second name, groups of the first, groups of the second); a group holds the
    numbers of one dataset's seeds."""
    groups = {name: g for first, second, *both in pairs for name, g in zip((first, second), both, strict=True)}
    short = [name for name, g in groups.items() if not g or min(map(len, g)) < FEWEST]
    pairs = [pair for pair in pairs if not {*pair[:2]} & {*short}]
    found = [difference(first, second) for *_, first, second in pairs]
    verdicts = [judge(interval) for interval in found]
    verdict = claim.combine([*verdicts, *([OPEN] if short else [])])
    if not found:
        return Finding(verdict, "", short, [])
    # Shown is the comparison that decides: of those with the verdict of the whole, the least clear one.
    deciding = [i for i, one in enumerate(verdicts) if one == verdict] or range(len(found))
    nearest = (min if claim.combine is all_of else max)(deciding, key=lambda i: found[i].value)
    first, second, *both = pairs[nearest]
    said = f"{first} {in_words(found[nearest], claim.digits)} against {second}"
    if claim.digits == 1 and len(both[0]) == 1 and len(set(both[1][0])) > 1:  # one dataset; scores, not a constant
        said += f", P(above) {improvement(both[0][0], both[1][0]).value:.2f}"
    return Finding(verdict, said, short, verdicts)


def in_words(interval: Estimate, digits: int = 1) -> str:
    """A difference with its sign and interval."""
    return f"{interval.value:+.{digits}f} [{interval.low:+.{digits}f}, {interval.high:+.{digits}f}]"


def try_claim(claim: Claim, grid: str, scores: Scores) -> tuple[str, str, dict[tuple, Finding]]:
    """A claim on all its datasets of a grid: the verdict, in words the mean difference over those with enough seeds of
    both sides, and the finding on each, {(env_id, dataset): finding}."""
    places = [(env_id, q) for env_id in TASKS[grid] if env_id in claim.env_ids for q in claim.qualities]
    findings, together = {}, {}
    for where in places:
        pairs = claim.sides(scores, (grid, *where))
        findings[where] = find(claim, [(a.name, b.name, [a.values], [b.values]) for a, b in pairs])
        for a, b in pairs:
            if min(len(a.values), len(b.values)) >= FEWEST:
                groups = together.setdefault((a.name, b.name), ([], []))
                groups[0].append(a.values)
                groups[1].append(b.values)
    whole = find(claim, [(*names, *groups) for names, groups in together.items()])
    most = max((len(first) for first, _ in together.values()), default=0)
    said = f"{whole.said}, mean of {most} datasets" if most > 1 else whole.said
    return all_of([finding.verdict for finding in findings.values()]), said, findings


# ------------------------------------------------------------------------------------------------ the table

OTHERS = tuple(name for name in METHODS if name != "spacql")
ONLY_COMPARABLE = dict(grids=COMPARABLE[:1], env_ids=COMPARABLE[1:2], qualities=COMPARABLE[2:])
CLAIMS = (
    Claim("SPaCQL is best on every Random and Medium-Replay dataset", WIDE, above("spacql", *OTHERS)),
    Claim("... of the paper's methods that are here", WIDE, above("spacql", "icql-qs", "cfcql", "macql")),
    Claim("SPaCQL is above ICQL-QS", QUALITIES, above("spacql", "icql-qs")),
    Claim("SPaCQL is above full joint backups as in CFCQL, with two critics", WIDE, above("spacql", "cfcql")),
    Claim("SPaCQL is above full joint backups with its own ten critics", WIDE, above("spacql", "joint")),
    Claim("Adaptive weights pay: SPaCQL is above the uniform mixture", QUALITIES, above("spacql", "uniform")),
    Claim("Another method is above SPaCQL on Expert data", ("expert",), beaten("spacql", *OTHERS), any_of),
    Claim(
        "w_1 is the largest weight on Random and Medium-Replay data",
        WIDE,
        weight_of_one(np.max, "the largest other weight"),
        digits=4,
    ),
    Claim("w_1 dominates there", WIDE, weight_of_one(np.sum, "all other weights together"), digits=4),
    Claim("w_2 and w_3 rise on Expert data", ("expert",), larger_sizes(*WIDE), digits=4),
    Claim("SPaCQL scores more than published", sides=against_published("spacql"), **ONLY_COMPARABLE),
    Claim("ICQL-QS scores more than published", sides=against_published("icql-qs"), **ONLY_COMPARABLE),
    Claim("CFCQL scores more than published", sides=against_published("cfcql"), **ONLY_COMPARABLE),
)
