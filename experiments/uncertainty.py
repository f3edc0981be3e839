"""Which estimate of uncertainty tells joint actions outside the data from logged ones, in finished runs.

    python -m experiments.uncertainty runs/NAME ...    # run folders of either script

On fresh transitions the run's target actors replace k agents of the logged next joint action, as in equation
(1). The estimates of a joint action a at a state s:
    std         deviation over the members of Q_j(s, a): the paper's u_k
    likelihood  minus the log-likelihood of a at s, under the model of data/mixes.py fitted to the data
    neighbour   distance of (s, a) to the nearest of some logged pairs
results/csv/uncertainty.csv gets a row for each seed, size k and estimate: auroc, the chance that u of a
replaced joint action exceeds u of a logged one; auroc_uniform, the same with uniform actions in place of the
actors'. Letters as in the scripts.
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
from tqdm import tqdm

import spacql
from data import mixes
from data.datasets import load_dataset, simulated_name
from experiments.enjoy import load_team
from utils.errors import InputError
from utils.files import TOP, atomic, parse, run_script

OUT = TOP / "results" / "csv" / "uncertainty.csv"
FRESH_SEED, FRESH_SIZE, STATES = 10_000, 200_000, 4000  # added to the data's; transitions; looked at
PAIRS = 2048  # logged ones


@dataclass(frozen=True)
class Args:
    """Judge the estimates in finished runs."""

    folders: tyro.conf.Positional[tuple[Path, ...]]  # run folders of either script


def as_integers(script, actions):
    """Joint actions [rows, N, A] as the model of the behaviour takes them: integers [rows, N], and below
    which number."""
    return mixes.as_integers(actions.argmax(-1) if script is spacql else actions)


@torch.no_grad()
def surprise(model, state, actions):
    """Minus the log-likelihoods [rows] of joint actions [rows, N], as integers, at states [rows, D]."""
    log_w, log_p = mixes.log_mixture(model, state, actions)
    return -(log_w + log_p.sum(1)).logsumexp(0)


def distance(pairs, state, joint):
    """Distances [rows] of states [rows, D] and joint actions [rows, N * A] to the nearest of the pairs, each
    in units of its own root mean squared distance between pairs."""
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
        std=script.uncertainty(q),
        likelihood=surprise(model, states, as_integers(script, rows)[0]).view(joint.shape[:3]),
        neighbour=distance(pairs, states, rows.flatten(1)).view(joint.shape[:3]),
    )


def detection(u, uniform, k):
    """The columns for size k of an estimate u [1 + N, B], k = 0 as logged, and of that of uniform actions."""
    asked = dict(auroc=u, auroc_uniform=uniform)
    return {name: mannwhitneyu(x[k], u[0]).statistic / u.shape[1] ** 2 for name, x in asked.items()}


def judge(folder):
    """The rows of a run folder."""
    script, args, saved, worlds = load_team(folder)
    if args.num_critics == 1 or not saved["critic"]:
        raise InputError(f"{folder}: without several critics there is no spread")
    if simulated_name(args.env_id, args.dataset) is None:
        raise InputError(f"no fresh data like {args.dataset}: it has to be a dataset with a name")
    others = {name: getattr(args, name, None) for name in ("prey", "policies")} | dict(folder=args.data_dir)
    source = partial(load_dataset, args.env_id, args.dataset, action_kind=worlds(1).action_kind, **others)
    known, _, actions, *_ = script.prepare(source(args.dataset_size, args.data_seed), "cpu")[0]
    fresh = script.prepare(source(FRESH_SIZE, args.data_seed + FRESH_SEED), "cpu")[0]
    torch.manual_seed(0)
    model, some = mixes.fit(known, *as_integers(script, actions), 0), torch.randperm(len(known))[:PAIRS]
    pairs = known[some], actions[some].flatten(1)
    generators = [torch.Generator().manual_seed(args.seed + s) for s in range(args.num_seeds)]
    index = script.per_seed(torch.randint, generators, len(fresh[0]), (STATES,))
    state, obs, logged = (x[index] for x in fresh[4:])  # their own scale is the run's but for chance
    found = []
    for joint in replaced(script, saved["target_actor"], obs, logged, generators):
        critic = [p.double() for p in saved["critic"]]
        q = script.critic_values(critic, state.double(), joint.double())
        found.append(estimates(script, q, model, pairs, state, joint))
    names, rows = ("env_id", "dataset", "backup"), []
    head = dict(run=folder.name, script=script.SCRIPT) | {name: getattr(args, name) for name in names}
    for s, name, k in itertools.product(range(args.num_seeds), found[0], range(1, logged.shape[2] + 1)):
        row = detection(*(u[name][s].T for u in found), k)
        rows.append(head | dict(rounds=saved["round"], seed=args.seed + s, k=k, detector=name) | row)
    return pd.DataFrame(rows).round(6)


def main(argv=None):
    """Judge the runs on the command line."""
    folders = parse(Args, argv, description="\n".join(__doc__.splitlines()[:4])).folders
    if not folders:
        raise InputError("say which runs: python -m experiments.uncertainty runs/NAME ...")
    tables = [pd.read_csv(OUT)] if OUT.is_file() else []
    tables += [judge(folder) for folder in tqdm(folders, unit="run", file=sys.stderr)]
    rows = pd.concat(tables).drop_duplicates(["run", "seed", "k", "detector"], keep="last")
    with atomic(OUT) as partial_path:
        rows.to_csv(partial_path, index=False)


if __name__ == "__main__":
    run_script("experiments.uncertainty", main)
