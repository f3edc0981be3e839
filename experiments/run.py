"""Runs the experiments of experiments/plan.py and collects what they leave.

    python -m experiments.run                     # all that results/csv lacks, two cells at a time; tables
    python -m experiments.run --dry-run           # one command per line, for any scheduler
    python -m experiments.run --jobs 0            # only collects what a scheduler has run

A job is one command of a script on one core, all missing seeds of a cell side by side. Where it has ended
well, a record, cell.json, is put into its run folder below runs/results. Everything can be stopped at any
moment: what is done is not run again, and a training script goes on from its checkpoint. csv/runs.csv has a
row per seed, csv/curves.csv a row per seed and evaluation.
"""

import json
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from tqdm import tqdm

from experiments.plan import KEYS, Cell, Job, job_named, missing_jobs, planned_cells
from experiments.recipe_report import write_recipe_report
from experiments.report import CURVES_CSV, RUNS_CSV, places, read_csv, write_report
from utils.errors import InputError
from utils.files import TOP, atomic, current_commit, parse, run_script, say

RECORD = "cell.json"  # written last into a run folder: what has it is done
# The columns of the CSV files; what a method lacks stays empty.
RUN_COLUMNS = [*KEYS, *"seed score best k_eff w1 w2 w3 wall_s stacked machine commit command".split()]
MECHANISM = "policy_mean policy_std q_by_call q_by_data common_slope".split()  # of the original recipe
CURVE_COLUMNS = [*KEYS, *"seed round score k_eff w1 w2 w3 u1 u2 u3 q_data".split(), *MECHANISM]


@dataclass(frozen=True)
class Args:
    """What to run. By default: what is missing, then tables and figures."""

    dry_run: bool = False  # print a command for every cell that is missing, the most telling first, and stop
    cell: str | None = None  # run this cell, named as --dry-run does, and stop
    jobs: int = 2  # cells run at a time, each on one core; 0 to collect and report only


# ------ a job


def run_job(job: Job, runs: Path) -> str | None:
    """Run a job on one core into its folder below `runs`; returns what went wrong, or None. What it says is
    in a text beside the folder, below the commit: an interrupted one goes on where that is the same."""
    folder, log, commit = runs / job.name, runs / f"{job.name}.txt", current_commit()
    runs.mkdir(parents=True, exist_ok=True)
    words = [sys.executable, *shlex.split(job.command())[2:]]
    before = log.read_text(errors="replace") if log.is_file() else ""
    resumable = job.cell.method != "bc" and (folder / "checkpoint.pt").is_file()
    if resumable and before.startswith(f"commit {commit}\n") and not (folder / "returns.npz").exists():
        words = [*words[: words.index("--env-id")], "--resume", str(folder.absolute())]
    else:
        shutil.rmtree(folder, ignore_errors=True)
        log.write_text(f"commit {commit}\n")
        words += ["--out", str(runs.absolute())]
    with open(log, "a") as file:
        streams = dict(stdout=file, stderr=file, stdin=subprocess.DEVNULL)
        code = subprocess.run(words, cwd=TOP, env=os.environ | {"OMP_NUM_THREADS": "1"}, **streams).returncode
    if code:
        _, *said = filter(str.strip, re.split(r"[\r\n]+", log.read_text(errors="replace")))
        return said[-1].strip() if said else f"ended with status {code}"
    if not (folder / "returns.npz").is_file():
        return "left no results"
    record = dict(command=job.command(), commit=commit, machine=f"1 {platform.machine()} core")
    with atomic(folder / RECORD) as partial:
        partial.write_text(json.dumps(record))
    return None


def run_jobs(jobs: list[Job], runs: Path, workers: int):
    """Run jobs, `workers` at a time; yields (job, what went wrong or None) as they end. After an interrupt no
    other one starts."""
    pool = ThreadPoolExecutor(max(workers, 1))
    try:
        running = {pool.submit(run_job, job, runs): job for job in jobs}
        for ended in as_completed(running):
            error = ended.exception()
            yield running[ended], str(error) if error else ended.result()
    finally:
        pool.shutdown(cancel_futures=True)


# ------ what is kept


def rows_of(folder: Path, cells: list[Cell]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The rows of runs.csv and of curves.csv that a finished run folder holds.

    Raises ValueError where it is not what is planned under its name, and whatever numpy, zipfile and json
    raise where it is damaged.
    """
    job = job_named(folder.name, cells)
    record = json.loads((folder / RECORD).read_text())
    with np.load(folder / "returns.npz", allow_pickle=False) as file:
        args, summary = (json.loads(str(file[name])) for name in ("args", "summary"))
        history = {name.removeprefix("history_"): file[name] for name in file.files}
    if summary["device"] != "cpu":
        record["machine"] += f", {summary['device']}"
    flags = re.findall(r"--(no-)?([\w-]+)((?: (?!--)\S+)*)", job.command())
    planned = {flag.replace("-", "_"): values.split() or [not no] for no, flag, values in flags}
    for name in planned.keys() - {"out", "continuous"}:
        own, values = args[name], planned[name]
        if own != (values if isinstance(own, list) else type(own)(*values)):
            raise ValueError(f"it was run with {name} {own}, and {values} is planned")
    numbers = dict(score=history["scores"])  # [evaluations, S]
    numbers |= {name: history[name] for name in ("k_eff", "q_data", *MECHANISM) if name in history}
    for name, short in (("weights", "w"), ("u", "u")):
        for k in range(history[name].shape[2] if name in history else 0):
            numbers[f"{short}{k + 1}"] = history[name][:, :, k]
    cell = dict(zip(KEYS, job.cell[:6], strict=True))
    curves = pd.concat(
        pd.DataFrame({name: values[:, s] for name, values in numbers.items()}).assign(
            **cell, seed=seed, round=history["round"]
        )
        for s, seed in enumerate(summary["seeds"])
    ).reindex(columns=CURVE_COLUMNS)
    curves = curves.round(4)
    rows = curves.groupby("seed", as_index=False).last()
    best = curves.groupby("seed")["score"].max().round(2).tolist()
    rows = rows.assign(**record, score=summary["scores"], best=best, wall_s=summary["wall_s"])
    return rows.assign(stacked=len(rows)).reindex(columns=RUN_COLUMNS), curves


def collect(tables: list, folders: list[Path], cells: list[Cell]) -> list[pd.DataFrame]:
    """The tables of runs and curves with the rows of finished run folders that they lack, in the order of the
    plan. A row that is there already stays as it is. A damaged folder is named on stderr and left out."""
    found = [tables]
    for folder in folders:
        try:
            found.append(rows_of(folder, cells))
        except Exception as error:  # numpy, zipfile and json raise many kinds for damaged files
            say(f"left out {folder}: {type(error).__name__}: {error}")
    parts = [[table for table in tables if len(table)] for tables in zip(*found, strict=True)]
    return [in_order(pd.concat(tables), cells) if tables else pd.DataFrame() for tables in parts]


def in_order(table: pd.DataFrame, cells: list[Cell]) -> pd.DataFrame:
    """Rows in the order of the plan, others at the end, by seed and round, the first of each."""
    order = {cell[:6]: i for i, cell in enumerate(cells)}
    ranks = [order.get(place[:-1], len(order)) for place in places(table)]
    place = [*KEYS, *(name for name in ("seed", "round") if name in table)]
    table = table.assign(rank=ranks).drop_duplicates(place)
    return table.sort_values(["rank", *place]).drop(columns="rank")


def write_tables(tables: list[pd.DataFrame], out: Path) -> None:
    """Write curves.csv, then runs.csv: what that lists is all there."""
    for name, table in zip((CURVES_CSV, RUNS_CSV), reversed(tables), strict=True):
        if len(table):
            with atomic(out / name) as partial:
                table.to_csv(partial, index=False)


# ------ the command line


def main(argv: list[str] | None = None) -> None:
    args = parse(Args, argv, description="\n".join(__doc__.splitlines()[:3]))
    cells, runs, out = planned_cells(), TOP / "runs/results", TOP / "results"
    if args.cell:
        job = job_named(args.cell, cells)
        wrong = None if (runs / job.name / RECORD).is_file() else run_job(job, runs)
        if wrong:
            raise InputError(f"{job.name}: {wrong}")
        return
    finished = sorted(path.parent for path in runs.glob(f"*/{RECORD}"))
    tables = collect([read_csv(out / name) for name in (RUNS_CSV, CURVES_CSV)], finished, cells)
    jobs = missing_jobs(cells, set(places(tables[0]))) if args.jobs > 0 else []
    if args.dry_run:
        for job in jobs:
            print(f"OMP_NUM_THREADS=1 python -m experiments.run --cell {job.name}")
        return
    write_tables(tables, out)
    failures = []
    ended = run_jobs(jobs, runs, args.jobs)
    for job, wrong in tqdm(ended, total=len(jobs), unit="cell", file=sys.stderr, disable=not jobs):
        if wrong:
            failures.append(f"{job.name}: {wrong}")
            say(f"failed: {failures[-1]}")
        else:
            tables = collect(tables, [runs / job.name], cells)
            write_tables(tables, out)
    write_report(out, cells)
    write_recipe_report(out)
    if failures:
        raise InputError(f"{len(failures)} cells failed; first: {failures[0]}")


if __name__ == "__main__":
    run_script("experiments.run", main)
