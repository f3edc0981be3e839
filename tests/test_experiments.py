"""The plan of experiments, their runner, what it keeps, and what the report says of it.

A check must accept the right function and reject every mistake that mutants_experiments.py lists under its
name. Most jobs here run a stand-in for the training scripts, which writes at once what they would.
"""

import contextlib
import itertools
import json
import os
import re
import shlex
import shutil
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from common import ROOT, one_line, rejects, tree
from matplotlib.figure import Figure
from mutants_experiments import MUTANTS

import spacql
import spacql_continuous
from experiments import bc, claims, original_recipe, plan, report, run
from experiments.claims import FAILS, HOLDS, OPEN, Claim, Estimate
from experiments.plan import KEYS, MAIN, RECIPES, SCRIPTS, SIZED, SWEPT, TEN_CRITICS, Job, planned_cells
from utils import runs as run_folders
from utils.files import parse

EVERYTHING = planned_cells()
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


@check_of(claims.iqm_interval)
def the_interval_is_that_of_all_resamples(interval):
    """Its ends are quantiles over all equally likely draws; two seeds have none."""
    for group in ([1.0, 5.0, 6.5], [3.0, 1.0, 8.0, 2.0]):
        values = np.array([slow_iqm(draw) for draw in itertools.product(group, repeat=len(group))])
        found = interval(group)
        assert found.value == pytest.approx(slow_iqm(group)) and found == interval(group)
        for end, share in ((found.low, 0.025), (found.high, 0.975)):
            # The share of resamples below the end, up to the chance of 9999 draws, and counting ties.
            below, up_to = (values < end - 1e-9).mean(), (values <= end + 1e-9).mean()
            assert below - 0.008 <= share <= up_to + 0.008
    value, *ends = interval([1.0, 2.0])
    assert value == 1.5 and np.isnan(ends).all() and interval([4.0] * 3) == (4, 4, 4)


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


@pytest.mark.parametrize(("num_seeds", "quoted"), [(3, 0.754), (5, 0.904)])
def test_coverage(num_seeds, quoted, quickly):
    """The coverage in the text, of 20,000 simulated experiments, is about what a few of them find."""
    scores = np.random.default_rng(3).normal(size=(200, num_seeds))
    share = np.mean([found.low <= 0 <= found.high for found in map(claims.iqm_interval, scores)])
    assert abs(share - quoted) < 4 * np.sqrt(quoted * (1 - quoted) / len(scores))
    assert f"{quoted:.0%}" in report.INTRODUCTION


# ------ verdicts


@pytest.fixture
def quickly(monkeypatch):
    """Intervals from few draws."""
    monkeypatch.setattr(claims, "RESAMPLES", 300)


def around(centre):
    """Scores of five seeds."""
    return [centre + x for x in (-1.0, -0.5, 0.0, 0.5, 1.0)]


@check_of(claims.judge)
def an_interval_decides(judge):
    """It holds above 0, it does not below; else, and without an interval, it cannot be told."""
    for low, high, verdict in [(1, 2, HOLDS), (-2, -1, FAILS), (-1, 1, OPEN), (0, 1, OPEN), (-1, 0, OPEN)]:
        assert judge(Estimate(0.05, low, high)) == verdict
    assert judge(Estimate(0.05, np.nan, np.nan)) == OPEN


@check_of(claims.find)
def one_method_must_be_above_all_rivals(find):
    """Of the rivals the one that is least below decides, of the methods the best; what lacks seeds cannot be
    told; and over several datasets the mean difference of those with seeds does."""
    few = [1000.0, 1000.0]
    claim = Claim("", ("a", "b"), ("c", "d"), ())
    for centres, verdict, begin, end in (
        ((70, 50, 60, 40), HOLDS, "a +10.0 [", "c"),
        ((70, 50, 90, 80), FAILS, "a -20.0 [", "c"),
        ((70, 50, 60, 70.1), OPEN, "a -0.1 [", "d"),
        ((70, 50, 60, None), OPEN, "too few seeds of ", "d"),
        ((70, 50, 80, None), FAILS, "a -10.0 [", "c"),
        ((None, 50, 40, 30), HOLDS, "b +10.0 [", "c"),
        ((None, 50, 60, 30), OPEN, "too few seeds of a", ""),
    ):
        scores = {("x", name): around(c) if c else few for name, c in zip("abcd", centres, strict=True)}
        found, _, said = find(claim, scores, [("x",)])
        assert found == verdict and said.startswith(begin) and said.endswith(end)
    scores = {(q, m): around(x) for q, x in zip("xyz", (0, 30, 90), strict=True) for m in "ac"}
    scores |= {("x", "a"): around(8), ("y", "a"): around(34), ("z", "c"): few}
    found, value, _ = find(claim._replace(methods=("a",), rivals=("c",)), scores, [("x",), ("y",), ("z",)])
    assert (found, value) == (HOLDS, pytest.approx(6))


# ------ the plan


@check_of(lambda cell: Job(cell, 0, 5).name)
def names_are_safe_and_tell_cells_apart(name_of):
    names = {name_of(cell) for cell in EVERYTHING}
    assert len(names) == len(EVERYTHING) and all(re.fullmatch(r"[\w.-]{10,120}", name) for name in names)


MEANINGS = {  # what methods' names mean, as flags of a training script
    "bc": {},
    "cfcql": dict(backup="joint", num_critics=2),
    "macql": dict(backup="joint", num_critics=2, penalty="macql"),
    "icql-qs-2": dict(backup="icql-qs", num_critics=2),
    "clone": dict(clone_weight=1.0),
}
for method in SWEPT | plan.CROWD_SWEPT:
    name, alpha = method.split("-")
    MEANINGS[method] = MEANINGS[name] | dict(cql_alpha=float(alpha))
for method in SIZED:
    name, size = method.rsplit("-", 1)
    MEANINGS[method] = MEANINGS[name] | dict(dataset_size=int(size))
for backup in (*TEN_CRITICS, "uniform"):
    MEANINGS[backup] = dict(backup=backup)
    MEANINGS[f"{backup}-vs-policy"] = dict(backup=backup, actor_others="policy")
for method in plan.OMAR_PREY:
    MEANINGS[method] = MEANINGS[method.removesuffix("-omar-prey")] | dict(policies="datasets/omar_prey")
for backup, recipe in itertools.product(("joint", "icql-qs", "spacql"), RECIPES):
    changed = vars(parse(original_recipe.Args, RECIPES[recipe].split())).items()
    changes = {name: value for name, value in changed if value != getattr(original_recipe.Args, name)}
    size = dict(num_critics=10 if backup == "spacql" else 2, penalty_agents=1)
    MEANINGS[f"{backup}-{recipe}"] = changes | size | dict(backup=backup)


@check_of(Job.command)
def commands_say_what_cells_mean(command):
    """The scripts take every command, and it sets what cell, method and block say, nothing else."""
    for cell in {(cell.grid, cell.method, cell.flags): cell for cell in EVERYTHING}.values():
        environment, python, *words = shlex.split(command(Job(cell, 3, 2)))
        assert (environment, python) == ("OMP_NUM_THREADS=1", "python")
        expected = dict(env_id=cell.env_id, dataset=cell.dataset, rounds=cell.rounds, seed=3, num_seeds=2)
        expected |= dict(out="runs/results", name=Job(cell, 3, 2).name) | MEANINGS[cell.method]
        expected |= dict(batch_size=cell.batch_size) if cell.batch_size != 256 else {}
        script = spacql_continuous if SCRIPTS[cell.grid] == "spacql_continuous.py" else spacql
        if cell.method == "bc":
            expected |= dict(continuous=script is spacql_continuous)
            script, *words = bc, *words[words.index("experiments.bc") :]
        if cell.grid == "recipe":
            script, *words = original_recipe, *words[1:]
        assert words[0] in (*SCRIPTS[cell.grid].split(), "experiments.bc")
        flags = parse(script.Args, cell.flags.split())
        assert parse(script.Args, words[1:]) == replace(flags, **expected)


@check_of(plan.missing_jobs)
def missing_seeds_are_trained_side_by_side(missing):
    """Neighbouring seeds make one job; other cells' rows, and seeds not planned, are of no account."""
    cell, other = [cell for cell in EVERYTHING if cell.num_seeds == 5][:2]
    cases = ((), [(0, 5)]), ((0, 1, 2), [(3, 2)]), ((0, 2, 4), [(1, 1), (3, 1)]), (range(5), [])
    for seeds, jobs in (*cases, ((7,), [(0, 5)])):
        done = {(*cell[:6], seed) for seed in seeds} | {(*other[:6], seed) for seed in range(5)}
        assert [(job.first, job.count) for job in missing([cell], done)] == jobs


# ------ what is kept

STAND_IN = """
import json, os, sys, time
from pathlib import Path
import numpy as np

words = sys.argv[1:]
args = {k[2:].replace("-", "_"): v for k, v in zip(words[::2], words[1::2])}
args |= {name: int(args[name]) for name in ("rounds", "seed", "num_seeds")}
folder = Path(args["out"]) / args["name"]
folder.mkdir(parents=True)
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


@pytest.fixture
def stand_in(tmp_path, monkeypatch):
    """Jobs run a script that writes results at once, eight cells are planned, and nothing is drawn."""
    script = tmp_path / "stand_in.py"
    script.write_text(STAND_IN)
    block = plan.block("discrete", plan.SPREAD, plan.QUALITIES, TEN_CRITICS[:2], 4, num_seeds=3)
    monkeypatch.setattr(plan, "SCRIPTS", dict.fromkeys(SCRIPTS, str(script)))
    monkeypatch.setattr(plan, "PLAN", (block,))
    for name in ("write_report", "write_recipe_report"):
        monkeypatch.setattr(run, name, lambda *_: None)
    return script


def finished(runs, cell, first=0, count=2):
    """The run folder of a stand-in's job."""
    assert run.run_job(Job(cell, first, count), runs) is None
    return runs / Job(cell, first, count).name


def collected(tables, *folders):
    """What `collect` makes of run folders: the tables, and (method, seed, score) of the rows of runs."""
    tables = run.collect(tables, folders, planned_cells())
    return tables, tables[0][["method", "seed", "score"]].to_numpy().tolist()


def rows_are_what_the_run_left(rows_of, folder):
    """A row per seed with its own numbers; the curves have a row per seed and evaluation."""
    rows, curves = rows_of(folder, planned_cells())
    job = Job(planned_cells()[0], 3, 2)
    rest = [1.5, 2, rows["machine"][0], rows["commit"][0], job.command()]
    assert rows.to_numpy().tolist() == [
        [*job.cell[:6], 3, 13.5, 4.0, 3.5, 0.5, 0.35, 0.2, *rest],
        [*job.cell[:6], 4, 14.5, 5.0, 4.5, 0.5, 0.35, 0.2, *rest],
    ]
    assert list(rows) == run.RUN_COLUMNS and list(curves) == run.CURVE_COLUMNS
    points = curves[["seed", "round", "score", "w1", "u3"]].to_numpy().tolist()
    assert points[:2] == [[3, 2, 4.0, 0.3333, 0.3333], [3, 4, 3.5, 0.5, 0.2]]
    assert [point[:3] for point in points[2:]] == [[4, 2, 5.0], [4, 4, 4.5]]


def test_rows_of_a_run(stand_in, tmp_path):
    folder = finished(tmp_path, planned_cells()[0], 3, 2)
    rows_are_what_the_run_left(run.rows_of, folder)
    for wrong in MUTANTS["rows are what the run left"].values():
        rejects(rows_are_what_the_run_left, partial(wrong, run.rows_of), folder)


def test_switches_of_a_run_are_those_planned(stand_in, tmp_path):
    """As --no-affine: the last one counts, as on a command line."""
    cell = planned_cells()[0]
    folder = finished(tmp_path, cell)
    run_with(folder, affine=False)
    run.rows_of(folder, [cell._replace(flags="--affine --no-affine")])
    with pytest.raises(ValueError, match=r"with affine False, and .True. is planned"):
        run.rows_of(folder, [cell._replace(flags="--no-affine --affine")])


@check_of(run.in_order)
def rows_stand_in_the_order_of_the_plan(in_order):
    """By seed and round, as numbers; what is not planned comes last; the first of two is kept."""
    places = [cell[:6] for cell in (EVERYTHING[0], EVERYTHING[5], EVERYTHING[0]._replace(rounds=3))]
    rows = [[*place, seed, number, 1.0] for place in places for seed in (2, 10) for number in (20, 100)]
    mixed = pd.DataFrame(rows, columns=[*KEYS, "seed", "round", "score"]).sample(frac=1, random_state=1)
    twice = pd.concat([mixed, mixed.assign(score=2.0)])
    assert in_order(twice, EVERYTHING).to_numpy().tolist() == rows


def test_collect(stand_in, tmp_path):
    """Each seed gets in once, whoever trained it, in the plan's order; what is there stays; curves without
    rows, which a killed writer leaves, are not doubled; and files hold the same."""
    first, second = planned_cells()[:2]
    nothing = [pd.DataFrame(), pd.DataFrame()]
    tables, rows = collected(nothing, finished(tmp_path, second, 0, 1))
    assert rows == [["icql-qs", 0, 10.5]] and collected(tables)[1] == rows
    tables[0]["score"] = 77.0
    again = finished(tmp_path, second, 0, 2), finished(tmp_path, first, 0, 1)
    tables, rows = collected(tables, *again)
    assert rows == [["spacql", 0, 10.5], ["icql-qs", 0, 77], ["icql-qs", 1, 11.5]] and len(tables[1]) == 6
    assert len(collected([nothing[0], tables[1]], *again)[0][1]) == 6
    run.write_tables(tables, tmp_path)
    for name, table in zip((report.RUNS_CSV, report.CURVES_CSV), tables, strict=True):
        pd.testing.assert_frame_equal(report.read_csv(tmp_path / name), table.reset_index(drop=True))


def run_with(folder, **settings):
    """The folder's results say that its run had these."""
    with np.load(folder / "returns.npz") as file:
        arrays = dict(file)
    arrays["args"] = np.array(json.dumps(json.loads(str(arrays["args"])) | settings))
    np.savez(folder / "returns.npz", **arrays)


def test_damaged_and_other_folders_are_named_and_left_out(stand_in, tmp_path, capsys):
    """Whatever is broken, not planned, or was not run as planned."""
    good, *bad = [finished(tmp_path, cell) for cell in planned_cells()[:7]]
    os.truncate(bad[0] / "cell.json", 40)
    os.truncate(bad[1] / "returns.npz", 500)
    (bad[2] / "returns.npz").unlink()
    (bad[3] / "cell.json").unlink()
    bad[4] = bad[4].rename(tmp_path / "other")
    run_with(bad[5], backup="joint")
    run_with(good, backup=["spacql"])  # a flag of several words
    assert len(collected([pd.DataFrame(), pd.DataFrame()], *bad, good)[1]) == 2
    said = capsys.readouterr().err.splitlines()
    assert [line.split(": ")[0] for line in said] == [f"left out {folder}" for folder in bad]
    assert said[5].endswith("it was run with backup joint, and ['spacql'] is planned")


# ------ jobs


def test_jobs(stand_in, tmp_path, monkeypatch):
    """A failure is told by its last line and stops nothing else; what it left is in nobody's way; after an
    interrupt no other job starts."""
    jobs = [Job(cell, 0, 1) for cell in planned_cells()[:6]]
    monkeypatch.setenv("STAND_IN_FAILS", jobs[0].name)
    found = dict(run.run_jobs(jobs[:3], tmp_path, 2))
    assert [found[job] for job in jobs[:3]] == ["another: it went wrong", None, None]
    assert {path.parent.name for path in tmp_path.glob("*/cell.json")} == {job.name for job in jobs[1:3]}
    monkeypatch.delenv("STAND_IN_FAILS")
    assert run.run_job(jobs[0], tmp_path) is None
    stand_in.write_text("import sys; sys.exit(3)")
    assert run.run_job(jobs[0], tmp_path) == "ended with status 3"
    stand_in.write_text("")
    assert "left no results" in run.run_job(jobs[0], tmp_path)
    shutil.rmtree(tmp_path / jobs[1].name)
    running = run.run_jobs(jobs[1:], tmp_path, 1)
    next(running)
    running.close()
    assert not (tmp_path / f"{jobs[-1].name}.txt").exists()


def test_an_interrupted_job_goes_on_with_the_same_code_alone(stand_in, tmp_path, monkeypatch):
    """From the checkpoint that it left, where there are no results yet."""
    stand_in.write_text("import sys; sys.exit(' '.join(sys.argv[1:3]))")
    job = Job(planned_cells()[0], 0, 1)
    folder, left = tmp_path / job.name, "checkpoint.pt"
    cases = ("", 1, 0), (left, 1, 1), (f"{left} returns.npz", 1, 0), (left, 2, 0), (left, 2, 1)
    for names, commit, on in cases:
        folder.mkdir(exist_ok=True)
        for name in names.split():
            (folder / name).touch()
        monkeypatch.setattr(run, "current_commit", lambda commit=commit: commit)
        said = f"--resume {folder}" if on else "--env-id simple_spread"
        assert run.run_job(job, tmp_path) == said and folder.exists() == on


def main(folder, monkeypatch, *flags):
    """The runner in this process, with all that it writes in another folder."""
    monkeypatch.setattr(run, "TOP", folder)
    folder.mkdir(exist_ok=True)
    run.main(list(flags))


def csv_texts(folder):
    """All that was collected."""
    return [path.read_text() for path in sorted((folder / "results/csv").iterdir())]


def test_any_scheduler(stand_in, tmp_path, capsys, monkeypatch):
    """The lines of --dry-run, each run by itself, and --jobs 0: the same tables as a run of everything."""
    monkeypatch.setattr(plan, "PLAN", (planned_cells()[:3],))
    everything, one_by_one = (partial(main, tmp_path / name, monkeypatch) for name in ("all", "one by one"))
    everything()
    capsys.readouterr()
    one_by_one("--dry-run")
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3 and not list((tmp_path / "one by one").iterdir())
    for line in lines:
        environment, python, *module, cell, name = shlex.split(line)
        assert [environment, python, *module] == "OMP_NUM_THREADS=1 python -m experiments.run".split()
        one_by_one(cell, name)
    before = tree(tmp_path)
    one_by_one(cell, name)
    one_by_one("--dry-run")
    assert capsys.readouterr().out == "" and tree(tmp_path) == before, "what is done is not run again"
    one_by_one("--jobs", "0")
    assert csv_texts(tmp_path / "one by one") == csv_texts(tmp_path / "all") != []
    monkeypatch.setattr(run, "run_job", None)
    everything()


def test_failed_cells(stand_in, tmp_path, monkeypatch):
    """They are named, and run by the next call; the others are collected."""
    monkeypatch.setattr(plan, "PLAN", (planned_cells()[:2],))
    failing = Job(planned_cells()[0], 0, 3).name
    monkeypatch.setenv("STAND_IN_FAILS", failing)
    wrong = f"{failing}: another: it went wrong"
    assert one_line(partial(main, tmp_path, monkeypatch)) == f"1 cells failed; first: {wrong}"
    assert one_line(partial(main, tmp_path, monkeypatch, "--cell", failing)) == wrong
    monkeypatch.delenv("STAND_IN_FAILS")
    main(tmp_path, monkeypatch)
    assert len(report.read_csv(tmp_path / "results" / report.RUNS_CSV)) == 6


def test_bad_flags(tmp_path, monkeypatch):
    for name in ("nonsense", "discrete__simple_spread__random__spacql__800__0x0"):
        assert f"no cell is named {name}" in one_line(partial(main, tmp_path, monkeypatch, "--cell", name))
    assert "nothing to report" in one_line(partial(main, tmp_path, monkeypatch, "--jobs", "0"))
    assert not (tmp_path / "runs").exists()


def test_tiny_cells_end_to_end(tmp_path, data_dir, monkeypatch, quickly):
    """A tiny cell of every script, in this process: what it prints is what gets into the tables."""
    wanted = [(grid, method) for grid in ("discrete", "continuous") for method in ("spacql", "bc")]
    cells = [next(cell for cell in EVERYTHING if (cell.grid, cell.method) == one) for one in wanted]
    flags = f"--eval-every 2 --eval-episodes 4 --dataset-size 2500 --data-dir {data_dir}"
    printed = {}

    def in_process(command, stdout, **_):
        split = command.index("--env-id")
        names, flags = command[1:split], command[split:]
        scripts = {s.SCRIPT: s for s in (spacql, spacql_continuous)}
        script = bc if "experiments.bc" in names else scripts[names[0]]
        with contextlib.redirect_stdout(stdout):
            summary = script.main([*(["--continuous"] if "--continuous" in names else []), *flags])
        printed[summary["folder"].split("/")[-1]] = summary
        return SimpleNamespace(returncode=0)

    tiny = dict(rounds=4, batch_size=32, num_seeds=3, flags=flags)
    monkeypatch.setattr(plan, "PLAN", ([cell._replace(**tiny) for cell in cells],))
    monkeypatch.setattr(run, "current_commit", lambda: "abc1234")
    monkeypatch.setattr(run, "subprocess", SimpleNamespace(run=in_process, DEVNULL=None))
    monkeypatch.setattr(run_folders, "save_figure", lambda _, path, *__: path.touch())
    few = {task: scores for task, scores in report.DATA_SCORES.items() if task[1] == "simple_spread"}
    monkeypatch.setattr(report, "DATA_SCORES", few)  # drawing takes seconds
    main(tmp_path, monkeypatch, "--jobs", "1")
    out = tmp_path / "results"
    rows, curves = (report.read_csv(out / name) for name in (report.RUNS_CSV, report.CURVES_CSV))
    assert len(printed) == 4 and len(rows) == 12 and len(curves) == 24
    for cell in planned_cells():
        summary = printed[Job(cell, 0, 3).name]
        own = rows[[key == cell[:6] for key in rows[KEYS].itertuples(index=False, name=None)]]
        assert own["seed"].tolist() == [0, 1, 2] and own["score"].tolist() == summary["scores"]
        curve = curves[[key == cell[:6] for key in curves[KEYS].itertuples(index=False, name=None)]]
        assert own["best"].tolist() == pytest.approx(curve.groupby("seed")["score"].max().tolist(), abs=0.02)
        weights = own[["w1", "w2", "w3"]].mean()
        assert weights.tolist() == pytest.approx(summary.get("weights", [np.nan] * 3), abs=2e-4, nan_ok=True)
    text = (out / "tables.md").read_text()
    assert "\n0 of 4 cells lack seeds" in text and "| 4 (batch 32) |" in text
    assert min((out / name).stat().st_size for name in ("weights.png", "scores.png")) > 10_000


# ------ the report


def test_tables_say_what_is_known(quickly):
    """Numbers with intervals, seeds if they are not five, published ones beside, what is missing; side tables
    borrow columns, and rows of other grids are of no account."""
    scores = {(*RANDOM, method): around(40 + i) for i, method in enumerate(MAIN)}
    scores |= {("simple_tag", "random", method): [10.0] * 3 for method in MAIN}
    scores["simple_tag", "random", "spacql"] += [90.0, 90.0]
    scores["simple_world", "expert", "spacql"] = [20.0, 22.0]
    scores["simple_world", "expert", "joint"] = around(30)
    rows = []
    grids = dict(discrete=scores, narrow={("simple_world", "expert", "clone"): around(60)})
    for grid, found in grids.items():
        for place, values in found.items():
            cell = next(cell for cell in EVERYTHING if cell[:4] == (grid, *place))
            rows += [(*cell[:6], seed, score) for seed, score in enumerate(values)]
    rows = pd.DataFrame(rows, columns=[*KEYS, "seed", "score"])
    cell = next(cell for cell in EVERYTHING if cell.rounds == 8000)
    longer = pd.DataFrame([(*cell[:6], 0, 99.0)], columns=list(rows))
    text = report.tables(EVERYTHING, pd.concat([rows, longer, rows.assign(grid="recipe", score=-1.0)]))
    for line in (
        "simple_spread | random (0.1) | 800 | 40.0 [39.*], 40.0 | 41.0 [*",
        "* | 44.0 [43.*], 44.0 | spacql 78.2 ± 14.0, icql-qs 77.7, *",
        "simple_tag | random (0.0) | 8000 (batch 1024) | | | | 99.0 (n = 1) | * | spacql *",
        "simple_world | expert (108.0) | 800 | 21.0 (n = 2) | | 30.0 [29.* | | | | spacql *",
        "SPaCQL is best on * | **does not hold**: on 0 of 2 datasets, on 1 not; mean: spacql * | not run",
        "simple_world | expert | 800 | 21.0 (n = 2) | | 60.0 [*], 60.0 |",
        "discrete | simple_spread | random | does not hold | spacql -3.0 [*] against cfcql",
    ):
        pattern = re.escape(line).replace(r"\*\*", "[*]{2}").replace(r"\*", ".*")
        assert re.search(rf"^[|] {pattern} [|]$", text, re.M), line
    assert re.search(r"^\d+ of \d+ cells lack seeds; `python -m experiments.run --dry-run`", text, re.M)


def test_penalties_are_compared_on_seeds_that_did_not_choose(quickly):
    """A row's best alpha is that of seeds 0 to 2, its score that of the others; matched pairs are a factor of
    three apart."""
    strength = {"cfcql": 1, "macql": 3}  # at the same alpha

    def score_of(_, seed, method):
        name, alpha = SWEPT[method]
        off = np.log(alpha * strength[name] / 2.7) / np.log(3)
        return 50 + 10 * min(off, 0) - 4 * max(off, 0) + (seed > 2)

    text = report.penalty_section(scored("penalty", 6, score_of))
    fresh = "51.0 [51.0, 51.0], 51.0 (n = 3) |"
    assert f"| cfcql | 20.0 | 30.0 | 40.0 | **50.0** | 46.0 | 42.0 | {fresh}" in text
    assert f"| macql | 30.0 | 40.0 | **50.0** | 46.0 | 42.0 | 38.0 | {fresh}" in text
    assert "At matched strength MACQL minus CFCQL: +0.0 [+0.0, +0.0], mean of 20 pairs." in text
    assert "At the same alpha MACQL minus CFCQL: +3.0 [+3.0, +3.0], mean of 24 pairs." in text


def test_committed_csvs_are_whole():
    """Every row is planned, has its numbers, its commit, a command of the right script, and its curve; none
    is twice, and all stand in the plan's order."""
    tables = [report.read_csv(ROOT / "results" / name) for name in (report.RUNS_CSV, report.CURVES_CSV)]
    for table, ordered in zip(tables, run.collect(tables, [], EVERYTHING), strict=True):
        pd.testing.assert_frame_equal(table, ordered.reset_index(drop=True))
    rows, curves = tables
    assert set(report.places(curves)) == set(report.places(rows))
    assert {place[:-1] for place in report.places(rows)} <= {cell[:6] for cell in EVERYTHING}
    assert np.isfinite(rows[["score", "best", "wall_s", "stacked"]]).all(axis=None)
    assert rows["commit"].str.fullmatch("[0-9a-f]{7,}").all()
    for row in rows.itertuples():
        script = r"-m experiments.bc.*|" * (row.method == "bc") + SCRIPTS[row.grid]
        command = rf"OMP_NUM_THREADS=1 python ({script}) --env-id {row.env_id} .*--seed (\d+)"
        found = re.match(command, row.command)
        assert int(found[2]) <= row.seed < int(found[2]) + row.stacked


def test_the_chosen_alphas_are_the_best_of_the_committed_rows():
    """By the mean of the seeds that choose; CFCQL's are the script's defaults. Of forces, of which
    2.7 and 8.1 do the same, the defaults are within 3 points."""
    rows = report.read_csv(ROOT / "results" / report.RUNS_CSV)
    rows = rows[rows["seed"].isin(plan.CHOOSING)]
    means = rows.groupby(["grid", "env_id", "dataset", "method"])["score"].mean()
    for (env_id, dataset), chosen in plan.CHOSEN.items():
        of_cell = means["penalty", env_id, dataset]
        best = tuple(of_cell.filter(like=name).idxmax() for name in ("cfcql", "macql"))
        assert best == chosen and spacql.CQL_ALPHA[env_id][dataset] == SWEPT[chosen[0]][1]
        of_forces = means["penalty-continuous", env_id, dataset]
        default = spacql_continuous.CQL_ALPHA[env_id][dataset]
        assert of_forces[f"cfcql-{default}"] > of_forces.max() - 3


def test_committed_tables_are_those_of_the_committed_csvs():
    """All intervals anew: seconds."""
    text = report.tables(EVERYTHING, report.read_csv(ROOT / "results" / report.RUNS_CSV))
    assert (ROOT / "results/tables.md").read_text() == text


# ------ figures


def scored(grid, num_seeds, score_of):
    """Rows of a grid: score_of(number of the cell, seed, method)."""
    cells = enumerate(cell for cell in EVERYTHING if cell.grid == grid)
    rows = [(*c[:6], s, score_of(i, s, c.method)) for i, c in cells for s in range(num_seeds)]
    return pd.DataFrame(rows, columns=[*KEYS, "seed", "score"])


@check_of(report.draw_coordination)
def bars_count_the_seeds_that_end_at_the_best(draw):
    """A panel by whom actors improve against, and in it a group of bars for each share."""
    draw(fig := Figure(), scored("coordination", 5, lambda i, seed, _: 99.6 - 26 * (seed < i % 5)))
    for ax, methods in zip(fig.axes, (range(3), range(3, 6)), strict=True):
        bars = [bar for method in ax.containers for bar in method]
        assert [round(4 * bar.get_center()[0]) for bar in bars] == [*range(5)] * 3, "shares are quarters"
        assert [bar.get_height() for bar in bars] == [5 - (i + m) % 5 for m in methods for i in range(5)]


@check_of(report.draw_crowd)
def curves_are_means_with_their_range(draw):
    """Of the small data, of the large, and CFCQL's last scores over alpha."""
    runs = scored("crowd", 3, lambda i, seed, _: 10 * i + 3 * seed)
    draw(fig := Figure(), runs, pd.concat(runs.assign(round=n, score=runs["score"] + n) for n in (20, 40)))
    small, large, over_alpha = ([line.get_ydata().tolist() for line in ax.lines] for ax in fig.axes)
    assert [*small, *large[:3]] == [[10 * i + 23, 10 * i + 43] for i in (7, 8, 9, 6, 10, 11, 12)]
    assert over_alpha == [[10 * i + 3 for i in range(6)]]
    boxes = [ax.collections[0].get_paths()[0].get_extents() for ax in fig.axes]
    assert [(box.y0, box.y1) for box in boxes] == [(90, 116), (120, 146), (0, 56)]


# ------ all checks


@pytest.mark.parametrize("name", CHECKS)
def test_holds(name):
    check, right = CHECKS[name]
    check(right)


@pytest.mark.parametrize(("name", "wrong"), [(name, wrong) for name in CHECKS for wrong in MUTANTS[name]])
def test_mistakes_are_rejected(name, wrong):
    check, right = CHECKS[name]
    rejects(check, partial(MUTANTS[name][wrong], right))
