"""How far the agents of each dataset act together: python -m experiments.dependence

Writes results/dependence.csv, a row for every dataset that the plan learns from (experiments/plan.py), with what
`load_dataset` measures at 200,000 transitions (`data.mixes.measure_dependence`). What is there already stays.
HalfCheetah's datasets, whose simulation takes minutes each, are left out.
"""

from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from data.datasets import MEASURED, load_dataset
from experiments.plan import CHEETAH, SCRIPTS, planned_cells
from experiments.records import DEPENDENCE, read, write
from utils.files import parse, run_script, say

COLUMNS = ("dependence_nats", "standard_error", "predictability")
DIGITS = 4


@dataclass(frozen=True)
class Args:
    """Measure the dependence of every planned dataset."""

    size: int = 200_000
    """transitions of each dataset"""
    data_dir: Path = Path("datasets")
    """where simulated datasets are kept"""
    out: Path = Path("results")
    """where dependence.csv goes"""


def planned_datasets() -> list[tuple[str, str, str]]:
    """(actions, env_id, dataset) of all cells of the plan, each once, in its order."""
    kinds = {grid: "continuous" if "continuous" in script else "discrete" for grid, script in SCRIPTS.items()}
    cells = [cell for cell in planned_cells() if cell.env_id not in CHEETAH]
    return list(dict.fromkeys((kinds[cell.grid], cell.env_id, cell.dataset) for cell in cells))


def main(argv: list[str] | None = None) -> None:
    args = parse(Args, argv, description=__doc__)
    path = args.out / DEPENDENCE
    rows = {tuple(row.values())[:3]: row for row in read(path)}
    for place in tqdm(planned_datasets(), unit="dataset"):
        if place not in rows:
            kind, env_id, dataset = place
            facts = load_dataset(env_id, dataset, args.size, folder=args.data_dir, action_kind=kind).facts
            measured = [round(facts[name], DIGITS) for name in MEASURED]
            rows[place] = dict(zip(("actions", "env_id", "dataset", *COLUMNS), (*place, *measured), strict=True))
            write(path, [rows[p] for p in planned_datasets() if p in rows])
    say(f"wrote {path}")


if __name__ == "__main__":
    run_script("experiments.dependence", main)
