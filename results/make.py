"""Runs the experiments behind the README's tables and draws their figures, from the repository's top folder.

    python -m results.make                 # all cells that results/discrete.csv lacks, two at a time
    python -m results.make --dry-run       # only print the commands
    python -m results.make --figures       # only draw the figures again

Every cell is one command of spacql.py (all its seeds at once). A cell that is done is not run again; an interrupted one
starts anew. results/discrete.csv has a row per cell and seed, results/discrete_curves.csv its score and weights over
training.
"""

import csv
import json
import os
import platform
import shlex
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from tqdm import tqdm

from data.datasets import QUALITIES
from data.files import atomic, parse, run_script

HERE = Path(__file__).parent
TABLE, CURVES, FIGURE = HERE / "discrete.csv", HERE / "discrete_curves.csv", HERE / "weights.png"
METHODS = ("spacql", "icql-qs", "joint", "uniform")


@dataclass(frozen=True)
class Args:
    """What to run."""

    dry_run: bool = False
    """print the commands and stop"""
    figures: bool = False
    """draw the figures from the CSV files and stop"""
    jobs: int = 2
    """cells run at a time, each on one core"""


def cells() -> list[dict]:
    """The experiments, the most telling first: [dict(env_id, dataset, backup, num_seeds)]."""
    spread = [("simple_spread", quality, method, 3) for quality in QUALITIES for method in METHODS]
    others = [
        (env_id, quality, method, 2)
        for env_id in ("simple_tag", "simple_world")
        for quality in ("random", "medium")
        for method in ("spacql", "joint")
    ]
    names = ("env_id", "dataset", "backup", "num_seeds")
    return [dict(zip(names, cell, strict=True)) for cell in spread + others]


def command(cell: dict) -> str:
    """The command line of a cell."""
    flags = " ".join(f"--{name.replace('_', '-')} {value}" for name, value in cell.items())
    return f"python spacql.py {flags} --out runs/results --name {cell['env_id']}__{cell['dataset']}__{cell['backup']}"


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


def run(cell: dict) -> tuple[list[dict], list[dict]]:
    """Run a cell; returns its rows of the table and of the curves."""
    line = command(cell)
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    words = [sys.executable, *shlex.split(line)[1:]]
    before = set(Path("runs/results").glob("*")) if Path("runs/results").exists() else set()
    done = subprocess.run(words, capture_output=True, text=True, env=environment)
    if done.returncode:
        raise RuntimeError(f"{line} failed: {done.stderr.strip().splitlines()[-1]}")
    summary = json.loads(done.stdout.splitlines()[-1])
    (folder,) = (f for f in set(Path("runs/results").glob("*")) - before if f.name.startswith(line.split()[-1]))
    with np.load(folder / "returns.npz", allow_pickle=False) as file:
        history = {k.removeprefix("history_"): file[k] for k in file.files if k.startswith("history_")}
        rounds = int(json.loads(str(file["args"]))["rounds"])
    key = {k: cell[k] for k in ("env_id", "dataset", "backup")}
    weights = [f"w{k + 1}" for k in range(history["weights"].shape[-1])]
    machine = f"1 {platform.machine()} core" if summary["device"] == "cpu" else torch.cuda.get_device_name()
    table, curves = [], []
    for i, seed in enumerate(summary["seeds"]):
        last = {name: round(float(w), 4) for name, w in zip(weights, history["weights"][-1, i], strict=True)}
        best = round(float(history["scores"][:, i].max()), 2)
        row = key | dict(
            seed=seed, score=summary["scores"][i], best=best, k_eff=round(float(history["k_eff"][-1, i]), 4)
        )
        row |= last | dict(rounds=rounds, wall_s=summary["wall_s"], machine=machine, commit=commit, command=line)
        table.append(row)
        for step in range(len(history["round"])):
            point = {name: round(float(w), 4) for name, w in zip(weights, history["weights"][step, i], strict=True)}
            point |= {
                k: round(float(history[k][step, i]), 4) for k in ("k_eff", "scores", "entropy", "q_data", "q_ood")
            }
            point |= {f"u{k + 1}": round(float(u), 4) for k, u in enumerate(history["u"][step, i])}
            curves.append(key | dict(seed=seed, round=int(history["round"][step])) | point)
    return table, curves


def draw() -> None:
    """Draw w_k over training by quality, SPaCQL on simple_spread (the paper's Figure 3): mean and range over seeds."""
    rows = [r for r in read(CURVES) if r["env_id"] == "simple_spread" and r["backup"] == "spacql"]
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


def main() -> None:
    args = parse(Args, description=__doc__)
    if args.figures:
        return draw()
    done = {(r["env_id"], r["dataset"], r["backup"]) for r in read(TABLE)}
    todo = [c for c in cells() if (c["env_id"], c["dataset"], c["backup"]) not in done]
    if args.dry_run:
        return print("\n".join(map(command, todo)))
    bar = tqdm(total=len(todo), unit="cell", file=sys.stderr)

    def finish(cell):
        start = time.time()
        table, curves = run(cell)
        with bar.get_lock():  # one writer at a time
            write(TABLE, read(TABLE) + table)
            write(CURVES, read(CURVES) + curves)
        scores = ", ".join(f"{row['score']:.1f}" for row in table)
        tqdm.write(f"{command(cell)}: {scores} ({time.time() - start:.0f} s)", file=sys.stderr)
        bar.update()

    with ThreadPoolExecutor(args.jobs) as pool:
        list(pool.map(finish, todo))
    draw()


if __name__ == "__main__":
    run_script("results.make", main)
