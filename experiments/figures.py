"""The figures beside the tables, drawn from the CSV files alone."""

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from experiments.claims import COMPARABLE, PUBLISHED, TASKS, Scores
from experiments.intervals import iqm_interval
from experiments.plan import METHODS, QUALITIES
from experiments.records import place
from experiments.tables import DATA_SCORES
from utils.files import atomic


def save(fig: Figure, path: Path) -> None:
    """Write a figure."""
    with atomic(path) as partial:
        fig.savefig(partial, dpi=110)


def curves_of(scores: Scores, curves: dict[str, list[dict]], dataset: tuple, column: str):
    """A column over training, SPaCQL's main runs on (grid, env_id, dataset): rounds [P], values [P, seeds].

    None where no run is there. Seeds that were evaluated at other rounds than the first one are left out.
    """
    by_seed = {}
    main = scores.main.get((*dataset, "spacql"))
    for row in curves[dataset[0]]:
        if (dataset[0], *place(row)[:-1]) == main:
            by_seed.setdefault(row["seed"], {})[int(row["round"])] = float(row[column])
    if not by_seed:
        return None
    rounds = sorted(next(iter(by_seed.values())))
    return np.array(rounds), np.array([list(c.values()) for c in by_seed.values() if sorted(c) == rounds]).T


def draw_band(ax, rounds: np.ndarray, values: np.ndarray, label: str, colour: str) -> None:
    """Mean over seeds and the range from the lowest to the highest."""
    ax.plot(rounds, values.mean(1), label=label, color=colour)
    ax.fill_between(rounds, values.min(1), values.max(1), alpha=0.2, color=colour, lw=0)


def label_lines(fig: Figure, axes) -> None:
    """One legend for the lines of all panels."""
    lines = {line.get_label(): line for ax in axes.flat for line in ax.lines if line.get_label()[0] != "_"}
    if lines:
        fig.legend(lines.values(), lines.keys(), loc="outside lower center", ncols=len(lines))


def draw_weights(path: Path, scores: Scores, curves: dict[str, list[dict]]) -> None:
    """w_k over training by quality, SPaCQL on simple_spread (the paper's Figure 3)."""
    fig = Figure(figsize=(13, 6), layout="constrained")
    axes = fig.subplots(len(TASKS), len(QUALITIES), sharey=True, squeeze=False)
    for row, grid in zip(axes, TASKS, strict=True):
        for ax, quality in zip(row, QUALITIES, strict=True):
            for k in (1, 2, 3):
                if found := curves_of(scores, curves, (grid, "simple_spread", quality), f"w{k}"):
                    draw_band(ax, *found, f"$w_{k}$", f"C{k - 1}")
            ax.axhline(1 / 3, color="black", lw=0.6, ls=":")
            ax.set(title=f"{grid}, {quality}", xlabel="round")
    label_lines(fig, axes)
    fig.suptitle("Replacement weights of SPaCQL on simple_spread, by data quality (mean and range over seeds)")
    save(fig, path)


def draw_k_eff(path: Path, scores: Scores, curves: dict[str, list[dict]]) -> None:
    """k_eff over training, SPaCQL, by task and quality."""
    tasks = TASKS["discrete"]
    fig = Figure(figsize=(11, 6), layout="constrained")
    axes = fig.subplots(len(TASKS), len(tasks), sharey=True, squeeze=False)
    for row, grid in zip(axes, TASKS, strict=True):
        for ax, env_id in zip(row, tasks, strict=True):
            for q, quality in enumerate(QUALITIES):
                if found := curves_of(scores, curves, (grid, env_id, quality), "k_eff"):
                    draw_band(ax, *found, quality, f"C{q}")
            ax.axhline(2, color="black", lw=0.6, ls=":")
            ax.set(title=f"{grid}, {env_id}", xlabel="round")
    label_lines(fig, axes)
    fig.suptitle("$k_{eff}$ of SPaCQL over training, of 3 agents (mean and range over seeds; 2 is the uniform mixture)")
    save(fig, path)


def draw_scores(path: Path, scores: Scores) -> None:
    """IQM and interval of every method by task and quality; grey lines are the data's mean scores."""
    columns = max(map(len, TASKS.values()))
    fig = Figure(figsize=(4 * columns, 7.2), layout="constrained")
    axes = fig.subplots(len(TASKS), columns, squeeze=False)
    colours = dict(zip(METHODS, (f"C{i}" for i in range(10)), strict=False))
    for row, (grid, tasks) in zip(axes, TASKS.items(), strict=True):
        for ax, env_id in zip(row, tasks, strict=False):
            for q, quality in enumerate(QUALITIES):
                ax.plot([q - 0.42, q + 0.42], [DATA_SCORES[grid][env_id][q]] * 2, color="0.6", lw=1, zorder=1)
                for m, method in enumerate(METHODS):
                    group, x = scores.values((grid, env_id, quality), method), q + (m - 3) * 0.12
                    if group:
                        found = iqm_interval(group)
                        ax.plot(x, found.value, "o", ms=4, color=colours[method], mfc="w" if len(group) < 3 else None)
                        ax.vlines(x, found.low, found.high, color=colours[method], lw=1.5)
                    if (grid, env_id, quality) == COMPARABLE and method in PUBLISHED[env_id, quality]:
                        ax.plot(x, PUBLISHED[env_id, quality][method], "_", ms=9, mew=2, color="black")
            ax.set(title=f"{grid}, {env_id}", xlim=(-0.5, len(QUALITIES) - 0.5))
            ax.set_xticks(range(len(QUALITIES)), QUALITIES)
        for ax in row[len(tasks) :]:
            ax.axis("off")
        row[0].set_ylabel("normalised last score")
    marks = [axes[0][0].plot([], [], "o", color=colours[method], label=method)[0] for method in METHODS]
    marks += axes[0][0].plot([], [], "o", color="0.3", mfc="w", label="fewer than 3 seeds")
    marks += axes[0][0].plot([], [], "_", ms=9, mew=2, color="black", label="published (comparable there only)")
    marks += axes[0][0].plot([], [], color="0.6", lw=1, label="mean of the data")
    (axes[0][-1] if len(TASKS["discrete"]) < columns else fig).legend(handles=marks, loc="center left", fontsize=11)
    fig.suptitle("Interquartile mean over seeds with 95% bootstrap intervals")
    save(fig, path)


def draw_figures(out: Path, scores: Scores, curves: dict[str, list[dict]]) -> None:
    """All figures, from the curves of every grid."""
    draw_weights(out / "weights.png", scores, curves)
    draw_k_eff(out / "k_eff.png", scores, curves)
    draw_scores(out / "scores.png", scores)
