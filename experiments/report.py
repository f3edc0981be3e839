"""results/tables.md and the figures: scores, verdicts on the paper's claims, and what is missing, from the
CSV files in results/csv alone. `python -m experiments.report` writes them anew."""

import math
import re
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.lines import Line2D

from experiments import plan
from experiments.claims import CLAIMS, FAILS, FEWEST, HOLDS, OPEN, WORDS, difference, find, iqm_interval
from experiments.plan import KEYS, METHODS, QUALITIES, TEN_CRITICS, Cell, missing_jobs, planned_cells
from utils.errors import InputError
from utils.figures import draw_range, save_figure
from utils.files import TOP, atomic, run_script, say

RUNS_CSV, CURVES_CSV = "csv/runs.csv", "csv/curves.csv"
LEVELS = pd.read_csv(TOP / "results/csv/levels.csv").groupby(["actions", "task"], sort=False)
DATA_SCORES = {task: dict(zip(rows["quality"], rows["our_points"], strict=True)) for task, rows in LEVELS}
PUBLISHED = {  # mean scores of five seeds on OMAR's data
    ("simple_spread", "random"): "spacql 78.2 ± 14.0, icql-qs 77.7, cfcql 62.2, macql 45.6",
    ("simple_spread", "medium-replay"): "spacql 71.9 ± 13.2, cfcql 52.2, macql 25.5",
    ("simple_spread", "expert"): "spacql 111.9, icql-qs 97.2, cfcql 112.0, macql 12.2",
    ("simple_tag", "random"): "spacql 89.4 ± 13.7, cfcql 16.5, macql 25.2",
    ("simple_tag", "medium-replay"): "spacql 75.0 ± 12.7, cfcql 71.1, macql 11.9",
    ("simple_world", "random"): "spacql 94.3 ± 7.4, icql-qs 89.9, cfcql 68.0, macql 11.7",
    ("simple_world", "medium-replay"): "spacql 105.2 ± 11.1, cfcql 73.4, macql 13.2",
    ("simple_world", "expert"): "spacql 112.3, icql-qs 106.5, cfcql 119.7",
    ("HalfCheetah-2x3", "medium-replay"): "spacql 66.1 ± 3.4, cfcql 59.5, macql 37.0",
}
TABLES = {  # by grid: title and columns
    "continuous": ("Forces and torques (`spacql_continuous.py`)", (*METHODS, "uniform")),
    "size": ("Medium-replay data of other sizes (`spacql_continuous.py`)", tuple(plan.SIZED)),
    "omar-prey": ("Data against OMAR's prey (`spacql_continuous.py`)", tuple(plan.OMAR_PREY)),
    "discrete": ("Discrete actions (`spacql.py`)", METHODS),
    "narrow": ("Other actors, for narrow data (`spacql.py`)", ("spacql", *plan.NARROW_METHODS, "bc")),
    "crowd": ("Six agents, near-expert data (`spacql.py`)", (*plan.TEN_CRITICS, "bc", *plan.CROWD_SWEPT)),
    "coordination": ("Teams that act together (`spacql.py`)", (*plan.TEN_CRITICS, *plan.VS_POLICY)),
}
# Grids with the same actions share their rows: no method has two meanings. Other grids are of no account.
ACTIONS = {grid: "continuous" if "continuous" in plan.SCRIPTS[grid] else "discrete" for grid in TABLES}
INTRODUCTION = f"""# Results

Written by `python -m experiments.report` from [csv/runs.csv](csv/runs.csv), which has every run's
command, seed, commit and machine. Scores are last scores, not best ones: greedy actors after the last round
(1000 episodes a seed, HalfCheetah 20); 0 is random play and 100 the expert. Data have the paper's
[sizes and means](../docs/data.md#behaviour-qualities-and-their-scores); random data with forces are the
paper's up to chance, with OMAR's prey. Rounds of batch 1024 have the paper's settings, but for one agent a
transition in the penalty, others the default ones (six agents: alpha 72.9; HalfCheetah: 128 units, rate
0.001).

A score is the interquartile mean over seeds (of five the mean of the middle three), in brackets its 95%
bootstrap interval (rliable's method), then the plain mean. n is the number of seeds where it is not 5; fewer
than {FEWEST} have no interval. Intervals of so few are too short: of normally distributed scores that of five
seeds has the truth in 90% of cases, that of three in 75%. All seeds learn from the same dataset.
"""
RULE = f"""A comparison, a difference of interquartile means, **holds** if its whole interval lies above 0,
**does not hold** if all of it lies below 0, and otherwise **cannot be told**. Shown is the rival with the
worst verdict, of those the one that the method is least above; of several methods the best one by that. A
claim holds if it does on all datasets that were run with {FEWEST} seeds, and does not if it does not on one;
the mean is over these. Nothing is corrected for the number of comparisons; where two methods do not differ,
an interval misses 0 in 6% of comparisons of five seeds with five (normal scores)."""
PENALTY_GRIDS = {"penalty": "discrete", "penalty-continuous": "continuous"}
PENALTIES = f"""Full joint backups with two critics, 400 rounds. (5) takes the mean of the
N = 3 agents' penalties, MACQL the penalty of the team as one agent. For a Q that is a sum over agents the
mean is N times weaker: CFCQL at alpha is matched by MACQL at alpha / 3. Mean of seeds 0 to
{len(plan.CHOOSING) - 1}, the best one of a row in bold, which then runs on other seeds."""


def read_csv(path: Path) -> pd.DataFrame:
    """The rows of a CSV file, none where there is no file."""
    return pd.read_csv(path, dtype={"commit": str}) if path.is_file() else pd.DataFrame()


def places(rows: pd.DataFrame) -> list[tuple]:
    """What tells a row of runs.csv from others: the values of KEYS and the seed."""
    return list(rows[[*KEYS, "seed"]].itertuples(index=False, name=None)) if len(rows) else []


def by_cell(rows: pd.DataFrame) -> dict[tuple, pd.DataFrame]:
    """Rows by the values of KEYS, with the actions in place of the grid."""
    return dict(list(rows.assign(grid=rows["grid"].map(ACTIONS)).groupby(KEYS)))


def main_rows(cells: list[Cell], rows: pd.DataFrame) -> dict[tuple, pd.DataFrame]:
    """Rows of each first size in the plan, by (actions, env_id, dataset, method)."""
    groups = by_cell(rows)
    keys = [(ACTIONS[cell.grid], *cell[1:6]) for cell in cells if cell.grid in ACTIONS]
    return {key[:4]: groups.get(key, rows[:0]) for key in reversed(keys)}


def main_scores(cells: list[Cell], runs: pd.DataFrame) -> dict[tuple, list[float]]:
    """The last score of each seed, by the same."""
    return {place: rows["score"].tolist() for place, rows in main_rows(cells, runs).items()}


# ------ tables


def markdown(rows: list[dict]) -> str:
    """A Markdown table, without the blanks that fill its columns."""
    table = pd.DataFrame(rows).fillna("").to_markdown(index=False, disable_numparse=True, tablefmt="github")
    return re.sub(r"-{3,}", "---", re.sub(r" +\|", " |", table))


def in_words(group: list[float]) -> str:
    """IQM [low, high], mean of the seeds of one dataset; n where it is not 5."""
    found = iqm_interval(group)
    text = f"{found.value:.1f}"
    if not np.isnan(found.low):
        text += f" [{found.low:.1f}, {found.high:.1f}], {np.mean(group):.1f}"
    return text if len(group) == 5 else f"{text} (n = {len(group)})"


def table(grid: str, cells: list[Cell], runs: pd.DataFrame) -> str:
    """Every dataset and size of a grid; columns can be of another grid with these actions. Only the main
    grids, which have their names, have the data's and the published scores beside them."""
    (_, methods), actions, groups = TABLES[grid], ACTIONS[grid], by_cell(runs)
    sizes = list(dict.fromkeys(cell[1:3] + cell[4:6] for cell in cells if cell.grid == grid))
    tasks = [size[0] for size in sizes]
    rows = []
    for env_id, dataset, rounds, batch_size in sorted(sizes, key=lambda size: tasks.index(size[0])):
        keys = {method: (actions, env_id, dataset, method, rounds, batch_size) for method in methods}
        texts = {m: in_words(groups[key]["score"].tolist()) for m, key in keys.items() if key in groups}
        of_data = DATA_SCORES.get((actions, env_id), {}) if grid == actions else {}
        row = dict(task=env_id, data=dataset + f" ({of_data.get(dataset)})" * (dataset in of_data))
        row["rounds"] = str(rounds) + f" (batch {batch_size})" * (batch_size != 256)
        row |= dict.fromkeys(methods, "") | texts
        if grid == actions:
            row["*published, on OMAR's data*"] = PUBLISHED.get((env_id, dataset), "")
        rows += [row] if texts else []
    return markdown(rows)


def penalty_section(runs: pd.DataFrame) -> str:
    """CFCQL's and MACQL's penalty over alpha, at matched strength, and at each one's best alpha on seeds
    that did not choose it."""
    runs = runs[runs["grid"].isin(PENALTY_GRIDS)]
    names = runs["method"].map(plan.SWEPT)
    runs = runs.assign(actions=runs["grid"].map(PENALTY_GRIDS), penalty=names.str[0], alpha=names.str[1])
    keys = ["actions", "env_id", "dataset", "penalty", "alpha"]
    tried = runs[runs["seed"].isin(plan.CHOOSING)].groupby(keys)["score"].agg(list)
    fresh = runs[~runs["seed"].isin(plan.CHOOSING)].groupby(keys)["score"].agg(list)
    rows = []
    for place, scores in tried.groupby(keys[:4], sort=False):
        means = scores.droplevel(keys[:4]).map(np.mean)
        row = dict(zip(("actions", "task", "data", "penalty"), place, strict=True))
        row |= {f"alpha {a}": "" for a in plan.ALPHAS}
        row |= {f"alpha {a}": f"**{x:.1f}**" if x == means.max() else f"{x:.1f}" for a, x in means.items()}
        best = fresh.get((*place, means.idxmax()))
        rows.append(row | {"best one, other seeds": in_words(best) if best else ""})
    parts = [PENALTIES, markdown(rows)]
    places = dict.fromkeys(place[:3] for place in tried.index)
    for words, alphas in (("the same alpha", plan.ALPHAS), ("matched strength", plan.ALPHAS[1:])):
        pairs = [(place, *pair) for place in places for pair in zip(plan.ALPHAS, alphas, strict=False)]
        both = [(tried.get((*place, "macql", a)), tried.get((*place, "cfcql", b))) for place, a, b in pairs]
        both = [sides for sides in both if all(sides)]
        if both:
            said = difference(*zip(*both, strict=True))
            parts.append(f"At {words} MACQL minus CFCQL: {said}, mean of {len(both)} pairs.")
    return "\n\n".join(parts)


def claims_section(scores: dict) -> str:
    """All verdicts at a glance, and what they rest on: the datasets with enough seeds to compare."""
    overview, details = [], []
    for claim in CLAIMS:
        row, rows = {"claim": claim.text}, []
        for actions in ("discrete", "continuous"):
            places = [(*task, q) for task in DATA_SCORES if task[0] == actions for q in claim.qualities]
            found = {place: find(claim, scores, [place]) for place in places}
            found = {place: what for place, what in found.items() if what[1] > -math.inf}
            verdicts = [verdict for verdict, *_ in found.values()]
            counts = f"on {verdicts.count(HOLDS)} of {len(found)} datasets, on {verdicts.count(FAILS)} not"
            said = f"**{WORDS[min(verdicts, default=OPEN)]}**: {counts}"
            row[actions] = said + f"; mean: {find(claim, scores, list(found))[2]}" if found else "not run"
            for (_, env_id, quality), (verdict, _, said) in found.items():
                place = dict(actions=actions, task=env_id, data=quality)
                rows.append(place | dict(verdict=WORDS[verdict], difference=said))
        overview.append(row)
        details += [f"**{claim.text}**\n\n{markdown(rows)}"] if rows else []
    return "\n\n".join([RULE, markdown(overview), *details])


def tables(cells: list[Cell], runs: pd.DataFrame) -> str:
    """All of tables.md."""
    grids = [grid for grid in TABLES if grid in set(runs["grid"])]
    parts = [INTRODUCTION]
    parts += [f"## {TABLES[grid][0]}\n\n{table(grid, cells, runs)}" for grid in grids]
    if runs["grid"].isin(PENALTY_GRIDS).any():
        parts += ["## Penalties over alpha", penalty_section(runs)]
    parts += ["## The claims", claims_section(main_scores(cells, runs))]
    jobs = missing_jobs(cells, set(places(runs)))
    lacking = f"{len({job.cell for job in jobs})} of {len(cells)} cells lack seeds"
    how = f"`python -m experiments.run --dry-run` lists the {len(jobs)} commands that run them"
    parts += ["## Not run", f"{lacking}; {how}."]
    return "\n\n".join(part.strip() for part in parts) + "\n"


# ------ figures


def draw_weights(fig, cells: list[Cell], curves: pd.DataFrame) -> None:
    """SPaCQL's weights over training where it was run: mean over seeds and their range."""
    rows = main_rows(cells, curves)
    places = [(*task, quality, "spacql") for task in DATA_SCORES for quality in QUALITIES]
    shown = {place: rows[place] for place in places if len(rows.get(place, ()))}
    fig.set_figheight(0.6 + 3.2 * math.ceil(len(shown) / 4))
    first = None
    for i, (place, points) in enumerate(shown.items()):
        ax = first = fig.add_subplot(math.ceil(len(shown) / 4), 4, i + 1, sharey=first)
        ax.set_title(" ".join(place[:3]), fontsize=9)
        ax.set_xlabel("round")
        for column in ("w1", "w2", "w3"):
            draw_range(ax, points.groupby("round")[column], label=column)
        ax.legend(fontsize=8, loc="lower left")
    fig.suptitle("Replacement weights of SPaCQL over training (mean and range over seeds)")


def draw_penalties(fig, runs: pd.DataFrame) -> None:
    """Scores of CFCQL's and MACQL's penalty over its strength, in which a factor of N is between them."""
    runs = runs[(runs["grid"] == "penalty") & runs["seed"].isin(plan.CHOOSING)]
    for i, (place, rows) in enumerate(runs.groupby(["env_id", "dataset"], sort=False)):
        ax = fig.add_subplot(1, 4, i + 1, title=" ".join(place), xlabel="alpha, CFCQL's divided by N = 3")
        for name, factor in (("cfcql", 1 / 3), ("macql", 1)):
            strength = rows["method"].map({m: a * factor for m, (n, a) in plan.SWEPT.items() if n == name})
            draw_range(ax, rows["score"].groupby(strength), marker="o", label=name)
        ax.set_xscale("log")
        ax.legend()


def draw_crowd(fig, runs: pd.DataFrame, curves: pd.DataFrame) -> None:
    """Six agents: learning curves by the data's size, and CFCQL's last scores over its penalty's alpha."""
    runs, curves = (rows[rows["grid"] == "crowd"] for rows in (runs, curves))
    axes = fig.subplots(1, 3, sharey=True)
    for ax, (dataset, rows) in zip(axes, curves.groupby("dataset", sort=False), strict=False):
        for method in (*TEN_CRITICS, "bc"):
            draw_range(ax, rows[rows["method"] == method].groupby("round")["score"], label=method)
        ax.set(title=dataset, xlabel="round", ylabel="normalised score")
    alphas = runs["method"].map({m: a for m, (_, a) in plan.CROWD_SWEPT.items()})
    draw_range(axes[2], runs["score"].groupby(alphas), marker="o")
    axes[2].set(title=f"{plan.CROWD[0]}: cfcql's last scores", xlabel="alpha", xscale="log")
    axes[0].legend(loc="lower right")
    fig.suptitle("Six agents, near-expert data: mean and range over seeds")


def draw_coordination(fig, runs: pd.DataFrame) -> None:
    """How many seeds end with the best score, by how often the logged teams act together."""
    runs = runs[runs["grid"] == "coordination"]
    share = runs["dataset"].str.extract(r"share=([\d.]+)")[0].astype(float)
    best = runs["score"] > runs["score"].max() - 0.1
    panels = {"logged actions": TEN_CRITICS, "policies (--actor-others policy)": plan.VS_POLICY}
    axes = fig.subplots(1, 2, sharey=True)
    for ax, (whom, methods) in zip(axes, panels.items(), strict=True):
        for m, method in enumerate(methods):
            count = best[runs["method"] == method].groupby(share).sum()
            ax.bar(count.index + (m - 1) * 0.06, count, 0.05, label=method)
        ax.set(title=f"Actors improve against the others' {whom}", xticks=share.unique())
        ax.set_xlabel("share: how often the logged agents act as one team")
    axes[0].legend(loc="upper right")
    fig.suptitle("two_doors: how many of five seeds end with the best score")


def draw_scores(fig, scores: dict) -> None:
    """IQM and interval of every method by task and quality; grey lines are the data's mean scores."""
    places = np.arange(len(QUALITIES))
    axes = fig.subplots(2, 4).flat
    for ax, (task, of_data) in zip(axes, DATA_SCORES.items(), strict=False):
        ax.hlines([of_data[q] for q in QUALITIES], places - 0.42, places + 0.42, color="0.6", lw=1)
        for m, method in enumerate(METHODS):
            for q, quality in enumerate(QUALITIES):
                if group := scores.get((*task, quality, method)):
                    value, low, high = iqm_interval(group)
                    style = dict(fmt="o", ms=4, color=f"C{m}", mfc="w" if len(group) < FEWEST else None)
                    ax.errorbar(q + (m - 3) * 0.12, value, [[value - low], [high - value]], **style)
        ax.set(title=", ".join(task), ylabel="normalised last score", xlim=(-0.5, 3.5))
        ax.set_xticks(range(4), QUALITIES, fontsize=8)
    marks = [Line2D([], [], color=f"C{m}", marker="o", ls="", label=name) for m, name in enumerate(METHODS)]
    marks.append(Line2D([], [], color="0.3", marker="o", ls="", mfc="w", label=f"fewer than {FEWEST} seeds"))
    marks.append(Line2D([], [], color="0.6", lw=1, label="mean of the data"))
    axes[-1].axis("off")
    axes[-1].legend(handles=marks, loc="center", fontsize=11)
    fig.suptitle("Interquartile mean over seeds with 95% bootstrap intervals")


def write_report(out: Path, cells: list[Cell]) -> None:
    """Write out/tables.md and the figures from the CSV files in out/csv."""
    runs, curves = read_csv(out / RUNS_CSV), read_csv(out / CURVES_CSV)
    if not len(runs):
        raise InputError(f"no rows in {out / RUNS_CSV}: nothing to report")
    with atomic(out / "tables.md") as partial:
        partial.write_text(tables(cells, runs))
    save_figure(draw_weights, out / "weights.png", (13, 4), cells, curves)
    save_figure(draw_scores, out / "scores.png", (16, 7.2), main_scores(cells, runs))
    save_figure(draw_penalties, out / "penalties.png", (13, 3.2), runs)
    if "crowd" in set(runs["grid"]):
        save_figure(draw_crowd, out / "crowd.png", (13, 3.8), runs, curves)
    if "coordination" in set(runs["grid"]):
        save_figure(draw_coordination, out / "coordination.png", (13, 3.2), runs)
    say(f"wrote {out / 'tables.md'} and figures")


if __name__ == "__main__":
    run_script("experiments.report", lambda: write_report(TOP / "results", planned_cells()))
