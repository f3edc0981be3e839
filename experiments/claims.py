"""What the paper claims, and whether the runs bear it out: CLAIMS is the table, every verdict is computed.

A score is the interquartile mean over seeds (IQM: floor(n / 4) scores are cut off at each end), its interval
the 95% percentile bootstrap's, seeds drawn anew within each dataset (stratified): rliable's method (Agarwal
et al. 2021, "Deep Reinforcement Learning at the Edge of the Statistical Precipice"). A claim is tried on each
of its datasets, for discrete actions and for forces and torques apart; report.RULE says when it holds.
"""

import re
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy.stats import bootstrap, trim_mean

from experiments.plan import KEYS, METHODS, QUALITIES, WIDE, Cell

HOLDS, FAILS, OPEN = "holds", "does not hold", "cannot be told"
FEWEST = 3  # seeds with which there is an interval
RESAMPLES = 9999
TASKS = {
    "discrete": ("simple_spread", "simple_tag", "simple_world"),
    "continuous": ("simple_spread", "simple_tag", "simple_world", "HalfCheetah-2x3"),
}
PUBLISHED = {  # mean scores of five seeds on OMAR's data
    ("simple_spread", "random"): "spacql 78.2 ± 14.0, icql-qs 77.7, cfcql 62.2, macql 45.6",
    ("simple_spread", "medium-replay"): "spacql 71.9 ± 13.2, cfcql 52.2, macql 25.5",
    ("simple_spread", "expert"): "spacql 111.9, icql-qs 97.2, cfcql 112.0, macql 12.2",
    ("simple_tag", "random"): "spacql 89.4 ± 13.7, cfcql 16.5, macql 25.2",
    ("simple_tag", "medium-replay"): "spacql 75.0 ± 12.7, cfcql 71.1, macql 11.9",
    ("simple_world", "random"): "spacql 94.3 ± 7.4, icql-qs 89.9, cfcql 68.0, macql 11.7",
    ("simple_world", "medium-replay"): "spacql 105.2 ± 11.1, cfcql 73.4, macql 13.2",
    ("simple_world", "expert"): "spacql 112.3, icql-qs 106.5, cfcql 119.7",
    ("HalfCheetah-2x3", "random"): "spacql 43.8 ± 4.9, cfcql 39.7, macql 5.3",
    ("HalfCheetah-2x3", "medium-replay"): "spacql 66.1 ± 3.4, cfcql 59.5, macql 37.0",
}


# ------ intervals


class Estimate(NamedTuple):
    """A number and its interval, which is (nan, nan) where a group has fewer than FEWEST seeds."""

    value: float
    low: float
    high: float

    def __str__(self):
        return f"{self.value:+.1f} [{self.low:+.1f}, {self.high:+.1f}]"


def iqm(scores, axis=-1):
    """Interquartile mean: of five seeds the mean of the middle three, of three the plain mean."""
    return trim_mean(scores, 0.25, axis=axis)


def interval(groups: list, statistic: Callable) -> Estimate:
    """statistic(*groups, axis=-1) with its bootstrap interval, always the same one; each group of scores is
    drawn by itself."""
    value = float(statistic(*map(np.asarray, groups), axis=-1))
    if min(map(len, groups)) < FEWEST:
        return Estimate(value, np.nan, np.nan)
    if all(np.ptp(group) == 0 for group in groups):  # scipy has no interval for what cannot vary
        return Estimate(value, value, value)
    found = bootstrap(groups, statistic, method="percentile", n_resamples=RESAMPLES, rng=0)
    return Estimate(value, *map(float, found.confidence_interval))


def iqm_interval(*groups) -> Estimate:
    """IQM of all scores together; each group holds the scores of one dataset's seeds."""
    return interval(groups, lambda *drawn, axis: iqm(np.concatenate(drawn, axis=axis), axis=axis))


def difference(first: list, second: list) -> Estimate:
    """IQM of the first minus IQM of the second, mean over datasets: lists of a group of scores for each."""

    def mean_difference(*drawn, axis):
        iqms = [iqm(scores, axis=axis) for scores in drawn]
        return np.mean(iqms[: len(first)], axis=0) - np.mean(iqms[len(first) :], axis=0)

    return interval([*first, *second], mean_difference)


# ------ scores


class Scores:
    """The rows of runs.csv by cell: what claims, tables and figures are made from."""

    def __init__(self, cells: list[Cell], runs: pd.DataFrame):
        """cells: the plan, in which a dataset's first size counts as the main one."""
        self.rows = dict(list(runs.groupby(KEYS)))
        self.main = {}  # {(grid, env_id, dataset, method): the values of KEYS}
        for cell in cells:
            self.main.setdefault(cell[:4], cell[:6])

    def at(self, key: tuple | None) -> list[float]:
        """The last score of each seed of the cell with these values of KEYS."""
        return self.rows[key]["score"].tolist() if key in self.rows else []

    def values(self, place: tuple, method: str) -> list[float]:
        """The last score of each seed of the main size: place is (grid, env_id, dataset)."""
        return self.at(self.main.get((*place, method)))

    def weights(self, place: tuple) -> np.ndarray:
        """SPaCQL's last weights w_k, [seeds, sizes], of the sizes that the task has."""
        rows = self.rows.get(self.main.get((*place, "spacql")))
        return np.empty((0, 2)) if rows is None else rows[["w1", "w2", "w3"]].dropna(axis=1).to_numpy()


# ------ what is compared: pairs of sides, each a name and a number of each seed


def above(methods: tuple, rivals: tuple) -> Callable:
    """The scores of each method against those of each rival."""

    def pairs(scores, place):
        return [[(name, scores.values(place, name)) for name in (m, r)] for m in methods for r in rivals]

    return pairs


def above_published(method: str) -> Callable:
    """A method's scores against the published one, which is taken for exact."""

    def pairs(scores, place):
        published = float(re.search(rf"\b{method} ([\d.]+)", PUBLISHED[place[1:]])[1])
        return [
            [(method, scores.values(place, method)), (f"the published {published}", [published] * FEWEST)]
        ]

    return pairs


def weight_of_one(combine: Callable, name: str) -> Callable:
    """w_1 against the other weights, combined, seed by seed, in hundredths."""

    def pairs(scores, place):
        weights = scores.weights(place)
        margins = 100 * (weights[:, 0] - combine(weights[:, 1:], axis=1))
        return [[("100 w_1", margins.tolist()), (name, [0.0] * FEWEST)]]

    return pairs


def larger_sizes(scores: Scores, place: tuple) -> list:
    """1 - w_1, the weight of all sizes above 1, in hundredths, against that on wide data of the task."""

    def side(quality):
        larger = 100 * (1 - scores.weights((*place[:2], quality))[:, 0])
        return f"100 (1 - w_1) on {quality}", larger.tolist()

    return [[side(place[2]), side(quality)] for quality in WIDE]


# ------ verdicts


def judge(found: Estimate) -> str:
    """The verdict on "this difference is above 0"."""
    return HOLDS if found.low > 0 else FAILS if found.high < 0 else OPEN  # nan is neither


def all_of(verdicts: list[str]) -> str:
    """The verdict on several claims at once."""
    return FAILS if FAILS in verdicts else HOLDS if verdicts and set(verdicts) == {HOLDS} else OPEN


def any_of(verdicts: list[str]) -> str:
    """The verdict on "at least one of them holds"."""
    return HOLDS if HOLDS in verdicts else FAILS if verdicts and set(verdicts) == {FAILS} else OPEN


class Claim(NamedTuple):
    """A sentence, the qualities of data that it is about, and what it says is larger than what.

    pairs(scores, (grid, env_id, dataset)) gives the comparisons; the sentence says that the first side is
    above the second in all of them, or with any_of in one of them.
    """

    text: str
    qualities: tuple[str, ...]
    pairs: Callable
    combine: Callable = all_of
    env_ids: tuple[str, ...] = TASKS["continuous"]
    grids: tuple[str, ...] = tuple(TASKS)


def find(claim: Claim, pairs: list) -> tuple[str, str]:
    """The verdict from the comparisons of one dataset, and the difference that decides, in words; what lacks
    seeds is named."""
    short = sorted({name for pair in pairs for name, values in pair if len(values) < FEWEST})
    found = [
        (first, difference([values], [others]), second)
        for (first, values), (second, others) in pairs
        if min(len(values), len(others)) >= FEWEST
    ]
    verdict = claim.combine([judge(by) for _, by, _ in found] + [OPEN] * bool(short))
    said = []
    if found:  # shown is what decides: of the comparisons with the verdict of the whole, the least clear one
        deciding = [one for one in found if judge(one[1]) == verdict] or found
        nearest = min if claim.combine is all_of else max
        first, by, second = nearest(deciding, key=lambda one: one[1].value)
        said.append(f"{first} {by} against {second}")
    if short:
        said.append(f"missing: {', '.join(short)}")
    return verdict, "; ".join(said)


def try_claim(claim: Claim, grid: str, scores: Scores) -> tuple[str, dict[tuple, tuple]]:
    """A claim on all its datasets of a grid: the verdict, and by (env_id, dataset) that and what decides."""
    places = [(env_id, q) for env_id in TASKS[grid] if env_id in claim.env_ids for q in claim.qualities]
    findings = {place: find(claim, claim.pairs(scores, (grid, *place))) for place in places}
    return all_of([verdict for verdict, _ in findings.values()]), findings


OURS, OTHERS = ("spacql",), tuple(name for name in METHODS if name != "spacql")
# The one dataset with the paper's distribution and unit: forces on spread, random.
COMPARABLE = dict(grids=("continuous",), env_ids=("simple_spread",), qualities=("random",))
CLAIMS = (
    Claim("SPaCQL is best on every Random and Medium-Replay dataset", WIDE, above(OURS, OTHERS)),
    Claim("... of the paper's methods that are here", WIDE, above(OURS, ("icql-qs", "cfcql", "macql"))),
    Claim("SPaCQL is above ICQL-QS", QUALITIES, above(OURS, ("icql-qs",))),
    Claim("SPaCQL is above full joint backups as in CFCQL, with two critics", WIDE, above(OURS, ("cfcql",))),
    Claim("SPaCQL is above full joint backups with its own ten critics", WIDE, above(OURS, ("joint",))),
    Claim("Adaptive weights pay: SPaCQL is above the uniform mixture", QUALITIES, above(OURS, ("uniform",))),
    Claim("Another method is above SPaCQL on Expert data", ("expert",), above(OTHERS, OURS), any_of),
    Claim(
        "w_1 is the largest weight on Random and Medium-Replay data",
        WIDE,
        weight_of_one(np.max, "the largest other weight"),
    ),
    Claim("w_1 dominates there", WIDE, weight_of_one(np.sum, "all other weights together")),
    Claim("w_2 and w_3 rise on Expert data", ("expert",), larger_sizes),
    Claim("SPaCQL scores more than published", pairs=above_published("spacql"), **COMPARABLE),
    Claim("ICQL-QS scores more than published", pairs=above_published("icql-qs"), **COMPARABLE),
    Claim("CFCQL scores more than published", pairs=above_published("cfcql"), **COMPARABLE),
)
