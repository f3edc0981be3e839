"""How far the agents of each dataset act together: python -m experiments.dependence

Writes results/csv/dependence.csv, a row for every dataset that the plan learns from (experiments/plan.py),
with what `load_dataset` measures at 200,000 transitions (data/mixes.py). What is there already stays.
HalfCheetah's datasets, whose simulation takes minutes each, are left out.
"""

import pandas as pd
from tqdm import tqdm

from data.datasets import MEASURED, load_dataset
from experiments.plan import CHEETAH, SCRIPTS, planned_cells
from experiments.report import DEPENDENCE_CSV, read_csv
from utils.files import TOP, atomic, run_script

OUT = TOP / "results" / DEPENDENCE_CSV
SIZE = 200_000  # transitions of each dataset
PLACE = ["actions", "env_id", "dataset"]
COLUMNS = ["dependence_nats", "standard_error", "predictability"]


def main() -> None:
    table = read_csv(OUT)
    done = set(table[PLACE].itertuples(index=False, name=None)) if len(table) else set()
    kinds = {grid: "continuous" if "continuous" in script else "discrete" for grid, script in SCRIPTS.items()}
    cells = [cell for cell in planned_cells() if cell.env_id not in CHEETAH]
    places = dict.fromkeys((kinds[cell.grid], cell.env_id, cell.dataset) for cell in cells)
    for place in tqdm([place for place in places if place not in done], unit="dataset"):
        kind, env_id, dataset = place
        facts = load_dataset(env_id, dataset, SIZE, action_kind=kind).facts
        measured = [round(facts[name], 4) for name in MEASURED]
        row = dict(zip(PLACE + COLUMNS, [*place, *measured], strict=True))
        table = pd.concat([table, pd.DataFrame([row])]) if len(table) else pd.DataFrame([row])
        with atomic(OUT) as partial:
            table.to_csv(partial, index=False)


if __name__ == "__main__":
    run_script("experiments.dependence", main)
