"""What the estimates of u_k are worth, and what they are made of, in trained runs: python -m experiments.uncertainty RUN...

    python -m experiments.uncertainty runs/results/*spacql*        # folders of spacql.py or spacql_continuous.py

For every seed of every run, on transitions that it was not trained on (its task and quality simulated from another
seed), the run's own target actors replace k agents of the logged next joint action, as in the backup. Two files under
--out get rows. Seeds that are in both already are left out, unless their run has gone on since.

uncertainty.csv: does an estimate tell a'^(k) from a'? A row for each size k and each estimate of experiments/estimators.py
(`detector`), without its floor:
    auroc           chance that u of a replaced joint action exceeds u of a logged one, ties counted half (Mann-Whitney)
    auroc_changed   the same of those replaced joint actions alone that are not what was logged. Above one half also for
                    actors that act as the behaviour does: what differs from a draw is less likely than the draw
    auroc_uniform   the same with uniform actions in place of the actors', changed or not: what could be told at best
    paired          chance that u_k(s') exceeds u_0(s') at the same state, ties counted half: weights compare within one
    above_k1        chance that u_k(s') exceeds u_1(s'), likewise
    changed         share of the joint actions that replacement changed
The first four say nothing of `relative`, which is 0 for logged joint actions by definition: they are empty there. Other
ways to start the members apart (--init-gain) are the detector std of other runs. The model of the behaviour and the
pairs for `neighbour` are those of seed 0.

decomposition.csv: why are the weights what they are? A row for each size k; means over states:
    u2 = common + change + twice_cov    the paper's u_k^2, split: Var_j Q_j(s', a') is common to all k; the others are
                                        Var_j of Q_j(s', a'^(k)) - Q_j(s', a'), and twice the covariance of the two
    corr_u1         correlation over states of u_k and u_1
    rel_range       (max_k u_k - min_k u_k) / mean_k u_k
    state_share     share of the variance of u over states and sizes that lies between states
    w_std_1, ...    the weight w_k by this estimate at this temperature, with its floor, as in training
Where critics centre their action inputs (--action-norm) a' is centred as a size of its own.
"""

import json
import sys
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from pathlib import Path

import torch
import tyro
from scipy.stats import rankdata
from tqdm import tqdm

import spacql
import spacql_continuous
from data.datasets import HDF5_SUFFIXES, load_dataset
from envs.particles import NUM_ACTIONS
from experiments import estimators
from experiments.records import read, write
from utils import runs
from utils.errors import InputError
from utils.files import parse, run_script, say
from utils.stacked import per_seed

FRESH_SEED = 10_000  # added to a run's data seed
WEIGHTS = (("std", 1), ("std", 4), ("std", 16), *((kind, 1) for kind in estimators.KINDS if kind != "std"))
KEY = ("run", "seed", "rounds")  # what was judged
SETTINGS = ("env_id", "dataset", "backup", "uncertainty", "weight_temperature", "init_gain")  # that rows repeat


@dataclass(frozen=True)
class Args:
    """Judge the estimates of u_k in trained runs."""

    folders: tyro.conf.Positional[tuple[Path, ...]]
    """run folders that hold a checkpoint.pt"""
    states: int = 4000
    """fresh transitions for each seed"""
    transitions: int = 50_000
    """size of the dataset that they are drawn from"""
    data_dir: Path = Path("datasets")
    """where simulated datasets are kept"""
    out: Path = Path("results")
    """where uncertainty.csv and decomposition.csv go"""


# ---------------------------------------------------------------------------------------------- measures


def auroc(low, high):
    """Chance that a number of `high` exceeds one of `low`, ties counted half; both 1-D. NaN where one is empty."""
    if not (len(low) and len(high)):
        return float("nan")
    ranks = rankdata(torch.cat([high, low]).numpy())[: len(high)]
    return float((ranks.sum() - len(high) * (len(high) + 1) / 2) / (len(high) * len(low)))


def above(first, second):
    """Chance that `first` exceeds `second` element by element, ties counted half."""
    return float(((first > second).double() + (first == second).double() / 2).mean())


def detection(u, u_uniform, changed, logged_is_zero=False):
    """The columns of uncertainty.csv, a dict for each size: u and changed [B, K + 1] with the logged joint action
    first, u_uniform [B, K + 1] with uniform actions."""
    rows = []
    for k in range(1, u.shape[1]):
        row = dict.fromkeys(("auroc", "auroc_changed", "auroc_uniform", "paired"), "")
        if not logged_is_zero:
            replaced = dict(auroc=u[:, k], auroc_changed=u[changed[:, k], k], auroc_uniform=u_uniform[:, k])
            row = {name: auroc(u[:, 0], high) for name, high in replaced.items()} | dict(paired=above(u[:, k], u[:, 0]))
        rows.append(row | dict(above_k1=above(u[:, k], u[:, 1]), changed=float(changed[:, k].double().mean())))
    return rows


def decomposition(q):
    """The columns of decomposition.csv but for weights, a dict for each size: q [E, B, K + 1], a' first."""
    logged, u = q[..., 0], q[..., 1:].std(0, correction=0)  # [E, B], [B, K]
    mean = u.mean(-1)
    rel_range = float(((u.amax(-1) - u.amin(-1)) / mean).mean())
    share = float(mean.var(correction=0) / u.var(correction=0))
    rows = []
    for k in range(u.shape[1]):
        change = q[..., k + 1] - logged
        covariance = ((logged - logged.mean(0)) * (change - change.mean(0))).mean(0)
        row = dict(u=u[:, k], u2=u[:, k].square(), common=logged.var(0, correction=0))
        row |= dict(change=change.var(0, correction=0), twice_cov=2 * covariance)
        row = {name: float(value.mean()) for name, value in row.items()}
        corr_u1 = float(torch.corrcoef(torch.stack([u[:, 0], u[:, k]]))[0, 1])
        rows.append(row | dict(corr_u1=corr_u1, rel_range=rel_range, state_share=share))
    return rows


# ------------------------------------------------------------------------------------------------- runs


def open_folder(folder):
    """The training script that a run folder is of, its checkpoint, and its settings. Raises InputError."""
    try:
        names = json.loads((folder / "args.json").read_text())
    except (OSError, ValueError) as error:
        raise InputError(f"{folder} is no run folder: cannot read its args.json ({type(error).__name__})") from None
    script = spacql_continuous if "action_norm" in names else spacql
    return script, *runs.load_checkpoint(folder, script.Args)[1:]


def scaled_like(trained, fresh):
    """`fresh` [E, T + 1, ...] standardised as a script standardises `trained`, by the latter's mean and deviation."""
    std, mean = torch.std_mean(trained, dim=(0, 1), correction=0)
    return (fresh - mean) / torch.where(std < 1e-6, 1.0, std)


@lru_cache(maxsize=1)
def load(script, env_id, dataset, size, seed, transitions, data_dir):
    """Fresh data as a script has them on the device, on the scale of those that the run was trained on; and from the
    latter, the functions of states and joint actions that do not ask critics, by kind."""
    if Path(dataset).suffix in HDF5_SUFFIXES or Path(dataset).exists():
        raise InputError(f"there are no fresh data like {dataset}: only datasets with a name can be simulated anew")
    kind = "continuous" if script is spacql_continuous else "discrete"
    read_data = partial(load_dataset, env_id, dataset, folder=data_dir, action_kind=kind)
    trained, fresh = read_data(size=size, seed=seed), read_data(size=transitions, seed=seed + FRESH_SEED)
    obs = scaled_like(trained.observations, fresh.observations)
    state = obs.flatten(2) if fresh.states is None else scaled_like(trained.states, fresh.states)
    rows = script.to_device(fresh, "cpu")[0]
    rows |= {name: x.flatten(0, 1) for name, x in dict(state=state, obs=obs).items() if name in rows}
    known = script.to_device(trained, "cpu")[0]
    makers = dict(likelihood=estimators.surprise, neighbour=estimators.distance)
    return rows, {kind: make(known, [estimators.own_generator(0, "cpu")]) for kind, make in makers.items()}


def replaced(script, actor, data, count, generator):
    """`count` transitions of the data: next states [1, B, D], logged next actions, and joint actions a'^(k) for
    k = 0..N as rows [1, B, K + 1, W], by the target actors of one seed, and by uniform actions."""
    episodes = len(data["actions"]) // data["horizon"]
    index = per_seed(torch.randint, [generator], episodes * (data["horizon"] - 1), (count,))
    *_, state, logged = script.sample_transitions(
        data, index
    )  # of forces and torques the last but one are observations
    shape = (count, logged.shape[2] + 1, *logged.shape[2:])  # [B, K + 1, N, ...]
    uniform = per_seed(torch.rand, [generator], shape)
    if script is spacql:
        logits = spacql.actor_logits(actor, state.unflatten(-1, (logged.shape[2], -1)))
        policies = [spacql.sample_actions(logits, uniform)]
        policies.append((per_seed(torch.rand, [generator], shape) * NUM_ACTIONS).long())
    else:
        *_, state, obs, logged = script.sample_transitions(data, index)
        jitter = spacql_continuous.TARGET_NOISE * per_seed(torch.randn, [generator], shape)
        outputs = spacql_continuous.actor_outputs(actor, obs)
        policies = [(outputs.tanh().unsqueeze(2) + jitter).clamp(-1, 1), 2 * uniform - 1]
    order = per_seed(torch.rand, [generator], shape[:3])
    sizes = torch.arange(shape[1])
    return state, logged, *(estimators.as_rows(script.partial_replacement(logged, p, order, sizes)) for p in policies)


@torch.no_grad()
def judge(script, args, critic, actor, fresh, measures, count):
    """The rows of both tables for one seed of a run, whose networks these are, [1, ...] each."""
    generator = torch.Generator().manual_seed(args.seed)
    state, logged, joint, uniform = replaced(script, actor, fresh, count, generator)
    changed = (joint != joint[:, :, :1]).any(-1)[0]  # [B, K + 1]
    norm = partial(spacql_continuous.batch_norm, kind=args.action_norm) if script is spacql_continuous else None
    critic = [p.double() for p in critic]
    found, weights = [], {}
    for kind in estimators.KINDS:
        if kind in measures:
            u, u_uniform = (measures[kind](state, rows) for rows in (joint, uniform))
        else:
            functions = script.uncertainty, script.critic_values, norm
            estimate = estimators.estimator(replace(args, uncertainty=kind), None, *functions, floor=0.0)
            u, u_uniform = (estimate(critic, state.double(), rows.double(), logged) for rows in (joint, uniform))
        for k, row in enumerate(detection(u[0], u_uniform[0], changed, kind == "relative"), start=1):
            found.append(dict(k=k, detector=kind) | row)
        weights[kind] = u[..., 1:] if kind in ("std", "range") else estimators.soften(u[..., 1:])
    rows = joint.double().unsqueeze(3)
    sizes = decomposition(script.critic_values(critic, state.double(), norm(rows) if norm else rows.flatten(2, 3))[0])
    for kind, temperature in WEIGHTS:
        w = script.replacement_weights(weights[kind], temperature)[0].mean(0).tolist()
        sizes = [row | {f"w_{kind}_{temperature}": w_k} for row, w_k in zip(sizes, w, strict=True)]
    return found, [dict(k=k) | row for k, row in enumerate(sizes, start=1)]


def tidy(row):
    """A row for a CSV file, its numbers to six digits."""
    return {name: f"{value:.6g}" if isinstance(value, float) else str(value) for name, value in row.items()}


def main(argv=None):
    """Judge the runs on the command line, seed by seed."""
    args = parse(Args, argv, description=__doc__)
    tables = args.out / "uncertainty.csv", args.out / "decomposition.csv"
    done = set.intersection(*({tuple(row[name] for name in KEY) for row in read(table)} for table in tables))
    for folder in tqdm(args.folders, unit="run", file=sys.stderr):
        script, saved, settings = open_folder(folder)
        if settings.num_critics == 1:
            say(f"{folder}: a single critic has no spread, left out")
            continue
        for place, seed in enumerate(range(settings.seed, settings.seed + settings.num_seeds)):
            key = folder.name, str(seed), str(saved["round"])
            if key in done:
                continue
            source = settings.env_id, settings.dataset, settings.dataset_size, settings.data_seed
            fresh, measures = load(script, *source, args.transitions, args.data_dir)
            critic, actor = ([p[place : place + 1] for p in saved[name]] for name in ("critic", "target_actor"))
            found = judge(script, replace(settings, seed=seed), critic, actor, fresh, measures, args.states)
            head = dict(zip(KEY, key, strict=True)) | dict(script=f"{script.__name__}.py")
            head |= {name: getattr(settings, name) for name in SETTINGS}
            for table, rows in zip(tables, found, strict=True):
                others = [row for row in read(table) if (row["run"], row["seed"]) != key[:2]]
                write(table, others + [tidy(head | row) for row in rows])


if __name__ == "__main__":
    run_script("experiments.uncertainty", main)
