"""Runs the experiments behind the README's results, and makes their tables and figures.

    python experiments/run.py                     # everything that results/*.csv lack, two cells at a time, best first
    python experiments/run.py --grid continuous   # those of one grid
    python experiments/run.py --quick             # everything, tiny, into results/quick: minutes, to see that it works
    python experiments/run.py --dry-run           # one command per line, for any scheduler
    python experiments/run.py --collect           # rows of run folders that are done into the CSV files
    python experiments/run.py --figures           # only tables.md and the figures, from the CSV files alone
    python experiments/run.py --ray               # the cells over a Ray cluster (pip install ray)
    python experiments/run.py --again             # nine cells anew: results/again.csv has old and new scores

`python -m experiments.run` is the same. experiments/plan.py has the plan. A cell is one command of spacql.py or
spacql_continuous.py, one core, all missing seeds side by side; its run folder below runs/results gets a cell.json when
it has ended well. What is done, in the CSV files or in such a folder, is not run again; what was interrupted starts
anew, so that everything can be stopped at any moment. results/<grid>.csv has a row per seed, <grid>_curves.csv its
score, weights and spread over training; wall_s is the time of the whole command, for as many seeds as `stacked` says,
with the simulation of a dataset that was not there yet.
"""

import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # so that it also runs as a file

from tqdm import tqdm

from experiments.claims import Scores
from experiments.figures import draw_figures
from experiments.plan import QUICK_RUNS, RUNS, SCRIPTS, TOP, Cell, Job, job_named, missing_jobs, planned_cells
from experiments.records import collect, files, finished_folders, place, read, rows_of, write
from experiments.running import code_commit, is_done, run_here, run_on_ray, run_one
from experiments.tables import write_tables
from utils.errors import InputError, check_choice
from utils.files import parse, run_script, say

# Seeds that --again runs anew after changes which must not change results: grid, then KEYS, then the seed.
AGAIN = (
    ("discrete", "simple_spread", "random", "spacql", 800, 256, 0),
    ("discrete", "simple_spread", "medium-replay", "joint", 800, 256, 1),
    ("discrete", "simple_tag", "medium", "spacql", 400, 256, 0),
    ("continuous", "simple_spread", "random", "spacql", 800, 256, 1),
    ("continuous", "simple_tag", "medium-replay", "cfcql", 400, 256, 0),
    ("continuous", "simple_world", "random", "spacql", 400, 256, 1),
    ("ablation", "simple_spread", "random", "default", 500, 256, 0),
    ("ablation", "simple_spread", "random", "output L2 0", 500, 256, 0),
    ("ablation", "simple_spread", "random", "4 critics", 500, 256, 0),
)


@dataclass(frozen=True)
class Args:
    """What to run. By default: what is missing, then tables and figures."""

    grid: str | None = None
    """discrete, continuous, weights, actors, cloning, cloning-continuous, coordination or ablation; default all"""
    quick: bool = False
    """a few tiny cells of every grid, into results/quick and runs/quick"""
    dry_run: bool = False
    """print a command for every cell that is missing, the most telling first, for any scheduler, and stop"""
    cell: str | None = None
    """run this cell, named as --dry-run does, and stop"""
    collect: bool = False
    """put finished run folders (of --cell, say) into the CSV files, write tables and figures, and stop"""
    figures: bool = False
    """write tables and figures from the CSV files, and stop"""
    again: bool = False
    """run three cells of three grids again, with this commit, and put their scores beside the old ones"""
    jobs: int = 2
    """cells run at a time, each on one core; with --ray the workers of a local cluster"""
    ray: bool = False
    """run the cells as tasks of a Ray cluster, on this machine unless --ray-address is given (needs the ray package)"""
    ray_address: str | None = None
    """a running cluster's address, or auto"""
    runs: str | None = None
    """folder of the run folders; default runs/results, or runs/quick"""
    out: str | None = None
    """folder of CSV files, tables and figures; default results, or results/quick"""


def run_all(jobs: list[Job], executor, finished) -> list[str]:
    """Run jobs by executor(jobs), which yields (job, what went wrong or None); finished() after each that ended well.

    Returns what went wrong, a line for each failed job. A failure stops no other job.
    """
    failures = []
    with tqdm(total=len(jobs), unit="cell", file=sys.stderr) as bar:
        for job, wrong in executor(jobs):
            if wrong:
                failures.append(f"{job.name}: {wrong}")
                say(f"failed: {failures[-1]}")
            else:
                finished(job)
            bar.update()
    return failures


def report(cells: list[Cell], out: Path) -> None:
    """Write tables.md and the figures from the CSV files."""
    rows, curves = ({grid: read(files(out, grid)[i]) for grid in SCRIPTS} for i in (0, 1))
    scores = Scores(cells, rows)
    done = {(grid, *place(row)) for grid in SCRIPTS for row in rows[grid]}
    write_tables(out / "tables.md", scores, cells, missing_jobs(cells, done))
    draw_figures(out, scores, curves)
    say(f"wrote {out / 'tables.md'} and figures")


def again(executor, runs: Path, out: Path, dry_run: bool) -> list[str]:
    """Run the seeds of AGAIN anew that again.csv lacks at this commit, or print their commands; returns what went
    wrong."""
    commit, path = code_commit(), out / "again.csv"
    by_key = {(cell.grid, *cell.key.values()): cell for cell in planned_cells()}
    old = {(grid, *place(row)): row for grid in SCRIPTS for row in read(files(out, grid)[0])}
    jobs = {Job(by_key[key[:-1]], key[-1], 1): old[tuple(map(str, key))] for key in AGAIN}
    done = {row["cell"] for row in read(path) if row["commit_again"] == commit}

    def finished(job):
        (new,) = rows_of(runs / job.name)[1]
        row = dict(grid=job.cell.grid, cell=job.name, score=jobs[job]["score"], score_again=new["score"])
        row |= dict(commit=jobs[job]["commit"], commit_again=new["commit"], command=new["command"])
        write(path, [*read(path), row])

    todo = [job for job in jobs if job.name not in done]
    if dry_run:
        print(*(job.command(str(runs)) for job in todo), sep="\n")
        return []
    ready = [job for job in todo if is_done(job, runs) and rows_of(runs / job.name)[1][0]["commit"] == commit]
    for job in ready:
        finished(job)
    return run_all([job for job in todo if job not in ready], executor, finished)


def main(argv: list[str] | None = None) -> None:
    args = parse(Args, argv, description=__doc__)
    if args.grid:
        check_choice("grid", args.grid, SCRIPTS)
    if args.jobs < 1:
        raise InputError(f"--jobs must be at least 1, not {args.jobs}")
    cells = planned_cells(args.quick)
    runs = TOP / (args.runs or (QUICK_RUNS if args.quick else RUNS))
    out = TOP / (args.out or ("results/quick" if args.quick else "results"))
    if args.again:
        runs = TOP / (args.runs or f"runs/again-{code_commit()}")

    def executor(jobs):
        if args.ray or args.ray_address:
            return run_on_ray(jobs, runs, args.jobs, args.ray_address)
        return run_here(jobs, runs, args.jobs)

    if args.cell:
        job = job_named(args.cell, cells)
        wrong = None if is_done(job, runs) else run_one(job, runs, code_commit())
        failures = [f"{job.name}: {wrong}"] if wrong else []
    elif args.again:
        failures = again(executor, runs, out, args.dry_run)
    else:
        done = set() if args.figures else collect(finished_folders(runs), out, only_look=args.dry_run)
        chosen = [cell for cell in cells if args.grid in (None, cell.grid)]
        jobs = [] if args.figures or args.collect else missing_jobs(chosen, done)
        if args.dry_run:
            flags = " --quick" * args.quick + (f" --runs {args.runs}" if args.runs else "")
            for job in jobs:
                print(f"OMP_NUM_THREADS=1 python experiments/run.py --cell {job.name}{flags}")
            return

        def finished(job):
            collect([runs / job.name], out)
            scores = [row["score"] for row in rows_of(runs / job.name)[1]]
            say(f"{job.name}: {', '.join(map(str, scores))}")

        failures = run_all(jobs, executor, finished) if jobs else []
        report(cells, out)
    if failures:
        raise InputError(f"{len(failures)} cells failed; first: {failures[0]}")


if __name__ == "__main__":
    run_script("experiments/run.py", main)
