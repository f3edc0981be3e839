"""Deliberate mistakes in worlds and in data: the test of a property must reject each of them. Mistakes in
worlds get pytest's monkeypatch and return what builds worlds."""

from dataclasses import replace

import numpy as np
import torch
from common import swapped
from scipy.optimize import nnls

from data import behaviour, mixes
from envs import half_cheetah, particles
from envs.half_cheetah import HalfCheetah
from envs.particles import Worlds


class MovesByOldVelocity(Worlds):
    """`mpe2`'s own order: the position moves before the velocity changes."""

    def advance(self, actions):
        moved = self.position + self.velocity * particles.DT
        super().advance(actions)
        self.position = moved
        return self._rewards()


def constant(name, value):
    """Worlds with another constant in their module."""
    return lambda patch: patch.setattr(particles, name, value) or Worlds


def attribute(name, change):
    """Worlds of which one attribute was changed after they were built."""

    def make(*args, **kwargs):
        worlds = Worlds(*args, **kwargs)
        setattr(worlds, name, change(getattr(worlds, name)))
        return worlds

    return lambda patch: make


def one(place, step):
    """Adds `step` to one entry of what belongs to bodies (the last is the prey) or landmarks."""
    return lambda values: values.index_add(0, torch.tensor([place]), torch.tensor([step], dtype=values.dtype))


def bounds(change):
    """Worlds with another penalty for leaving the arena."""
    right = particles.arena_penalty
    return constant("arena_penalty", lambda distance: change(distance, right(distance)))


SPREAD, TAG, WORLD = ("simple_spread", "discrete"), ("simple_tag", "discrete"), ("simple_world", "continuous")
WORLDS = {  # name: (in which worlds it is made, mistake)
    "contact force": (TAG, constant("CONTACT_FORCE", 101.0)),
    "contact margin": (TAG, constant("CONTACT_MARGIN", 1.1e-3)),
    "size of bodies": (TAG, attribute("contact_distance", lambda d: d + 1e-3 * (torch.arange(6) < 4))),
    "size of obstacles": (TAG, attribute("contact_distance", lambda d: d + 1e-3 * (torch.arange(6) > 3))),
    "damping": (TAG, constant("DAMPING", 0.26)),
    "speed limit of a predator": (TAG, attribute("max_speed", one(0, 0.01))),
    "speed limit of the prey": (WORLD, attribute("max_speed", one(3, 0.01))),
    "size of a forest": (WORLD, attribute("landmark_size", one(3, 0.05))),
    "size of the other forest": (WORLD, attribute("landmark_size", one(4, 0.05))),
    "gain of the agents": (SPREAD, attribute("gain", lambda gain: gain * 1.01)),
    "position moves first": (TAG, lambda patch: MovesByOldVelocity),
    "others in reverse": (TAG, attribute("others", lambda others: others.flip(1))),
    "left and right": (TAG, attribute("force_of_action", lambda forces: forces[[0, 2, 1, 3, 4]])),
    "touch penalty": (SPREAD, constant("SPREAD_TOUCH_PENALTY", 1.0)),
    "landmark reward": (SPREAD, constant("SPREAD_MAX_REWARD", 11.0)),
    "catch reward": (WORLD, attribute("task", lambda task: replace(task, catch_reward=10.0))),
    "bounds up to 1": (WORLD, bounds(lambda distance, b: b * (distance > 1))),
    "bounds beyond 1": (WORLD, bounds(lambda distance, b: b * (distance < 1) + (distance >= 1))),
    "bounds without a limit": (WORLD, bounds(lambda distance, b: torch.where(b == 10, 11.0, b))),
    "place of the food": (WORLD, constant("FOODS", slice(2, 4))),
}


def cheetah(name, value):
    """HalfCheetah with another constant."""
    return lambda patch: patch.setattr(half_cheetah, name, value)


def swaps_torques(patch):
    advance = HalfCheetah.advance
    patch.setattr(HalfCheetah, "advance", lambda self, actions: advance(self, actions[..., [1, 0, 2]]))


CHEETAH = {  # name: (mistake, what of the numbers must differ)
    "joints swapped": (cheetah("OBSERVED", ((4, 13, 3, 12, 2, 11), (7, 16, 5, 14, 6, 15))), {"observations"}),
    "agents swapped": (cheetah("OBSERVED", half_cheetah.OBSERVED[::-1]), {"observations"}),
    "control for free": (cheetah("CONTROL_COST", 0.0), {"rewards"}),
    "torques swapped": (swaps_torques, {"observations", "rewards", "states", "float64 state at the end"}),
}

TABLE = {
    "logged rows": {
        "observations a step late": lambda d: dict(observations=d.observations.roll(1, 1)),
        "rewards a step late": lambda d: dict(rewards=d.rewards.roll(1, 1)),
        "last observation is the next start": lambda d: dict(
            observations=torch.cat([d.observations[:, :-1], d.observations[:, :1].roll(-1, 0)], 1)
        ),
        "rewards scaled": lambda d: dict(rewards=d.rewards * 1.2),
    },
    "logged actions": {
        "a step late": lambda d: dict(actions=d.actions.roll(1, 1)),
        "of another agent": lambda d: dict(actions=swapped(d.actions, 2)),
        "of another episode": lambda d: dict(actions=d.actions.roll(1, 0)),
        "other numbers": lambda d: dict(
            actions=d.actions.flip(-1) if d.actions.is_floating_point() else (d.actions + 1) % 5
        ),
    },
    "logged states": {
        "a step late": lambda d: dict(states=d.states.roll(1, 1)),
        "numbers shifted": lambda d: dict(states=d.states.roll(1, 2)),
    },
    "players": {
        "agents swapped": lambda d, players: (replace(d, actions=swapped(d.actions, 2)), players),
        "the first iterate": lambda d, players: (d, [(0, count) for _, count in players]),
        "another iterate": lambda d, players: (d, [(-1 - player, count) for player, count in players]),
    },
    "mixture": {
        "iterates do not vary": lambda mean, deviation, card: behaviour.mixture(mean, 0 * deviation, card),
        "three iterates": lambda mean, deviation, card: nnls(
            np.stack([mean**0, mean, mean**2 + deviation**2]),
            np.array([1, card.mean, card.mean**2 + card.deviation**2]),
        )[0],
    },
    "dependence": {
        "a product of own distributions": lambda patch, data: patch.setattr(mixes, "CLASSES", 1),
        "no training": lambda patch, data: patch.setattr(mixes, "UPDATES", 1),
        "another episode": lambda patch, data: data.actions[..., 0].copy_(data.actions[..., 0].roll(1, 0)),
    },
}
