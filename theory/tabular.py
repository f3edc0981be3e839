"""Finite datasets of Dec-MDPs, and policy evaluation on them with tables in place of networks.

    python -m theory.tabular        # results/theory/evaluation.csv and its figure, 15 minutes of a core

Where does partial replacement pay, where does its bias cost? A backup's fixed point has an error of its
own, the bias: it evaluates a mixture of policies and data. The rest of the error is that of estimation.
Members are bootstrap resamples of the dataset; rewards are centred; what a member has not seen keeps a random
prior value, an untrained network's. There is no penalty.

Array letters as in dec_mdps.py, and E members, X = S * J state-action pairs.
"""

import itertools
import sys
from dataclasses import replace

import pandas
import torch
from tqdm import tqdm

import spacql
from theory.dec_mdps import exact, product, query_kernel, random_worlds, uniform
from utils.figures import save_figure
from utils.files import TOP, atomic, run_script

CHANCE = {"near-expert": 0.96, "uniform": 0.5}  # of an agent's part of the best joint action; 0.7 by policy
SAMPLES = (30, 100, 300, 1000, 3000, 10_000, 30_000)
TEAMS = (2, 3, 4, 5, 6)
CELL = ["behaviour", "agents", "samples", "backup"]
INSTANCES = 100  # Dec-MDPs in each cell
OUT = TOP / "results/theory"


def draw_transitions(world, samples, generator):
    """Counts [I, X, X] of `samples` transitions (s, a) -> (s', a'), i.i.d. from mu's discounted occupancy."""
    mu = world.behaviour
    here = world.occupancy(mu).unsqueeze(-1) * mu  # [I, S, J]
    chances = (here[..., None, None] * world.transitions.unsqueeze(-1) * mu[:, None, None]).flatten(1)
    index = torch.multinomial(chances.clamp(min=0), samples, replacement=True, generator=generator)
    counts = torch.zeros_like(chances).scatter_add_(1, index, exact(torch.ones(index.shape)))
    return counts.unflatten(1, (here[0].numel(), -1))


def fitted_backup(world, counts, prior, q, kernel, adaptive):
    """One backup of every member: q and prior [I, E, S, J], counts [I, E, X, X], kernel [I, K, S, J, J] of
    the sizes, weighted by equation (3) where `adaptive`, else equally. Targets take the members' mean, not
    their minimum, whose pessimism would hide the rest; u_k is a mean over the queries of a logged (s', a').
    Returns the new q and the weights [I, S, J, K]."""
    values, u = (torch.einsum("iksab,isb->isak", kernel, x) for x in (q.mean(1), spacql.uncertainty(q)))
    weights = spacql.replacement_weights(u) if adaptive else torch.full_like(u, 1 / kernel.shape[1])
    targets = spacql.spacql_target(0, values.unsqueeze(1), weights, world.gamma[:, None, None])  # [I, S, J]
    visits = counts.sum(-1)
    mean = (counts @ targets.flatten(1)[:, None, :, None]).squeeze(-1) / visits.clamp(min=1)
    fitted = world.rewards.unsqueeze(1) + mean.view_as(q)
    return torch.where(visits.view_as(q) > 0, fitted, prior), weights


def evaluate(world, counts, members, prior, sizes, adaptive, sweeps=80):
    """Error of the value of the world's policies, learnt from counts [I, X, X] and members [I, E, X, X] with
    these sizes, and the bias: that of the backup's fixed point without sampling, [I] each."""
    visits = counts.sum(-1).view_as(world.rewards)
    mean = (visits * world.rewards).sum((1, 2)) / visits.sum((1, 2))
    centred = replace(world, rewards=world.rewards - mean[:, None, None])
    kernel, q = query_kernel(world.policies)[:, sizes], prior
    for _ in range(sweeps):
        q, weights = fitted_backup(centred, members, prior, q, kernel, adaptive)
    team = product(world.policies)
    true = world.value(team)
    learnt = world.guess(team, q.mean(1)) + mean / (1 - world.gamma)
    queries = torch.einsum("isa,isak,iksaq->isq", world.behaviour, weights, kernel)
    return learnt - true, world.guess(team, world.exact_critic(queries)) - true


def expert_worlds(instances, agents, chance, generator):
    """Random Dec-MDPs, g = 0.9, whose agents play their part of the best joint action with this chance in the
    data and with chance 0.7 by policy."""
    world = random_worlds(generator, instances, agents=agents, gamma=0.9)
    best = torch.zeros_like(world.start)
    for _ in range(300):
        best = world.action_values(best).amax(-1)
    joint = world.action_values(best).argmax(-1)  # [I, S]
    parts = torch.stack([joint >> (agents - 1 - i) & 1 for i in range(agents)], 1)
    logged, policies = (exact([[p, 1 - p], [1 - p, p]])[parts] for p in (chance, 0.7))
    return replace(world, behaviour=product(logged), policies=policies)


def cells():
    """By behaviour, team and dataset size the absolute errors of the backups, {(backup, quantity): [I]}."""
    for (name, chance), num, samples in itertools.product(CHANCE.items(), TEAMS, SAMPLES):
        world = expert_worlds(INSTANCES, num, chance, torch.Generator().manual_seed(0))
        generator = torch.Generator().manual_seed(samples)
        counts = draw_transitions(world, samples, generator)
        members = torch.poisson(counts.unsqueeze(1).expand(-1, 5, -1, -1), generator)  # bootstrap
        prior = 2 * uniform(generator, INSTANCES, 5, *world.rewards.shape[1:]) - 1
        everyone, found = list(range(1, num + 1)), {}
        for backup, sizes, adaptive in (("k = n", [num], 0), ("k = 1", [1], 0), ("spacql", everyone, 1)):
            error, bias = evaluate(world, counts, members, prior, sizes, adaptive)
            found |= {(backup, "error"): error.abs(), (backup, "bias"): bias.abs()}
            found[backup, "lead"] = found["k = n", "error"] - found[backup, "error"]
        yield (name, num, samples), found


def draw(figure, table):
    """A row of panels per behaviour, a column per team: error (solid) and bias (dotted) by dataset size."""
    axes = figure.subplots(len(CHANCE), len(TEAMS), sharex=True, sharey="row")
    for (name, part), row in zip(table.groupby("behaviour", sort=False), axes, strict=True):
        for (num, cell), ax in zip(part.groupby("agents"), row, strict=True):
            for color, (backup, curve) in enumerate(cell.groupby("backup", sort=False)):
                style = dict(color=f"C{color}", marker="o", ms=3)
                ax.plot(curve.samples, curve.error, label=f"{backup}: |error|", **style)
                ax.plot(curve.samples, curve.bias, ":", label=f"{backup}: |bias|", **style)
            ax.set(title=f"{name} data, n = {num}", xscale="log", xlabel="transitions")
        row[0].set(ylim=(0, None), ylabel="error of the value")
    axes[0, 0].legend(fontsize=7)


def main():
    torch.set_num_threads(1)
    lines = {}
    for cell, found in tqdm(cells(), file=sys.stderr, unit="cell"):
        for (backup, quantity), x in found.items():
            line = lines.setdefault((*cell, backup), {})
            line[quantity] = float(x.mean())
            line[f"{quantity}_half"] = 1.96 * float(x.std()) / len(x) ** 0.5  # of a 95% interval
    table = pandas.DataFrame(lines).T.rename_axis(CELL).reset_index()
    with atomic(OUT / "evaluation.csv") as partial:
        table.to_csv(partial, index=False, float_format="%.4g")
    save_figure(draw, OUT / "evaluation.png", (15, 6), table)


if __name__ == "__main__":
    run_script("theory.tabular", main)
