"""Figures as PNG files. No pyplot: nothing is global, no display is wanted."""

from pathlib import Path

from matplotlib.figure import Figure

from utils.files import atomic


def save_figure(draw, path: Path, size: tuple, *args) -> None:
    """What draw(figure, *args) draws; size: width and height in inches."""
    figure = Figure(figsize=size, layout="constrained")
    draw(figure, *args)
    with atomic(path) as partial:
        figure.savefig(partial, dpi=110)


def draw_range(ax, groups, **style) -> None:
    """Mean and range of grouped scores, as by pandas' groupby, over what groups them."""
    mean = groups.mean()
    line = ax.plot(mean, **style)[0]
    ax.fill_between(mean.index, groups.min(), groups.max(), color=line.get_color(), alpha=0.2, lw=0)
