"""What the paper claims, and whether the runs bear it out: CLAIMS is the table, every verdict is computed.

A score is the interquartile mean over seeds (IQM: floor(n / 4) scores are cut off at each end), its interval
the 95% percentile bootstrap's, seeds drawn anew within each dataset (stratified): rliable's method (Agarwal
et al. 2021, "Deep Reinforcement Learning at the Edge of the Statistical Precipice").
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from scipy.stats import bootstrap, trim_mean

from experiments.plan import NARROW, QUALITIES, WIDE

FEWEST = 3  # seeds with which there is an interval
RESAMPLES = 9999
HOLDS, OPEN, FAILS = 1, 0, -1  # verdicts: of several, the least is that on all, the greatest that on any
WORDS = {HOLDS: "holds", OPEN: "cannot be told", FAILS: "does not hold"}


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


def iqm_interval(scores: list[float]) -> Estimate:
    """IQM of the seeds of one dataset."""
    return interval([scores], iqm)


def difference(first: list, second: list) -> Estimate:
    """IQM of the first minus IQM of the second, mean over datasets: lists of a group of scores for each."""

    def mean_difference(*drawn, axis):
        iqms = [iqm(scores, axis=axis) for scores in drawn]
        return np.mean(iqms[: len(first)], axis=0) - np.mean(iqms[len(first) :], axis=0)

    return interval([*first, *second], mean_difference)


# ------ claims


class Claim(NamedTuple):
    """On each dataset of these qualities one of the methods is above all of the rivals."""

    text: str
    methods: tuple[str, ...]
    rivals: tuple[str, ...]
    qualities: tuple[str, ...]


def judge(found: Estimate) -> int:
    """The verdict on "this difference is above 0"."""
    return int(found.low > 0) - int(found.high < 0)  # nan is neither


def compare(scores: dict, places: list[tuple], method: str, rival: str) -> tuple[int, float, str]:
    """The verdict on one method against another, their mean difference over datasets, and that in words.

    scores: of each seed, by (actions, env_id, dataset, method); places: the first three of them.
    """
    pairs = [[scores.get((*place, name), []) for name in (method, rival)] for place in places]
    pairs = [pair for pair in pairs if min(map(len, pair)) >= FEWEST]
    if not pairs:
        return OPEN, -math.inf, f"too few seeds of {method} or {rival}"
    found = difference(*zip(*pairs, strict=True))
    return judge(found), found.value, f"{method} {found} against {rival}"


def find(claim: Claim, scores: dict, places: list[tuple]) -> tuple[int, float, str]:
    """What `compare` says of the pair that decides: of the rivals the one that the method is least above, of
    the methods the one for which that is most."""
    return max(min(compare(scores, places, m, rival) for rival in claim.rivals) for m in claim.methods)


OURS, RIVALS = ("spacql",), ("icql-qs", "joint", "cfcql")
CLAIMS = (
    Claim("SPaCQL is best on every Random and Medium-Replay dataset", OURS, RIVALS, WIDE),
    Claim("SPaCQL is above ICQL-QS", OURS, ("icql-qs",), QUALITIES),
    Claim("SPaCQL is above full joint backups as in CFCQL, with two critics", OURS, ("cfcql",), WIDE),
    Claim("SPaCQL is above full joint backups with its own ten critics", OURS, ("joint",), WIDE),
    Claim("Another method is above SPaCQL on Expert data", (*RIVALS, "bc"), OURS, ("expert",)),
    Claim("Not the paper's: k = 1 is above joint, both with two critics", ("icql-qs-2",), ("cfcql",), WIDE),
    Claim("Not the paper's: SPaCQL gains by some cloning in the actor", ("clone",), OURS, NARROW),
)
