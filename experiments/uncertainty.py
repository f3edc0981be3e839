"""Which estimate of uncertainty tells joint actions outside the data from logged ones, in finished runs.

    python -m experiments.uncertainty runs/NAME ...    # run folders of either script

For every seed of a run, on transitions that it was not trained on (its task and data simulated from another
seed), the run's own target actors replace k agents of the logged next joint action, as equation (1) does. The
estimates ("detectors") of a joint action a at a state s:
    std         deviation over the members of Q_j(s, a): the paper's u_k
    range       the largest member minus the smallest
    relative    deviation over the members of Q_j(s, a) - Q_j(s, a'), a' the logged joint action
    likelihood  minus the log-likelihood of a at s, in nats, under a model of the behaviour fitted to the data
    neighbour   distance of (s, a) to the nearest of some logged pairs, state and joint action counting alike
The CSV file gets a row for each seed, size k and detector, in place of those that it has of the run:
    auroc           chance that u of a replaced joint action exceeds u of a logged one, ties counted half
    auroc_changed   the same of those alone that replacement changed
    auroc_uniform   the same as auroc with uniform actions in place of the actors'
    paired          chance that u_k exceeds u of the logged joint action at the same state
    above_k1        chance that u_k exceeds u_1 at the same state
    changed         share of the joint actions that replacement changed
All but the last two are empty for `relative`, which is 0 for logged joint actions by definition.

Letters as in the scripts, and: F choices that a joint action is made of (each agent's action, or each number
of its forces, in bins), V values of a choice, P logged pairs.
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
from torch.nn.functional import cross_entropy, one_hot
from tqdm import tqdm

from data.datasets import load_dataset, simulated_name
from envs.shipped import init_mlp, mlp
from experiments.enjoy import load_team
from utils.errors import InputError
from utils.files import atomic, parse, run_script

FRESH_SEED = 10_000  # added to a run's data seed
BINS = 7  # of a number in [-1, 1]
HIDDEN, STEPS, BATCH, RATE = 64, 600, 512, 0.005  # of the model of the behaviour
DOUBT = 0.01  # share of each of its choices that is taken to be uniform: nothing is impossible
PAIRS = 2048  # [P]
AGAINST_LOGGED = ("auroc", "auroc_changed", "auroc_uniform", "paired")


@dataclass(frozen=True)
class Args:
    """Judge the detectors in finished runs."""

    folders: tyro.conf.Positional[tuple[Path, ...]]  # run folders of either script
    states: int = 4000  # fresh transitions for each seed
    transitions: int = 50_000  # size of the dataset that they are drawn from
    data_dir: str = "datasets"  # of simulated data
    out: Path = Path("results/csv/uncertainty.csv")


def as_choices(actions, kind):
    """Joint actions [..., N, A] as the choices [..., F] that they are made of."""
    if kind == "discrete":
        return actions.argmax(-1)
    return ((actions.flatten(-2) + 1) / 2 * BINS).long().clamp(0, BINS - 1)


def fit_behaviour(state, choices, values, generator):
    """F stacked networks, [W, b, ...] of [F, in, out], fitted to states [rows, D] and choices [rows, F].
    Number f sees the state and the choices before f: its first weights are 0 for the others."""
    dim, count = state.shape[1], choices.shape[1]
    place = torch.arange(count)
    earlier = (place < place[:, None]).repeat_interleave(values, dim=1)  # [F, F * V]
    seen = torch.cat([torch.ones(count, dim), earlier], dim=1).unsqueeze(-1)  # [F, D + F * V, 1]
    params = init_mlp(count, (dim + count * values, HIDDEN, HIDDEN, values), generator)
    adam = torch.optim.Adam([p.requires_grad_() for p in params], fused=True)
    for step in range(STEPS):
        index = torch.randint(len(state), (BATCH,), generator=generator)
        inputs = torch.cat([state[index], one_hot(choices[index], values).flatten(1)], dim=1)
        logits = mlp([params[0] * seen, *params[1:]], inputs.expand(count, -1, -1))  # [F, BATCH, V]
        loss = cross_entropy(logits.flatten(0, 1), choices[index].T.flatten(), reduction="sum") / BATCH
        adam.zero_grad()
        loss.backward()
        adam.param_groups[0]["lr"] = RATE * (1 - step / STEPS)
        adam.step()
    return [p.detach() for p in (params[0] * seen, *params[1:])]


def surprise(model, state, choices):
    """Minus the log-likelihoods [B, K] of choices [B, K, F] at states [B, D], all above 0."""
    (batch, sizes, count), values = choices.shape, model[-1].shape[-1]
    inputs = torch.cat([state.unsqueeze(1).expand(-1, sizes, -1), one_hot(choices, values).flatten(2)], dim=2)
    logits = mlp(model, inputs.flatten(0, 1).expand(count, -1, -1))  # [F, B * K, V]
    chosen = choices.flatten(0, 1).T.unsqueeze(-1)  # [F, B * K, 1]
    likelihood = (1 - DOUBT) * logits.softmax(-1).gather(-1, chosen) + DOUBT / values
    return -likelihood.log().sum((0, 2)).view(batch, sizes)


def distance(pairs, state, joint):
    """Distances [B, K] of states [B, D] and joint actions [B, K, N * A] to the nearest of the pairs, states
    and joint actions each in units of the root mean squared distance between two of the pairs."""
    units = [(2 * part.var(0, correction=0).sum()).sqrt().clamp(min=1e-6) for part in pairs]
    known = torch.cat([part / unit for part, unit in zip(pairs, units, strict=True)], dim=1)
    states = (state / units[0]).unsqueeze(1).expand(-1, joint.shape[1], -1)
    asked = torch.cat([states, joint / units[1]], dim=2).flatten(0, 1)  # [B * K, D + W]
    return torch.cdist(asked, known).amin(1).view(joint.shape[:2])


def auroc(low, high):
    """Chance that a number of `high` exceeds one of `low`, ties counted half. NaN where one is empty."""
    if not (len(low) and len(high)):
        return float("nan")
    return float(mannwhitneyu(high, low).statistic) / (len(high) * len(low))


def above(first, second):
    """Chance that `first` exceeds `second` element by element, ties counted half."""
    return float(((first > second).double() + (first == second).double() / 2).mean())


def detection(u, u_uniform, changed, k):
    """The columns for size k of a detector: u, u_uniform and changed are [B, 1 + N], k = 0 as logged."""
    numbers = dict(
        auroc=auroc(u[:, 0], u[:, k]),
        auroc_changed=auroc(u[:, 0], u[changed[:, k], k]),
        auroc_uniform=auroc(u[:, 0], u_uniform[:, k]),
        paired=above(u[:, k], u[:, 0]),
        above_k1=above(u[:, k], u[:, 1]),
        changed=float(changed[:, k].double().mean()),
    )
    return {name: round(number, 6) for name, number in numbers.items()}


def fresh_transitions(script, trained, fresh):
    """Next states [rows, D], observations [rows, N, O] and logged actions [rows, N, A] of fresh data, on the
    scale of those that a run was trained on."""
    mean, std = script.standardise(trained.observations)[1]
    obs = (fresh.observations - mean) / std
    state = obs.flatten(2)
    if fresh.states is not None:
        mean, std = script.standardise(trained.states)[1]
        state = (fresh.states - mean) / std
    return state[:, 1:-1].flatten(0, 1), obs[:, 1:-1].flatten(0, 1), script.prepare(fresh, "cpu")[0][-1]


def replaced(script, actor, obs, logged, generator):
    """a'^(k) for k = 0..N, [1, B, 1 + N, N, A], of logged actions [1, B, N, A]: by one seed's actors at
    observations [1, B, N, O], and by uniform actions."""
    sampled = script.sample_policy(actor, obs, logged.shape[2] + 1, [generator])
    uniform = 2 * torch.rand(sampled.shape, generator=generator) - 1
    if script.SCRIPT == "spacql.py":
        uniform = script.one_hot(uniform.argmax(-1))
    order, sizes = torch.rand(sampled.shape[:4], generator=generator), torch.arange(logged.shape[2] + 1)
    return [script.partial_replacement(logged, policy, order, sizes) for policy in (sampled, uniform)]


@torch.no_grad()
def judge(script, q_values, critic, actor, transitions, measures, count, generator):
    """The rows of one seed of a run, on `count` of the transitions. q_values: the run's critic_values.
    measures: detectors that do not ask the critics, functions of states [B, D] and joint actions [B, 1 + N,
    N, A]."""
    index = torch.randint(len(transitions[0]), (1, count), generator=generator)
    state, obs, logged = (x[index] for x in transitions)
    joints, found = replaced(script, actor, obs, logged, generator), []
    changed = (joints[0] != logged.unsqueeze(2)).flatten(3).any(-1)[0]  # [B, 1 + N]
    for joint in joints:
        (q,) = q_values([p.double() for p in critic], state.double(), joint.double())  # [E, B, 1 + N]
        u = dict(std=q.std(0, correction=0), range=q.amax(0) - q.amin(0))
        u |= dict(relative=(q - q[..., :1]).std(0, correction=0))
        found.append(u | {name: measure(state[0], joint[0]) for name, measure in measures.items()})
    rows = []
    for name, k in itertools.product(found[0], range(1, logged.shape[2] + 1)):
        row = detection(found[0][name], found[1][name], changed, k)
        if name == "relative":
            row |= dict.fromkeys(AGAINST_LOGGED, "")
        rows.append(dict(k=k, detector=name) | row)
    return rows


def measures_of(script, trained, kind):
    """The detectors likelihood and neighbour, as `judge` takes them, from the data a run was trained on."""
    (state, _, actions, *_), _ = script.prepare(trained, "cpu")
    generator, values = torch.Generator().manual_seed(0), BINS if kind == "continuous" else actions.shape[-1]
    model = fit_behaviour(state, as_choices(actions, kind), values, generator)
    index = torch.randperm(len(state), generator=generator)[:PAIRS]
    pairs = state[index], actions[index].flatten(1)
    return dict(
        likelihood=lambda state, joint: surprise(model, state, as_choices(joint, kind)),
        neighbour=lambda state, joint: distance(pairs, state, joint.flatten(2)),
    )


def main(argv=None):
    """Judge the runs on the command line, seed by seed."""
    args = parse(Args, argv, description="\n".join(__doc__.splitlines()[:4]))
    table = pd.read_csv(args.out, dtype=str, keep_default_na=False) if args.out.is_file() else pd.DataFrame()
    for folder in tqdm(args.folders, unit="run", file=sys.stderr):
        script, settings, saved, worlds = load_team(folder)
        env_id, dataset, seed = settings.env_id, settings.dataset, settings.data_seed
        if settings.num_critics == 1 or not saved["critic"]:
            raise InputError(f"{folder}: without several critics there is no spread")
        if simulated_name(env_id, dataset) is None:
            raise InputError(f"no fresh data like {dataset}: only datasets with a name can be simulated anew")
        kind = worlds(1).action_kind
        trained = load_dataset(env_id, dataset, settings.dataset_size, seed, args.data_dir, kind)
        fresh = load_dataset(env_id, dataset, args.transitions, seed + FRESH_SEED, args.data_dir, kind)
        transitions, measures = fresh_transitions(script, trained, fresh), measures_of(script, trained, kind)
        q_values = script.critic_values
        if env_id in getattr(script, "CENTRED", ()):
            q_values = partial(q_values, centred=True)
        head = dict(run=folder.name, script=script.SCRIPT, env_id=env_id, dataset=dataset)
        head |= dict(backup=settings.backup, rounds=saved["round"])
        rows = []
        for s, seed in enumerate(range(settings.seed, settings.seed + settings.num_seeds)):
            critic, actor = ([p[s : s + 1] for p in saved[name]] for name in ("critic", "target_actor"))
            generator = torch.Generator().manual_seed(seed)
            found = judge(script, q_values, critic, actor, transitions, measures, args.states, generator)
            rows += [head | dict(seed=seed) | row for row in found]
        others = table[table["run"] != folder.name] if len(table) else table
        table = pd.concat([others, pd.DataFrame(rows)]).fillna("")
        with atomic(args.out) as partial_path:
            table.to_csv(partial_path, index=False)


if __name__ == "__main__":
    run_script("experiments.uncertainty", main)
