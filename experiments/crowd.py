"""Near-expert data of more agents than the tasks have: python -m experiments.crowd trains six agents of
simple_spread by PPO, in minutes, and writes datasets/crowd-2500.h5 and datasets/crowd-25000.h5, which
spacql.py takes."""

import json
from dataclasses import asdict
from functools import partial

import torch

from data.behaviour import Team, default_args, half, play, train
from data.datasets import FORMAT, Dataset, write_dataset
from data.mixes import Mix, MixedTeams
from envs import make_env
from envs.shipped import Softmax, rollout
from utils.files import TOP, atomic, run_script, say

ENV_ID, NUM_AGENTS, NOISE, SIZES = "simple_spread", 6, 0.1, (2500, 25_000)


def main() -> None:
    args = default_args(ENV_ID)
    generator = torch.Generator().manual_seed(args.seed)

    def make_worlds(num_worlds, seed):
        return make_env(ENV_ID, num_worlds, NUM_AGENTS, seed=seed)

    worlds = make_worlds(args.num_worlds, args.seed + 1)
    team = Team(worlds, range(NUM_AGENTS), args, generator)
    _, actor = train(worlds, [team], args.iterations, args, generator, f"{NUM_AGENTS} agents")[-1]
    worlds = make_worlds(args.score_episodes, args.seed + 2)
    scores = [float(play(worlds, who, args.seed).mean()) for who in (None, half(actor))]
    near = Mix(teams=1, unit="step", share=0.0, noise=NOISE)  # a tenth of all moves is uniform
    facts = dict(env_id=ENV_ID, quality="expert", action_kind="discrete", format=FORMAT, seed=args.seed)
    facts |= dict(
        random_score=scores[0], expert_score=scores[1], behaviour=json.dumps(asdict(args), default=str)
    )
    for size in SIZES:
        worlds = make_worlds(size // worlds.horizon, args.seed + size)
        player = MixedTeams(near, [partial(Softmax.act, actor)])
        found = Dataset(**rollout(worlds, player, generator), facts=facts)
        path = TOP / f"datasets/crowd-{size}.h5"
        with atomic(path) as unfinished:
            write_dataset(unfinished, found)
        say(f"{path}: mean return {found.mean_return:.1f}; random {scores[0]:.1f}, expert {scores[1]:.1f}")


if __name__ == "__main__":
    run_script("experiments.crowd", main)
