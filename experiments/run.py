"""Runs the experiments of experiments/plan.py and collects what they leave.

    python -m experiments.run                     # all that results/csv lacks, two cells at a time
    python -m experiments.run --grid continuous   # those of one grid
    python -m experiments.run --quick             # everything, tiny, into results/quick: minutes
    python -m experiments.run --dry-run           # one command per line, for any scheduler
    python -m experiments.run --collect           # rows of run folders that are done into the CSV files
    python -m experiments.run --report            # only tables.md and the figures, from the CSV files
    python -m experiments.run --ray               # the cells over a Ray cluster (pip install ray)

A job is one command of a script on one core, all missing seeds of a cell side by side. Where it has ended
well, a record, cell.json, is put into its run folder below runs/results; a folder without one starts anew, so
that everything can be stopped at any moment. What is done, in the CSV files or in such a folder, is not run
again. csv/runs.csv has a row per seed, csv/curves.csv a row per seed and evaluation.
"""

import json
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import time
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd
from tqdm import tqdm

from experiments.plan import KEYS, RUNS, SCRIPTS, TOP, Job, job_named, missing_jobs, planned_cells
from experiments.report import CURVES_CSV, RUNS_CSV, places, read_csv, write_report
from utils.errors import InputError
from utils.files import atomic, parse, run_script, say

RECORD = "cell.json"  # written last into a run folder: what has it is done
LOG = "output.txt"
# Runs a script, or a module, as python would; Linux ends it when whatever started it dies, by kill -9 too:
# nobody would wait for it any more.
LAUNCH = """
import ctypes, os, runpy, sys

parent, *sys.argv = sys.argv[1:]
if sys.platform == "linux":
    ctypes.CDLL(None).prctl(1, 9)  # PR_SET_PDEATHSIG, SIGKILL
if os.getppid() != int(parent):
    sys.exit("whoever started this job has died")
if sys.argv[0] == "-m":
    sys.argv.pop(0)
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
else:
    runpy.run_path(sys.argv[0], run_name="__main__")
"""
# The columns of the CSV files; what a method lacks stays empty.
RUN_COLUMNS = (*KEYS, *"seed score best k_eff w1 w2 w3 wall_s stacked machine commit command".split())
CURVE_COLUMNS = (*KEYS, *"seed round score k_eff w1 w2 w3 u1 u2 u3 q_data".split())


@dataclass(frozen=True)
class Args:
    """What to run. By default: what is missing, then tables and figures."""

    grid: Literal[tuple(SCRIPTS)] | None = None
    """only this grid"""
    quick: bool = False
    """a few tiny cells of every grid, into results/quick and runs/quick"""
    dry_run: bool = False
    """print a command for every cell that is missing, the most telling first, and stop"""
    cell: str | None = None
    """run this cell, named as --dry-run does, and stop"""
    collect: bool = False
    """put finished run folders (of --cell, say) into the CSV files, report, and stop"""
    report: bool = False
    """write tables and figures from the CSV files, and stop"""
    jobs: int = 2
    """cells run at a time, each on one core"""
    ray: str | None = None
    """run the cells as tasks of a Ray cluster: its address, auto, or local (needs the ray package)"""
    runs: str | None = None
    """folder of the run folders; default runs/results, or runs/quick"""
    out: str | None = None
    """folder of csv/, tables and figures; default results, or results/quick"""


# ----------------------------------------------------------------------------------------------- a job


def code_commit() -> str:
    """The commit of the code, marked -dirty where code differs from it; results and texts may."""
    git, code = ["git", "-C", str(TOP)], ["--", ".", ":!results", ":!*.md"]
    try:
        head = subprocess.run([*git, "rev-parse", "--short", "HEAD"], capture_output=True, text=True)
        changes = subprocess.run([*git, "diff", "--name-only", "HEAD", *code], capture_output=True, text=True)
    except OSError:  # no git
        return "unknown"
    return (head.stdout.strip() or "unknown") + "-dirty" * bool(changes.stdout)


def start(job: Job, runs: Path) -> subprocess.Popen:
    """Start a job's command on one core, with run folders below `runs`; what an interrupted one left goes."""
    shutil.rmtree(runs / job.name, ignore_errors=True)
    runs.mkdir(parents=True, exist_ok=True)
    words = [*shlex.split(job.command())[2:], "--out", str(runs.absolute())]
    with open(runs / f"{job.name}.txt", "w") as file:
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-c", LAUNCH, str(os.getpid()), *words]
        streams = dict(stdout=file, stderr=file, stdin=subprocess.DEVNULL)
        return subprocess.Popen(command, cwd=TOP, env=environment, **streams)


def finish(job: Job, runs: Path, process: subprocess.Popen, commit: str) -> str | None:
    """Put the record into the folder of a job whose process has ended; returns what went wrong, or None."""
    folder, log = runs / job.name, runs / f"{job.name}.txt"
    code = process.wait()
    if code < 0:
        return f"ended by signal {-code}"
    if code > 0:
        said = [line for line in re.split(r"[\r\n]+", log.read_text(errors="replace")) if line.strip()]
        return said[-1].strip() if said else f"ended with status {code}"
    try:
        with np.load(folder / "returns.npz", allow_pickle=False) as file:
            summary = json.loads(str(file["summary"]))
    except Exception as error:  # numpy and zipfile raise many kinds for damaged files
        return f"left no results that can be read: {error}"
    machine = f"1 {platform.machine()} core"
    if summary["device"] != "cpu":
        import torch  # only here: it takes seconds to load

        machine = torch.cuda.get_device_name(summary["device"])
    os.replace(log, folder / LOG)
    record = dict(command=job.command(), commit=commit, machine=machine, wall_s=summary["wall_s"])
    with atomic(folder / RECORD) as partial:
        partial.write_text(json.dumps(record | dict(cell={name: getattr(job.cell, name) for name in KEYS})))
    return None


def run_one(job: Job, runs: Path, commit: str) -> str | None:
    """Run a job to its end; returns what went wrong, or None."""
    process = start(job, runs)
    try:
        return finish(job, runs, process, commit)
    finally:
        process.kill()  # of no effect where it has ended


def run_here(jobs: list[Job], runs: Path, workers: int):
    """Run jobs, `workers` at a time, each on one core; yields (job, what went wrong or None) as they end."""
    waiting, running = deque(jobs), {}
    try:
        while waiting or running:
            while waiting and len(running) < workers:
                job = waiting.popleft()
                running[job] = (start(job, runs), code_commit())
            for job in [job for job, (process, _) in running.items() if process.poll() is not None]:
                process, commit = running.pop(job)
                yield job, finish(job, runs, process, commit)
            time.sleep(0.1)
    finally:
        for process, _ in running.values():
            process.kill()


def run_on_ray(jobs: list[Job], runs: Path, workers: int, address: str):
    """Run jobs as tasks of a Ray cluster whose machines share this folder; yields as run_here."""
    try:
        import ray
    except ImportError:
        raise InputError("--ray needs the ray package: pip install ray") from None
    where = dict(num_cpus=workers, include_dashboard=False) if address == "local" else dict(address=address)
    try:
        ray.init(**where, log_to_driver=False, logging_level="error")
    except (ConnectionError, ValueError, RuntimeError) as error:
        said = " ".join(str(error).split())
        raise InputError(f"cannot connect to the Ray cluster {address}: {said}") from None
    try:
        task, commit = ray.remote(num_cpus=1)(run_one), code_commit()
        running = {task.remote(job, runs, commit): job for job in jobs}
        while running:
            (ended, *_), _ = ray.wait(list(running), num_returns=1)
            try:
                wrong = ray.get(ended)
            except ray.exceptions.RayError as error:  # of its machine, say
                wrong = " ".join(str(error).split())
            yield running.pop(ended), wrong
    finally:
        ray.shutdown()


# ---------------------------------------------------------------------------------------- what is kept


def rows_of(folder: Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The rows of runs.csv and of curves.csv that a finished run folder holds, all as texts.

    Raises ValueError where its record and its results do not belong together, and whatever numpy, zipfile and
    json raise where they are damaged.
    """
    record = json.loads((folder / RECORD).read_text())
    cell = record["cell"]
    with np.load(folder / "returns.npz", allow_pickle=False) as file:
        args, summary = (json.loads(str(file[name])) for name in ("args", "summary"))
        history = {name.removeprefix("history_"): file[name] for name in file.files}
    history["score"] = history.pop("scores")
    differ = [name for name in ("env_id", "dataset", "rounds", "batch_size") if args[name] != cell[name]]
    if differ:
        raise ValueError(f"its {RECORD} and its results differ in {', '.join(differ)}")
    numbers = {name: history[name] for name in ("score", "k_eff", "q_data") if name in history}  # [steps, S]
    for name, short in (("weights", "w"), ("u", "u")):
        for k in range(history[name].shape[2] if name in history else 0):
            numbers[f"{short}{k + 1}"] = history[name][:, :, k]
    run = {name: record[name] for name in ("wall_s", "machine", "commit", "command")}
    run |= dict(stacked=len(summary["seeds"]))
    rows, curves = [], []
    for s, seed in enumerate(summary["seeds"]):
        key = cell | dict(seed=seed)
        for step, round_number in enumerate(history["round"].tolist()):
            point = {name: round(float(values[step, s]), 4) for name, values in numbers.items()}
            curves.append(dict.fromkeys(CURVE_COLUMNS, "") | point | key | dict(round=round_number))
        last = {name: point[name] for name in ("k_eff", "w1", "w2", "w3") if name in point}
        best = round(float(history["score"][:, s].max()), 2)
        row = dict(score=summary["scores"][s], best=best)
        rows.append(dict.fromkeys(RUN_COLUMNS, "") | key | row | last | run)
    return pd.DataFrame(rows).astype(str), pd.DataFrame(curves).astype(str)


def only(table: pd.DataFrame, wanted: set[tuple]) -> pd.DataFrame:
    """The rows of these places."""
    return table[[place in wanted for place in places(table)]]


def collect(folders: list[Path], out: Path, only_look: bool = False) -> set[tuple]:
    """Add the rows of finished run folders that the CSV files in out/csv lack; only_look: write nothing.

    Returns what is then done. A row that is there already stays as it is. A damaged folder is named on stderr
    and left out. runs.csv is written after curves.csv, so what it lists is all there.
    """
    runs = read_csv(out / RUNS_CSV)
    done = set(places(runs))
    curves = only(read_csv(out / CURVES_CSV), done)  # without what an interrupted writer may have left
    for folder in folders:
        try:
            rows, points = rows_of(folder)
        except Exception as error:  # numpy, zipfile and json raise many kinds for damaged files
            say(f"left out {folder}: {type(error).__name__}: {error}")
            continue
        new = set(places(rows)) - done
        done |= new
        if new and not only_look:
            runs = in_order(pd.concat([runs, only(rows, new)]))
            curves = in_order(pd.concat([curves, only(points, new)]))
            for name, table in ((CURVES_CSV, curves), (RUNS_CSV, runs)):
                with atomic(out / name) as partial:
                    table.to_csv(partial, index=False)
            say(f"{folder.name}: {', '.join(rows['score'])}")
    return done


def in_order(table: pd.DataFrame) -> pd.DataFrame:
    """Rows in the order of the plan, others at the end, by seed and round: whoever collected them."""
    order = {cell.place: i for i, cell in enumerate(planned_cells())}
    rounds = table["round" if "round" in table else "seed"]
    ranks = [
        (order.get(tuple(cell), len(order)), cell, int(seed), int(number))
        for (*cell, seed), number in zip(places(table), rounds, strict=True)
    ]
    return table.iloc[sorted(range(len(table)), key=ranks.__getitem__)]


# ------------------------------------------------------------------------------------------------ main


def main(argv: list[str] | None = None) -> None:
    args = parse(Args, argv, description="\n".join(__doc__.splitlines()[:3]))
    if args.jobs < 1:
        raise InputError(f"--jobs must be at least 1, not {args.jobs}")
    cells = planned_cells(args.quick)
    runs = TOP / (args.runs or ("runs/quick" if args.quick else RUNS))
    out = TOP / (args.out or ("results/quick" if args.quick else "results"))
    if args.cell:
        job = job_named(args.cell, cells)
        wrong = None if (runs / job.name / RECORD).is_file() else run_one(job, runs, code_commit())
        if wrong:
            raise InputError(f"{job.name}: {wrong}")
        return
    finished = sorted(path.parent for path in runs.glob(f"*/{RECORD}"))
    done = collect([] if args.report else finished, out, only_look=args.dry_run)
    chosen = [cell for cell in cells if args.grid in (None, cell.grid)]
    jobs = [] if args.report or args.collect else missing_jobs(chosen, done)
    if args.dry_run:
        flags = " --quick" * args.quick + (f" --runs {shlex.quote(args.runs)}" if args.runs else "")
        for job in jobs:
            print(f"OMP_NUM_THREADS=1 python -m experiments.run --cell {job.name}{flags}")
        return
    executor = run_on_ray(jobs, runs, args.jobs, args.ray) if args.ray else run_here(jobs, runs, args.jobs)
    failures = []
    for job, wrong in tqdm(executor, total=len(jobs), unit="cell", file=sys.stderr, disable=not jobs):
        if wrong:
            failures.append(f"{job.name}: {wrong}")
            say(f"failed: {failures[-1]}")
        else:
            collect([runs / job.name], out)
    write_report(out, cells)
    if failures:
        raise InputError(f"{len(failures)} cells failed; first: {failures[0]}")


if __name__ == "__main__":
    run_script("experiments.run", main)
