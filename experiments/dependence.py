"""How far the agents of each dataset act together: python -m experiments.dependence

Writes results/csv/dependence.csv, a row for every dataset that the plan learns from (experiments/plan.py),
with what `load_dataset` measures at 200,000 transitions (data/mixes.py). What is there already stays.
HalfCheetah's datasets, whose simulation takes minutes each, are left out.
"""

from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from tqdm import tqdm

from data.datasets import MEASURED, load_dataset
from experiments.plan import CHEETAH, SCRIPTS, planned_cells
from experiments.report import DEPENDENCE_CSV, read_csv
from utils.files import atomic, parse, run_script, say

COLUMNS = ("dependence_nats", "standard_error", "predictability")


@dataclass(frozen=True)
class Args:
    """Measure the dependence of every planned dataset."""

    size: int = 200_000
    """transitions of each dataset"""
    data_dir: Path = Path("datasets")
    """of simulated data"""
    out: Path = Path("results")
    """where csv/dependence.csv goes"""


def main(argv: list[str] | None = None) -> None:
    args = parse(Args, argv, description=__doc__)
    path = args.out / DEPENDENCE_CSV
    rows = {tuple(row.values())[:3]: row for row in read_csv(path).to_dict("records")}
    kinds = {grid: "continuous" if "continuous" in script else "discrete" for grid, script in SCRIPTS.items()}
    cells = [cell for cell in planned_cells() if cell.env_id not in CHEETAH]
    for place in tqdm(dict.fromkeys((kinds[c.grid], c.env_id, c.dataset) for c in cells), unit="dataset"):
        if place not in rows:
            kind, env_id, dataset = place
            facts = load_dataset(env_id, dataset, args.size, folder=args.data_dir, action_kind=kind).facts
            measured = {column: round(facts[name], 4) for column, name in zip(COLUMNS, MEASURED, strict=True)}
            rows[place] = dict(actions=kind, env_id=env_id, dataset=dataset) | measured
            with atomic(path) as partial:
                pd.DataFrame(rows.values()).to_csv(partial, index=False)
    say(f"wrote {path}")


if __name__ == "__main__":
    run_script("experiments.dependence", main)
