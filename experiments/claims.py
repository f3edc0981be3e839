"""What the paper claims, and whether the runs bear it out: CLAIMS is the table, every verdict is computed.

A score is the interquartile mean over seeds (IQM: floor(n / 4) scores are cut off at each end), its interval
the 95% percentile bootstrap's, seeds drawn anew within each dataset (stratified): rliable's method (Agarwal
et al. 2021, "Deep Reinforcement Learning at the Edge of the Statistical Precipice"). A claim is tried on each
of its datasets, for discrete actions and for forces and torques apart; a comparison is a difference of IQMs
and

    holds             where its whole interval lies above 0
    does not hold     where the whole interval lies below 0
    cannot be told    otherwise, and where there are no three seeds of both sides

A claim over several comparisons ("above every other method", "on every dataset") does not hold as soon as one
of them does not, and holds only where all do. Nothing is corrected for the number of comparisons.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy.stats import bootstrap, trim_mean

from experiments.plan import KEYS, METHODS, QUALITIES, WIDE, Cell

HOLDS, FAILS, OPEN = "holds", "does not hold", "cannot be told"
FEWEST = 3  # seeds with which there is an interval
RESAMPLES = 9999
# By seeds: how often the interval of one IQM, and that of a difference of two, has the truth, of normally
# distributed scores: by simulation of 20,000 experiments. Scores of which some collapse do worse.
COVERAGE = {3: (0.754, 0.808), 5: (0.904, 0.940), 10: (0.936, 0.956)}
TASKS = {
    "discrete": ("simple_spread", "simple_tag", "simple_world"),
    "continuous": ("simple_spread", "simple_tag", "simple_world", "HalfCheetah-2x3"),
}
PUBLISHED = pd.DataFrame(  # mean scores of five seeds on OMAR's data, and SPaCQL's deviation
    [
        ("simple_spread", "random", 78.2, 14, 77.7, 62.2, 45.6),
        ("simple_spread", "medium-replay", 71.9, 13.2, None, 52.2, 25.5),
        ("simple_spread", "expert", 111.9, None, 97.2, 112.0, 12.2),
        ("simple_tag", "random", 89.4, 13.7, None, 16.5, 25.2),
        ("simple_tag", "medium-replay", 75.0, 12.7, None, 71.1, 11.9),
        ("simple_world", "random", 94.3, 7.4, 89.9, 68.0, 11.7),
        ("simple_world", "medium-replay", 105.2, 11.1, None, 73.4, 13.2),
        ("simple_world", "expert", 112.3, None, 106.5, 119.7, None),
        ("HalfCheetah-2x3", "random", 43.8, 4.9, None, 39.7, 5.3),
        ("HalfCheetah-2x3", "medium-replay", 66.1, 3.4, None, 59.5, 37.0),
    ],
    columns=["env_id", "dataset", "spacql", "deviation", "icql-qs", "cfcql", "macql"],
).set_index(["env_id", "dataset"])


# ------------------------------------------------------------------------------------------- intervals


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


# ----------------------------------------------------------------------------------------------- scores


class Scores:
    """The rows of runs.csv by cell: what claims, tables and figures are made from."""

    def __init__(self, cells: list[Cell], runs: pd.DataFrame):
        """cells: the plan, in which a dataset's first size counts as the main one."""
        self.groups = dict(list(runs.groupby(list(KEYS))))
        self.main = {}
        for cell in cells:
            self.main.setdefault(cell.place[:4], cell.place)

    def at(self, key: tuple | None) -> list[float]:
        """The last score of each seed of the cell with these values of KEYS."""
        return self.groups[key]["score"].astype(float).tolist() if key in self.groups else []

    def values(self, place: tuple, method: str) -> list[float]:
        """The last score of each seed of the main size: place is (grid, env_id, dataset)."""
        return self.at(self.main.get((*place, method)))

    def weights(self, place: tuple) -> np.ndarray:
        """SPaCQL's last weights w_k, [seeds, sizes], of the sizes that the task has."""
        rows = self.groups.get(self.main.get((*place, "spacql")))
        if rows is None:
            return np.empty((0, 2))
        numbers = rows[["w1", "w2", "w3"]].apply(pd.to_numeric, errors="coerce")
        return numbers.dropna(axis=1, how="all").to_numpy()


# ------------------------------------------------------------------------------------- what is compared

Side = tuple[str, list[float]]  # one side of a comparison: its name, and a number of each seed


def above(method: str, *rivals: str) -> Callable:
    """A method's scores against those of each rival."""

    def sides(scores, place):
        own = (method, scores.values(place, method))
        return [(own, (rival, scores.values(place, rival))) for rival in rivals]

    return sides


def beaten(method: str, *rivals: str) -> Callable:
    """The scores of each rival against a method's."""
    return lambda scores, place: [pair[::-1] for pair in above(method, *rivals)(scores, place)]


def against_published(method: str) -> Callable:
    """A method's scores against the published one, which is taken for exact."""

    def sides(scores, place):
        published = float(PUBLISHED.loc[place[1:], method])
        own = (method, scores.values(place, method))
        return [(own, (f"the published {published}", [published] * FEWEST))]

    return sides


def weight_of_one(combine: Callable, name: str) -> Callable:
    """w_1 against the other weights, combined, seed by seed, in hundredths."""

    def sides(scores, place):
        weights = scores.weights(place)
        margins = 100 * (weights[:, 0] - combine(weights[:, 1:], axis=1))
        return [(("100 w_1", margins.tolist()), (name, [0.0] * FEWEST))]

    return sides


def larger_sizes(*qualities: str) -> Callable:
    """1 - w_1, the weight of all sizes above 1, in hundredths, against that on data of other qualities."""

    def side(scores, grid, env_id, quality):
        larger = 100 * (1 - scores.weights((grid, env_id, quality))[:, 0])
        return f"100 (1 - w_1) on {quality}", larger.tolist()

    def sides(scores, place):
        return [(side(scores, *place), side(scores, *place[:2], quality)) for quality in qualities]

    return sides


# --------------------------------------------------------------------------------------------- verdicts


def judge(found: Estimate) -> str:
    """The verdict on "this difference is above 0"."""
    return HOLDS if found.low > 0 else FAILS if found.high < 0 else OPEN  # nan is neither


def all_of(verdicts: list[str]) -> str:
    """The verdict on several claims at once."""
    return FAILS if FAILS in verdicts else HOLDS if verdicts and set(verdicts) == {HOLDS} else OPEN


def any_of(verdicts: list[str]) -> str:
    """The verdict on "at least one of them holds"."""
    return HOLDS if HOLDS in verdicts else FAILS if verdicts and set(verdicts) == {FAILS} else OPEN


@dataclass(frozen=True)
class Claim:
    """A sentence, the qualities of data that it is about, and what it says is larger than what.

    sides(scores, (grid, env_id, dataset)) gives the comparisons, pairs of Sides; the sentence says that the
    first side is above the second in all of them, or with any_of in one of them.
    """

    text: str
    qualities: tuple[str, ...]
    sides: Callable
    combine: Callable = all_of
    env_ids: tuple[str, ...] = TASKS["continuous"]
    grids: tuple[str, ...] = tuple(TASKS)


class Finding(NamedTuple):
    """What a claim comes to on one dataset: its verdict, and the difference that decides, in words."""

    verdict: str
    said: str


def find(claim: Claim, pairs: list[tuple[Side, Side]]) -> Finding:
    """The finding from the comparisons of one dataset; those that lack seeds are named."""
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
    return Finding(verdict, "; ".join(said))


def try_claim(claim: Claim, grid: str, scores: Scores) -> tuple[str, dict[tuple, Finding]]:
    """A claim on all its datasets of a grid: the verdict, and {(env_id, dataset): the finding there}."""
    places = [(env_id, q) for env_id in TASKS[grid] if env_id in claim.env_ids for q in claim.qualities]
    findings = {place: find(claim, claim.sides(scores, (grid, *place))) for place in places}
    return all_of([finding.verdict for finding in findings.values()]), findings


OTHERS = tuple(name for name in METHODS if name != "spacql")
# The one dataset with the paper's distribution and unit: forces on spread, random.
COMPARABLE = dict(grids=("continuous",), env_ids=("simple_spread",), qualities=("random",))
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
    ),
    Claim("w_1 dominates there", WIDE, weight_of_one(np.sum, "all other weights together")),
    Claim("w_2 and w_3 rise on Expert data", ("expert",), larger_sizes(*WIDE)),
    Claim("SPaCQL scores more than published", sides=against_published("spacql"), **COMPARABLE),
    Claim("ICQL-QS scores more than published", sides=against_published("icql-qs"), **COMPARABLE),
    Claim("CFCQL scores more than published", sides=against_published("cfcql"), **COMPARABLE),
)
