"""Scores of a few seeds as numbers with intervals: the method of rliable (Agarwal et al. 2021, "Deep Reinforcement
Learning at the Edge of the Statistical Precipice").

A score is the interquartile mean (IQM): the mean of what is left when a quarter of the scores is cut off at each end.
floor(n / 4) scores go at each end: of five seeds it is the mean of the middle three, of three seeds the plain mean.

An interval is the percentile bootstrap's: 10,000 times the seeds of each dataset are drawn anew, with replacement and
within each dataset (stratified), and the interval holds the middle 95% of the IQMs. It cannot know of anything beyond
the lowest and the highest score, so intervals of few seeds are too short: COVERAGE has how often those called 95% hold
the truth. Fewer than three seeds get no interval. Resampling has a fixed seed: the same scores give the same intervals.
"""

from typing import NamedTuple

import numpy as np
from scipy.stats import trim_mean

RESAMPLES, LEVEL, SEED = 10_000, 0.95, 0
FEWEST = 3  # seeds with which there is an interval
# By seeds: how often the interval of one IQM, and that of a difference of two, has the truth, of normally distributed
# scores. Measured by coverage(seeds, repeats=20_000). Scores of which some collapse will do worse.
COVERAGE = {3: (0.754, 0.808), 5: (0.904, 0.940), 10: (0.936, 0.956)}


class Estimate(NamedTuple):
    """A number and its interval; the interval is (nan, nan) where a dataset has fewer than FEWEST seeds."""

    value: float
    low: float
    high: float


def iqm(scores, axis=None):
    """Interquartile mean, over all axes by default."""
    return trim_mean(scores, 0.25, axis=axis)


def resampled(groups, rng, resamples=RESAMPLES) -> np.ndarray:
    """Groups of scores, each drawn anew with replacement from itself and then put together: [resamples, all scores]."""
    drawn = (np.asarray(g)[rng.integers(len(g), size=(resamples, len(g)))] for g in groups)
    return np.concatenate(list(drawn), axis=1)


def estimate(value, resampled_values, groups) -> Estimate:
    """A value with the percentile interval of its resampled ones; groups are the scores that it came from."""
    if min(map(len, groups)) < FEWEST:
        return Estimate(float(value), np.nan, np.nan)
    tail = (1 - LEVEL) / 2
    return Estimate(float(value), *np.quantile(resampled_values, (tail, 1 - tail)).tolist())


def iqm_interval(*groups) -> Estimate:
    """IQM of all scores together; each group holds the scores of one dataset's seeds."""
    draws = resampled(groups, np.random.default_rng(SEED))
    return estimate(iqm(np.concatenate(groups)), iqm(draws, axis=1), groups)


def difference(first, second) -> Estimate:
    """IQM of the first minus IQM of the second, mean over datasets: the lists hold a group of seeds' scores of each.

    All groups are resampled apart: a seed's number gives the seeds of two methods nothing to be paired by.
    """
    rng = np.random.default_rng(SEED)
    value = np.mean([iqm(a) - iqm(b) for a, b in zip(first, second, strict=True)])
    draws = [[iqm(resampled([group], rng), axis=1) for group in groups] for groups in (first, second)]
    return estimate(value, np.subtract(*draws).mean(0), (*first, *second))


def improvement(first, second) -> Estimate:
    """Probability that a seed of the first group scores more than one of the second; ties count half."""
    rng = np.random.default_rng(SEED)
    draws = (resampled([group], rng)[..., None] for group in (first, second))
    x, y = next(draws), next(draws).swapaxes(1, 2)  # [resamples, n, 1], [resamples, 1, m]
    pairs = np.subtract.outer(np.asarray(first), np.asarray(second))
    value, values = ((d > 0).mean(axes) + (d == 0).mean(axes) / 2 for d, axes in ((pairs, (0, 1)), (x - y, (1, 2))))
    return estimate(value, values, (first, second))


def crossing(places, first, second) -> tuple[Estimate, float]:
    """Where along `places`, which rise, IQM of the first minus IQM of the second changes its sign for the first time.

    first, second: a group of seeds' scores at each place; between places the difference is linear. The interval is that
    of those resamples in which the sign changes at all, their share comes second. nan where it does not change.
    """
    rng = np.random.default_rng(SEED)
    draws = [[iqm(resampled([group], rng), axis=1) for group in groups] for groups in (first, second)]
    differences = np.subtract(*draws)  # [places, resamples]
    value = first_zero(places, np.array([[iqm(a) - iqm(b)] for a, b in zip(first, second, strict=True)]))
    found = first_zero(places, differences)
    found = found[~np.isnan(found)]
    share = len(found) / RESAMPLES
    return estimate(value[0], found if share else [np.nan], (*first, *second)), share


def first_zero(places, differences: np.ndarray) -> np.ndarray:
    """Where each column of differences [places, ...], linear in between, first changes its sign; nan where nowhere.

    A difference of exactly 0 has no sign: the line goes from the place before it to the one behind.
    """
    zero, last_place, last = (np.full(differences.shape[1:], np.nan) for _ in range(3))
    for place, here in zip(places, differences, strict=True):
        now = np.isnan(zero) & (last * here < 0)
        zero[now] = last_place[now] + (place - last_place[now]) * last[now] / (last[now] - here[now])
        signed = here != 0
        last_place[signed], last[signed] = place, here[signed]
    return zero


def coverage(num_seeds: int, repeats: int, resamples: int = 2000) -> tuple[float, float]:
    """How often an interval of one IQM, and one of a difference of two, has the truth, 0: of standard normal scores."""
    rng, tail, hits = np.random.default_rng(SEED), (1 - LEVEL) / 2, np.zeros(2)
    for _ in range(repeats):
        one, two = (iqm(resampled([rng.standard_normal(num_seeds)], rng, resamples), axis=1) for _ in range(2))
        for i, draws in enumerate((one, one - two)):
            low, high = np.quantile(draws, (tail, 1 - tail))
            hits[i] += low <= 0 <= high
    return tuple((hits / repeats).tolist())
