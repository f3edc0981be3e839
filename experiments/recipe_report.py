"""results/recipe.md and its figures: the original recipe taken apart, by the grid `recipe` of the CSV files.

python -m experiments.recipe_report
"""

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from experiments.claims import FEWEST, difference
from experiments.plan import RECIPES
from experiments.report import CURVES_CSV, markdown, read_csv
from utils.files import TOP, atomic, run_script, say

OUT = TOP / "results"
LAST = 5  # evaluations behind a score
TASKS = ("simple_tag", "simple_spread", "simple_world")
MAIN = {"original": "original recipe", "fixed": "inputs standardised once", "ours": "our recipe"}
BACKUPS = {"joint": "joint", "icql-qs": "k = 1", "spacql": "SPaCQL"}
INTRODUCTION = f"""# The original recipe, taken apart

Written by `python -m experiments.recipe_report` from the grid `recipe` of [csv/curves.csv](csv/curves.csv)
and [csv/runs.csv](csv/runs.csv), which has every run's command, seed, commit and machine. Random data, which
are the paper's; two critics, batch 1024, one random agent per transition in the penalty (unbiased). An
evaluation has 1000 episodes and comes every 100 rounds. *End* is the mean of the last {LAST} evaluations,
*drop* the best mean of {LAST} in a row minus that; one number per seed."""


def smooth(points: pd.DataFrame) -> np.ndarray:
    """Means of LAST evaluations in a row, [seeds, evaluations - LAST + 1], of the rows of a cell."""
    scores = points.pivot(index="seed", columns="round", values="score").to_numpy()
    return np.lib.stride_tricks.sliding_window_view(scores, LAST, axis=1).mean(-1)


def ends(points: pd.DataFrame) -> list[float]:
    """The end of each seed."""
    return smooth(points)[:, -1].tolist() if len(points) else []


def in_words(numbers) -> str:
    """Numbers of the seeds, rounded."""
    return ", ".join(f"{x:.0f}" for x in numbers)


def table_of_changes(cells: dict) -> str:
    """End and drop of every change to the recipe on simple_tag, a row each."""
    rows = []
    for recipe, flags in RECIPES.items():
        row = dict(recipe=recipe, flags=f"`{flags}`" * bool(flags))
        for backup in ("joint", "icql-qs"):
            points = cells.get(("simple_tag", f"{backup}-{recipe}"))
            if points is not None:
                means = smooth(points)
                row[f"{BACKUPS[backup]}: end"] = in_words(means[:, -1])
                row[f"{BACKUPS[backup]}: drop"] = in_words(means.max(1) - means[:, -1])
        rows.append(row)
    return markdown([row for row in rows if len(row) > 2])


def table_of_advantages(cells: dict) -> str:
    """k = 1 minus joint, at the end, with intervals where there are enough seeds."""
    rows = []
    for task in TASKS:
        for recipe, title in MAIN.items():
            sides = [cells.get((task, f"{backup}-{recipe}")) for backup in ("icql-qs", "joint")]
            if all(side is not None for side in sides):
                one, joint = map(ends, sides)
                by = difference([one], [joint])
                said = str(by) if min(len(one), len(joint)) >= FEWEST else f"{by.value:+.1f}"
                rows.append({"task": task, "recipe": title, "k = 1": in_words(one), "joint": in_words(joint)})
                rows[-1]["k = 1 minus joint"] = said
    return markdown(rows)


def table_of_mechanism(cells: dict) -> str:
    """What is measured of the policies' joint actions on the way, mean over seeds."""
    names = {
        "policy_mean": "mean of actions, absolute",
        "policy_std": "their deviation",
        "q_data": "Q, logged",
        "q_by_call": "Q, policy, by its own moments",
        "q_by_data": "by the data's",
    }
    rows = []
    for recipe, backup in ((r, b) for r in MAIN for b in ("joint", "icql-qs")):
        points = cells.get(("simple_tag", f"{backup}-{recipe}"))
        if points is not None and recipe != "ours":
            for number, means in (
                points.groupby("round")[list(names)].mean().iloc[[2, 5, 9, 14, 19]].iterrows()
            ):
                values = {title: f"{means[name]:.2f}" for name, title in names.items()}
                rows.append(dict(recipe=MAIN[recipe], backup=BACKUPS[backup], round=number) | values)
    return markdown(rows)


def draw(path, cells: dict, tasks, title: str) -> None:
    """Learning curves of k = 1 and joint backups by task and recipe: mean and range over seeds."""
    fig = Figure(figsize=(11, 0.6 + 2.6 * len(tasks)), layout="constrained")
    axes = fig.subplots(len(tasks), len(MAIN), sharey="row", squeeze=False)
    for row, task in zip(axes, tasks, strict=True):
        row[0].set_ylabel(f"{task}\nnormalised score")
        for ax, (recipe, name) in zip(row, MAIN.items(), strict=True):
            ax.set(title=name, xlabel="round")
            for i, (backup, label) in enumerate(BACKUPS.items()):
                points = cells.get((task, f"{backup}-{recipe}"))
                if points is not None:
                    scores = points.groupby("round")["score"]
                    seeds = points["seed"].nunique()
                    ax.plot(scores.mean(), color=f"C{i}", label=f"{label} ({seeds} seeds)")
                    ax.fill_between(
                        scores.mean().index, scores.min(), scores.max(), color=f"C{i}", alpha=0.2, lw=0
                    )
            if ax.lines:
                ax.legend(fontsize=8, loc="lower right")
    fig.suptitle(title)
    with atomic(path) as partial:
        fig.savefig(partial, dpi=110)


def text(cells: dict) -> str:
    """All of recipe.md."""
    parts = [INTRODUCTION, "## How much belongs to the recipe", table_of_advantages(cells)]
    parts += ["![Learning curves](recipe.png)", "## One change at a time", table_of_changes(cells)]
    parts += ["## What happens on the way", table_of_mechanism(cells)]
    return "\n\n".join(parts) + "\n"


def read_cells(out=OUT) -> dict:
    """The evaluations of each cell of the grid, by task and method."""
    curves = read_csv(out / CURVES_CSV)
    return dict(list(curves[curves["grid"] == "recipe"].groupby(["env_id", "method"])))


def main() -> None:
    cells = read_cells()
    with atomic(OUT / "recipe.md") as partial:
        partial.write_text(text(cells))
    found = [task for task in TASKS if any(place[0] == task for place in cells)]
    draw(OUT / "recipe.png", cells, found, "Random data, by recipe: mean and range over seeds")
    draw(OUT / "recipe_small.png", cells, TASKS[:1], "Random data of simple_tag: mean and range over seeds")
    say(f"wrote {OUT / 'recipe.md'} and figures")


if __name__ == "__main__":
    run_script("experiments.recipe_report", main)
