"""Draws results/idea.png, the figure of the method in docs/method.md: python -m experiments.pictures

The films of the README and of docs/data.md are made by experiments.enjoy, with --gif.
"""

from functools import partial
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure

import spacql
from utils.files import TOP, atomic

GREY, BLUE, ORANGE, GREEN = "#8c8c8c", "#0072b2", "#d55e00", "#009e73"  # of Okabe and Ito's palette
# The example of the figure: three agents with five actions each, alike; the policy prefers what is rare in
# the data.
BEHAVIOUR = np.array([0.60, 0.25, 0.10, 0.04, 0.01])
TARGET_POLICY = np.array([0.05, 0.05, 0.15, 0.50, 0.25])
SPREADS = (1.0, 2.0, 4.0)  # u_1, u_2, u_3
SAMPLES = 120  # points per row


def surprise(k: int, generator: np.random.Generator) -> np.ndarray:
    """-log10 mu(a) of SAMPLES joint actions, k agents by TARGET_POLICY and the others by BEHAVIOUR."""
    draw = partial(generator.choice, len(BEHAVIOUR))
    actions = [draw(SAMPLES, p=TARGET_POLICY if i < k else BEHAVIOUR) for i in range(len(SPREADS))]
    return -np.log10(BEHAVIOUR[np.array(actions)]).sum(0)


def mean_surprise(k: int) -> float:
    """Its expectation."""
    rareness = -np.log10(BEHAVIOUR)
    return k * (TARGET_POLICY @ rareness) + (len(SPREADS) - k) * (BEHAVIOUR @ rareness)


def draw_idea(path: Path) -> None:
    """Rows: the logged next joint action and the three sizes k. Columns: who is replaced, how rare the joint
    action is in the data, how far ten critics disagree, and the weight in the target."""
    generator, centred = np.random.default_rng(0), dict(ha="center", va="center")
    fig = Figure(figsize=(9.6, 4.3), layout="constrained")
    fig.get_layout_engine().set(wspace=0.04)
    who, rare, spread, weight = fig.subplots(1, 4, sharey=True, width_ratios=(1.25, 1.1, 1.1, 0.9))
    colours = (GREY, BLUE, GREEN, ORANGE)
    for k, replaced in enumerate(([], [1], [0, 2], [0, 1, 2])):
        for agent in range(3):
            if agent in replaced:
                style, text, ink = dict(marker="s", color=colours[k]), rf"$\pi_{agent + 1}$", "white"
            else:
                style, ink = dict(marker="o", color="white", mec=GREY, mew=1.6), "black"
                text = f"$a'_{agent + 1}$"
            who.plot(agent, k, ms=21, **style)
            who.annotate(text, (agent, k), **centred, color=ink, fontsize=11)
        x, y = surprise(k, generator), k + generator.uniform(-0.22, 0.22, SAMPLES)
        rare.plot(x, y, ".", color=colours[k], ms=4, alpha=0.45, mew=0)
        rare.plot([mean_surprise(k)] * 2, [k - 0.33, k + 0.33], color="black", lw=1.6)
    quantiles = np.sort(generator.standard_normal(10))
    quantiles = (quantiles - quantiles.mean()) / quantiles.std()
    weights = spacql.replacement_weights(torch.tensor(SPREADS)).tolist()
    for k, (u, w) in enumerate(zip(SPREADS, weights, strict=True), start=1):
        spread.plot(u * quantiles, [k + 0.12] * 10, "|", color=colours[k], ms=16, mew=1.8)
        spread.annotate(f"$u_{k} = {u:.0f}$", (0, k - 0.26), **centred, fontsize=10)
        weight.barh(k, w, height=0.5, color=colours[k])
        weight.annotate(f"$w_{k} = {w:.2f}$", (w + 0.02, k), va="center", fontsize=10)
    for ax in (spread, weight):
        ax.annotate("not used", (0.5, 0), xycoords=ax.get_yaxis_transform(), **centred, color=GREY)
    who.set(title="Replace k of three agents", xlabel="circle: logged, square: policy", xlim=(-0.6, 2.6))
    rare.set(title="Rarer in the data", xlabel=r"probability $\mu(a'^{(k)})$ in the data", xlim=(0, 6.4))
    rare.set(xticks=range(0, 7, 2), xticklabels=["1", *(f"$10^{{-{x}}}$" for x in (2, 4, 6))])
    spread.set(title="Critics disagree more", xlabel="the ten critics' values", xlim=(-9, 9), xticks=[])
    weight.set(title="They count less", xlabel="weight in the target", xlim=(0, 1.02), xticks=[])
    who.set(xticks=[], ylim=(3.55, -0.6), yticks=range(4))
    who.set_yticklabels(["logged", *(f"$k = {k}$" for k in (1, 2, 3))], fontsize=12)
    for ax in (who, rare, spread, weight):
        ax.title.set_fontsize(11)
        ax.spines[:].set_visible(False)
        ax.tick_params(length=0, pad=2)
        for line in (0.5, 1.5, 2.5):
            ax.axhline(line, color="#dddddd", lw=0.8)
    fig.align_xlabels()
    fig.supxlabel(r"target $\;Y = r + \gamma\, \sum_k\, w_k\, \min_j\, \bar Q_j(s', a'^{(k)})$", fontsize=13)
    with atomic(path) as partial_path:
        fig.savefig(partial_path, dpi=190, facecolor="white")


if __name__ == "__main__":
    draw_idea(TOP / "results" / "idea.png")
