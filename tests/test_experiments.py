"""The plan of experiments, their runner, what it keeps, and what the report says of it.

A check must accept the right function and reject every mistake that mutants_experiments.py lists under its
name. Most jobs here run a stand-in for the training scripts, which writes at once what they would.
"""

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
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from common import ROOT, one_line, rejects, tree
from mutants_experiments import MUTANTS

import spacql
import spacql_continuous
from experiments import bc, claims, plan, report, run
from experiments.claims import FAILS, HOLDS, OPEN, Estimate, Scores, try_claim
from experiments.plan import BACKUPS, BLOCKS, KEYS, METHODS, SCRIPTS, WIDE, Job, planned_cells
from utils.files import parse

EVERYTHING, QUICK = planned_cells(), planned_cells(True)
RANDOM = ("simple_spread", "random")
CHECKS = {}  # by name: (check, the right function)


def check_of(function):
    """Register a check(function)."""
    return lambda check: CHECKS.setdefault(check.__name__.replace("_", " "), (check, function))[0]


# ------ intervals


def slow_iqm(scores):
    """The interquartile mean, by sorting and cutting."""
    cut = len(scores) // 4
    kept = sorted(scores)[cut : len(scores) - cut]
    return sum(kept) / len(kept)


@check_of(claims.iqm)
def a_quarter_is_cut_off_at_each_end(iqm):
    """Rounded down: of five seeds the middle three count, of four the middle two, of fewer all."""
    for scores in ([100, 1, 2, 3, -50], [0, 0, 9], [4, 6], [7], [0, 2, 4, 1000], [5, 1, 9, 9, -3, 2, 8, 80]):
        assert iqm(scores) == pytest.approx(slow_iqm(scores))


def agrees_with_every_resample(found, value_of, groups):
    """The interval's ends are quantiles of the value over all equally likely draws, each group by itself."""
    draws = itertools.product(*(itertools.product(group, repeat=len(group)) for group in groups))
    values = np.array([value_of(*drawn) for drawn in draws])
    assert found.value == pytest.approx(value_of(*groups))
    for end, share in ((found.low, 0.025), (found.high, 0.975)):
        # The share of resamples below the end, up to the chance of 9999 draws, and counting ties.
        below, up_to = (values < end - 1e-9).mean(), (values <= end + 1e-9).mean()
        assert below - 0.008 <= share <= up_to + 0.008


@check_of(claims.iqm_interval)
def the_interval_is_that_of_all_resamples(interval):
    """Of one dataset, and of two together."""
    for groups in (([1.0, 5.0, 6.5], [40.0, 47.0, 61.0]), ([3.0, 1.0, 8.0, 2.0],)):
        agrees_with_every_resample(interval(*groups), lambda *drawn: slow_iqm(np.concatenate(drawn)), groups)


@check_of(claims.difference)
def a_difference_is_the_mean_of_those_on_each_dataset(difference):
    """Each drawn by itself: a dataset of far higher scores does not widen the interval."""
    groups = ([0.0, 1.0, 2.0], [100.0, 103.0, 104.0], [0.5, 3.0, 3.5], [200.0, 201.0, 205.0])

    def value_of(a, b, c, d):
        return (slow_iqm(a) - slow_iqm(c) + slow_iqm(b) - slow_iqm(d)) / 2

    draw = np.random.default_rng(5).choice
    values = [value_of(*(draw(group, 3) for group in groups)) for _ in range(4000)]
    found = difference(list(groups[:2]), list(groups[2:]))
    assert found.value == pytest.approx(value_of(*groups))
    assert [found.low, found.high] == pytest.approx(np.quantile(values, [0.025, 0.975]), abs=0.25)
    uneven = difference([[1.0, 2.0], [4.0]], [[3.0, 9.0, 9.0], [0.0]])
    assert uneven.value == pytest.approx((1.5 - 7 + 4) / 2) and np.isnan(uneven.low)


@check_of(lambda groups: claims.iqm_interval(*groups))
def few_seeds_have_no_interval(interval):
    """Two seeds, or two of one of several datasets: only the value."""
    for groups in ([[1.0, 2.0]], [[1.0, 2.0, 3.0], [1.0, 2.0]]):
        value, *ends = interval(groups)
        assert value == slow_iqm(np.concatenate(groups)) and np.isnan(ends).all()
    assert interval([[1.0, 2.0, 3.0]]) == interval([[1.0, 2.0, 3.0]]) and interval([[4.0] * 3]) == (4, 4, 4)


def test_coverage(quickly):
    """The coverage that the texts quote is about what a small simulation finds."""
    for num_seeds, quoted in ((3, claims.COVERAGE[3][0]), (5, claims.COVERAGE[5][0])):
        scores = np.random.default_rng(3).normal(size=(200, num_seeds))
        share = np.mean([found.low <= 0 <= found.high for found in map(claims.iqm_interval, scores)])
        assert abs(share - quoted) < 4 * np.sqrt(quoted * (1 - quoted) / len(scores))


# ------ verdicts


@pytest.fixture
def quickly(monkeypatch):
    """Intervals from few draws."""
    monkeypatch.setattr(claims, "RESAMPLES", 300)


def around(centre):
    """Scores of five seeds."""
    return [centre + x for x in (-1.0, -0.5, 0.0, 0.5, 1.0)]


def rows_from(scores, grid="discrete", weights=None):
    """Rows of main cells: scores {(env_id, dataset, method): of seeds}, weights {dataset: by size}."""
    rows = []
    for place, values in scores.items():
        cell = next(cell for cell in EVERYTHING if cell.place[:4] == (grid, *place))
        w1, w2, w3 = (weights or {}).get(place[1], (0.5, 0.3, 0.2))
        numbers = [(*cell.place, seed, score, w1, w2, w3) for seed, score in enumerate(values)]
        rows += [map(str, row) for row in numbers]
    return pd.DataFrame(rows, columns=[*KEYS, "seed", "score", "w1", "w2", "w3"])


def discrete(qualities, **centres):
    """Scores on all discrete tasks: of every method around 50 where nothing else is said."""
    places = itertools.product(claims.TASKS["discrete"], qualities, METHODS)
    return {place: around(centres.get(place[2].replace("-", "_"), 50)) for place in places}


@check_of(claims.judge)
def an_interval_decides(judge):
    """It holds above 0, it does not below; else, and without an interval, it cannot be told."""
    for low, high, verdict in [(1, 2, HOLDS), (-2, -1, FAILS), (-1, 1, OPEN), (0, 1, OPEN), (-1, 0, OPEN)]:
        assert judge(Estimate(0.05, low, high)) == verdict
    assert judge(Estimate(0.05, np.nan, np.nan)) == OPEN


@check_of(lambda any_of, verdicts: (claims.any_of if any_of else claims.all_of)(verdicts))
def verdicts_combine(combine):
    """All: one that does not hold decides. Any: one that holds does. Nothing tells nothing."""
    for verdicts in map(list, itertools.product((HOLDS, FAILS, OPEN), repeat=3)):
        every = FAILS if FAILS in verdicts else OPEN if OPEN in verdicts else HOLDS
        one = HOLDS if HOLDS in verdicts else OPEN if OPEN in verdicts else FAILS
        assert (combine(False, verdicts), combine(True, verdicts)) == (every, one)
    assert combine(False, []) == combine(True, []) == OPEN


def tried(text, scores, grid="discrete", weights=None):
    """The claim that begins so, tried on these scores: its verdict, and what is said by dataset."""
    (claim,) = [claim for claim in claims.CLAIMS if claim.text.startswith(text)]
    verdict, findings = try_claim(claim, grid, Scores(EVERYTHING, rows_from(scores, grid, weights)))
    return verdict, {place: finding.said for place, finding in findings.items()}


def test_best_on_every_dataset(quickly):
    """It must be clearly above every other method on every dataset: one better method on one decides, what is
    missing is named, and the nearest rival is shown."""
    world = ("simple_world", "random")
    verdict, said = tried("SPaCQL is best", discrete(WIDE, spacql=70, icql_qs=65))
    assert verdict == HOLDS and re.fullmatch(r"spacql \+5.0 \[\+.* against icql-qs", said[world])
    scores = discrete(WIDE, spacql=70)
    for seeds in (0, 2):
        scores[*world, "cfcql"] = around(10)[:seeds]
        verdict, said = tried("SPaCQL is best", scores)
        assert verdict == OPEN and [place for place in said if "missing" in said[place]] == [world]
        assert said[world].endswith("; missing: cfcql")
    scores[*world, "macql"] = around(90)
    verdict, said = tried("SPaCQL is best", scores)
    assert verdict == FAILS and re.match(r"spacql -20.0 \[-2.* against macql; missing", said[world])
    assert tried("SPaCQL is best", discrete(WIDE, spacql=50.3))[0] == OPEN


def test_another_method_on_expert_data(quickly):
    """One is enough on each dataset, and all must be clearly below for the opposite."""
    scores = discrete(["expert"], bc=80, macql=70)
    verdict, said = tried("Another method", scores)
    assert verdict == HOLDS and said["simple_tag", "expert"].startswith("bc +30.0 [+")
    missing = {place: values for place, values in scores.items() if place[0] != "simple_tag"}
    assert tried("Another method", missing)[0] == OPEN, "two hold, one is missing"
    assert tried("Another method", discrete(["expert"], spacql=99))[0] == FAILS


@pytest.mark.parametrize(("score", "verdict"), [(85, HOLDS), (70, FAILS), (78.3, OPEN)])
def test_against_the_published_score(score, verdict, quickly):
    found, said = tried("SPaCQL scores more", {(*RANDOM, "spacql"): around(score)}, grid="continuous")
    assert found == verdict and list(said) == [RANDOM]
    assert re.fullmatch(rf"spacql \{score - 78.2:+.1f} \[.*\] against the published 78.2", said[RANDOM])


def test_weights(quickly):
    """w_1 is the largest where it is above each other weight, and dominates where it is above their sum; the
    others rise where 1 - w_1 is above that on random and on medium-replay data, both."""
    for weights, largest, dominates in (
        ((0.6, 0.3, 0.1), HOLDS, HOLDS),
        ((0.4, 0.3, 0.3), HOLDS, FAILS),
        ((0.3, 0.4, 0.3), FAILS, FAILS),
    ):
        by_data = dict.fromkeys(WIDE, weights)
        assert tried("w_1 is the largest", discrete(WIDE), weights=by_data)[0] == largest
        verdict, said = tried("w_1 dominates", discrete(WIDE), weights=by_data)
        assert verdict == dominates and f"{100 * (2 * weights[0] - 1):+.1f} [" in said[RANDOM]
    scores, by_data = discrete((*WIDE, "expert")), dict(expert=(0.3, 0.4, 0.3))
    verdict, said = tried("w_2 and w_3 rise", scores, weights=by_data)
    assert verdict == HOLDS and "+20.0 [" in said["simple_spread", "expert"]
    assert tried("w_2 and w_3 rise", scores, weights=by_data | dict(random=(0.1, 0.6, 0.3)))[0] == FAILS
    cheetah = ("HalfCheetah-2x3", "medium")
    rows = rows_from({(*cheetah, "spacql"): [1.0]}, "continuous", dict(medium=(0.6, 0.4, "")))
    weights = Scores(EVERYTHING, rows).weights(("continuous", *cheetah))
    assert weights.tolist() == [[0.6, 0.4]], "two agents have two"


def test_claims_ask_for_what_is_planned():
    """Every comparison is between main cells of the plan, but for HalfCheetah's rivals."""
    planned, nothing = {cell.place[:4] for cell in EVERYTHING}, Scores(EVERYTHING, rows_from({}))
    for claim in claims.CLAIMS:
        for grid in claim.grids:
            verdict, findings = try_claim(claim, grid, nothing)
            assert verdict == OPEN and all("missing: " in finding.said for finding in findings.values())
            places = [(grid, *place) for place in findings if place[0] != "HalfCheetah-2x3"]
            assert {(*place, method) for place in places for method in METHODS} <= planned


# ------ the plan


@check_of(lambda cell: cell.name)
def names_are_safe_and_tell_cells_apart(name_of):
    for cells in (EVERYTHING, QUICK):
        names = {name_of(cell) for cell in cells}
        assert len(names) == len(cells) and all(re.fullmatch(r"[\w.-]{10,120}", name) for name in names)


def test_jobs_are_found_by_name():
    for cells in (EVERYTHING, QUICK):
        assert all(plan.job_named(Job(c, 3, 2).name, cells) == Job(c, 3, 2) for c in cells[::9])
    for wrong in ("nonsense", EVERYTHING[0].name, f"{EVERYTHING[0].name}__0x0", "x__0x1"):
        assert "no cell is named" in one_line(partial(plan.job_named, wrong, EVERYTHING))


MEANINGS = {  # what methods' names mean, as flags of a training script
    "bc": {},
    "cfcql": dict(backup="joint", num_critics=2),
    "macql": dict(backup="joint", num_critics=2, penalty="macql"),
    "clone": dict(clone_weight=1.0),
    "clone-10": dict(clone_weight=10.0),
}
for backup in BACKUPS:
    MEANINGS[backup] = dict(backup=backup)
    MEANINGS[f"{backup}-vs-policy"] = dict(backup=backup, actor_others="policy")


@check_of(Job.command)
def commands_say_what_cells_mean(command):
    """The scripts take every command, and it sets what cell, method and block say, nothing else."""
    for cell in {(cell.grid, cell.method, cell.flags): cell for cell in EVERYTHING + QUICK}.values():
        environment, python, *words = shlex.split(command(Job(cell, 3, 2)))
        assert (environment, python) == ("OMP_NUM_THREADS=1", "python")
        expected = dict(env_id=cell.env_id, dataset=cell.dataset, rounds=cell.rounds, seed=3, num_seeds=2)
        expected |= dict(out="runs/results", name=Job(cell, 3, 2).name) | MEANINGS[cell.method]
        expected |= dict(batch_size=cell.batch_size) if cell.batch_size != 256 else {}
        script = spacql_continuous if SCRIPTS[cell.grid] == "spacql_continuous.py" else spacql
        if cell.method == "bc":
            expected |= dict(continuous=script is spacql_continuous)
            script, *words = bc, *words[words.index("experiments.bc") :]
        assert words[0] in (SCRIPTS[cell.grid], "experiments.bc")
        flags = parse(script.Args, cell.flags.split())
        assert parse(script.Args, words[1:]) == replace(flags, **expected)


@check_of(plan.missing_jobs)
def missing_seeds_are_trained_side_by_side(missing):
    """Neighbouring seeds make one job; other cells' rows, and seeds not planned, are of no account."""
    cell, other = EVERYTHING[:2]
    wanted = {"": [(0, 5)], "012": [(3, 2)], "024": [(1, 1), (3, 1)], "01234": [], "7": [(0, 5)]}
    for seeds, jobs in wanted.items():
        done = {(*cell.place, seed) for seed in seeds} | {(*other.place, seed) for seed in "01234"}
        assert [(job.first, job.count) for job in missing([cell], done)] == jobs


def test_quick_covers_every_block():
    """Tiny cells of the first and the last method of each block, and none that is not planned."""
    quick = {cell.place[:4] for cell in QUICK}
    assert {(cell.rounds, cell.batch_size, cell.num_seeds) for cell in QUICK} == {(4, 32, 3)}
    assert quick <= {cell.place[:4] for cell in EVERYTHING} and len(QUICK) < 60
    for i in (0, -1):
        assert {(b.grid, b.env_ids[0], b.datasets[0], b.methods[i]) for b in BLOCKS} <= quick


# ------ what is kept

STAND_IN = """
import json, os, sys, time
from pathlib import Path
import numpy as np

words = sys.argv[1:]
args = dict(batch_size=256) | {k[2:].replace("-", "_"): v for k, v in zip(words[::2], words[1::2])}
args |= {name: int(args[name]) for name in ("rounds", "batch_size", "seed", "num_seeds")}
folder = Path(args["out"]) / args["name"]
folder.mkdir(parents=True)
(folder / "pid.txt").write_text(str(os.getpid()))
time.sleep(float(os.environ.get("STAND_IN_SECONDS", 0)))
if args["name"] == os.environ.get("STAND_IN_FAILS"):
    sys.exit("one line\\nanother: it went wrong")
seeds = list(range(args["seed"], args["seed"] + args["num_seeds"]))
scores = np.add.outer([1.0, 0.5], np.array(seeds, float))  # [evaluations, seeds]: the first is the better one
weights = np.tile([[[1 / 3] * 3], [[0.5, 0.35, 0.2]]], (1, len(seeds), 1))
history = dict(round=np.array([2, 4]), scores=scores, k_eff=scores, q_data=scores, weights=weights, u=weights)
summary = dict(seeds=seeds, scores=[10.5 + seed for seed in seeds], wall_s=1.5, device="cpu")
texts = {k: np.array(json.dumps(v)) for k, v in dict(args=args, summary=summary).items()}
np.savez(folder / "returns.npz", **texts, **{f"history_{k}": v for k, v in history.items()})
"""
FEW = f"""
from experiments import plan, run
plan.SCRIPTS = dict.fromkeys(plan.SCRIPTS, {{!r}})
plan.BLOCKS = (plan.Block("discrete", plan.SPREAD, plan.QUALITIES, {BACKUPS[:2]}, 4, num_seeds=3),)
run.write_report = lambda *_: None
"""


@pytest.fixture
def stand_in(tmp_path, monkeypatch):
    """Jobs run a script that writes results at once, eight cells are planned, and nothing is drawn."""
    script = tmp_path / "stand_in.py"
    script.write_text(STAND_IN)
    for module, name in ((plan, "SCRIPTS"), (plan, "BLOCKS"), (run, "write_report")):
        monkeypatch.setattr(module, name, getattr(module, name))  # so that what FEW does is undone
    exec(FEW.format(str(script)))
    return script


def finished(runs, cell, first=0, count=2):
    """The run folder of a stand-in's job."""
    assert run.run_one(Job(cell, first, count), runs, "abc1234") is None
    return runs / Job(cell, first, count).name


def folders_in(runs):
    """The finished run folders."""
    return sorted(path.parent for path in runs.glob("*/cell.json"))


def seeds_of(cell, *seeds):
    """As `collect` names them."""
    return {(*cell.place, str(seed)) for seed in seeds}


def rows_are_what_the_run_left(rows_of, folder):
    """A row per seed with its own numbers; the curves have a row per seed and evaluation."""
    rows, curves = rows_of(folder)
    job = Job(planned_cells()[0], 3, 2)
    place, rest = job.cell.place, ("1.5", "2", rows["machine"][0], "abc1234", job.command())
    assert rows.to_numpy().tolist() == [
        [*place, "3", "13.5", "4.0", "3.5", "0.5", "0.35", "0.2", *rest],
        [*place, "4", "14.5", "5.0", "4.5", "0.5", "0.35", "0.2", *rest],
    ]
    assert tuple(rows) == run.RUN_COLUMNS and tuple(curves) == run.CURVE_COLUMNS
    points = curves[["seed", "round", "score", "w1", "u3"]].to_numpy().tolist()
    assert points[:2] == [["3", "2", "4.0", "0.3333", "0.3333"], ["3", "4", "3.5", "0.5", "0.2"]]
    assert [point[:3] for point in points[2:]] == [["4", "2", "5.0"], ["4", "4", "4.5"]]


def test_rows_of_a_run(stand_in, tmp_path):
    folder = finished(tmp_path, planned_cells()[0], 3, 2)
    rows_are_what_the_run_left(run.rows_of, folder)
    for wrong in MUTANTS["rows are what the run left"].values():
        rejects(rows_are_what_the_run_left, partial(wrong, run.rows_of), folder)


@check_of(run.in_order)
def rows_stand_in_the_order_of_the_plan(in_order):
    """By seed and round, as numbers; what is not planned comes last."""
    places = [cell.place for cell in (EVERYTHING[0], EVERYTHING[5], replace(EVERYTHING[0], rounds=3))]
    rows = [[*place, seed, number] for place in places for seed in ("2", "10") for number in ("20", "100")]
    mixed = pd.DataFrame(rows, columns=[*KEYS, "seed", "round"]).sample(frac=1, random_state=1)
    assert in_order(mixed).to_numpy().tolist() == rows


def test_collect(stand_in, tmp_path):
    """Each seed gets in once, whoever trained it, in the plan's order; what is there stays; looking writes
    nothing; curves without rows, which a killed writer leaves, are not doubled."""
    runs, out = tmp_path / "runs", tmp_path / "out"
    runs_csv, curves_csv = out / report.RUNS_CSV, out / report.CURVES_CSV
    first, second = planned_cells()[:2]
    finished(runs, second, 0, 1)
    assert run.collect(folders_in(runs), out, only_look=True) == seeds_of(second, 0) and not out.exists()
    assert run.collect(folders_in(runs), out) == seeds_of(second, 0)
    runs_csv.write_text(runs_csv.read_text().replace("10.5", "77"))
    finished(runs, second, 0, 2)  # seed 0 again, seed 1 for the first time
    finished(runs, first, 0, 1)
    assert run.collect(folders_in(runs), out) == seeds_of(first, 0) | seeds_of(second, 0, 1)
    rows = report.read_csv(runs_csv)[["method", "seed", "score"]].to_numpy().tolist()
    assert rows == [["spacql", "0", "10.5"], ["icql-qs", "0", "77"], ["icql-qs", "1", "11.5"]]
    before, curves = tree(out), curves_csv.read_text()
    run.collect(folders_in(runs), out)
    assert tree(out) == before and len(curves.splitlines()) == 7
    runs_csv.unlink()
    run.collect(folders_in(runs), out)
    assert curves_csv.read_text() == curves and len(report.read_csv(runs_csv)) == 3


def test_damaged_folders_are_named_and_left_out(stand_in, tmp_path, capsys):
    good, *bad = [finished(tmp_path, cell) for cell in planned_cells()[:5]]
    os.truncate(bad[0] / "cell.json", 40)
    os.truncate(bad[1] / "returns.npz", 500)
    (bad[2] / "returns.npz").unlink()
    shutil.copy(good / "cell.json", bad[3])
    assert run.collect([*bad, good], tmp_path / "out") == seeds_of(planned_cells()[0], 0, 1)
    said = capsys.readouterr().err.splitlines()
    assert [line.split(": ")[0] for line in said[:4]] == [f"left out {folder}" for folder in bad]


# ------ jobs


def test_workers(stand_in, tmp_path, monkeypatch):
    """As many jobs at a time as asked; a failure is told by its last line and stops nothing else, and what it
    left is in nobody's way."""
    jobs, processes, at_once, start = [Job(cell, 0, 1) for cell in planned_cells()[:4]], [], [], run.start

    def counted(*args):
        processes.append(start(*args))
        at_once.append(sum(process.poll() is None for process in processes))
        return processes[-1]

    monkeypatch.setenv("STAND_IN_FAILS", jobs[0].name)
    monkeypatch.setattr(run, "start", counted)
    found = dict(run.run_here(jobs, tmp_path, 2))
    assert [found[job] for job in jobs] == ["another: it went wrong", None, None, None] and max(at_once) == 2
    assert folders_in(tmp_path) == sorted(tmp_path / job.name for job in jobs[1:])
    monkeypatch.delenv("STAND_IN_FAILS")
    for code, wrong in {
        STAND_IN: None,
        "import sys; sys.exit(3)": "ended with status 3",
        "import os; os.kill(os.getpid(), 9)": "ended by signal 9",
        "": "left no results that can be read",
    }.items():
        stand_in.write_text(code)
        said = run.run_one(jobs[0], tmp_path, "abc1234")
        assert said is wrong or wrong in said
    signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where we are a background job
    monkeypatch.setattr(run, "time", SimpleNamespace(sleep=lambda _: signal.raise_signal(signal.SIGINT)))
    stand_in.write_text("import time; time.sleep(60)")
    with pytest.raises(KeyboardInterrupt):
        list(run.run_here(jobs[:2], tmp_path, 2))
    assert [process.wait(5) for process in processes[-2:]] == [-signal.SIGKILL] * 2, "interrupted, too"


def alive(pid):
    """Whether a process still runs after a second; one that only waits to be noticed does not."""
    for _ in range(10):
        try:
            if Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z":
                return False
        except OSError:
            return False
        time.sleep(0.1)
    return True


linux = pytest.mark.skipif(sys.platform != "linux", reason="only Linux ends the jobs of what was killed")


def a_job_ends_with_whoever_started_it(launch, script, folder):
    """Its command line is read as from python, and when its parent is killed it is."""
    code = f"""{FEW.format(script)}
run.LAUNCH = {launch!r}
run.start(plan.Job(plan.planned_cells()[0], 0, 1), run.Path({str(folder)!r}))
run.time.sleep(30)"""
    environment = os.environ | {"STAND_IN_SECONDS": "30", "PYTHONPATH": f"{folder}:{ROOT}"}
    parent = subprocess.Popen([sys.executable, "-c", code], env=environment)
    while not (pids := [text for path in folder.glob("*/pid.txt") if (text := path.read_text())]):
        time.sleep(0.02)
    parent.kill()
    parent.wait()
    outlived = alive(int(pids[0]))
    if outlived:
        os.kill(int(pids[0]), signal.SIGKILL)
    assert not outlived


@linux
@pytest.mark.parametrize("form", ["script", "module"])
def test_a_job_ends_with_whoever_started_it(form, stand_in, tmp_path):
    script = str(stand_in) if form == "script" else "-m stand_in"
    a_job_ends_with_whoever_started_it(run.LAUNCH, script, tmp_path)
    shutil.rmtree(next(tmp_path.glob("discrete*/")))
    for wrong in MUTANTS["a job ends with whoever started it"].values() if form == "script" else ():
        rejects(a_job_ends_with_whoever_started_it, wrong(run.LAUNCH), script, tmp_path)
    late = subprocess.run([sys.executable, "-c", run.LAUNCH, "1", script], capture_output=True, text=True)
    assert (late.returncode, late.stderr) == (1, "whoever started this job has died\n")


@linux
def test_killed_at_any_moment(stand_in, tmp_path):
    """kill -9 twice: what is in the CSV files is whole, no job outlives its driver, and in the end everything
    is as if nothing had been."""
    main(tmp_path / "whole")
    words = ["--runs", str(tmp_path / "runs"), "--out", str(tmp_path / "out")]
    command = [sys.executable, "-c", f"{FEW.format(str(stand_in))}run.main({words})"]
    slow, seen = os.environ | {"STAND_IN_SECONDS": "0.3"}, [0]
    paths = [tmp_path / "out" / name for name in (report.RUNS_CSV, report.CURVES_CSV)]
    for wait in (0, 0.15):
        driver = subprocess.Popen(command, cwd=ROOT, env=slow, stderr=subprocess.DEVNULL)
        while driver.poll() is None and len(report.read_csv(paths[0])) == seen[-1]:
            time.sleep(0.02)  # until it has got further than the last one, then a little into the next cell
        time.sleep(wait)
        driver.kill()
        driver.wait()
        rows, curves = map(report.read_csv, paths)
        seen.append(len(rows))
        assert set(report.places(rows)) <= set(report.places(curves)) and (curves != "").all(axis=None)
        started = {path.parent: path.read_text() for path in tmp_path.glob("runs/*/pid.txt")}
        unfinished = started.keys() - set(folders_in(tmp_path / "runs"))
        assert not any(alive(int(started[folder])) for folder in unfinished if started[folder])
    assert seen[0] < seen[1] < seen[2] < 24, "every driver got on, none got through"
    main(tmp_path)
    assert csv_texts(tmp_path) == csv_texts(tmp_path / "whole") != []


# ------ the command line


def main(folder, *flags):
    """The runner in this process."""
    run.main([*flags, "--runs", str(folder / "runs"), "--out", str(folder / "out")])


def csv_texts(folder):
    """All that was collected."""
    return [path.read_text() for path in sorted((folder / "out/csv").iterdir())]


def test_any_scheduler(stand_in, tmp_path, capsys, monkeypatch):
    """The lines of --dry-run, each run by itself, and --collect: the same tables as a run of everything."""
    main(tmp_path / "all")
    capsys.readouterr()
    main(tmp_path / "one by one", "--dry-run")
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 8 and not (tmp_path / "one by one").exists()
    for line in lines:
        environment, python, *module, cell, name, runs, folder = shlex.split(line)
        assert [environment, python, *module] == "OMP_NUM_THREADS=1 python -m experiments.run".split()
        run.main([cell, name, runs, folder])
    before = tree(tmp_path)
    run.main([cell, name, runs, folder])
    main(tmp_path / "one by one", "--dry-run")
    assert capsys.readouterr().out == "" and tree(tmp_path) == before, "what is done is not run again"
    main(tmp_path / "one by one", "--collect")
    assert csv_texts(tmp_path / "one by one") == csv_texts(tmp_path / "all") != []
    monkeypatch.setattr(run, "start", None)
    main(tmp_path / "all")


def test_failed_cells(stand_in, tmp_path, monkeypatch, quickly):
    """They are named, and run by the next call; the others are collected and reported."""
    monkeypatch.setattr(run, "write_report", report.write_report)
    for grid in claims.TASKS:
        monkeypatch.setitem(report.TASKS, grid, ("simple_spread",))  # few panels: drawing takes seconds
    failing = Job(planned_cells()[2], 0, 3).name
    monkeypatch.setenv("STAND_IN_FAILS", failing)
    message = one_line(partial(main, tmp_path))
    assert message == f"1 cells failed; first: {failing}: another: it went wrong"
    text = (tmp_path / "out/tables.md").read_text()
    assert text.endswith("* discrete, simple_spread medium-replay, 4 rounds: spacql (0 to 2)\n")
    figures = [
        (tmp_path / "out" / name).stat().st_size for name in ("weights.png", "learning.png", "scores.png")
    ]
    assert min(figures) > 10_000
    assert one_line(partial(main, tmp_path, "--cell", failing)) == f"{failing}: another: it went wrong"
    monkeypatch.delenv("STAND_IN_FAILS")
    monkeypatch.setattr(run, "write_report", lambda *_: None)
    main(tmp_path)
    assert len(report.read_csv(tmp_path / "out" / report.RUNS_CSV)) == 24


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ("--grid discreet", "did you mean 'discrete'?"),
        ("--cell nonsense", "no cell is named nonsense"),
        ("--jobs 0", "--jobs must be at least 1"),
        ("--ray local", "--ray needs the ray package: pip install ray"),
    ],
)
def test_bad_flags(flags, words, tmp_path, monkeypatch):
    """One line, and nothing is written."""
    monkeypatch.setitem(sys.modules, "ray", None)
    assert words in one_line(partial(main, tmp_path, *flags.split())) and not list(tmp_path.iterdir())


def test_real_cells(tmp_path, data_dir):
    """A tiny cell of every script: what it prints is what gets into the table."""
    sizes = f"--eval-every 2 --eval-episodes 4 --dataset-size 2500 --data-dir {data_dir}"
    wanted = [(grid, method) for grid in ("discrete", "continuous") for method in ("spacql", "bc")]
    cells = [next(c for c in EVERYTHING if (c.grid, c.method) == one) for one in wanted]
    jobs = [Job(replace(cell, **plan.QUICK | dict(flags=sizes)), 1, 2) for cell in cells]
    assert [wrong for _, wrong in run.run_here(jobs, tmp_path, 2)] == [None] * 4
    for job in jobs:
        printed = json.loads((tmp_path / job.name / run.LOG).read_text().splitlines()[-1])
        rows, curves = run.rows_of(tmp_path / job.name)
        assert rows["seed"].tolist() == ["1", "2"]
        assert rows["score"].astype(float).tolist() == printed["scores"]
        assert rows["best"].astype(float).mean() == pytest.approx(printed["best_mean"], abs=0.02)
        assert curves["round"].tolist() == ["2", "4"] * 2 and rows["machine"][0].endswith("core")
        if job.cell.method == "bc":
            assert (rows[["k_eff", "w1", "w2", "w3"]] == "").all(axis=None)
        else:
            weights = rows[["w1", "w2", "w3"]].astype(float).mean()
            assert weights.tolist() == pytest.approx(printed["weights"], abs=2e-4)


def test_code_commit(tmp_path, monkeypatch):
    """Changed code makes a commit dirty; results that grow, and texts, do not."""
    monkeypatch.setattr(run, "TOP", tmp_path)
    assert run.code_commit() == "unknown"
    (tmp_path / "results").mkdir()
    for name in ("code.py", "README.md", "results/runs.csv"):
        (tmp_path / name).write_text("first")
    for words in ("init -q", "add .", "-c user.name=x -c user.email=x -c commit.gpgsign=false commit -qm x"):
        subprocess.run(["git", *words.split()], cwd=tmp_path, check=True)
    clean = run.code_commit()
    for name in ("README.md", "results/runs.csv"):
        (tmp_path / name).write_text("second")
    assert run.code_commit() == clean and re.fullmatch("[0-9a-f]{7,}", clean)
    (tmp_path / "code.py").write_text("second")
    assert run.code_commit() == f"{clean}-dirty"


# ------ the report


def test_tables_say_what_is_known(quickly):
    """Numbers with intervals, seeds if they are not five, published ones beside, what is missing; rows over
    datasets weigh them the same for every method; side tables borrow the main grid's columns."""
    scores = {(*RANDOM, method): around(40 + i) for i, method in enumerate(METHODS)}
    scores |= {("simple_tag", "random", method): [10.0] * 3 for method in METHODS}
    scores["simple_tag", "random", "spacql"] += [90.0, 90.0]
    scores["simple_world", "random", "spacql"] = [20.0, 22.0]
    scores["simple_world", "random", "joint"] = around(30)
    longer = rows_from({(*RANDOM, "spacql"): [99.0]}).assign(rounds="2400")
    cloned = rows_from({(*RANDOM, "clone"): around(60)}, "cloning")
    rows = pd.concat([rows_from(scores), longer, cloned])
    text = report.tables(EVERYTHING, rows, pd.DataFrame())
    for line in (
        "simple_spread | random (0.0) | 800 | 40.0 [39.*], 40.0 | 41.0 [*",
        "* | **46.0** [45.*], 46.0 | spacql 78.2 ± 14.0, icql-qs 77.7, *",
        "simple_spread | random (0.0) | 2400 | 99.0 (n = 1) | | *",
        "simple_world | random (-0.1) | 400 | 21.0 (n = 2) | | **30.0** [29.* | | | | | spacql *",
        "2 datasets | all | | 32.1 [*], 28.8 (n = 3 to 5) | *",
        "SPaCQL is best on * | **does not hold**: on 0 of 6 datasets, on 1 not | **cannot be told**: *",
        "simple_spread | random | 40.0 [*], 40.0 | 46.0 [*], 46.0 | **60.0** [*",
    ):
        pattern = re.escape(line).replace(r"\*\*", "[*]{2}").replace(r"\*", ".*")
        assert re.search(rf"^[|] {pattern}$", text, re.M), line
    assert "\n* clone: above spacql on 1, below on 0 of 1 datasets\n" in text
    assert (
        "\n* discrete, simple_world random, 400 rounds: spacql (2 to 4), icql-qs (0 to 4), uniform (0" in text
    )


def test_committed_csvs_are_whole():
    """Every row has its numbers, its commit, a command of the right script, and its curve; none is twice."""
    rows, curves = (report.read_csv(ROOT / "results" / name) for name in (report.RUNS_CSV, report.CURVES_CSV))
    places, points = report.places(rows), list(zip(report.places(curves), curves["round"], strict=True))
    assert len(set(places)) == len(places) and len(set(points)) == len(points)
    assert set(report.places(curves)) == set(places)
    assert {place[:-1] for place in places} <= {cell.place for cell in EVERYTHING}
    assert np.isfinite(rows[["score", "best", "wall_s", "stacked"]].astype(float)).all(axis=None)
    for row in rows.itertuples():
        script = r"-m experiments.bc.*|" * (row.method == "bc") + SCRIPTS[row.grid]
        assert re.match(rf"OMP_NUM_THREADS=1 python ({script}) --env-id {row.env_id} ", row.command)
        first = int(re.search(r"--seed (\d+)", row.command)[1])
        assert first <= int(row.seed) < first + int(row.stacked)
        assert re.fullmatch(r"[0-9a-f]{7,}", row.commit) and row.machine


def test_committed_tables_are_those_of_the_committed_csvs():
    """All intervals anew: some ten seconds."""
    names = (report.RUNS_CSV, report.DEPENDENCE_CSV)
    text = report.tables(EVERYTHING, *(report.read_csv(ROOT / "results" / name) for name in names))
    assert (ROOT / "results/tables.md").read_text() == text


# ------ all checks


@pytest.mark.parametrize("name", CHECKS)
def test_holds(name):
    check, right = CHECKS[name]
    check(right)


@pytest.mark.parametrize(("name", "wrong"), [(name, wrong) for name in CHECKS for wrong in MUTANTS[name]])
def test_mistakes_are_rejected(name, wrong):
    check, right = CHECKS[name]
    rejects(check, partial(MUTANTS[name][wrong], right))
