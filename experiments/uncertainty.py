"""Which estimate of uncertainty tells joint actions outside the data from logged ones, in finished runs.

    python -m experiments.uncertainty runs/NAME ...    # run folders of either script

On fresh transitions (simulated from another seed) the run's own target actors replace k agents of the logged
next joint action, as in equation (1). The estimates of a joint action a at a state s:
    std         deviation over the members of Q_j(s, a): the paper's u_k
    range       the largest member minus the smallest
    relative    deviation over the members of Q_j(s, a) - Q_j(s, a'), a' the logged joint action
    likelihood  minus the log-likelihood of a at s, under a model of the behaviour fitted to the data
    neighbour   distance of (s, a) to the nearest of some logged pairs
results/csv/uncertainty.csv gets a row for each seed, size k and estimate: auroc, the chance that u of a
replaced joint action exceeds u of a logged one, ties counted half; auroc_uniform, the same with uniform
actions in place of the actors'; above_k1, the chance that u_k exceeds u_1 at the state. `relative`, 0 for
logged actions by definition, has only this. Letters as in the scripts; F choices make a joint action.
"""

import itertools
import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pandas as pd
import torch
import tyro
from scipy.stats import mannwhitneyu
from torch import nn
from torch.nn.functional import cross_entropy
from tqdm import tqdm

import spacql
from data.datasets import load_dataset, simulated_name
from experiments.enjoy import load_team
from utils.errors import InputError
from utils.files import TOP, atomic, parse, run_script

OUT = TOP / "results" / "csv" / "uncertainty.csv"
FRESH_SEED, FRESH_SIZE, STATES = 10_000, 200_000, 4000  # added to the data's; transitions; looked at
BINS, PAIRS = 7, 2048  # of a number in [-1, 1]; logged pairs
STEPS, BATCH, RATE = 600, 512, 0.005  # of the model of the behaviour
DOUBT = 0.01  # share of each of its choices that is taken to be uniform: nothing is impossible


@dataclass(frozen=True)
class Args:
    """Judge the estimates in finished runs."""

    folders: tyro.conf.Positional[tuple[Path, ...]]  # run folders of either script


def as_choices(script, actions):
    """Joint actions [rows, N, A] as choices [rows, F], and how many values a choice has."""
    if script is spacql:
        return actions.argmax(-1), actions.shape[-1]
    return ((actions.flatten(1) + 1) / 2 * BINS).long().clamp(0, BINS - 1), BINS


def fit_behaviour(state, choices, values):
    """A network of logits [rows, F * V] of choices [rows, F] at states [rows, D]. It takes choices at a state
    for independent, as those of agents with policies of their own are."""
    first, second, last = (
        nn.Linear(state.shape[1], 64),
        nn.Linear(64, 64),
        nn.Linear(64, choices.shape[1] * values),
    )
    network = nn.Sequential(first, nn.ReLU(), second, nn.ReLU(), last)
    adam = torch.optim.Adam(network.parameters())
    for step in range(STEPS):
        index = torch.randint(len(state), (BATCH,))
        adam.param_groups[0]["lr"] = RATE * (1 - step / STEPS)
        adam.zero_grad()
        cross_entropy(network(state[index]).view(-1, values), choices[index].flatten()).backward()
        adam.step()
    return network.requires_grad_(False)


def surprise(network, state, choices, values):
    """Minus the log-likelihoods [rows] of choices [rows, F] at states [rows, D], all above 0."""
    probabilities = network(state).unflatten(1, (-1, values)).softmax(-1)
    likelihood = probabilities.gather(2, choices.unsqueeze(2)).squeeze(2)
    return -((1 - DOUBT) * likelihood + DOUBT / values).log().sum(1)


def distance(pairs, state, joint):
    """Distances [rows] of states [rows, D] and joint actions [rows, N * A] to the nearest of the pairs, each
    of the two in units of its root mean squared distance between pairs."""
    units = [(2 * part.var(0, correction=0).sum()).sqrt().clamp(min=1e-6) for part in pairs]
    known, asked = (torch.cat([s / units[0], a / units[1]], dim=1) for s, a in (pairs, (state, joint)))
    return torch.cdist(asked, known).amin(1)


def replaced(script, actor, obs, logged, generators):
    """a'^(k) for k = 0..N, [S, B, 1 + N, N, A], of logged actions [S, B, N, A]: by the actors at observations
    [S, B, N, O], and by uniform actions."""
    sizes = torch.arange(logged.shape[2] + 1)
    sampled = script.sample_policy(actor, obs, len(sizes), generators)
    uniform = 2 * script.per_seed(torch.rand, generators, sampled.shape[1:]) - 1
    if script is spacql:
        uniform = script.one_hot(uniform.argmax(-1))
    order = script.per_seed(torch.rand, generators, sampled.shape[1:4])
    return [script.partial_replacement(logged, policy, order, sizes) for policy in (sampled, uniform)]


def estimates(script, q, model, pairs, state, joint):
    """{name: u [S, B, 1 + N]} of joint actions [S, B, 1 + N, N, A] with values q [S, E, B, 1 + N]."""
    rows, states = joint.flatten(0, 2), state.repeat_interleave(joint.shape[2], dim=1).flatten(0, 1)
    return dict(
        std=q.std(1, correction=0),
        range=q.amax(1) - q.amin(1),
        relative=(q - q[..., :1]).std(1, correction=0),
        likelihood=surprise(model, states, *as_choices(script, rows)).view(joint.shape[:3]),
        neighbour=distance(pairs, states, rows.flatten(1)).view(joint.shape[:3]),
    )


def detection(u, uniform, k):
    """The columns for size k of an estimate u [1 + N, B], k = 0 as logged, and of that of uniform actions."""
    pairs = u.shape[1] ** 2
    above = (u[k] > u[1]) + (u[k] == u[1]) / 2
    return dict(
        auroc=mannwhitneyu(u[k], u[0]).statistic / pairs,
        auroc_uniform=mannwhitneyu(uniform[k], u[0]).statistic / pairs,
        above_k1=float(above.double().mean()),
    )


def judge(folder):
    """The rows of a run folder."""
    script, args, saved, worlds = load_team(folder)
    if args.num_critics == 1 or not saved["critic"]:
        raise InputError(f"{folder}: without several critics there is no spread")
    if simulated_name(args.env_id, args.dataset) is None:
        raise InputError(f"no fresh data like {args.dataset}: it has to be a dataset with a name")
    kind = worlds(1).action_kind
    source = partial(load_dataset, args.env_id, args.dataset, folder=args.data_dir, action_kind=kind)
    known, _, actions, *_ = script.prepare(source(args.dataset_size, args.data_seed), "cpu")[0]
    fresh = script.prepare(source(FRESH_SIZE, args.data_seed + FRESH_SEED), "cpu")[0]
    torch.manual_seed(0)
    model, some = fit_behaviour(known, *as_choices(script, actions)), torch.randperm(len(known))[:PAIRS]
    pairs = known[some], actions[some].flatten(1)
    generators = [torch.Generator().manual_seed(args.seed + s) for s in range(args.num_seeds)]
    index = script.per_seed(torch.randint, generators, len(fresh[0]), (STATES,))
    state, obs, logged = (x[index] for x in fresh[4:])  # their own scale is the run's but for chance
    centred = dict(centred=True) if args.env_id in getattr(script, "CENTRED", ()) else {}
    found = []
    for joint in replaced(script, saved["target_actor"], obs, logged, generators):
        critic = [p.double() for p in saved["critic"]]
        q = script.critic_values(critic, state.double(), joint.double(), **centred)
        found.append(estimates(script, q, model, pairs, state, joint))
    head = dict(run=folder.name, script=script.SCRIPT, env_id=args.env_id, dataset=args.dataset)
    head |= dict(backup=args.backup, rounds=saved["round"])
    rows = []
    for s, name, k in itertools.product(range(args.num_seeds), found[0], range(1, logged.shape[2] + 1)):
        row = detection(*(u[name][s].T for u in found), k)
        if name == "relative":
            row |= dict(auroc=None, auroc_uniform=None)
        rows.append(head | dict(seed=args.seed + s, k=k, detector=name) | row)
    return pd.DataFrame(rows).round(6)


def main(argv=None):
    """Judge the runs on the command line."""
    folders = parse(Args, argv, description="\n".join(__doc__.splitlines()[:4])).folders
    if not folders:
        raise InputError("say which runs: python -m experiments.uncertainty runs/NAME ...")
    table = pd.read_csv(OUT) if OUT.is_file() else None
    for folder in tqdm(folders, unit="run", file=sys.stderr):
        found = judge(folder)
        table = found if table is None else pd.concat([table[table["run"] != folder.name], found])
        with atomic(OUT) as partial_path:
            table.to_csv(partial_path, index=False)


if __name__ == "__main__":
    run_script("experiments.uncertainty", main)
