"""The headline figure: occupancies move linearly, densities multiply, and what that asks of the data."""

import math
from bisect import bisect_left
from dataclasses import replace
from itertools import product as pairs_of

import numpy as np
import torch
from scipy.stats import binom

from theory.dec_mdps import exact, product, random_worlds, subsets, trap_worlds, tv, uniform

GAMMA, DISTANCE = 0.9, 0.01  # discount and TV_i in panels (a) and (b)
PAIR = (0.04, 0.3)  # panel (c): the chances of an agent's rarer action in the data and by its policy
PAIRS = list(pairs_of((0.04, 0.1, 0.2, 0.3, 0.5), (0.0, 0.1, 0.3, 0.5, 0.7, 0.9, 1.0)))
TEAMS, SIZES = list(range(1, 13)), {"k = 1": 1, "k = n": None}


def curves(agents, seed):
    """The three panels' curves; those of several worlds or pairs as [lowest, mean, highest]."""
    generator = torch.Generator().manual_seed(seed)
    world = random_worlds(generator, 20, states=3, agents=agents, gamma=GAMMA)
    rare = 0.001 + 0.002 * uniform(generator, 20, agents, 3, 1)
    logged = torch.cat([1 - rare, rare], -1)
    policies = logged + exact([-DISTANCE, DISTANCE])
    world = replace(world, behaviour=product(logged), policies=policies)
    before = world.occupancy(world.behaviour)
    moved, ratio = ([[] for _ in range(agents)] for _ in range(2))
    for subset in subsets(agents):
        actions = world.replaced(subset)
        moved[len(subset) - 1].append(tv(world.occupancy(actions), before))
        ratio[len(subset) - 1].append((actions / world.behaviour).amax((1, 2)))
    moved, ratio = ([spread(torch.cat(values)) for values in curve] for curve in (moved, ratio))
    worst = trap_worlds(agents, [GAMMA], [DISTANCE])
    count = list(range(1, agents + 1))
    found = dict(replaced=count, moved=moved, ratio=ratio, linear=[ratio[0][2] * k for k in count])
    found |= dict(worst=[float(worst.moved(range(k))) for k in count])
    found |= dict(lemma1=[GAMMA / (1 - GAMMA) * DISTANCE * k for k in count], teams=TEAMS)
    found |= dict(pair={name: [samples_needed(*PAIR, n, k or n) for n in TEAMS] for name, k in SIZES.items()})
    for_pairs = lambda k, n: spread([samples_needed(*pair, n, k or n) for pair in PAIRS])  # noqa: E731
    found |= dict(pairs={name: [for_pairs(k, n) for n in TEAMS] for name, k in SIZES.items()})
    return found | dict(uniform=[samples_needed(0.5, 0.3, n, 1) for n in TEAMS])


def spread(values):
    """[lowest, mean, highest]."""
    values = exact(values)
    return [float(values.min()), float(values.mean()), float(values.max())]


def samples_needed(rare, act, num, k, unseen=0.1):
    """The least number M of samples of mu at a state that leave at most a share `unseen` of the queries
    a'^(k) unlogged, exactly: E (1 - mu(q))^M over fresh queries q. Each of `num` agents takes the second of
    two actions with chance `rare` in the data, `act` by policy."""
    chances = [binom.pmf(range(m + 1), m, chance) for m, chance in ((k, act), (num - k, rare))]
    seconds = np.convolve(*chances)  # how many agents take it in a query
    logged = [rare**c * (1 - rare) ** (num - c) for c in range(num + 1)]

    def missing(samples):
        return sum(p * math.exp(samples * math.log1p(-mu)) for p, mu in zip(seconds, logged, strict=True))

    return bisect_left(range(2**60), True, key=lambda samples: missing(samples) <= unseen)


def draw(figure, data):
    """Three panels, each readable without the text."""
    left, middle, right = figure.subplots(1, 3)
    for ax, name in ((left, "moved"), (middle, "ratio")):
        low, mean, high = zip(*data[name], strict=True)
        ax.plot(data["replaced"], mean, "C0o-", ms=3, label="random worlds, exact: mean and range")
        ax.fill_between(data["replaced"], low, high, color="C0", alpha=0.2, lw=0)
    left.plot(data["replaced"], data["worst"], "C3o-", ms=3, label="the worst world, exact")
    left.plot(
        data["replaced"], data["lemma1"], "k--", label=r"Lemma 1: $\frac{\gamma}{1-\gamma} \sum_S TV_i$"
    )
    middle.plot(data["replaced"], data["linear"], "k--", label="a linear curve, to compare")
    for (name, curve), color in zip(data["pair"].items(), ("C0", "C3"), strict=True):
        low, _, high = zip(*data["pairs"][name], strict=True)
        right.plot(
            data["teams"], curve, f"{color}o-", ms=3, label=f"{name}, near-expert data; band: other pairs"
        )
        right.fill_between(data["teams"], low, high, color=color, alpha=0.15, lw=0)
    right.plot(data["teams"], data["uniform"], "k--", label="every k, uniform data")
    facts, replaced = f"$\\gamma$ = {GAMMA}, $TV_i$ = {DISTANCE}", "|S|, agents that act by policy"
    left.set(ylim=(0, 1), ylabel="$W_1$ of state occupancies", xlabel=replaced)
    left.set_title(f"(a) Occupancies move at most linearly\n{facts}")
    middle.set(yscale="log", ylabel="largest ratio of joint action probabilities", xlabel=replaced)
    middle.set_title(f"(b) Densities multiply\n{facts}")
    right.set(yscale="log", ylabel="logged samples at a state", xlabel="n, agents")
    right.set_title("(c) Data that contain 90% of the queries $a'^{(k)}$\ntwo actions per agent")
    for ax in (left, middle, right):
        ax.legend(fontsize=7, loc="upper left")
