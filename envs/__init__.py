"""Worlds that step together as torch tensors: `make_env` makes those of any task."""

from envs import half_cheetah, two_doors
from envs.half_cheetah import HalfCheetah
from envs.particles import ENV_IDS, WITH_PREY, Worlds
from envs.shipped import CONTINUOUS_ENV_IDS, greedy, load_policies
from envs.two_doors import TwoDoors
from utils.errors import InputError, check_choice

ENV_IDS_OF_KIND = {"discrete": (*ENV_IDS, two_doors.ENV_ID), "continuous": CONTINUOUS_ENV_IDS}


def make_env(env_id, num_worlds, num_agents=None, device="cpu", seed=0, action_kind="discrete", prey=None):
    """Batched worlds of a task: a `Worlds`, or a `HalfCheetah` or `TwoDoors`, which have the same methods.

    num_agents: None for the task's own number. prey: maps the prey's observations to its actions; by default
    the one shipped for this kind of action acts, where the task has one. Raises InputError for other tasks.
    """
    check_choice("env-id", env_id, ENV_IDS_OF_KIND[action_kind])
    num_agents = (2 if env_id == half_cheetah.ENV_ID else 3) if num_agents is None else num_agents
    if env_id == half_cheetah.ENV_ID:
        if num_agents != 2:
            raise InputError(f"{env_id} has 2 agents, not {num_agents}")
        return HalfCheetah(num_worlds, device=device, seed=seed)
    if env_id == two_doors.ENV_ID:
        return TwoDoors(num_worlds, num_agents, device, seed)
    if prey is None and env_id in WITH_PREY:
        prey = greedy(load_policies(env_id, device, action_kind=action_kind).prey, action_kind)
    return Worlds(env_id, num_worlds, action_kind, num_agents, prey, device, seed=seed)
