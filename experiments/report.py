"""results/tables.md and the figures: scores, verdicts on the paper's claims, and what is missing, from the
CSV files in results/csv alone. `python -m experiments.report` writes them anew."""

import itertools
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from experiments import claims, plan
from experiments.claims import CLAIMS, FEWEST, PUBLISHED, TASKS, Scores, difference, iqm_interval
from experiments.plan import KEYS, METHODS, NARROW, QUALITIES, WIDE, Cell, missing_jobs, planned_cells
from utils.errors import InputError
from utils.files import TOP, atomic, parse, run_script, say

RUNS_CSV, CURVES_CSV, DEPENDENCE_CSV = "csv/runs.csv", "csv/curves.csv", "csv/dependence.csv"
DATA_SCORES = {  # mean scores of the datasets that the runs learnt from, by QUALITIES
    ("discrete", "simple_spread"): (0.0, 7.0, 40.9, 99.9),
    ("discrete", "simple_tag"): (0.2, 13.0, 40.3, 101.2),
    ("discrete", "simple_world"): (-0.1, 17.3, 39.9, 100.5),
    ("continuous", "simple_spread"): (0.1, 13.6, 45.8, 115.3),
    ("continuous", "simple_tag"): (0.0, 22.0, 40.8, 99.2),
    ("continuous", "simple_world"): (0.1, 22.1, 40.4, 99.7),
    ("continuous", "HalfCheetah-2x3"): (0.0, 17.4, 39.3, 101.0),
}
TITLES = {
    "discrete": "Discrete actions (`spacql.py`)",
    "continuous": "Forces and torques (`spacql_continuous.py`)",
    "actors": "Actors that improve against each other's policies (`spacql.py`)",
    "cloning": "Some behaviour cloning in the actor (`spacql.py`)",
    "cloning-continuous": "The same with forces (`spacql_continuous.py`)",
    "coordination": "Data of teams that act together, more or less (`spacql.py`)",
}
# Of the side grids: the main grid whose rows stand in where a method was not run twice, the columns, and
# which methods are compared, dataset by dataset.
CLONING = ("spacql", "bc", *plan.CLONING), [("clone", "spacql"), ("clone-10", "spacql")]
SIDES = {
    "actors": (
        "discrete",
        ("spacql", "spacql-vs-policy", "joint", "joint-vs-policy"),
        [("spacql-vs-policy", "spacql"), ("joint-vs-policy", "joint")],
    ),
    "cloning": ("discrete", *CLONING),
    "cloning-continuous": ("continuous", *CLONING),
    "coordination": (
        None,
        (*plan.BACKUPS, *plan.VS_POLICY),
        [
            ("joint", "icql-qs"),
            ("spacql", "uniform"),
            ("joint", "spacql"),
            ("joint-vs-policy", "icql-qs-vs-policy"),
            ("joint-vs-policy", "joint"),
        ],
    ),
}
AGGREGATES = {"all": QUALITIES, "random and medium-replay": WIDE, "medium, expert": NARROW}
INTRODUCTION = f"""# Results

Written by `python -m experiments.report` from [csv/runs.csv](csv/runs.csv), which has every run's
command, seed, commit and machine. Scores are last scores, not best ones: greedy actors after the last round
(1000 episodes a seed, HalfCheetah 20); 0 is random play and 100 the expert. Rows of commits before the tag
`before-redesign` were made with the scripts as they were there.

A score is the interquartile mean over seeds (of five seeds the mean of the middle three), in brackets its
95% bootstrap interval (rliable's method), then the plain mean. n is the number of seeds where it is not 5;
fewer than {FEWEST} have no interval. Intervals of so few seeds are too short: of normally distributed
scores the one of five seeds, called 95%, has the truth in 90% of cases, that of three in
75%. The highest score of a row is bold, whatever the intervals say. All seeds learn from
the same simulated dataset.
"""
RULE = f"""A comparison is a difference of interquartile means. It **holds** if its whole interval lies
above 0, **does not hold** if the whole interval lies below 0, and otherwise **cannot be
told**. A sentence about several comparisons does not hold as soon as one of them does not, and
holds only if all do; what has fewer than {FEWEST} seeds is missing. Nothing is corrected for
the number of comparisons; where two methods do not differ at all, an interval misses 0 in
6% of comparisons of five seeds with five (normal scores). Only continuous
simple_spread random has the paper's distribution of data and its unit of scores."""


@dataclass(frozen=True)
class Args:
    """Tables and figures from the CSV files."""

    quick: bool = False
    """those of `python -m experiments.run --quick`, in results/quick"""


def read_csv(path: Path) -> pd.DataFrame:
    """The rows of a CSV file, none where there is no file."""
    return pd.read_csv(path, dtype={"commit": str}) if path.is_file() else pd.DataFrame()


def places(rows: pd.DataFrame) -> list[tuple]:
    """What tells a row of runs.csv from others: the values of KEYS and the seed."""
    return list(rows[[*KEYS, "seed"]].itertuples(index=False, name=None)) if len(rows) else []


# ------ tables


def markdown(rows: list[dict]) -> str:
    """A Markdown table, without the blanks that fill its columns."""
    table = pd.DataFrame(rows).fillna("").to_markdown(index=False, disable_numparse=True, tablefmt="github")
    return re.sub(r"-{3,}", "---", re.sub(r" +\|", " |", table))


def in_words(group: list[float]) -> str:
    """IQM [low, high], mean of the seeds of one dataset; n where it is not 5."""
    if not group:
        return ""
    found = iqm_interval(group)
    text = f"{found.value:.1f}"
    if not np.isnan(found.low):
        text += f" [{found.low:.1f}, {found.high:.1f}], {np.mean(group):.1f}"
    return text if len(group) == 5 else f"{text} (n = {len(group)})"


def scores_of(groups: dict[str, list[float]]) -> dict[str, str]:
    """Texts of a row's scores by method, the highest one bold if there are two."""
    texts = {method: in_words(group) for method, group in groups.items()}
    values = {method: claims.iqm(groups[method]) for method, text in texts.items() if text}
    if len(values) > 1:
        best = max(values, key=values.get)
        value, _, rest = texts[best].partition(" ")
        texts[best] = f"**{value}** {rest}".strip()
    return texts


def main_table(grid: str, scores: Scores) -> str:
    """Every dataset and size of the discrete or the continuous grid."""
    main = {key[1:3] + key[4:] for key in scores.main.values() if key[0] == grid}
    sizes = {key[1:3] + key[4:] for key in scores.rows if key[0] == grid and key[2] in QUALITIES}

    def rank(size):
        return TASKS[grid].index(size[0]), QUALITIES.index(size[1]), size not in main, size[2]

    rows = []
    for env_id, quality, rounds, batch_size in sorted(sizes, key=rank):
        data = DATA_SCORES[grid, env_id][QUALITIES.index(quality)]
        size = str(rounds) + f" (batch {batch_size})" * (batch_size != 256)
        row = dict(task=env_id, data=f"{quality} ({data})", rounds=size)
        row |= scores_of({m: scores.at((grid, env_id, quality, m, rounds, batch_size)) for m in METHODS})
        is_main = (env_id, quality, rounds, batch_size) in main
        row["*published, on OMAR's data*"] = PUBLISHED.get((env_id, quality), "") if is_main else ""
        rows.append(row)
    return markdown(rows)


def side_table(grid: str, scores: Scores, dependence: dict) -> str:
    """A table of another grid: its scores, and what its methods differ by, dataset by dataset.

    dependence {(env_id, dataset): nats} is shown for data of teams that act together.
    """
    main_grid, methods, compared = SIDES[grid]
    counts = {pair: [] for pair in compared}
    rows, differences = [], []
    for place in dict.fromkeys(key[1:3] for key in scores.main if key[0] == grid):
        row = dict(task=place[0], data=place[1])
        values = {
            m: scores.values((grid, *place), m) or scores.values((main_grid, *place), m) for m in methods
        }
        rows.append(row | scores_of(values))
        if grid == "coordination":
            row["dependence, nats"] = f"{dependence[place]:.3f}" if place in dependence else ""
        for first, second in compared:
            if min(len(values[first]), len(values[second])) >= FEWEST:
                found = difference([values[first]], [values[second]])
                row[f"{first} minus {second}"] = str(found)
                counts[first, second].append(found)
        differences.append(row)
    lines = []
    for (first, second), found in counts.items():
        above, below = sum(f.low > 0 for f in found), sum(f.high < 0 for f in found)
        if found:
            lines.append(f"* {first}: above {second} on {above}, below on {below} of {len(found)} datasets")
    return "\n\n".join([markdown(rows), markdown(differences), "\n".join(lines)])


def claims_section(scores: Scores) -> str:
    """All verdicts at a glance, and what they rest on."""
    overview, details = [], []
    for claim in CLAIMS:
        row, rows = {"the paper's claim": claim.text} | dict.fromkeys(TASKS, ""), []
        for grid in claim.grids:
            verdict, findings = claims.try_claim(claim, grid, scores)
            verdicts = [each for each, _ in findings.values()]
            counts = f": on {verdicts.count(claims.HOLDS)} of {len(verdicts)} datasets"
            counts += f", on {verdicts.count(claims.FAILS)} not"
            row[grid] = f"**{verdict}**" + counts * (len(verdicts) > 1)
            for (env_id, quality), (each, said) in findings.items():
                rows.append(dict(actions=grid, task=env_id, data=quality, verdict=each, difference=said))
        overview.append(row)
        details.append(f"**{claim.text}**\n\n{markdown(rows)}")
    return "\n\n".join([RULE, markdown(overview), *details])


def aggregate_differences(scores: Scores) -> str:
    """SPaCQL against every other method, mean over all datasets where both have enough seeds."""
    rows = []
    for grid, (name, qualities), rival in itertools.product(TASKS, AGGREGATES.items(), METHODS[1:]):
        datasets = itertools.product([grid], TASKS[grid], qualities)
        pairs = [(scores.values(place, "spacql"), scores.values(place, rival)) for place in datasets]
        pairs = [pair for pair in pairs if min(map(len, pair)) >= FEWEST]
        if pairs:
            found = difference(*map(list, zip(*pairs, strict=True)))
            row = {"actions": grid, "data": name, "SPaCQL minus": rival, "datasets": len(pairs)}
            rows.append(row | {"mean difference of IQMs": str(found)})
    return markdown(rows)


def missing_section(cells: list[Cell], runs: pd.DataFrame) -> str:
    """What is planned and not done, by task and dataset."""
    jobs = missing_jobs(cells, set(places(runs)))
    if not jobs:
        return f"Nothing: all {len(cells)} cells are done."
    by_dataset = {}
    for job in jobs:
        cell = job.cell
        size = f"{cell.rounds} rounds" + f", batch {cell.batch_size}" * (cell.batch_size != 256)
        seeds = str(job.first) if job.count == 1 else f"{job.first} to {job.first + job.count - 1}"
        place = f"{cell.grid}, {cell.env_id} {cell.dataset}, {size}"
        by_dataset.setdefault(place, []).append(f"{cell.method} ({seeds})")
    lines = [f"* {place}: {', '.join(methods)}" for place, methods in by_dataset.items()]
    text = (
        f"{len({job.cell for job in jobs})} of {len(cells)} cells lack seeds (in brackets); {len(jobs)} "
        "commands, which `python -m experiments.run --dry-run` lists, would run them."
    )
    return "\n".join([text, "", *lines])


def tables(cells: list[Cell], runs: pd.DataFrame, dependence: pd.DataFrame) -> str:
    """All of tables.md."""
    scores = Scores(cells, runs)
    nats = {(row.env_id, row.dataset): row.dependence_nats for row in dependence.itertuples()}
    parts = [INTRODUCTION]
    parts += [f"## {TITLES[grid]}\n\n{main_table(grid, scores)}" for grid in TASKS]
    parts += ["## The paper's claims", claims_section(scores)]
    parts += ["## SPaCQL against each method over several datasets", aggregate_differences(scores)]
    for grid in SIDES:
        if any(key[0] == grid for key in scores.rows):
            parts.append(f"## {TITLES[grid]}\n\n{side_table(grid, scores, nats)}")
    parts += ["## Not run", missing_section(cells, runs)]
    return "\n\n".join(part.strip() for part in parts) + "\n"


# ------ figures


def save(fig: Figure, path: Path) -> None:
    """Write a figure."""
    with atomic(path) as partial:
        fig.savefig(partial, dpi=110)


def draw_weights(path: Path, scores: Scores, curves: pd.DataFrame) -> None:
    """SPaCQL's weights over training by task and quality: mean over seeds and their range."""
    panels, columns = [(grid, env_id) for grid in TASKS for env_id in TASKS["discrete"]], ["w1", "w2", "w3"]
    fig = Figure(figsize=(13, 3.2 * len(panels)), layout="constrained")
    axes = fig.subplots(len(panels), len(QUALITIES), sharey=True, squeeze=False)
    groups = dict(list(curves.groupby(KEYS)))
    for row, (grid, env_id) in zip(axes, panels, strict=True):
        row[0].set_ylabel(grid)
        for ax, quality in zip(row, QUALITIES, strict=True):
            points = groups.get(scores.main.get((grid, env_id, quality, "spacql")), curves[:0])
            ax.set(title=f"{env_id} {quality}" + ": not run" * points.empty, xlabel="round")
            if points.empty:
                ax.axis("off")
            of_rounds = points.groupby("round")[columns]
            mean, low, high = of_rounds.mean(), of_rounds.min(), of_rounds.max()
            ax.plot(mean, label=columns)
            for column in columns:
                ax.fill_between(mean.index, low[column], high[column], alpha=0.2, lw=0)
    fig.legend(handles=axes[0][0].lines, loc="outside lower center", ncols=len(columns))
    fig.suptitle("Replacement weights of SPaCQL over training (mean and range over seeds)")
    save(fig, path)


def draw_scores(path: Path, scores: Scores) -> None:
    """IQM and interval of every method by task and quality; grey lines are the data's mean scores."""
    fig = Figure(figsize=(16, 7.2), layout="constrained")
    axes = fig.subplots(2, 4).flat
    for ax, ((grid, env_id), of_data) in zip(axes, DATA_SCORES.items(), strict=False):
        ax.hlines(of_data, np.arange(4) - 0.42, np.arange(4) + 0.42, color="0.6", lw=1)
        for m, method in enumerate(METHODS):
            for q, quality in enumerate(QUALITIES):
                if group := scores.values((grid, env_id, quality), method):
                    value, low, high = iqm_interval(group)
                    style = dict(fmt="o", ms=4, color=f"C{m}", mfc="w" if len(group) < FEWEST else None)
                    ax.errorbar(q + (m - 3) * 0.12, value, [[value - low], [high - value]], **style)
        ax.set(title=f"{grid}, {env_id}", ylabel="normalised last score", xlim=(-0.5, 3.5))
        ax.set_xticks(range(4), QUALITIES, fontsize=8)
    marks = [Line2D([], [], color=f"C{m}", marker="o", ls="", label=name) for m, name in enumerate(METHODS)]
    marks.append(Line2D([], [], color="0.3", marker="o", ls="", mfc="w", label=f"fewer than {FEWEST} seeds"))
    marks.append(Line2D([], [], color="0.6", lw=1, label="mean of the data"))
    axes[-1].axis("off")
    axes[-1].legend(handles=marks, loc="center", fontsize=11)
    fig.suptitle("Interquartile mean over seeds with 95% bootstrap intervals")
    save(fig, path)


def write_report(out: Path, cells: list[Cell]) -> None:
    """Write out/tables.md and the figures from the CSV files in out/csv."""
    runs, curves = read_csv(out / RUNS_CSV), read_csv(out / CURVES_CSV)
    if not len(runs):
        raise InputError(f"no rows in {out / RUNS_CSV}: nothing to report")
    with atomic(out / "tables.md") as partial:
        partial.write_text(tables(cells, runs, read_csv(out / DEPENDENCE_CSV)))
    scores = Scores(cells, runs)
    draw_weights(out / "weights.png", scores, curves)
    draw_scores(out / "scores.png", scores)
    say(f"wrote {out / 'tables.md'} and figures")


def main(argv: list[str] | None = None) -> None:
    args = parse(Args, argv, description=__doc__)
    write_report(TOP / "results" / ("quick" if args.quick else ""), planned_cells(args.quick))


if __name__ == "__main__":
    run_script("experiments.report", main)
