"""The original recipe taken apart: python -m experiments.recipe_report writes results/recipe.md."""

import itertools

import pandas as pd

from experiments.claims import FEWEST, difference
from experiments.plan import OURS, RECIPES
from experiments.report import CURVES_CSV, markdown, read_csv
from utils.figures import draw_range, save_figure
from utils.files import TOP, atomic, run_script

OUT = TOP / "results"
OFFICIAL = OUT / "csv/notes/official_code.csv"  # measured with the official code itself
LAST = 5  # evaluations behind a score
BACKUPS = {"joint": "joint", "icql-qs": "k = 1", "spacql": "SPaCQL"}
TASKS = ("simple_tag", "simple_world", "simple_spread")
SHOWN = {"original": "original recipe", "not-actor-l2": "cured", "ours": "our recipe"}
ROUNDS = (300, 600, 1000, 1500, 2000)
MECHANISM = {
    "common_slope": "slope that is the same everywhere",
    "policy_mean": "absolute mean of actions",
    "policy_std": "their deviation",
    "q_data": "Q, logged",
    "q_by_call": "Q, policy, by its moments",
    "q_by_data": "by the data's",
}
INTRODUCTION = f"""# The original recipe, taken apart

Written by `python -m experiments.recipe_report` from the grid `recipe` of [csv/curves.csv](csv/curves.csv)
and [csv/runs.csv](csv/runs.csv), which has every run's command, seed, commit and machine. Random data, the
paper's up to chance; two critics, batch 1024, one random agent per transition in the penalty (unbiased). An
evaluation has 1000 episodes and comes every 100 rounds. *End* is the mean of the last {LAST} evaluations,
*drop* the best mean of {LAST} in a row minus that; a number per seed. Flags are those of
`python -m experiments.original_recipe`, OURS those of every part that is not as in spacql_continuous.py,
whose critics take actions as they are: in *On the way* the last column is theirs.

![Learning curves](recipe.png)"""


def read_cells(out=OUT) -> pd.DataFrame:
    """The evaluations of the grid, with backup and recipe in columns of their own."""
    curves = read_csv(out / CURVES_CSV).query("grid == 'recipe'").sort_values("round", kind="stable")
    names = curves["method"].str.extract(rf"(?P<backup>{'|'.join(BACKUPS)})-(?P<recipe>.*)")
    return curves.join(names)


def ends(curves: pd.DataFrame) -> pd.DataFrame:
    """End and drop of every seed, by task, recipe, backup and seed."""
    keys = ["env_id", "recipe", "backup", "seed"]
    means = curves.groupby(keys)["score"].rolling(LAST).mean().groupby(keys)
    return pd.DataFrame(dict(end=means.last(), drop=means.max() - means.last()))


def in_words(numbers) -> str:
    """Numbers of the seeds, rounded."""
    return ", ".join(f"{x:.0f}" for x in numbers)


def table_of_check(curves: pd.DataFrame) -> str:
    """The official code's scores beside those of the script, a number per seed, where both are."""
    keys = ["env_id", "recipe", "backup", "round"]
    scores = [rows.groupby(keys)["score"].agg(in_words) for rows in (read_csv(OFFICIAL), curves)]
    both = scores[0].str.cat(scores[1], sep=" / ", join="inner").unstack("round").reset_index()
    return markdown(both.rename(columns=str).replace({"backup": BACKUPS}).to_dict("records"))


def table_of_changes(found: pd.DataFrame, task: str) -> str:
    """A row for every change to the recipe."""
    words = found.loc[task].groupby(["recipe", "backup"]).agg(in_words)
    rows = []
    for recipe in (r for r in RECIPES if r in words.index):
        flags = RECIPES[recipe].replace(OURS, "OURS")
        row = dict(recipe=recipe, flags=f"`{flags}`" * bool(flags))
        for backup, (end, drop) in words.loc[recipe].iterrows():
            row |= {f"{BACKUPS[backup]}: end": end, f"{BACKUPS[backup]}: drop": drop}
        rows.append(row)
    return markdown(rows)


def table_of_advantages(found: pd.DataFrame) -> str:
    """k = 1 minus joint, at the end, with intervals where there are enough seeds."""
    groups = found["end"].groupby(["env_id", "recipe", "backup"]).agg(list)
    rows = []
    for task, recipe in itertools.product(TASKS, SHOWN):
        one, joint = (groups.get((task, recipe, backup)) for backup in ("icql-qs", "joint"))
        if one and joint:
            by = difference([one], [joint])
            said = str(by) if min(len(one), len(joint)) >= FEWEST else f"{by.value:+.1f}"
            row = {"k = 1": in_words(one), "joint": in_words(joint), "k = 1 minus joint": said}
            rows.append(dict(task=task, recipe=SHOWN[recipe]) | row)
    return markdown(rows)


def table_of_mechanism(curves: pd.DataFrame, task: str) -> str:
    """What is measured on the way, mean over seeds."""
    found = curves.groupby(["env_id", "recipe", "backup", "round"])[list(MECHANISM)].mean().loc[task]
    rows = []
    for recipe, backup, number in itertools.product(SHOWN, BACKUPS, ROUNDS):
        if (recipe, backup, number) in found.index:
            values = found.loc[recipe, backup, number].dropna().map("{:.2f}".format)
            row = dict(recipe=SHOWN[recipe], backup=BACKUPS[backup], round=str(number))
            rows.append(row | {title: values.get(name) for name, title in MECHANISM.items()})
    return markdown(rows)


def draw(fig, curves: pd.DataFrame) -> None:
    """Learning curves by task and recipe: mean and range over seeds, and the official code's scores."""
    official = read_csv(OFFICIAL)
    tasks = [task for task in TASKS if task in set(curves["env_id"])]
    fig.set_figheight(0.6 + 2.6 * len(tasks))
    axes = fig.subplots(len(tasks), len(SHOWN), sharey="row", squeeze=False)
    for row, task in zip(axes, tasks, strict=True):
        row[0].set_ylabel(f"{task}\nnormalised score")
        for ax, recipe in zip(row, SHOWN, strict=True):
            of_cell = curves.query("env_id == @task and recipe == @recipe")
            for (backup, label), color in zip(BACKUPS.items(), ("C0", "C1", "C2"), strict=True):
                scores = of_cell[of_cell["backup"] == backup].groupby("round")["score"]
                seeds = f" ({scores.size().max()} seeds)"
                draw_range(ax, scores, color=color, label=label + seeds if len(scores) else None)
                known = official.query("env_id == @task and recipe == @recipe and backup == @backup")
                ax.plot(known["round"], known["score"], "x", ms=4, color=color)
            ax.set(title=SHOWN[recipe], xlabel="round")
            if len(of_cell):
                ax.legend(fontsize=8, loc="lower right")
    fig.suptitle("Random data: mean and range over seeds; crosses: the official code (SPaCQL: in its style)")


def text(curves: pd.DataFrame) -> str:
    """All of recipe.md."""
    found = ends(curves)
    parts = [INTRODUCTION, "## The official code / this script", table_of_check(curves)]
    parts += ["## How much belongs to the recipe", table_of_advantages(found)]
    tasks = [task for task in TASKS if task in set(curves["env_id"])]
    parts += [f"## One change at a time, {task}\n\n{table_of_changes(found, task)}" for task in tasks]
    parts += [f"## On the way, {task}\n\n{table_of_mechanism(curves, task)}" for task in tasks]
    return "\n\n".join(parts) + "\n"


def write_recipe_report(out=OUT) -> None:
    """Write out/recipe.md and its figures from the CSV files in out/csv, if they have rows of the grid."""
    curves = read_cells(out)
    if not len(curves):
        return
    with atomic(out / "recipe.md") as partial:
        partial.write_text(text(curves))
    save_figure(draw, out / "recipe.png", (11, 3), curves)
    save_figure(draw, out / "recipe_small.png", (11, 3), curves[curves["env_id"] == "simple_tag"])


if __name__ == "__main__":
    run_script("experiments.recipe_report", write_recipe_report)
