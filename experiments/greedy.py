"""Whether critics or actors of the original recipe have collapsed: scores of the actors, and of teams whose
every agent takes the action of a grid that the critics like best, the others as the actors have it.

    python -m experiments.greedy runs/NAME ... > greedy.csv
"""

import itertools
import sys

import pandas as pd
import torch

import spacql_continuous as ours
from data.datasets import find_prey, load_dataset, normalise
from envs import make_env
from experiments.original_recipe import Args, batch_norm, moments
from utils import runs

GRID = torch.tensor(list(itertools.product(torch.linspace(-1, 1, 7).tolist(), repeat=2)))  # [49, A]
STATES = 1000


def judge(folder):
    """A row for each seed of a run."""
    folder, saved = runs.load_checkpoint(folder)
    args = Args(**saved["args"])
    simulated = args.dataset_size, args.data_seed, args.data_dir, ours.KIND, args.prey, args.policies
    dataset, prey = load_dataset(args.env_id, args.dataset, *simulated), find_prey(args)
    actor, critic = ([p.detach() for p in saved[name]] for name in ("actor", "critic"))
    of_obs, of_actions = saved["scale"], moments(dataset.actions.flatten(2), (0, 1))
    of_states, num = [x.flatten(2) for x in of_obs], dataset.actions.shape[2]
    width = of_states[0].shape[-1]
    plain = args.norm_actions == "none"

    def act(obs):
        learned = (p.transpose(1, 2) for p in actor[6:])
        return ours.actor_outputs(actor[:6], batch_norm(obs, of_obs, *learned)).tanh()

    def q_values(state, joint):
        state = batch_norm(state.unsqueeze(2), of_states, *(p[..., :width] for p in critic[6:])).squeeze(2)
        known = (0.0, 1.0) if plain else of_actions
        joint = batch_norm(joint.flatten(3), known, *(p[..., width:] for p in critic[6:]))
        return ours.critic_values(critic[:6], state, joint).mean(1)

    def greedy(obs):
        policy, state, best = act(obs), obs.flatten(2), []
        for i in range(num):
            joint = policy.unsqueeze(2).repeat(1, 1, len(GRID), 1, 1)
            joint[:, :, :, i] = GRID
            best.append(GRID[q_values(state, joint).argmax(-1)])
        return torch.stack(best, 2)

    world = dict(num_agents=num, action_kind=ours.KIND, prey=prey)
    env = make_env(args.env_id, args.num_seeds * STATES, **world)
    scores = [
        normalise(ours.evaluate(x, env, args.num_seeds, ours.EVAL_SEED).mean(1), dataset.facts)
        for x in (act, greedy)
    ]
    some = torch.randperm(len(dataset.actions), generator=torch.Generator().manual_seed(0))[:STATES]
    obs, logged = (
        x[some, 7].expand(args.num_seeds, -1, -1, -1) for x in (dataset.observations, dataset.actions)
    )
    asked = logged.clone().requires_grad_()
    (slope,) = torch.autograd.grad(q_values(obs.flatten(2), asked.unsqueeze(2)).sum(), asked)
    common = (slope.mean(1).square() / slope.square().mean(1)).mean((1, 2))
    means = [x(obs).mean(1).abs().mean((1, 2)) for x in (act, greedy)]
    columns = dict(
        actors=scores[0], greedy=scores[1], common_slope=common, actors_mean=means[0], greedy_mean=means[1]
    )
    rows = pd.DataFrame({name: values.tolist() for name, values in columns.items()})
    return rows.assign(
        run=folder.name, round=saved["round"], seed=range(args.seed, args.seed + args.num_seeds)
    ).round(3)


tables = [judge(folder) for folder in sys.argv[1:]]
pd.concat(tables).set_index("run").to_csv(sys.stdout)
