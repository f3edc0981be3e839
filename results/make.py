"""Runs the experiments behind the README's tables and draws their figures, from the repository's top folder.

    python -m results.make                 # all cells that results/discrete.csv lacks, two at a time
    python -m results.make --dry-run       # only print the commands
    python -m results.make --figures       # only draw the figures and print the table again

Every cell is one command of spacql.py and one seed. A cell that is done is not run again; an interrupted one starts
anew. results/discrete.csv has a row per cell, results/discrete_curves.csv its score, weights and spread over training.
"""

import csv
import json
import os
import platform
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
from data.files import atomic, current_commit, parse, run_script

HERE = Path(__file__).parent
TABLE, CURVES, FIGURE = HERE / "discrete.csv", HERE / "discrete_curves.csv", HERE / "weights.png"
METHODS = ("spacql", "icql-qs", "joint", "uniform")
KEYS = ("env_id", "dataset", "backup", "rounds", "seed")  # what tells one cell from another
SPREAD_ROUNDS = {"random": 800, "medium-replay": 800, "medium": 400, "expert": 400}
# glibc gives large blocks back to the system and takes them again at every step; told not to, a run is 5 to 10% faster.
KEEP_MEMORY = {"MALLOC_MMAP_THRESHOLD_": "4000000000", "MALLOC_TRIM_THRESHOLD_": "8000000000"}


@dataclass(frozen=True)
class Args:
    """What to run."""

    dry_run: bool = False
    """print the commands and stop"""
    figures: bool = False
    """draw the figures and print the README's table from the CSV files, and stop"""
    jobs: int = 2
    """cells run at a time, each on one core"""


def cells() -> list[dict]:
    """The experiments, one seed each. Medium and expert data are learnt within 400 rounds; random data are not within
    800, so two cells go on for longer."""
    spread = [
        ("simple_spread", quality, method, 3, SPREAD_ROUNDS[quality]) for quality in QUALITIES for method in METHODS
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


def name_of(cell: dict) -> str:
    """The name of a cell's run folder."""
    return "__".join(str(cell[k]) for k in KEYS)


def command(cell: dict) -> str:
    """The command line of a cell."""
    flags = " ".join(f"--{name.replace('_', '-')} {value}" for name, value in cell.items())
    return f"OMP_NUM_THREADS=1 python spacql.py {flags} --out runs/results --name {name_of(cell)}"


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


def run(cell: dict) -> tuple[dict, list[dict]]:
    """Run a cell; returns its row of the table and its rows of the curves."""
    line = command(cell)
    commit = current_commit()
    environment = os.environ | {"OMP_NUM_THREADS": "1"} | KEEP_MEMORY
    folder = Path("runs/results") / name_of(cell)
    shutil.rmtree(folder, ignore_errors=True)  # what an interrupted run left
    done = subprocess.run([sys.executable, *shlex.split(line)[2:]], capture_output=True, text=True, env=environment)
    if done.returncode:
        raise RuntimeError(f"{line} failed: {done.stderr.strip().splitlines()[-1]}")
    summary = json.loads(done.stdout.splitlines()[-1])
    with np.load(folder / "returns.npz", allow_pickle=False) as file:
        history = {k.removeprefix("history_"): file[k] for k in file.files if k.startswith("history_")}
    key = {k: cell[k] for k in KEYS}
    machine = f"1 {platform.machine()} core" if summary["device"] == "cpu" else torch.cuda.get_device_name()
    weights = {f"w{k + 1}": weight for k, weight in enumerate(summary["weights"])}
    row = key | dict(score=summary["score_mean"], best=summary["best_mean"], k_eff=summary["k_eff"]) | weights
    row |= dict(wall_s=summary["wall_s"], machine=machine, commit=commit, command=line)
    curves = []
    for step, round_number in enumerate(history["round"].tolist()):
        point = {name: history[name][step, 0] for name in ("scores", "k_eff", "entropy", "q_data", "q_ood")}
        for name, short in (("weights", "w"), ("u", "u")):
            point |= {f"{short}{k + 1}": value for k, value in enumerate(history[name][step, 0])}
        curves.append(key | dict(round=round_number) | {k: round(float(v), 4) for k, v in point.items()})
    return row, curves


def markdown() -> str:
    """The README's table: mean and deviation over seeds of the last scores."""
    scores = {}
    for row in read(TABLE):
        scores.setdefault((row["env_id"], row["dataset"], row["rounds"]), {}).setdefault(row["backup"], []).append(
            float(row["score"])
        )
    lines = [f"| task | data | rounds | {' | '.join(METHODS)} |", "| --- " * (len(METHODS) + 3) + "|"]
    for (env_id, quality, rounds), by_method in scores.items():
        values = [by_method.get(method) for method in METHODS]
        spread = [f" ± {np.std(v):.1f}" if v and len(v) > 1 else "" for v in values]
        texts = [f"{np.mean(v):.1f}{plus}" if v else "" for v, plus in zip(values, spread, strict=True)]
        lines.append(f"| {env_id} | {quality} | {rounds} | {' | '.join(texts)} |")
    return "\n".join(lines)


def draw() -> None:
    """Draw w_k over training by quality, SPaCQL on simple_spread (the paper's Figure 3): mean and range over seeds."""
    rows = [r for r in read(CURVES) if r["env_id"] == "simple_spread" and r["backup"] == "spacql"]
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


def main() -> None:
    args = parse(Args, description=__doc__)
    if args.figures:
        draw()
        return print(markdown())
    done = {tuple(row[k] for k in KEYS) for row in read(TABLE)}
    todo = [cell for cell in cells() if tuple(str(cell[k]) for k in KEYS) not in done]
    if args.dry_run:
        return print("\n".join(map(command, todo)))
    bar = tqdm(total=len(todo), unit="cell", file=sys.stderr)

    def finish(cell):
        row, curves = run(cell)
        with bar.get_lock():  # one writer at a time
            write(CURVES, read(CURVES) + curves)
            write(TABLE, read(TABLE) + [row])  # last: what it holds is done
        tqdm.write(f"{row['command']}: {row['score']:.1f} ({row['wall_s']:.0f} s)", file=sys.stderr)
        bar.update()

    with ThreadPoolExecutor(args.jobs) as pool:
        list(pool.map(finish, todo))
    draw()


if __name__ == "__main__":
    run_script("results.make", main)
