"""How near the simulated datasets come to the paper's: mean and deviation of the episode return, and size.

    python -m experiments.levels        # simulates all of them: half an hour

writes results/csv/levels.csv. docs/data.md shows the table that `table` makes of the rows.
"""

import pandas as pd

from data.datasets import load_dataset, normalise
from data.omar import PUBLISHED_CARDS, PUBLISHED_SCORES
from envs.particles import ENV_IDS
from utils.files import TOP, atomic, current_commit, run_script, say


def row_of(env_id: str, kind: str, quality: str) -> dict:
    """One dataset beside the paper's, in the published unit."""
    dataset = load_dataset(env_id, quality, action_kind=kind)
    low, high = PUBLISHED_SCORES[env_id]
    returns = low + normalise(dataset.rewards.double().mean(-1).sum(-1), dataset.facts) * (high - low) / 100
    card = PUBLISHED_CARDS[env_id][quality]
    return dict(
        actions=kind,
        task=env_id,
        quality=quality,
        published_mean=card.mean,
        published_deviation=card.deviation,
        mean=round(float(returns.mean()), 2),
        deviation=round(float(returns.std()), 2),
        transitions=dataset.rewards[..., 0].numel(),
        points=round(100 * (card.mean - low) / (high - low), 1),
        our_points=round(dataset.facts["data_score"], 1),
        dependence=round(dataset.facts["dependence"], 4),
        predictability=round(dataset.facts["predictability"], 3),
        hash=dataset.facts["hash"],
        commit=current_commit(),
    )


def table(rows: pd.DataFrame) -> str:
    """A Markdown table of the datasets: the return with forces and torques, then the score with moves."""
    texts = rows.round(1).astype(str).rename(columns=dict(points="its score", our_points="ours, moves"))
    texts["the paper's"] = texts["published_mean"] + " ± " + texts["published_deviation"]
    texts["ours"] = texts["mean"] + " ± " + texts["deviation"]
    forces, moves = (texts[texts["actions"] == kind] for kind in ("continuous", "discrete"))
    scores = moves[["task", "quality", "its score", "ours, moves"]]
    whole = forces[["task", "quality", "the paper's", "ours"]].merge(scores, how="left").fillna("")
    return whole.to_markdown(index=False, disable_numparse=True)


def main() -> None:
    rows = []
    for kind in ("continuous", "discrete"):
        for env_id, cards in PUBLISHED_CARDS.items():
            for quality in cards if kind == "continuous" or env_id in ENV_IDS else ():
                rows.append(row_of(env_id, kind, quality))
                say(" ".join(map(str, rows[-1].values())))
    rows = pd.DataFrame(rows)
    with atomic(TOP / "results/csv/levels.csv") as partial:
        rows.to_csv(partial, index=False)
    print(table(rows))


if __name__ == "__main__":
    run_script("experiments.levels", main)
