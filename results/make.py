"""Runs the experiments behind the README's tables and draws their figures, from the repository's top folder.

    python -m results.make                       # all cells that results/*.csv lack, two at a time
    python -m results.make --grid continuous     # those of one table
    python -m results.make --dry-run             # only print the commands
    python -m results.make --figures             # only draw the figures and print the tables again
    python -m results.make --again               # nine cells anew: results/again.csv has old and new scores

Every cell is one command of spacql.py or spacql_continuous.py and one seed. A cell that is done is not run again; an
interrupted one starts anew. results/discrete.csv and results/continuous.csv have a row per cell, *_curves.csv its
score, weights and spread over training; results/ablation.csv has what makes forces learnable. wall_s includes the
simulation of a dataset that was not there yet.
"""

import csv
import json
import math
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from tqdm import tqdm

from data.datasets import QUALITIES
from data.errors import check_choice
from data.files import atomic, current_commit, parse, run_script

HERE = Path(__file__).parent
FIGURE = HERE / "weights.png"
GRIDS = ("discrete", "continuous", "ablation")
SCRIPTS = {"discrete": "spacql.py", "continuous": "spacql_continuous.py", "ablation": "spacql_continuous.py"}
# What two cores can train: the full size takes 100,000 rounds of ten critics of 256 units.
REDUCED = {"HalfCheetah-2x3": "--num-critics 4 --hidden 128 --learning-rate 0.001 --eval-every 50"}
KEYS = {  # what tells one cell from another
    "discrete": ("env_id", "dataset", "backup", "rounds", "seed"),
    "continuous": ("env_id", "dataset", "method", "rounds", "batch_size", "seed"),
    "ablation": ("variant", "seed"),
}
METHODS = {
    "discrete": ("spacql", "icql-qs", "joint", "uniform"),
    "continuous": ("spacql", "icql-qs", "cfcql", "macql", "bc"),
}
# What makes forces learnable from random data: one change each.
ABLATION = "--env-id simple_spread --dataset random --rounds 500"
VARIANTS = {
    "default": "",
    "CFCQL's batch-norm: per call, output L2 0": "--action-norm call --output-l2 0",
    "actions as they are": "--action-norm none",
    "actions as they are, output L2 0": "--action-norm none --output-l2 0",
    "output L2 0": "--output-l2 0",
    "output L2 0.3": "--output-l2 0.3",
    "actors' rate 0.001": "--actor-learning-rate 0.001",
    "clip 10": "--max-grad-norm 10",
    "no penalty": "--penalty none",
    "4 critics": "--num-critics 4",
}
# The baselines of spacql_continuous.py as flags. Cloning has no use for critics, so it gets one, updated once a round.
FLAGS = {
    "spacql": "--backup spacql",
    "icql-qs": "--backup icql-qs",
    "cfcql": "--backup joint --num-critics 2",
    "macql": "--backup joint --num-critics 2 --penalty macql",
    "bc": "--actor-loss bc --backup icql-qs --num-critics 1 --critic-updates 1 --penalty none",
}
SPREAD_ROUNDS = {"random": 800, "medium-replay": 800, "medium": 400, "expert": 400}
DATA_SCORES = {  # mean scores of the default datasets of forces and torques, by QUALITIES
    "simple_spread": (0.1, 13.6, 45.8, 115.3),
    "simple_tag": (0.0, 22.0, 40.8, 99.2),
    "simple_world": (0.1, 22.1, 40.4, 99.7),
    "HalfCheetah-2x3": (0.0, 17.4, 39.3, 101.0),
}
PUBLISHED = {  # scores on OMAR's data: SPaCQL, ICQL-QS, CFCQL, MACQL
    ("simple_spread", "random"): "78.2, 77.7, 62.2, 45.6",
    ("simple_spread", "medium-replay"): "71.9, -, 52.2, 25.5",
    ("simple_spread", "expert"): "111.9, 97.2, 112, 12.2",
    ("simple_tag", "random"): "89.4, -, 16.5, 25.2",
    ("simple_tag", "medium-replay"): "75.0, -, 71.1, 11.9",
    ("simple_world", "random"): "94.3, 89.9, 68, 11.7",
    ("simple_world", "medium-replay"): "105.2, -, 73.4, 13.2",
    ("simple_world", "expert"): "112.3, 106.5, 119.7, -",
    ("HalfCheetah-2x3", "random"): "43.8, -, 39.7, 5.3",
    ("HalfCheetah-2x3", "medium-replay"): "66.1, -, 59.5, 37.0",
}
# Cells that --again runs anew after changes which must not change results, and the table of their scores.
AGAIN = {
    "discrete": [
        ("simple_spread", "random", "spacql", 800, 0),
        ("simple_spread", "medium-replay", "joint", 800, 1),
        ("simple_tag", "medium", "spacql", 400, 0),
    ],
    "continuous": [
        ("simple_spread", "random", "spacql", 800, 256, 1),
        ("simple_tag", "medium-replay", "cfcql", 400, 256, 0),
        ("simple_world", "random", "spacql", 400, 256, 1),
    ],
    "ablation": [("default", 0), ("output L2 0", 0), ("4 critics", 0)],
}
AGAIN_TABLE = HERE / "again.csv"


@dataclass(frozen=True)
class Args:
    """What to run."""

    grid: str | None = None
    """discrete, continuous or ablation; default all"""
    dry_run: bool = False
    """print the commands and stop"""
    figures: bool = False
    """draw the figures and print the README's tables from the CSV files, and stop"""
    again: bool = False
    """run three cells of each table again, with this commit, and put their scores beside the old ones"""
    jobs: int = 2
    """cells run at a time, each on one core"""


def discrete_cells() -> list[dict]:
    """The experiments of spacql.py, one seed each. Medium and expert data are learnt within 400 rounds; random data are
    not within 800, so two cells go on for longer."""
    spread = [
        ("simple_spread", quality, method, 3, SPREAD_ROUNDS[quality])
        for quality in QUALITIES
        for method in METHODS["discrete"]
    ]
    others = [
        (env_id, quality, method, 2, 400)
        for env_id in ("simple_tag", "simple_world")
        for quality in ("random", "medium")
        for method in ("spacql", "joint")
    ]
    longer = [("simple_spread", "random", method, 1, 2400) for method in ("spacql", "joint")]
    return [
        dict(env_id=env_id, dataset=quality, backup=method, rounds=rounds, seed=seed)
        for seed in range(3)  # every cell once before any twice
        for env_id, quality, method, seeds, rounds in spread + others + longer
        if seed < seeds
    ]


def continuous_cells() -> list[dict]:
    """The experiments of spacql_continuous.py, one seed each."""
    spread = [
        ("simple_spread", quality, method, 3, 800 if quality == "random" else 300, 256)
        for quality in QUALITIES
        for method in METHODS["continuous"]
    ]
    others = [
        (env_id, quality, method, 2, 400, 256)
        for env_id in ("simple_tag", "simple_world")
        for quality in ("random", "medium-replay")
        for method in ("spacql", "cfcql")
    ]
    others += [
        (env_id, quality, "spacql", 1, 300, 256)
        for env_id in ("simple_tag", "simple_world")
        for quality in ("medium", "expert")
    ]
    larger = [("simple_spread", "random", method, 1, 1200, 1024) for method in ("spacql", "cfcql")]
    cheetah = [
        ("HalfCheetah-2x3", quality, "spacql", 1, 500 if quality == "medium" else 200, 256) for quality in QUALITIES
    ]
    by_seed = [
        (*cell[:3], seed, *cell[4:])
        for seed in range(3)  # every cell once before any twice
        for cell in others + spread
        if seed < cell[3]
    ]
    once = [(*cell[:3], 0, *cell[4:]) for cell in cheetah + larger]
    names = ("env_id", "dataset", "method", "seed", "rounds", "batch_size")
    return [dict(zip(names, cell, strict=True)) for cell in by_seed + once]


def ablation_cells() -> list[dict]:
    """One change each, one seed."""
    return [dict(variant=variant, seed=0) for variant in VARIANTS]


CELLS = {"discrete": discrete_cells, "continuous": continuous_cells, "ablation": ablation_cells}


def files(grid: str) -> tuple[Path, Path]:
    """The table of a grid and its curves."""
    return HERE / f"{grid}.csv", HERE / f"{grid}_curves.csv"


def name_of(cell: dict) -> str:
    """The name of a cell's run folder."""
    return re.sub(r"[^\w.-]+", "_", "__".join(map(str, cell.values())))


def command(grid: str, cell: dict) -> str:
    """The command line of a cell."""
    reduced = [REDUCED[cell["env_id"]]] if cell.get("env_id") in REDUCED else []
    known = {"method": FLAGS, "variant": {name: f"{ABLATION} {change}".strip() for name, change in VARIANTS.items()}}
    flags = [known[k][v] if k in known else f"--{k.replace('_', '-')} {v}" for k, v in cell.items()]
    place = f"--out runs/results --name {name_of(cell)}"
    return f"OMP_NUM_THREADS=1 python {SCRIPTS[grid]} {' '.join(flags + reduced)} {place}"


def read(path: Path) -> list[dict]:
    """The rows of a CSV file, none where there is no file."""
    if not path.is_file():
        return []
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def write(path: Path, rows: list[dict]) -> None:
    """Write rows of equal keys as a CSV file."""
    with atomic(path) as partial, open(partial, "w", newline="") as file:
        writer = csv.DictWriter(file, rows[0].keys(), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def run(grid: str, cell: dict) -> tuple[dict, list[dict]]:
    """Run a cell; returns its row of the table and its rows of the curves."""
    line = command(grid, cell)
    commit = current_commit()
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    folder = Path("runs/results") / name_of(cell)
    shutil.rmtree(folder, ignore_errors=True)  # what an interrupted run left
    done = subprocess.run([sys.executable, *shlex.split(line)[2:]], capture_output=True, text=True, env=environment)
    if done.returncode:
        raise RuntimeError(f"{line} failed: {done.stderr.strip().splitlines()[-1]}")
    summary = json.loads(done.stdout.splitlines()[-1])
    with np.load(folder / "returns.npz", allow_pickle=False) as file:
        history = {k.removeprefix("history_"): file[k] for k in file.files if k.startswith("history_")}
    machine = f"1 {platform.machine()} core" if summary["device"] == "cpu" else torch.cuda.get_device_name()
    weights = {f"w{k + 1}": weight for k, weight in enumerate(summary["weights"])}
    row = cell | dict(score=summary["score_mean"], best=summary["best_mean"], k_eff=summary["k_eff"])
    row |= {f"w{k}": weights.get(f"w{k}", "") for k in (1, 2, 3)}  # HalfCheetah has two agents
    row |= dict(wall_s=summary["wall_s"], machine=machine, commit=commit, command=line)
    names = ("scores", "k_eff", "entropy" if "entropy" in history else "saturated", "q_data", "q_ood")
    curves = []
    for step, round_number in enumerate(history["round"].tolist()):
        point = {name: history[name][step, 0] for name in names}
        for name, short in (("weights", "w"), ("u", "u")):
            values = dict(enumerate(history[name][step, 0], start=1))
            point |= {f"{short}{k}": values.get(k, math.nan) for k in (1, 2, 3)}
        curves.append(cell | dict(round=round_number) | {k: round(float(v), 4) for k, v in point.items()})
    return row, curves


def markdown(grid: str) -> str:
    """The README's table of a grid: mean and deviation over seeds of the last scores, a column for each method."""
    method = {"discrete": "backup", "continuous": "method"}.get(grid)
    task, columns = [key for key in KEYS[grid] if key not in ("seed", method)], METHODS.get(grid, ("score",))
    scores = {}
    for row in read(files(grid)[0]):
        by_method = scores.setdefault(tuple(row[key] for key in task), {})
        by_method.setdefault(row.get(method, "score"), []).append(float(row["score"]))
    head, rows = (*task, *columns), []
    for place, by_method in scores.items():
        values = [by_method.get(name) for name in columns]
        spread = [f" ± {np.std(v):.1f}" if v and len(v) > 1 else "" for v in values]
        texts = [f"{np.mean(v):.1f}{plus}" if v else "" for v, plus in zip(values, spread, strict=True)]
        rows.append((*place, *texts))
    if grid == "continuous":
        head = ("task", "data (mean score)", "rounds", *columns, "*published: SPaCQL, ICQL-QS, CFCQL, MACQL*")
        rows = compared(rows)
    return "\n".join(f"| {' | '.join(line)} |" for line in (head, ["---"] * len(head), *rows))


def compared(rows: list[tuple]) -> list[tuple]:
    """Rows of forces and torques in order, with the data's scores and, in a dataset's first row, the published ones."""
    places = [(env_id, quality) for env_id in DATA_SCORES for quality in QUALITIES]
    published, table = {place: f"*{texts}*" for place, texts in PUBLISHED.items()}, []
    for row in sorted(rows, key=lambda row: (places.index(row[:2]), int(row[3]), int(row[2]))):
        env_id, quality, rounds, batch_size, *texts = row
        data = f"{quality} ({DATA_SCORES[env_id][QUALITIES.index(quality)]})"
        size = rounds if batch_size == "256" else f"{rounds} (batch {batch_size})"
        table.append((env_id, data, size, *texts, published.pop((env_id, quality), "")))
    return table


def draw() -> None:
    """Draw w_k over training by quality, SPaCQL on simple_spread (the paper's Figure 3): mean and range over seeds."""
    rows = [r for r in read(files("discrete")[1]) if r["env_id"] == "simple_spread" and r["backup"] == "spacql"]
    rows = [r for r in rows if int(r["rounds"]) == SPREAD_ROUNDS[r["dataset"]]]
    fig = Figure(figsize=(13, 3.3), layout="constrained")
    axes = fig.subplots(1, len(QUALITIES), sharey=True)
    for ax, quality in zip(axes, QUALITIES, strict=True):
        points = [r for r in rows if r["dataset"] == quality]
        rounds = sorted({int(r["round"]) for r in points})
        for k in (1, 2, 3):
            by_round = [[float(r[f"w{k}"]) for r in points if int(r["round"]) == n] for n in rounds]
            mean, low, high = (np.array([f(w) for w in by_round]) for f in (np.mean, np.min, np.max))
            ax.plot(rounds, mean, label=f"$w_{k}$")
            ax.fill_between(rounds, low, high, alpha=0.2)
        ax.axhline(1 / 3, color="black", lw=0.6, ls=":")
        ax.set(title=quality, xlabel="round")
    axes[0].legend()
    fig.suptitle("Replacement weights of SPaCQL on simple_spread, by data quality")
    with atomic(FIGURE) as partial:
        fig.savefig(partial, dpi=110)


def run_grid(grid: str, todo: list[dict], jobs: int) -> None:
    """Run the cells of a grid; the two files grow with each that is done."""
    (table, curves), bar = files(grid), tqdm(total=len(todo), desc=grid, unit="cell", file=sys.stderr)

    def finish(cell):
        row, points = run(grid, cell)
        with bar.get_lock():  # one writer at a time
            write(curves, read(curves) + points)
            write(table, read(table) + [row])  # last: what it holds is done
        tqdm.write(f"{row['command']}: {row['score']:.1f} ({row['wall_s']:.0f} s)", file=sys.stderr)
        bar.update()

    with bar, ThreadPoolExecutor(jobs) as pool:
        list(pool.map(finish, todo))


def run_again(jobs: int, dry_run: bool) -> None:
    """Run the cells of AGAIN anew that results/again.csv lacks at this commit; its own rows make no commit another."""
    commit = current_commit().removesuffix("-dirty")
    done = {(row["grid"], row["cell"]) for row in read(AGAIN_TABLE) if row["commit_again"] == commit}
    todo = []
    for grid, places in AGAIN.items():
        cells = {tuple(cell[key] for key in KEYS[grid]): cell for cell in CELLS[grid]()}
        rows = {tuple(row[key] for key in KEYS[grid]): row for row in read(files(grid)[0])}
        todo += [(grid, cells[place], rows[tuple(map(str, place))]) for place in places]
    todo = [job for job in todo if (job[0], name_of(job[1])) not in done]
    if dry_run:
        return print("\n".join(command(grid, cell) for grid, cell, _ in todo))
    bar = tqdm(total=len(todo), desc="again", unit="cell", file=sys.stderr)

    def finish(job):
        grid, cell, old = job
        new, _ = run(grid, cell)
        row = dict(grid=grid, cell=name_of(cell), score=old["score"], score_again=new["score"])
        row |= dict(commit=old["commit"], commit_again=commit, command=new["command"])
        with bar.get_lock():
            write(AGAIN_TABLE, read(AGAIN_TABLE) + [row])
        bar.update()

    with bar, ThreadPoolExecutor(jobs) as pool:
        list(pool.map(finish, todo))


def main() -> None:
    args = parse(Args, description=__doc__)
    if args.again:
        return run_again(args.jobs, args.dry_run)
    if args.grid:
        check_choice("grid", args.grid, GRIDS)
    for grid in [args.grid] if args.grid else GRIDS:
        done = {tuple(row[k] for k in KEYS[grid]) for row in read(files(grid)[0])}
        todo = [cell for cell in CELLS[grid]() if tuple(str(cell[k]) for k in KEYS[grid]) not in done]
        if args.figures:
            print(markdown(grid))
        elif args.dry_run:
            for cell in todo:
                print(command(grid, cell))
        else:
            run_grid(grid, todo, args.jobs)
    if not args.dry_run:
        draw()


if __name__ == "__main__":
    run_script("results.make", main)
