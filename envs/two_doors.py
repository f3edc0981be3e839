"""A small game in which coordination is everything: two doors, and two equal conventions which one to take.

N = 3 agents stand on a corridor of cells -2 .. 2, all on 0 at first. Actions are those of the particle
worlds: -x and +x move by one cell (walls stop at the ends), the other three stay. Then, with probability 0.1,
a gust throws everybody back to cell 0. At each step everybody gets 1 if all three stand at the same door,
cell -2 or cell 2, else 0. "Everybody left" and "everybody right" are equally good, and a team that mixes them
gets nothing; the gusts pose the question anew some 2.5 times an episode. Observations are the own cell / 2
and the other agents' cells relative to it / 4, in order.

`optimal_score` and `random_score` are exact: the game has 5^3 states.

Array letters: W worlds, N agents, Z states, M joint moves.
"""

import itertools

import numpy as np
import torch

from envs.particles import HORIZON, NUM_ACTIONS, check_actions, others_of
from utils.errors import InputError

ENV_ID = "two_doors"
NUM_AGENTS = 3
DOOR = 2  # the doors are the cells -DOOR and DOOR
GUST = 0.1
MOVES = (0, -1, 1, 0, 0)  # of the actions stay, -x, +x, -y, +y
LEFT, RIGHT = 1, 2  # the actions that move


class TwoDoors:
    """num_worlds games stepped together, with the methods of Worlds that rollouts and evaluations use.

    seed: fixes all later gusts. Raises InputError for another number of agents.
    The state may be read and assigned: cells [W, N], integers -2 .. 2.
    """

    env_id, action_kind, horizon, num_learners, prey = ENV_ID, "discrete", HORIZON, NUM_AGENTS, None
    obs_dim, action_dim = NUM_AGENTS, NUM_ACTIONS

    def __init__(self, num_worlds, num_agents=NUM_AGENTS, device="cpu", seed=0):
        if num_agents != NUM_AGENTS:
            raise InputError(f"{ENV_ID} has {NUM_AGENTS} agents, not {num_agents}")
        self.num_worlds, self.device = num_worlds, torch.device(device)
        self.generator = torch.Generator(self.device).manual_seed(seed)
        self.moves = torch.tensor(MOVES, device=self.device)
        self.others = others_of(NUM_AGENTS).to(self.device)
        self.reset()

    def reset(self, seed=None, copies=1):
        """Start every game anew; returns observations [W, N, O].

        seed: starts the random numbers anew. copies: W / copies different sequences of gusts until the next
        reset, the whole list repeated `copies` times, so that several teams are compared under the same ones.
        """
        if seed is not None:
            self.generator.manual_seed(seed)
        self.copies = copies
        self.cells = torch.zeros((self.num_worlds, NUM_AGENTS), dtype=torch.int64, device=self.device)
        return self._observe()

    def _observe(self):
        others = self.cells[:, self.others] - self.cells.unsqueeze(-1)  # [W, N, N - 1]
        return torch.cat([self.cells.unsqueeze(-1) / DOOR, others / (2 * DOOR)], dim=-1)

    def step(self, actions):
        """Move by `actions` [W, N], integers 0..4; returns observations [W, N, O] and rewards [W, N]."""
        shape = (self.num_worlds, NUM_AGENTS)
        check_actions(actions, shape, self.action_kind)
        cells = (self.cells + self.moves[actions]).clamp(-DOOR, DOOR)
        draws = torch.rand(self.num_worlds // self.copies, generator=self.generator, device=self.device)
        gust = draws.repeat(self.copies) < GUST  # [W]
        self.cells = torch.where(gust.unsqueeze(1), 0, cells)
        together = ((self.cells == -DOOR).all(1) | (self.cells == DOOR).all(1)).float()
        return self._observe(), together.unsqueeze(1).expand(shape)


def backward_induction(weigh) -> float:
    """The exact expected return of an episode; weigh: values [Z, M] of the M = 3^N joint moves -> [Z]."""
    states = np.array(list(itertools.product(range(-DOOR, DOOR + 1), repeat=NUM_AGENTS)))  # [Z, N]
    moves = np.array(list(itertools.product((-1, 0, 1), repeat=NUM_AGENTS)))  # [M, N]
    reached = (states[:, None] + moves).clip(-DOOR, DOOR)  # [Z, M, N]
    place = (reached + DOOR) @ (2 * DOOR + 1) ** np.arange(NUM_AGENTS)[::-1]  # [Z, M], in `states`
    start = len(states) // 2  # the state in the middle: all on cell 0
    rewards = (np.abs(states.sum(1)) == DOOR * NUM_AGENTS).astype(float)
    values = np.zeros(len(states))  # of what is left of the episode
    for _ in range(HORIZON):
        worth = rewards + values
        values = weigh((1 - GUST) * worth[place] + GUST * worth[start])
    return float(values[start])


def optimal_score() -> float:
    """What the best team scores, as one that follows either convention: no joint policy has more."""
    return backward_induction(lambda values: values.max(1))


def random_score() -> float:
    """What uniform random actions score: each agent moves left or right with 1 / 5 each."""
    one = np.array([MOVES.count(move) for move in (-1, 0, 1)]) / len(MOVES)
    joint = np.array([np.prod(p) for p in itertools.product(one, repeat=NUM_AGENTS)])  # [M]
    return backward_induction(lambda values: values @ joint)


def walk(action: int):
    """A team of which everybody always plays `action`: observations [W, N, O] -> actions [W, N]."""
    return lambda obs, generator: torch.full(obs.shape[:2], action, device=obs.device)
