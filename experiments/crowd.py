"""Near-expert data of more agents: python -m experiments.crowd writes datasets/crowd-2500.h5 and
datasets/crowd-25000.h5 (transitions), which spacql.py takes.

Six agents of simple_spread go to a landmark each; a tenth of their moves is uniform. Without these: 100.
"""

import torch

from data.behaviour import play
from data.datasets import Dataset, write_dataset
from data.mixes import Mix
from envs import make_env
from envs.shipped import rollout
from utils.files import TOP, atomic, run_script, say

ENV_ID, NUM_AGENTS, NOISE, SIZES = "simple_spread", 6, 0.1, (2500, 25_000)
EPISODES = 4000  # behind each of the two scores
BRAKING = 0.2  # seconds for which an agent looks ahead


def go(obs, generator=None):
    """Moves [W, N] on observations [W, N, O]: agent i on to landmark i along the longer axis."""
    each = torch.arange(NUM_AGENTS)
    velocity, landmarks = obs[..., :2], obs[..., 4 : 4 + 2 * NUM_AGENTS].unflatten(-1, (-1, 2))
    way = landmarks[:, each, each] - BRAKING * velocity  # [W, N, 2]
    axis = way.abs().argmax(-1)
    ahead = way.gather(-1, axis.unsqueeze(-1)).squeeze(-1) > 0
    return 1 + 2 * axis + ahead.long()  # -x, +x, -y, +y


def main() -> None:
    worlds = make_env(ENV_ID, EPISODES, NUM_AGENTS, seed=0)
    scores = [float(play(worlds, team, seed=1).mean()) for team in (None, go)]
    facts = dict(env_id=ENV_ID, quality="expert", action_kind="discrete")
    facts |= dict(random_score=scores[0], expert_score=scores[1])
    near = Mix(share=0.0, noise=NOISE, teams=(go,))
    for size in SIZES:
        worlds = make_env(ENV_ID, size // worlds.horizon, NUM_AGENTS, seed=size)
        found = Dataset(**rollout(worlds, near, torch.Generator().manual_seed(size)), facts=facts)
        path = TOP / f"datasets/crowd-{size}.h5"
        with atomic(path) as partial:
            write_dataset(partial, found)
        say(f"{path}: mean return {found.mean_return:.1f}; random {scores[0]:.1f}, expert {scores[1]:.1f}")


if __name__ == "__main__":
    run_script("experiments.crowd", main)
