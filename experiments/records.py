"""What is kept of the experiments: run folders become rows of results/<grid>.csv and <grid>_curves.csv.

A table has a row per seed, its curves a row per seed and evaluation. Both are written whole under another name and then
renamed, so that whatever is interrupted leaves them complete; a table is written after its curves, so what it lists
is all there.
"""

import csv
import json
import math
from pathlib import Path

import numpy as np

from experiments.plan import KEYS, SCRIPTS, planned_cells
from utils.files import atomic, say

RECORD = "cell.json"  # written last into a run folder: what has it is done
DEPENDENCE = "dependence.csv"  # how far the agents of each dataset act together (experiments/dependence.py)


def read(path: Path) -> list[dict]:
    """The rows of a CSV file, none where there is no file."""
    if not path.is_file():
        return []
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def write(path: Path, rows: list[dict]) -> None:
    """Write rows as a CSV file; what a row lacks that others have stays empty."""
    names = dict.fromkeys(name for row in rows for name in row)
    with atomic(path) as partial, open(partial, "w", newline="") as file:
        writer = csv.DictWriter(file, names, restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def files(out: Path, grid: str) -> tuple[Path, Path]:
    """The table of a grid and its curves."""
    return out / f"{grid}.csv", out / f"{grid}_curves.csv"


def place(row: dict) -> tuple[str, ...]:
    """What tells a row of a table, or a seed's rows of its curves, from others."""
    return tuple(str(row[name]) for name in (*KEYS, "seed"))


def rows_of(folder: Path) -> tuple[str, list[dict], list[dict]]:
    """The grid, the rows of the table and the rows of the curves that a finished run folder holds.

    Raises ValueError where its record and its results do not belong together, and whatever numpy, zipfile and json
    raise where they are damaged.
    """
    record = json.loads((folder / RECORD).read_text())
    cell = record["cell"]
    with np.load(folder / "returns.npz", allow_pickle=False) as file:
        args, summary = (json.loads(str(file[name])) for name in ("args", "summary"))
        history = {name.removeprefix("history_"): file[name] for name in file.files if name.startswith("history_")}
    differ = [name for name in ("env_id", "dataset", "rounds", "batch_size") if args[name] != cell[name]]
    if differ:
        raise ValueError(f"its {RECORD} and its results differ in {', '.join(differ)}")
    run = dict(wall_s=record["wall_s"], stacked=len(summary["seeds"]))
    run |= {name: record[name] for name in ("machine", "commit", "command")}
    rows, curves = [], []
    for s, (seed, score) in enumerate(zip(summary["seeds"], summary["scores"], strict=True)):
        key = {name: cell[name] for name in KEYS} | dict(seed=seed)
        best = round(float(history["scores"][:, s].max()), 2)
        weights = {f"w{k}": w for k, w in enumerate(history["weights"][-1, s].round(4).tolist(), start=1)}
        weights = {f"w{k}": weights.get(f"w{k}", "") for k in (1, 2, 3)}  # HalfCheetah and two_doors have two agents
        rows.append(key | dict(score=score, best=best, k_eff=round(float(history["k_eff"][-1, s]), 4)) | weights | run)
        names = ("scores", "k_eff", "entropy" if "entropy" in history else "saturated", "q_data", "q_ood")
        for step, round_number in enumerate(history["round"].tolist()):
            point = {name: history[name][step, s] for name in names}
            for name, short in (("weights", "w"), ("u", "u")):
                values = dict(enumerate(history[name][step, s], start=1))
                point |= {f"{short}{k}": values.get(k, math.nan) for k in (1, 2, 3)}
            curves.append(key | dict(round=round_number) | {k: round(float(v), 4) for k, v in point.items()})
    return record["grid"], rows, curves


def finished_folders(runs: Path) -> list[Path]:
    """The run folders below `runs` that are complete."""
    return sorted(path.parent for path in runs.glob(f"*/{RECORD}"))


def collect(folders: list[Path], out: Path, only_look: bool = False) -> set[tuple]:
    """Add the rows of finished run folders that the CSV files in `out` lack; only_look: write nothing.

    Returns what is then done: (grid, *place) of every row, as texts. A row that is there already stays as it is. A
    damaged folder is named on stderr and left out.
    """
    tables = {grid: [read(path) for path in files(out, grid)] for grid in SCRIPTS}
    done = {(grid, *place(row)) for grid, (rows, _) in tables.items() for row in rows}
    changed = set()
    for folder in folders:
        try:
            grid, rows, curves = rows_of(folder)
            if grid not in SCRIPTS:
                raise ValueError(f"there is no grid {grid}")
        except Exception as error:  # numpy, zipfile and json raise many kinds for damaged files
            say(f"left out {folder}: {type(error).__name__}: {error}")
            continue
        new = {place(row) for row in rows if (grid, *place(row)) not in done}
        for i, more in enumerate((rows, curves)):  # an interrupted writer may have left curves without rows
            kept = [row for row in tables[grid][i] if place(row) not in new]
            tables[grid][i] = kept + [row for row in more if place(row) in new]
        done |= {(grid, *seed) for seed in new}
        changed |= {grid} if new else set()
    for grid in () if only_look else sorted(changed):
        (rows, curves), (table, curves_table) = tables[grid], files(out, grid)
        write(curves_table, in_order(grid, curves))
        write(table, in_order(grid, rows))
    return done


def in_order(grid: str, rows: list[dict]) -> list[dict]:
    """Rows in the order of the plan, others at the end, by seed and round; the same whoever collected them."""
    order = {tuple(map(str, cell.key.values())): i for i, cell in enumerate(planned_cells()) if cell.grid == grid}

    def rank(row):
        *cell, seed = place(row)
        return order.get(tuple(cell), len(order)), cell, int(seed), int(row.get("round", 0))

    return sorted(rows, key=rank)
