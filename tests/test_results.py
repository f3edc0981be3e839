"""The runner of experiments, what it keeps, and what it says: results/. Most jobs here run a stand-in for the training
scripts, which writes at once what they would; one runs the real one."""

import csv
import inspect
import itertools
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import scipy.stats
from common import ROOT, one_line, rejects, tree
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

import spacql
import spacql_continuous
from data import omar
from experiments import claims, dependence, intervals, records, running, tables
from experiments import plan as cells
from experiments import run as make
from experiments.claims import FAILS, HOLDS, OPEN, Scores, try_claim
from experiments.intervals import Estimate
from experiments.plan import BACKUPS, BLOCKS, KEYS, METHODS, QUALITIES, SCRIPTS, WIDE, Job, missing_jobs, planned_cells
from utils.files import parse
from utils.runs import check_args

EVERYTHING = planned_cells()
STAND_IN = """
import argparse, json, os, sys, time
from pathlib import Path
import numpy as np

parser = argparse.ArgumentParser()
for name in ("--env-id", "--dataset", "--out", "--name"):
    parser.add_argument(name)
for name, default in (("--rounds", 1), ("--batch-size", 256), ("--seed", 0), ("--num-seeds", 1)):
    parser.add_argument(name, type=int, default=default)
args, _ = parser.parse_known_args()
folder = Path(args.out) / args.name
folder.mkdir(parents=True)
(folder / "pid.txt").write_text(str(os.getpid()))
time.sleep(float(os.environ.get("STAND_IN_SECONDS", 0)))
if args.name in os.environ.get("STAND_IN_FAILS", "").split():
    print("one line", "another: it went wrong", sep="\\n", file=sys.stderr)
    sys.exit(2)
if args.name in os.environ.get("STAND_IN_DIES", "").split():
    os.kill(os.getpid(), 9)
seeds = list(range(args.seed, args.seed + args.num_seeds))
shape, sizes = (2, len(seeds)), 2 if "Cheetah" in args.env_id else 3
table = np.add.outer([1.0, 0.5], np.array(seeds, float))  # the first evaluation is the better one
weights = np.tile(np.linspace(0.5, 0.2, sizes), (*shape, 1))
history = dict(round=np.array([2, 4]), scores=table, k_eff=table, q_data=table, q_ood=table, weights=weights, u=weights)
history["saturated" if "continuous" in os.environ.get("STAND_IN_KIND", "") else "entropy"] = table
summary = dict(seeds=seeds, scores=[round(10.0 + s + len(args.name) / 100, 2) for s in seeds], wall_s=1.5, device="cpu")
texts = {k: np.array(json.dumps(v)) for k, v in dict(args=vars(args), summary=summary).items()}
np.savez(folder / "returns.npz", **texts, **{f"history_{k}": v for k, v in history.items()})
for name in ("args.json", "progress.png"):
    (folder / name).write_text(args.name)
"""


@pytest.fixture
def stand_in(tmp_path, monkeypatch):
    """Jobs run a script that writes results at once. Returns its path."""
    script = tmp_path / "stand_in.py"
    script.write_text(STAND_IN)
    monkeypatch.setattr(cells, "SCRIPTS", dict.fromkeys(SCRIPTS, str(script)))
    return script


def some(grid, count=None, **wanted):
    """The first planned cells of a grid with these values."""
    found = [cell for cell in EVERYTHING if cell.grid == grid]
    return [cell for cell in found if all(getattr(cell, k) == v for k, v in wanted.items())][:count]


# ------------------------------------------------------------------------------------------------ intervals


def loop_iqm(scores):
    """The interquartile mean, by sorting and cutting."""
    cut = len(scores) // 4
    kept = sorted(scores)[cut : len(scores) - cut]
    return sum(kept) / len(kept)


@given(st.lists(st.floats(-1e3, 1e3), min_size=1, max_size=13))
@hypothesis_settings(deadline=None, derandomize=True, database=None)
def test_iqm(scores):
    """A quarter of the scores, rounded down, is cut off at each end."""
    assert intervals.iqm(scores) == pytest.approx(loop_iqm(scores))


def test_iqm_of_few_seeds():
    """Of five seeds the middle three, of three and fewer all, of four the middle two."""
    assert intervals.iqm([100, 1, 2, 3, -50]) == 2
    assert intervals.iqm([0, 0, 9]) == 3 and intervals.iqm([4, 6]) == 5
    assert intervals.iqm([0, 2, 4, 1000]) == 3


def every_resample(group):
    """All equally likely ways to draw as many scores with replacement."""
    return list(itertools.product(group, repeat=len(group)))


def check_against_every_resample(interval_of, value_of, groups):
    """The interval's ends are the quantiles of the value over all combinations of all groups' resamples."""
    found = interval_of(*groups)
    values = np.sort([value_of(*drawn) for drawn in itertools.product(*map(every_resample, groups))])
    assert found.value == pytest.approx(value_of(*groups))
    for end, share in ((found.low, 0.025), (found.high, 0.975)):
        # The share of resamples below the end, up to the chance of 10,000 draws, and counting ties.
        below, up_to = (values < end - 1e-9).mean(), (values <= end + 1e-9).mean()
        assert below - 0.008 <= share <= up_to + 0.008, (found, below, up_to)


def pooled_iqm(*groups):
    """IQM of all scores of all groups."""
    return loop_iqm([score for group in groups for score in group])


GROUPS = ([1.0, 5.0, 6.5], [40.0, 47.0, 61.0])


def mean_instead(*groups):
    """The wrong statistic: the outermost scores count."""
    rng = np.random.default_rng(0)
    draws = intervals.resampled(groups, rng).mean(1)
    return intervals.estimate(pooled_iqm(*groups), draws, groups)


def unstratified(*groups):
    """The wrong resampling: a draw may have more scores of one dataset than of the other."""
    pooled = np.concatenate(groups)
    rng = np.random.default_rng(0)
    draws = intervals.iqm(intervals.resampled([pooled], rng), axis=1)
    return intervals.estimate(pooled_iqm(*groups), draws, groups)


def narrower(*groups):
    """The wrong level."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(intervals, "LEVEL", 0.9)
        return intervals.iqm_interval(*groups)


def without_replacement(*groups):
    """The wrong resampling: the same scores in another order."""
    return intervals.estimate(pooled_iqm(*groups), np.full(100, pooled_iqm(*groups)), groups)


@pytest.mark.parametrize("groups", [GROUPS, GROUPS[:1], ([3.0, 1.0, 8.0, 2.0],)], ids=["two", "three", "four"])
def test_iqm_interval(groups):
    """The interval of one dataset or of two is that of all resamples within each."""
    check_against_every_resample(intervals.iqm_interval, pooled_iqm, groups)


@pytest.mark.parametrize("wrong", [mean_instead, unstratified, narrower, without_replacement])
def test_iqm_interval_mistakes(wrong):
    """The check above sees wrong ways to make an interval."""
    rejects(check_against_every_resample, wrong, pooled_iqm, GROUPS)


def test_iqm_interval_is_scipys():
    """scipy's percentile bootstrap of several samples gives the same interval, up to chance."""
    rng = np.random.default_rng(3)
    groups = [rng.normal(centre, 5, 5) for centre in (20, 50, 90)]
    theirs = scipy.stats.bootstrap(
        groups,
        lambda *drawn, axis: scipy.stats.trim_mean(np.concatenate(drawn, axis=axis), 0.25, axis=axis),
        n_resamples=20_000,
        method="percentile",
        rng=1,
    ).confidence_interval
    ours = intervals.iqm_interval(*groups)
    assert ours[1:] == pytest.approx([theirs.low, theirs.high], abs=0.3)
    assert ours.high - ours.low > 3


def test_difference():
    """A difference of two methods on one dataset, and its mean over two."""

    def one_dataset(first, second):
        return intervals.difference([first], [second])

    check_against_every_resample(one_dataset, lambda a, b: loop_iqm(a) - loop_iqm(b), GROUPS)
    groups = [[0.0, 10.0, 30.0], [50.0, 55.0], [2.0, 3.0], [7.0, 9.0, 20.0]]
    found = intervals.difference(groups[:2], groups[2:])
    middle = [loop_iqm(group) for group in groups]
    assert found.value == pytest.approx((middle[0] - middle[2] + middle[1] - middle[3]) / 2)
    swapped = intervals.difference(groups[2:], groups[:2])
    assert swapped.value == pytest.approx(-found.value)


def test_differences_over_datasets_are_resampled_within_each():
    """Two noisy datasets of which the second is far higher: its level does not widen the interval."""
    first, second = [[0.0, 1.0, 2.0], [100.0, 101.0, 102.0]], [[0.0, 1.0, 2.0], [200.0, 201.0, 202.0]]
    found = intervals.difference(first, second)
    assert found.value == -50 and -51.5 < found.low < -50.2 and -49.8 < found.high < -48.5


def test_improvement():
    """The share of pairs in which the first is above, ties counted half; its interval is that of all resamples."""

    def share(first, second):
        return np.mean([(a > b) + (a == b) / 2 for a in first for b in second])

    groups = ([1.0, 4.0, 6.0], [2.0, 4.0, 5.0])
    assert intervals.improvement(*groups).value == pytest.approx((0.5 + 4) / 9)
    check_against_every_resample(intervals.improvement, share, groups)


def loop_first_zero(places, differences):
    """The first change of sign along a line through the points that are not 0."""
    points = [(x, d) for x, d in zip(places, differences, strict=True) if d != 0]
    for (x0, d0), (x1, d1) in itertools.pairwise(points):
        if (d0 > 0) != (d1 > 0):
            return x0 + (x1 - x0) * d0 / (d0 - d1)
    return np.nan


@given(st.lists(st.sampled_from([-2.0, -1.0, 0.0, 1.0, 3.0]), min_size=1, max_size=6))
@hypothesis_settings(deadline=None, derandomize=True, database=None)
def test_first_zero(differences):
    """Against a loop; a line that only touches 0 does not cross it."""
    places = np.arange(len(differences)) ** 1.5
    found = intervals.first_zero(places, np.array([differences, differences[::-1]]).T)
    expected = [loop_first_zero(places, d) for d in (differences, differences[::-1])]
    np.testing.assert_allclose(found, expected)


def test_crossing():
    """Far apart at both ends it is certain, and where the line says; with equal signs it is nowhere."""
    low, high = [0.0, 1.0, 2.0], [30.0, 31.0, 32.0]
    found, share = intervals.crossing([0.0, 0.4], [low, high], [high, low])
    assert share == 1 and found.value == pytest.approx(0.2) and 0.18 < found.low < 0.2 < found.high < 0.22
    found, share = intervals.crossing([0.0, 0.4], [low, low], [high, high])
    assert share == 0 and np.isnan(found).all()
    found, share = intervals.crossing([0.0, 1.0], [low, [0.0, 1.0, 3.5]], [high, low])
    assert 0.5 < share < 0.95 and found.value > 0.9, "uncertain at the upper end"


def test_few_seeds_have_no_interval():
    """Two seeds, or two seeds of one of several datasets: only the value."""
    for found in (
        intervals.iqm_interval([1.0, 2.0]),
        intervals.iqm_interval([1.0, 2.0, 3.0], [1.0, 2.0]),
        intervals.difference([[1.0, 2.0, 3.0]], [[1.0]]),
    ):
        assert np.isfinite(found.value) and np.isnan(found.low) and np.isnan(found.high)
    assert np.isfinite(intervals.iqm_interval([1.0, 2.0, 3.0])).all()


def test_same_scores_same_intervals():
    """Resampling has its own fixed seed."""
    np.random.seed(1)
    first = intervals.iqm_interval(*GROUPS)
    np.random.seed(2)
    assert intervals.iqm_interval(*GROUPS) == first


@pytest.mark.parametrize("num_seeds", intervals.COVERAGE)
def test_coverage(num_seeds):
    """The coverage that the texts quote is what a small simulation finds, too; three and five seeds are below 95%."""
    repeats, quoted = 600, np.array(intervals.COVERAGE[num_seeds])
    found = np.array(intervals.coverage(num_seeds, repeats, resamples=500))
    assert (abs(found - quoted) < 4 * np.sqrt(quoted * (1 - quoted) / repeats) + 0.01).all(), (found, quoted)
    assert quoted[0] < 0.95 and (quoted[0] < 0.91 or num_seeds == 10)


# --------------------------------------------------------------------------------------------------- claims

SPREAD_RANDOM = ("simple_spread", "random")


def rows_from(scores, grid="discrete", weights=(0.5, 0.3, 0.2)):
    """Rows of the main cells of a grid: scores {(env_id, quality): {method: scores of seeds}}."""
    rows = []
    for (env_id, quality), by_method in scores.items():
        for method, values in by_method.items():
            (cell,) = some(grid, 1, env_id=env_id, dataset=quality, method=method)
            chosen = weights(quality) if callable(weights) else weights
            for seed, value in enumerate(values):
                row = {k: str(v) for k, v in cell.key.items()} | dict(seed=str(seed), score=str(value), best="0")
                rows.append(row | {f"w{k}": str(w) for k, w in zip((1, 2, 3), chosen, strict=True)})
    return rows


def scores_from(*args, grid="discrete", **kwargs):
    """The same as Scores."""
    return Scores(EVERYTHING, {grid: rows_from(*args, grid=grid, **kwargs)})


def around(centre):
    """Scores of five seeds."""
    return [centre + x for x in (-1.0, -0.5, 0.0, 0.5, 1.0)]


def on_wide(**centres):
    """Scores on every random and medium-replay dataset of discrete tasks."""
    return {(e, q): {m: around(c) for m, c in centres.items()} for e in claims.TASKS["discrete"] for q in WIDE}


def claim(text):
    """The claim that begins so."""
    (found,) = [c for c in claims.CLAIMS if c.text.startswith(text)]
    return found


BEST = claim("SPaCQL is best on every")


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [(0.1, 2, HOLDS), (-2, -0.1, FAILS), (-1, 1, OPEN), (0, 1, OPEN), (-1, 0, OPEN), (np.nan, np.nan, OPEN)],
)
def test_judge(low, high, verdict):
    """Holds above 0, does not below, else cannot be told; an interval that touches 0 tells nothing."""
    assert claims.judge(Estimate(0.0, low, high)) == verdict


def test_combined_verdicts():
    """All: one that does not hold decides. Any: one that holds decides. Nothing at all tells nothing."""
    for verdicts in itertools.product((HOLDS, FAILS, OPEN), repeat=3):
        expected = FAILS if FAILS in verdicts else OPEN if OPEN in verdicts else HOLDS
        assert claims.all_of(list(verdicts)) == expected
        expected = HOLDS if HOLDS in verdicts else OPEN if OPEN in verdicts else FAILS
        assert claims.any_of(list(verdicts)) == expected
    assert claims.all_of([]) == claims.any_of([]) == OPEN


def test_best_on_every_dataset():
    """Holds where SPaCQL is clearly above every other method on every dataset, with the nearest of them shown."""
    others = {method: 50 for method in METHODS[2:]}
    verdict, together, findings = try_claim(
        BEST, "discrete", scores_from(on_wide(spacql=70, **others, **{"icql-qs": 65}))
    )
    assert verdict == HOLDS and len(findings) == 6 and {f.verdict for f in findings.values()} == {HOLDS}
    assert together.startswith("spacql +5.0 [") and "against icql-qs, mean of 6 datasets" in together
    finding = findings[SPREAD_RANDOM]
    assert finding.said.startswith("spacql +5.0 [+") and finding.said.endswith("against icql-qs, P(above) 1.00")
    assert finding.missing == [] and finding.comparisons == [HOLDS] * 6


def test_one_better_method_on_one_dataset_decides():
    """Best on five datasets and clearly beaten on one: the sentence does not hold."""
    scores = on_wide(**dict.fromkeys(METHODS, 50)) | {}
    for by_method in scores.values():
        by_method["spacql"] = around(70)
    scores["simple_tag", "random"]["macql"] = around(90)
    verdict, _, findings = try_claim(BEST, "discrete", scores_from(scores))
    assert verdict == FAILS and [f.verdict for f in findings.values()].count(HOLDS) == 5
    assert findings["simple_tag", "random"].said.startswith("spacql -20.0 [-2")
    assert "against macql" in findings["simple_tag", "random"].said


def test_close_scores_cannot_be_told():
    """A rival within the noise: no verdict, even with the highest value."""
    scores = on_wide(**dict.fromkeys(METHODS, 50))
    scores[SPREAD_RANDOM]["spacql"] = around(50.3)
    verdict, _, findings = try_claim(BEST, "discrete", scores_from(scores))
    assert verdict == OPEN and {f.verdict for f in findings.values()} == {OPEN}


@pytest.mark.parametrize("seeds", [0, 2])
def test_missing_cells_are_named(seeds):
    """Without three seeds of one rival nothing holds, and it is named; a rival that wins decides all the same."""
    scores = on_wide(**dict.fromkeys(METHODS, 50))
    for by_method in scores.values():
        by_method["spacql"] = around(70)
    scores["simple_world", "medium-replay"]["cfcql"] = around(10)[:seeds]
    verdict, _, findings = try_claim(BEST, "discrete", scores_from(scores))
    assert verdict == OPEN
    assert {where: f.missing for where, f in findings.items() if f.missing} == {
        ("simple_world", "medium-replay"): ["cfcql"]
    }
    scores["simple_world", "medium-replay"]["bc"] = around(90)
    assert try_claim(BEST, "discrete", scores_from(scores))[0] == FAILS


def test_beaten_on_expert():
    """ "Another method is above SPaCQL": one is enough, and all must be clearly below for the opposite."""
    expert = {(e, "expert"): {m: around(50) for m in METHODS} for e in claims.TASKS["discrete"]}
    beaten = claim("Another method")
    for by_method in expert.values():
        by_method["bc"] = around(80)
    verdict, together, findings = try_claim(beaten, "discrete", scores_from(expert))
    assert verdict == HOLDS and together.startswith("bc +30.0 [+2")
    assert "against spacql" in findings["simple_spread", "expert"].said
    for by_method in expert.values():
        by_method["spacql"] = around(99)
    assert try_claim(beaten, "discrete", scores_from(expert))[0] == FAILS
    del expert["simple_tag", "expert"]
    assert try_claim(beaten, "discrete", scores_from(expert))[0] == FAILS
    for by_method in expert.values():
        by_method["bc"] = around(150)
    assert try_claim(beaten, "discrete", scores_from(expert))[0] == OPEN, "two hold, one is missing"


@pytest.mark.parametrize(("score", "verdict"), [(85, HOLDS), (70, FAILS), (78.3, OPEN)])
def test_published(score, verdict):
    """The one comparable dataset against the published 78.2."""
    scores = scores_from({SPREAD_RANDOM: {"spacql": around(score)}}, grid="continuous")
    found, said, findings = try_claim(claim("SPaCQL scores more"), "continuous", scores)
    assert found == verdict and list(findings) == [SPREAD_RANDOM] and "against the published 78.2" in said
    assert f"spacql {score - 78.2:+.1f} [" in said and "P(above)" not in said


@pytest.mark.parametrize(
    ("weights", "largest", "dominates"),
    [((0.6, 0.3, 0.1), HOLDS, HOLDS), ((0.4, 0.3, 0.3), HOLDS, FAILS), ((0.3, 0.4, 0.3), FAILS, FAILS)],
)
def test_weights_on_wide_data(weights, largest, dominates):
    """w_1 is the largest where it is above each other weight, and dominates where it is above their sum."""
    scores = scores_from(on_wide(spacql=50), weights=weights)
    assert try_claim(claim("w_1 is the largest"), "discrete", scores)[0] == largest
    verdict, _, findings = try_claim(claim("w_1 dominates"), "discrete", scores)
    assert verdict == dominates
    assert f"{2 * weights[0] - 1:+.4f}" in findings[SPREAD_RANDOM].said


def test_weights_on_expert_data():
    """w_2 and w_3 rise where 1 - w_1 is above that on random and on medium-replay data, both."""
    by_quality = dict.fromkeys(QUALITIES, (0.5, 0.3, 0.2)) | dict(expert=(0.3, 0.4, 0.3))
    data = {(e, q): dict(spacql=around(50)) for e in claims.TASKS["discrete"] for q in (*WIDE, "expert")}
    rise = claim("w_2 and w_3 rise")
    verdict, _, findings = try_claim(rise, "discrete", scores_from(data, weights=by_quality.get))
    assert verdict == HOLDS and "+0.2000" in findings["simple_spread", "expert"].said
    by_quality["medium-replay"] = (0.1, 0.5, 0.4)
    assert try_claim(rise, "discrete", scores_from(data, weights=by_quality.get))[0] == FAILS
    data = {where: by_method for where, by_method in data.items() if where[1] != "medium-replay"}
    verdict, _, findings = try_claim(rise, "discrete", scores_from(data, weights=by_quality.get))
    assert verdict == OPEN and findings["simple_spread", "expert"].missing == ["1 - w_1 of spacql on medium-replay"]


def test_two_agents_have_two_weights():
    """HalfCheetah's third weight is empty in the table and counts for nothing."""
    assert claims.weights(dict(w1="0.6", w2="0.4", w3="")).tolist() == [0.6, 0.4]
    assert claims.weights(dict(w1="0.5", w2="0.3", w3="0.2")).sum() == pytest.approx(1)


def test_claims_ask_for_what_is_planned():
    """Every comparison of every claim is between main cells of the plan, but for HalfCheetah's rivals."""
    planned = {(c.grid, c.env_id, c.dataset, c.method) for c in EVERYTHING}
    for one in claims.CLAIMS:
        for grid in one.grids:
            _, _, findings = try_claim(one, grid, Scores(EVERYTHING, {}))
            assert all(f.verdict == OPEN and f.missing for f in findings.values())
            for env_id, quality in findings:
                if env_id != "HalfCheetah-2x3":
                    assert {(grid, env_id, quality, m) for m in METHODS} <= planned


def test_main_rows_count():
    """Claims and aggregates use a dataset's main size; longer or larger runs are rows of their own."""
    longer = some("discrete", env_id="simple_spread", dataset="random", method="spacql", rounds=2400)[0]
    rows = rows_from({SPREAD_RANDOM: dict(spacql=around(60))})
    rows.append(rows[0] | dict(rounds=str(longer.rounds), score="99"))
    scores = Scores(EVERYTHING, dict(discrete=rows))
    assert scores.values(("discrete", *SPREAD_RANDOM), "spacql") == around(60)
    text = tables.main_table("discrete", scores)
    assert "| 800 | 60.0 [" in text and "| 2400 | 99.0 (n = 1) |" in text


# ---------------------------------------------------------------------------------------------------- cells


def test_the_most_telling_first():
    """Spread with the four backups, all qualities, comes first; then its baselines, then the wide data of others."""
    assert [(c.env_id, c.dataset, c.method) for c in EVERYTHING[:16]] == [
        ("simple_spread", quality, method) for quality in QUALITIES for method in BACKUPS
    ]
    assert QUALITIES == omar.QUALITIES
    assert {c.grid for c in EVERYTHING[:28]} == {"discrete"} and {c.num_seeds for c in EVERYTHING[:28]} == {5}
    then = EVERYTHING[28:56]
    assert {c.env_id for c in then} == {"simple_tag", "simple_world"} and {c.dataset for c in then} == set(WIDE)


def test_names():
    """Folder names are safe and tell all cells apart, and a job is found by its name."""
    for quick in (False, True):
        every = planned_cells(quick)
        names = [cell.name for cell in every]
        assert len(set(names)) == len(names) and all(re.fullmatch(r"[\w.-]{10,120}", name) for name in names)
        for cell in every:
            job = Job(cell, 3, 2)
            assert cells.job_named(job.name, every) == job
    assert Job(EVERYTHING[0], 3, 2).name == "discrete__simple_spread__random__spacql__800__3x2"
    for wrong in ("nonsense", "discrete__simple_spread__random__spacql__800", "x__0x1", f"{EVERYTHING[0].name}__0x0"):
        assert "no cell is named" in one_line(lambda wrong=wrong: cells.job_named(wrong, EVERYTHING))


def test_commands_are_understood():
    """The training scripts take every command, and what it sets is what the cell's key says."""
    scripts = {"spacql.py": spacql, "spacql_continuous.py": spacql_continuous}
    for quick in (False, True):
        kinds = {(c.grid, c.env_id, c.method, c.flags): c for c in planned_cells(quick)}
        for cell in kinds.values():
            environment, python, name, *words = shlex.split(Job(cell, 3, 2).command())
            assert (environment, python) == ("OMP_NUM_THREADS=1", "python")
            script = scripts[name]
            args = parse(script.Args, words)
            check_args(args, script.CHOICES)
            assert (args.env_id, args.dataset, args.rounds) == (cell.env_id, cell.dataset, cell.rounds)
            assert (args.seed, args.num_seeds, args.out) == (3, 2, "runs/results")
            assert (args.batch_size or 256) == cell.batch_size
            expected = dict(joint="joint", uniform="uniform", cfcql="joint", macql="joint", bc="icql-qs")
            method = cell.method.removesuffix("-vs-policy")
            assert args.backup == expected.get(method, "icql-qs" if method == "icql-qs" else "spacql")
            assert (args.actor_others == "policy") == (method != cell.method)


def test_variants_differ():
    """No two methods of a grid have the same flags, and a grid's methods are known to the tables."""
    for grid in SCRIPTS:
        methods = dict.fromkeys(c.method for c in EVERYTHING if c.grid == grid)
        assert len({cells.FLAGS[m] for m in methods}) == len(methods) and len(methods) > 1
        assert set(methods) <= set(tables.COLUMNS.get(grid, methods))


def done(cell, *seeds):
    """Rows of these seeds as `collect` names them."""
    return {(cell.grid, *map(str, cell.key.values()), str(seed)) for seed in seeds}


@pytest.mark.parametrize(
    ("seeds", "jobs"),
    [
        ((), [(0, 5)]),
        ((0, 1, 2), [(3, 2)]),
        ((0, 2, 4), [(1, 1), (3, 1)]),
        ((2,), [(0, 2), (3, 2)]),
        ((0, 1, 2, 3, 4), []),
        ((7,), [(0, 5)]),
    ],
)
def test_missing_seeds_are_trained_side_by_side(seeds, jobs):
    """Neighbouring missing seeds make one job; other cells' rows are of no account."""
    cell, other = EVERYTHING[0], EVERYTHING[1]
    found = missing_jobs([cell], done(cell, *seeds) | done(other, 0, 1, 2, 3, 4))
    assert [(job.first, job.count) for job in found] == jobs


def test_quick_covers_every_block():
    """--quick has a tiny cell of every grid, task and method that leads a block, and no cell that is not planned."""
    quick = planned_cells(True)
    assert {c.grid for c in quick} == set(SCRIPTS) and len(quick) < 60
    assert all((c.rounds, c.batch_size, c.num_seeds) == (4, 32, 3) for c in quick)
    for block in BLOCKS:
        place = (block.grid, block.env_ids[0], block.datasets[0], block.methods[0])
        assert place in {(c.grid, c.env_id, c.dataset, c.method) for c in quick}
    planned = {(c.grid, c.env_id, c.dataset, c.method) for c in EVERYTHING}
    assert {(c.grid, c.env_id, c.dataset, c.method) for c in quick} <= planned


# -------------------------------------------------------------------------------------------------- records


def finished_run(runs, cell, first=0, count=2):
    """A run folder of a stand-in's job."""
    job = Job(cell, first, count)
    assert running.run_one(job, runs, "abc1234") is None
    return runs / job.name


def test_rows_of_a_run(stand_in, tmp_path):
    """A row per seed with its own numbers; the curves have a row per seed and evaluation."""
    cell = EVERYTHING[0]
    folder = finished_run(tmp_path / "runs", cell, 3, 2)
    grid, rows, curves = records.rows_of(folder)
    assert grid == "discrete" and [row["seed"] for row in rows] == [3, 4]
    assert [row["score"] for row in rows] == [13.49, 14.49] and [row["best"] for row in rows] == [4.0, 5.0]
    assert [row["k_eff"] for row in rows] == [3.5, 4.5]
    for row in rows:
        assert {k: row[k] for k in KEYS} == cell.key and (row["w1"], row["w2"], row["w3"]) == (0.5, 0.35, 0.2)
        assert (row["wall_s"], row["stacked"], row["commit"]) == (1.5, 2, "abc1234")
        assert (
            row["command"] == Job(cell, 3, 2).command()
            and "--seed 3 --num-seeds 2 --out runs/results" in row["command"]
        )
        assert str(tmp_path / "runs") not in json.dumps(row)
    assert [(row["seed"], row["round"], row["scores"]) for row in curves] == [
        (3, 2, 4),
        (3, 4, 3.5),
        (4, 2, 5),
        (4, 4, 4.5),
    ]
    assert {"entropy", "q_data", "q_ood", "w1", "u3"} <= curves[0].keys()


def test_rows_of_two_agents(stand_in, tmp_path):
    """The third weight of HalfCheetah is empty in the table, and no number in the curves."""
    (cell,) = some("continuous", 1, env_id="HalfCheetah-2x3")
    _, rows, curves = records.rows_of(finished_run(tmp_path, cell, 0, 1))
    assert (rows[0]["w1"], rows[0]["w2"], rows[0]["w3"]) == (0.5, 0.2, "")
    assert np.isnan(curves[0]["w3"]) and curves[0]["w2"] == 0.2


def test_collect(stand_in, tmp_path):
    """Each seed gets in once, whoever trained it; rows that are there stay; looking alone writes nothing."""
    runs, out = tmp_path / "runs", tmp_path / "out"
    first, second = some("discrete", 2)
    finished_run(runs, first, 0, 2)
    looked = records.collect(records.finished_folders(runs), out, only_look=True)
    assert looked == done(first, 0, 1) and not out.exists()
    assert records.collect(records.finished_folders(runs), out) == looked
    rows = records.read(out / "discrete.csv")
    assert [row["seed"] for row in rows] == ["0", "1"] and len(records.read(out / "discrete_curves.csv")) == 4
    rows[0]["score"] = "77"
    records.write(out / "discrete.csv", rows)
    finished_run(runs, second, 0, 1)
    finished_run(runs, first, 1, 2)  # seed 1 again, seed 2 for the first time
    assert records.collect(records.finished_folders(runs), out) == done(first, 0, 1, 2) | done(second, 0)
    rows = records.read(out / "discrete.csv")
    assert [(row["method"], row["seed"]) for row in rows] == [("spacql", s) for s in "012"] + [("icql-qs", "0")]
    assert rows[0]["score"] == "77" and rows[1]["stacked"] == "2"
    assert len(records.read(out / "discrete_curves.csv")) == 8
    before = tree(out)
    records.collect(records.finished_folders(runs), out)
    assert tree(out) == before


def test_curves_without_rows_are_not_doubled(stand_in, tmp_path):
    """Killed between the curves and the table: the next time puts the table right, and every point in once."""
    runs, out = tmp_path / "runs", tmp_path / "out"
    cell = EVERYTHING[0]
    finished_run(runs, cell)
    records.collect(records.finished_folders(runs), out)
    whole = {path.name: path.read_text() for path in out.iterdir()}
    (out / "discrete.csv").unlink()
    records.collect(records.finished_folders(runs), out)
    assert {path.name: path.read_text() for path in out.iterdir()} == whole


def test_row_order_does_not_depend_on_who_was_first(stand_in, tmp_path):
    """The same cells in another order give the same files."""
    runs, chosen = tmp_path / "runs", some("discrete", 3)
    folders = [finished_run(runs, cell) for cell in chosen]
    for out, order in (("a", folders), ("b", folders[::-1])):
        for folder in order:
            records.collect([folder], tmp_path / out)
    for name in ("discrete.csv", "discrete_curves.csv"):
        assert (tmp_path / "a" / name).read_text() == (tmp_path / "b" / name).read_text()


def spoil_record(folder):
    """Half of cell.json."""
    path = folder / "cell.json"
    path.write_text(path.read_text()[:40])


def spoil_results(folder):
    """Half of returns.npz."""
    path = folder / "returns.npz"
    path.write_bytes(path.read_bytes()[:500])


def remove_results(folder):
    """No returns.npz."""
    (folder / "returns.npz").unlink()


def other_cell(folder):
    """The record of another dataset's cell."""
    path = folder / "cell.json"
    path.write_text(path.read_text().replace('"dataset": "random"', '"dataset": "expert"'))


def other_grid(folder):
    """A grid that is not planned."""
    path = folder / "cell.json"
    path.write_text(path.read_text().replace('"grid": "discrete"', '"grid": "elsewhere"'))


@pytest.mark.parametrize("spoil", [spoil_record, spoil_results, remove_results, other_cell, other_grid])
def test_damaged_folders_are_left_out(stand_in, tmp_path, capsys, spoil):
    """They are named, and the others get in."""
    first, second = some("discrete", 2)
    bad, _ = finished_run(tmp_path, first), finished_run(tmp_path, second)
    spoil(bad)
    assert records.collect(records.finished_folders(tmp_path), tmp_path / "out") == done(second, 0, 1)
    assert f"left out {bad}" in capsys.readouterr().err


def test_committed_tables_are_whole():
    """Every row of the repository's tables has numbers, a command of the right script, and its curve; none is twice."""
    for grid, script in SCRIPTS.items():
        rows, curves = (records.read(path) for path in records.files(ROOT / "results", grid))
        places = [records.place(row) for row in rows]
        assert len(set(places)) == len(places)
        assert {records.place(row) for row in curves} == set(places)
        planned = {tuple(map(str, cell.key.values())) for cell in EVERYTHING if cell.grid == grid}
        for row in rows:
            assert records.place(row)[:-1] in planned, "a cell that nobody would run again"
            assert np.isfinite(
                [float(row[k]) for k in ("score", "best", "k_eff", "w1", "w2", "wall_s", "stacked")]
            ).all()
            assert row["command"].startswith(f"OMP_NUM_THREADS=1 python {script} --env-id {row['env_id']} ")
            assert re.fullmatch(r"[0-9a-f]{7,}", row["commit"]) and row["machine"]
            first = int(re.search(r"--seed (\d+)", row["command"])[1])
            assert first <= int(row["seed"]) < first + int(row["stacked"])


# -------------------------------------------------------------------------------------------------- running


def outcomes(jobs, runs, workers=2):
    """What went wrong with each job, by name."""
    return {job.name: wrong for job, wrong in running.run_here(jobs, runs, workers)}


def test_run_here(stand_in, tmp_path, monkeypatch):
    """Jobs run side by side; a failure is told with the command's last line and stops nothing else."""
    jobs = [Job(cell, 0, 1) for cell in EVERYTHING[:4]]
    monkeypatch.setenv("STAND_IN_FAILS", jobs[0].name)
    monkeypatch.setenv("STAND_IN_DIES", jobs[1].name)
    found = outcomes(jobs, tmp_path)
    assert found == {
        jobs[0].name: "another: it went wrong",
        jobs[1].name: "ended by signal 9",
        jobs[2].name: None,
        jobs[3].name: None,
    }
    assert [running.is_done(job, tmp_path) for job in jobs] == [False, False, True, True]
    monkeypatch.delenv("STAND_IN_FAILS")
    assert outcomes(jobs[:1], tmp_path) == {jobs[0].name: None}, "what a failed attempt left is in nobody's way"
    assert not (tmp_path / f"{jobs[0].name}.txt").exists() and not list(tmp_path.rglob("*.partial*"))


def test_as_many_at_a_time_as_asked(stand_in, tmp_path, monkeypatch):
    """Two workers: never more than two at once, and two at once."""
    running_now, most = set(), []
    begin, end = running.start, running.finish
    monkeypatch.setattr(
        running, "start", lambda job, runs: (running_now.add(job), most.append(len(running_now))) and begin(job, runs)
    )
    monkeypatch.setattr(running, "finish", lambda job, *rest: running_now.discard(job) or end(job, *rest))
    outcomes([Job(cell, 0, 1) for cell in EVERYTHING[:5]], tmp_path)
    assert max(most) == 2 and len(most) == 5


def test_stopping_stops_the_jobs(stand_in, tmp_path, monkeypatch):
    """Whoever stops iterating, by an interrupt say, leaves no job behind."""
    monkeypatch.setenv("STAND_IN_SECONDS", "60")
    jobs = [Job(cell, 0, 1) for cell in EVERYTHING[:2]]
    processes = []
    begin = running.start
    monkeypatch.setattr(running, "start", lambda job, runs: processes.append(begin(job, runs)) or processes[-1])
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(time, "sleep", interrupted)
        list(running.run_here(jobs, tmp_path, 2))
    assert len(processes) == 2 and [process.wait(5) for process in processes] == [-signal.SIGKILL] * 2


def interrupted(_):
    """What Ctrl-C does."""
    raise KeyboardInterrupt


def test_no_results_is_a_failure(stand_in, tmp_path):
    """A command that ends well and leaves nothing."""
    stand_in.write_text("")
    found = outcomes([Job(EVERYTHING[0], 0, 1)], tmp_path)
    assert "left no results that can be read" in found[Job(EVERYTHING[0], 0, 1).name]


def test_a_real_cell(tmp_path):
    """A tiny cell by spacql.py itself: what it prints is what gets into the table."""
    flags = f"{cells.QUICK_FLAGS} --dataset-size 500 --hidden 8 --num-critics 2 --data-dir {tmp_path / 'data'}"
    cell = replace(EVERYTHING[0], **cells.QUICK, flags=flags.replace("--dataset-size 5000 ", ""))
    job = Job(cell, 1, 2)
    assert running.run_one(job, tmp_path, "abc1234") is None
    printed = json.loads((tmp_path / job.name / running.LOG).read_text().splitlines()[-1])
    _, rows, curves = records.rows_of(tmp_path / job.name)
    assert [row["score"] for row in rows] == printed["scores"] and [row["seed"] for row in rows] == printed[
        "seeds"
    ] == [1, 2]
    assert np.mean([[row[f"w{k}"] for k in (1, 2, 3)] for row in rows], axis=0) == pytest.approx(
        printed["weights"], abs=2e-4
    )
    assert np.mean([row["best"] for row in rows]) == pytest.approx(printed["best_mean"], abs=0.02)
    assert [row["round"] for row in curves] == [2, 4, 2, 4] and rows[0]["machine"].endswith("core")


def git(folder, *words):
    """Run git there."""
    identity = ["-c", "user.name=x", "-c", "user.email=x", "-c", "commit.gpgsign=false"]
    subprocess.run(["git", *identity, *words], cwd=folder, check=True, capture_output=True)


def test_code_commit(tmp_path, monkeypatch):
    """Changed code makes a commit dirty; results that grow, and texts, do not."""
    monkeypatch.setattr(running, "TOP", tmp_path)
    assert running.code_commit() == "unknown"
    (tmp_path / "results").mkdir()
    for name in ("code.py", "README.md", "results/discrete.csv"):
        (tmp_path / name).write_text("first")
    git(tmp_path, "init", "-q")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-qm", "x")
    clean = running.code_commit()
    assert re.fullmatch(r"[0-9a-f]{7,}", clean)
    for name in ("README.md", "results/discrete.csv"):
        (tmp_path / name).write_text("second")
    assert running.code_commit() == clean
    (tmp_path / "code.py").write_text("second")
    assert running.code_commit() == f"{clean}-dirty"


def test_files_of_a_job_elsewhere(stand_in, tmp_path):
    """What a worker without shared files returns makes the same run folder as a job here."""
    job = Job(EVERYTHING[0], 0, 2)
    running.keep(job, tmp_path / "there", running.run_elsewhere(job, "abc1234"))
    assert running.run_one(job, tmp_path / "here", "abc1234") is None
    there, here = (records.rows_of(tmp_path / place / job.name) for place in ("there", "here"))
    assert str(there) == str(here)
    assert {path.name for path in (tmp_path / "there" / job.name).iterdir()} == set(running.RETURNED)


def test_a_failed_job_elsewhere_raises(stand_in, tmp_path, monkeypatch):
    """So that the driver hears of it."""
    job = Job(EVERYTHING[0], 0, 2)
    monkeypatch.setenv("STAND_IN_FAILS", job.name)
    with pytest.raises(RuntimeError, match="another: it went wrong"):
        running.run_elsewhere(job, "abc1234")


# -------------------------------------------------------------------------------------------------- make.py


def run_make(folder, *flags):
    """make.py in this process, with its run folders and tables below `folder`."""
    make.main([*flags, "--runs", str(folder / "runs"), "--out", str(folder / "out")])


def csv_files(folder):
    """The texts of all CSV files; the time a run took is the stand-in's."""
    return {path.name: path.read_text() for path in sorted((folder / "out").glob("*.csv"))}


def test_make_runs_what_is_missing(stand_in, tmp_path, monkeypatch, capsys):
    """A grid from nothing; a failed cell is named and run by the next call, which runs nothing else."""
    failing = Job(some("ablation")[2], 0, 1).name
    monkeypatch.setenv("STAND_IN_FAILS", failing)
    message = one_line(lambda: run_make(tmp_path, "--grid", "ablation"))
    assert message == f"1 cells failed; first: {failing}: another: it went wrong"
    rows = records.read(tmp_path / "out" / "ablation.csv")
    assert len(rows) == len(cells.ABLATION) - 1
    text = (tmp_path / "out" / "tables.md").read_text()
    assert "* ablation, simple_spread random, 500 rounds: actions as they are (0)" in text
    assert all((tmp_path / "out" / f"{name}.png").stat().st_size > 10_000 for name in ("weights", "k_eff", "scores"))
    monkeypatch.delenv("STAND_IN_FAILS")
    before = tree(tmp_path / "runs")
    monkeypatch.setattr(make, "report", lambda *_: None)  # drawing takes seconds
    run_make(tmp_path, "--grid", "ablation")
    assert len(records.read(tmp_path / "out" / "ablation.csv")) == len(cells.ABLATION)
    new = {path for path, *_ in set(tree(tmp_path / "runs")) - set(before)}
    assert all(failing in path or path.endswith("runs") for path in new), "nothing is run twice"
    monkeypatch.setattr(running, "start", None)
    run_make(tmp_path, "--grid", "ablation")


def test_any_scheduler(stand_in, tmp_path, monkeypatch, capsys):
    """The lines of --dry-run, each run by itself, and --collect: the same tables as a run of everything."""
    monkeypatch.setattr(make, "report", lambda *_: None)
    run_make(tmp_path / "all", "--grid", "ablation")
    capsys.readouterr()
    run_make(tmp_path / "one", "--grid", "ablation", "--dry-run")
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(cells.ABLATION) and not (tmp_path / "one").exists()
    for line in lines:
        environment, python, script, *flags = shlex.split(line)
        assert (environment, python, script) == ("OMP_NUM_THREADS=1", "python", "experiments/run.py")
        make.main(flags)
        before = tree(tmp_path)
        make.main(flags)
        assert tree(tmp_path) == before, "a cell that is done is not run again"
    assert not (tmp_path / "one" / "out").exists()
    run_make(tmp_path / "one", "--grid", "ablation", "--dry-run")
    assert capsys.readouterr().out == "", "a folder that is done counts before it is collected"
    assert not (tmp_path / "one" / "out").exists(), "a dry run writes nothing"
    run_make(tmp_path / "one", "--collect")
    assert csv_files(tmp_path / "one") == csv_files(tmp_path / "all") != {}


DRIVER = """
import sys
from results import cells, make
cells.SCRIPTS.update(dict.fromkeys(cells.SCRIPTS, sys.argv[1]))
make.report = lambda *_: None
make.main(["--grid", "ablation", "--runs", sys.argv[2] + "/runs", "--out", sys.argv[2] + "/out"])
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux ends the jobs of a driver that was killed")
def test_killed_at_any_moment(stand_in, tmp_path, monkeypatch):
    """kill -9 again and again: what is in the CSV files is whole, no job outlives its driver, and in the end everything
    is as if nothing had been."""
    monkeypatch.setattr(make, "report", lambda *_: None)
    run_make(tmp_path / "whole", "--grid", "ablation")
    command = [sys.executable, "-c", DRIVER, str(stand_in), str(tmp_path)]
    slow, seen = os.environ | {"STAND_IN_SECONDS": "0.4", "PYTHONPATH": str(ROOT)}, []
    for kills in range(3):
        driver = subprocess.Popen(command, cwd=ROOT, env=slow, stderr=subprocess.DEVNULL)
        deadline = time.time() + 60
        while time.time() < deadline:  # until it has got further than the last one, then a little into the next cell
            rows = records.read(tmp_path / "out" / "ablation.csv")
            if len(rows) > (seen[-1] if seen else 0):
                break
            time.sleep(0.02)
        time.sleep(0.11 * kills)
        driver.kill()
        driver.wait()
        rows, curves = (records.read(path) for path in records.files(tmp_path / "out", "ablation"))
        assert all(None not in row and None not in row.values() for row in rows + curves)
        assert {records.place(row) for row in rows} <= {records.place(row) for row in curves}
        seen.append(len(rows))
        started = {path.parent.name: int(path.read_text() or 0) for path in tmp_path.glob("runs/*/pid.txt")}
        unfinished = [
            pid for name, pid in started.items() if pid and not (tmp_path / "runs" / name / "cell.json").exists()
        ]
        assert not any(alive(pid) for pid in unfinished)
    assert seen == sorted(set(seen)) and seen[-1] < len(cells.ABLATION), "every driver got on, none got through"
    run_make(tmp_path, "--grid", "ablation")
    assert csv_files(tmp_path) == csv_files(tmp_path / "whole")
    assert not list((tmp_path / "out").glob("*.partial*")) or len(list((tmp_path / "out").glob("*.partial*"))) < 4


def alive(pid):
    """Whether a process still runs, within two seconds; one that only waits to be noticed does not."""
    for _ in range(20):
        try:
            if Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z":
                return False
        except OSError:
            return False
        time.sleep(0.1)
    return True


def test_again(stand_in, tmp_path, monkeypatch):
    """Scores of the same seeds under this commit beside the old ones; once for each commit."""
    (tmp_path / "out").mkdir()
    for grid in ("discrete", "continuous", "ablation"):
        shutil.copy(ROOT / "results" / f"{grid}.csv", tmp_path / "out")
    commits = ["aaaaaaa"]
    monkeypatch.setattr(make, "code_commit", lambda: commits[0])
    monkeypatch.setattr(running, "code_commit", lambda: commits[0])
    run_make(tmp_path, "--again", "--jobs", "3")
    rows = records.read(tmp_path / "out" / "again.csv")
    assert len(rows) == len(make.AGAIN) and {row["commit_again"] for row in rows} == {"aaaaaaa"}
    for row in rows:
        (old,) = [r for r in records.read(ROOT / "results" / f"{row['grid']}.csv") if old_of(row, r)]
        assert (row["score"], row["commit"]) == (old["score"], old["commit"])
        seed = int(re.search(r"__(\d+)x1$", row["cell"])[1])
        assert float(row["score_again"]) == pytest.approx(10 + seed + len(row["cell"]) / 100, abs=0.006)
    run_make(tmp_path, "--again")
    assert len(records.read(tmp_path / "out" / "again.csv")) == len(rows)
    commits[0] = "bbbbbbb"
    run_make(tmp_path, "--again", "--jobs", "3")
    later = records.read(tmp_path / "out" / "again.csv")[len(rows) :]
    assert len(later) == len(rows) and {row["commit_again"] for row in later} == {"bbbbbbb"}


def old_of(row, old):
    """Whether an old row is the one that was run again."""
    job = cells.job_named(row["cell"], EVERYTHING)
    return records.place(old) == (*map(str, job.cell.key.values()), str(job.first))


@pytest.mark.parametrize("way", [["experiments/run.py"], ["-m", "experiments.run"]], ids=["file", "module"])
def test_both_ways_to_call_it(way, tmp_path):
    """From the repository's top, as a file and as a module."""
    flags = ["--quick", "--grid", "ablation", "--dry-run", "--runs", str(tmp_path)]
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    ended = subprocess.run([sys.executable, *way, *flags], cwd=ROOT, capture_output=True, text=True, env=environment)
    assert ended.returncode == 0, ended.stderr
    expected = [Job(cell, 0, 3).name for cell in planned_cells(True) if cell.grid == "ablation"]
    assert re.findall(r"--cell (\S+) --quick", ended.stdout) == expected


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ("--grid discreet", "did you mean 'discrete'?"),
        ("--cell nonsense", "no cell is named nonsense"),
        ("--jobs 0", "--jobs must be at least 1"),
        ("--figurs", "--figures"),
    ],
)
def test_bad_flags(flags, words, tmp_path):
    """One line, and nothing is written."""
    assert words in one_line(lambda: run_make(tmp_path, *flags.split()))
    assert not list(tmp_path.iterdir())


def test_ray_is_asked_for_in_one_line(stand_in, tmp_path, monkeypatch):
    """Without the package --ray says what to install; without --ray nothing imports it."""
    monkeypatch.setitem(sys.modules, "ray", None)
    message = one_line(lambda: run_make(tmp_path, "--grid", "ablation", "--ray"))
    assert message == "--ray needs the ray package: pip install ray"
    sources = [inspect.getsource(module) for module in (cells, claims, intervals, make, records, running, tables)]
    assert sum(len(re.findall(r"^\s*import ray$", source, re.M)) for source in sources) == 1


# --------------------------------------------------------------------------------------------------- tables


def test_tables_say_what_is_known(tmp_path):
    """Numbers with intervals, the number of seeds where it is not five, published ones beside, what is missing."""
    scores = {SPREAD_RANDOM: {m: around(40 + i) for i, m in enumerate(METHODS)}}
    scores["simple_tag", "random"] = dict(spacql=[20.0, 22.0], joint=around(30))
    done_rows = rows_from(scores)
    found = Scores(EVERYTHING, dict(discrete=done_rows))
    jobs = missing_jobs(EVERYTHING, {("discrete", *records.place(row)) for row in done_rows})
    tables.write_tables(tmp_path / "tables.md", found, EVERYTHING, jobs)
    text = (tmp_path / "tables.md").read_text()
    line = next(x for x in text.splitlines() if x.startswith("| simple_spread | random (0.0) | 800 |"))
    low, high = intervals.iqm_interval(around(40))[1:]
    assert f"| 40.0 [{low:.1f}, {high:.1f}] |" in line and "| **46.0** [" in line and "SPaCQL 78.2 ± 14" in line
    line = next(x for x in text.splitlines() if x.startswith("| simple_tag | random"))
    assert "| 21.0 (n = 2) |  | **30.0** [" in line
    assert "| 1 datasets | all |" in text and "(simple_spread random)" in text
    assert "| SPaCQL is best on every Random and Medium-Replay dataset | **does not hold**; holds on 0 of 6" in text
    assert "* discrete, simple_tag random, 400 rounds: spacql (2 to 4), icql-qs (0 to 4), uniform (0 to 4)" in text
    missing = len({job.cell for job in jobs})
    assert f"{missing} of {len(EVERYTHING)} cells lack seeds" in text and f"{len(jobs)} commands" in text
    assert max(map(len, itertools.takewhile(lambda x: not x.startswith("##"), text.splitlines()))) <= 120


def test_a_dataset_weighs_the_same_for_every_method():
    """Where a method has more seeds than another, rows over several datasets leave the further ones out."""
    poor, rich = ("simple_tag", "random"), SPREAD_RANDOM
    scores = {poor: {m: [10.0] * (5 if m == "spacql" else 3) for m in METHODS}, rich: {m: [50.0] * 5 for m in METHODS}}
    text = tables.main_table("discrete", scores_from(scores))
    line = next(x for x in text.splitlines() if x.startswith("| 2 datasets | all"))
    assert len(set(re.findall(r"\d+\.\d \[.+?\]", line.replace("**", "")))) == 1, "all methods are alike"


def test_nothing_missing(tmp_path):
    """When all is done the tables say so."""
    tables.write_tables(tmp_path / "tables.md", Scores(EVERYTHING, {}), EVERYTHING, [])
    assert f"Nothing: all {len(EVERYTHING)} cells are done." in (tmp_path / "tables.md").read_text()


def test_borrowed_columns():
    """The grid of other weights shows the main table's own runs beside its variants."""
    main = rows_from({SPREAD_RANDOM: dict(spacql=around(60))})
    variant = rows_from({SPREAD_RANDOM: {"temperature-4": around(70)}}, grid="weights", weights=(0.7, 0.2, 0.1))
    text = tables.side_table("weights", Scores(EVERYTHING, dict(discrete=main, weights=variant)))
    line = next(x for x in text.splitlines() if x.startswith("| simple_spread | random | 800 |"))
    assert "| 60.0 [" in line and "| **70.0** [" in line
    assert "| simple_spread | random | 0.500, 0.300, 0.200 | 0.700, 0.200, 0.100 |" in text


def test_changes_table():
    """A change against what it changes, which may stand in the main table; wins and losses are counted by intervals."""
    places = [("simple_tag", quality) for quality in WIDE] + [("simple_world", "random")]
    variants = zip((70, 40, 60), places, strict=True)
    main = rows_from({place: dict(spacql=around(60)) for place in places})
    variant = rows_from(
        {place: dict(relative=around(level), range=[99.0]) for level, place in variants}, grid="weights"
    )
    text = tables.changes_table("weights", Scores(EVERYTHING, dict(discrete=main, weights=variant)))
    assert "| simple_tag | random |  |  | +10.0 [" in text and "| simple_tag | medium-replay |  |  | -20.0 [" in text
    assert text.endswith("\n* relative: above spacql on 1, below on 1 of 3 datasets"), "range has a single seed"
    assert tables.changes_table("weights", Scores(EVERYTHING, dict(discrete=main))) == ""


def test_dependence_table():
    """Rows by dependence, not in the order of the plan; the crossing is found at the dependence of the data."""
    mixes = {mix: ("two_doors", mix) for mix in cells.DOORS}
    joint = {place: around(20 + 20 * i) for i, place in enumerate(mixes.values())}
    found = {place: dict(joint=joint[place], **{"icql-qs": around(50), "spacql": around(0)}) for place in joint}
    scores = Scores(EVERYTHING, dict(coordination=rows_from(found, grid="coordination")))
    measured = [
        dict(env_id=env_id, dataset=mix, dependence_nats=str(i / 10)) for i, (env_id, mix) in enumerate(mixes.values())
    ]
    text = tables.dependence_table(scores, measured[::-1])
    lines = [line for line in text.splitlines() if line.startswith("| two_doors")]
    assert [line.split(" | ")[2] for line in lines] == ["0.000", "0.100", "0.200", "0.300", "0.400"]
    assert "| -30.0 [" in lines[0] and "| +50.0 [" in lines[4]
    assert re.search(
        r"two_doors, joint minus icql-qs: above 0 at 3, below 0 at 2 of 5 places: they cross at 0.15 \[0.1\d, 0.1\d\]",
        text,
    )
    assert "* two_doors, joint minus spacql: above 0 at 5, below 0 at 0 of 5 places: no crossing is shown" in text
    assert "* two_doors, spacql minus uniform" not in text, "uniform has not been run"
    noise = [[-1.0, 0.5, 2.0], [-2.0, -0.5, 1.0], [-1.0, 0.0, 2.0]]
    text = tables.where_it_crosses([0, 1, 2], noise, [[0.0] * 3] * 3)
    assert text == "above 0 at 0, below 0 at 0 of 3 places: no crossing is shown", "signs that change by chance"


def test_planned_datasets():
    """Every dataset of the plan once, by the kind of its script's actions."""
    planned = dependence.planned_datasets()
    assert len(set(planned)) == len(planned)
    assert {(env_id, data) for _, env_id, data in planned} == {
        (cell.env_id, cell.dataset) for cell in EVERYTHING if cell.env_id not in cells.CHEETAH
    }
    assert ("continuous", "simple_tag", "expert") in planned and ("discrete", "two_doors", cells.DOORS[0]) in planned
    rows = records.read(ROOT / "results" / records.DEPENDENCE)
    assert [(row["actions"], row["env_id"], row["dataset"]) for row in rows] == planned


def test_published_numbers():
    """A few entries of the paper's table, and that no method of ours has another's name there."""
    assert claims.PUBLISHED["simple_spread", "expert"]["DoF"] == 136.4
    assert claims.PUBLISHED["simple_world", "expert"] == dict.fromkeys(("macql", "OMAR", "IQL", "DoF")) | {
        "spacql": 112.3,
        "icql-qs": 106.5,
        "cfcql": 119.7,
    }
    assert claims.PUBLISHED["HalfCheetah-2x3", "medium-replay"]["macql"] == 37.0
    assert tables.published(("simple_tag", "medium")) == ""
    assert (
        tables.published(("simple_tag", "random")) == "SPaCQL 89.4 ± 13.7, CFCQL 16.5, MACQL 25.2, OMAR 11.1, IQL 1.3"
    )


# ------------------------------------------------------------------------------------------------------ ray


def die_first(job, commit):
    """A task whose worker is killed the first time; job.cell.flags names the folder that tells."""
    folder = Path(job.cell.flags)
    with open(folder / f"{job.name}.attempts", "a") as file:
        file.write("x")
    if job.first == 0 and (folder / f"{job.name}.attempts").read_text() == "x":
        os.kill(os.getpid(), signal.SIGKILL)
    if job.first == 2:
        raise RuntimeError("it went wrong")
    return {name: f"{name} of {job.name} at {commit}".encode() for name in running.RETURNED}


def test_ray(tmp_path, monkeypatch):
    """A local cluster of two workers: a killed worker's job is done again, a failed one is told and not repeated."""
    ray = pytest.importorskip("ray")
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    jobs = [Job(replace(EVERYTHING[0], flags=str(tmp_path)), first, 1) for first in range(4)]
    found = {job.first: wrong for job, wrong in running.run_on_ray(jobs, tmp_path / "runs", 2, None, work=die_first)}
    assert found == {0: None, 1: None, 2: found[2], 3: None} and "it went wrong" in found[2]
    attempts = [len((tmp_path / f"{job.name}.attempts").read_text()) for job in jobs]
    assert attempts == [2, 1, 1, 1]
    assert [running.is_done(job, tmp_path / "runs") for job in jobs] == [True, True, False, True]
    record = (tmp_path / "runs" / jobs[1].name / "cell.json").read_text()
    assert record == f"cell.json of {jobs[1].name} at {running.code_commit()}"


def test_csv_texts_survive():
    """Names with commas and quotes come back as they were."""
    assert "CFCQL's batch-norm: per call, output L2 0" in cells.ABLATION
    with open(ROOT / "results" / "ablation.csv", newline="") as file:
        assert {row["method"] for row in csv.DictReader(file)} == set(cells.ABLATION)
