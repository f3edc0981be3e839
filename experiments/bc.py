"""Behaviour cloning on the data of either script: the baseline that no critic has a say in.

    python -m experiments.bc --env-id simple_spread --dataset medium                # data of spacql.py
    python -m experiments.bc --env-id simple_spread --dataset medium --continuous   # of spacql_continuous.py

Networks, data, clipping and scores are the scripts' own. An agent ascends the log-likelihood of its logged
actions, with forces it descends their squared distance, one step a round. Letters as in the scripts.
"""

import sys
import time
from dataclasses import asdict, dataclass
from functools import partial

import torch
from tqdm import tqdm

import spacql
import spacql_continuous
from data.datasets import describe, find_prey, load_dataset, normalise
from envs import make_env
from utils import runs
from utils.errors import check_numbers
from utils.files import parse, run_script, say


@dataclass(frozen=True)
class Args:
    """Sizes that are left out are those of the script that learns from such data."""

    env_id: str = "simple_spread"  # a task of the script
    dataset: str = "medium"  # a quality, a mix, an .h5 file or an OMAR folder, as the script takes it
    continuous: bool = False  # forces and torques, the data of spacql_continuous.py
    seed: int = 0  # first seed
    num_seeds: int = 1  # [S] seeds trained at once
    rounds: int | None = None  # gradient steps
    batch_size: int | None = None  # [B] rows per step
    learning_rate: float | None = None  # of Adam
    eval_every: int | None = None  # rounds between evaluations
    eval_episodes: int | None = None  # per seed and evaluation, and five times as many in the end
    dataset_size: int | None = None  # transitions to simulate for a named dataset; default the paper's
    data_dir: str = "datasets"  # of simulated data
    out: str = "runs"  # where run folders go
    name: str | None = None  # of the run folder; default by task, data and seeds
    device: str = "auto"  # auto (a GPU if there is one), cpu, cuda, cuda:1, ...


def cloning_loss(outputs, actions, continuous):
    """Of every agent, [S, N]: actors' outputs and logged actions (one-hot, or forces) are [S, B, N, A]."""
    if continuous:
        return (outputs.tanh() - actions).square().mean(-1).mean(1)
    return -(outputs.log_softmax(-1) * actions).sum(-1).mean(1)


def main(argv=None):
    """Train; prints the summary as JSON and returns it."""
    args = parse(Args, argv, description="\n".join(__doc__.splitlines()[:4]))
    check_numbers(vars(args), runs.LEAST, runs.MOST)
    device = runs.pick_device(args.device)
    script, kind = (spacql_continuous, "continuous") if args.continuous else (spacql, "discrete")
    dataset = load_dataset(args.env_id, args.dataset, args.dataset_size, 0, args.data_dir, kind)
    prey = find_prey(script.Args(args.env_id, args.dataset), device) if args.continuous else None
    num_agents, obs_dim = dataset.observations.shape[2:]
    given = {name: value for name, value in vars(args).items() if value is not None}
    del given["continuous"]
    settings = script.fill_in(script.Args(**given, cql_alpha=0.0), dataset.facts["quality"], num_agents)
    (_, obs, actions, *_), scale = script.prepare(dataset, device)

    generators = [torch.Generator(device).manual_seed(args.seed + i) for i in range(args.num_seeds)]
    sizes = (obs_dim, settings.hidden, settings.hidden, actions.shape[-1])
    actor = script.init_networks(generators, num_agents, sizes)
    adam = torch.optim.Adam([p.requires_grad_() for p in actor], settings.learning_rate, fused=True)
    policy = partial(script.play, actor, scale=scale)
    worlds = partial(make_env, args.env_id, num_agents=num_agents, device=device, action_kind=kind, prey=prey)
    env = worlds(args.num_seeds * settings.eval_episodes)
    folder = runs.claim_folder(settings, f"bc-{kind}")
    say(f"{folder}: {describe(dataset)}")
    history, start = [], time.time()
    for round_number in tqdm(range(1, settings.rounds + 1), file=sys.stderr, unit="round"):
        index = script.per_seed(torch.randint, generators, len(obs), (settings.batch_size,))  # [S, B]
        outputs = script.actor_outputs(actor, obs[index])  # [S, B, N, A]
        loss = cloning_loss(outputs, actions[index], args.continuous)  # [S, N]
        adam.zero_grad()
        loss.sum().backward()
        script.clip_gradients(actor)
        adam.step()
        if round_number % settings.eval_every == 0 or round_number == settings.rounds:
            returns = script.evaluate(policy, env, args.num_seeds, script.EVAL_SEED)
            scores = normalise(returns.mean(1), dataset.facts).tolist()
            history.append(dict(round=round_number, scores=scores, actor_loss=loss.mean(1).tolist()))

    history = {name: [point[name] for point in history] for name in history[0]}
    networks = dict(critic=[], target_critic=[], actor=actor, target_actor=actor)
    rest = dict(script=script.SCRIPT, args=asdict(settings), round=settings.rounds, scale=scale)
    rest |= dict(history=history, facts=dataset.facts)
    optimizers = dict(critic_adam=adam, actor_adam=adam)  # there are no critics; enjoy plays the actors
    runs.save_checkpoint(folder, networks, optimizers, generators, rest)
    env = worlds(script.FINAL_FACTOR * args.num_seeds * settings.eval_episodes)
    returns = script.evaluate(policy, env, args.num_seeds, script.EVAL_SEED + 1)  # [S, episodes]
    summary = dict(
        folder=str(folder),
        method="bc",
        env_id=args.env_id,
        dataset=args.dataset,
        rounds=settings.rounds,
        **runs.score_summary(args, normalise(returns.mean(1), dataset.facts)),
        data_score=round(dataset.facts["data_score"], 2),
        wall_s=round(time.time() - start, 1),
        device=str(device),
    )
    runs.save_returns(folder, settings, returns, summary, history)
    return summary


if __name__ == "__main__":
    run_script("experiments.bc", main)
