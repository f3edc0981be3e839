"""Deliberate mistakes in worlds and data, at most four a property. The test of the property must reject each
of them. Mistakes in worlds get pytest's monkeypatch and return what builds worlds."""

from dataclasses import replace

import torch
from common import swapped

from data import mixes
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


class LandmarksInReverse(Worlds):
    """Observes the landmarks in the wrong order."""

    def observe(self, i):
        right, self.landmarks = self.landmarks, self.landmarks.flip(1)
        seen, self.landmarks = super().observe(i), right
        return seen


class SwapsLeftAndRight(Worlds):
    """Takes discrete action 1 for +x."""

    def advance(self, actions):
        return super().advance(torch.tensor([0, 2, 1, 3, 4])[actions])


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


def last(step):
    """Adds `step` to the last entry: the prey's, or the last landmark's."""
    return lambda values: values + step * (torch.arange(len(values)) == len(values) - 1)


SPREAD, TAG, WORLD = ("simple_spread", "discrete"), ("simple_tag", "discrete"), ("simple_world", "continuous")
WORLDS = {  # name: (in which worlds it is made, mistake)
    "contact force": (TAG, constant("CONTACT_FORCE", 101.0)),
    "contact margin": (TAG, constant("CONTACT_MARGIN", 1.1e-3)),
    "contact distances": (WORLD, attribute("contact_distance", lambda d: d + 1e-3)),
    "damping": (TAG, constant("DAMPING", 0.26)),
    "speed limit of the prey": (WORLD, attribute("max_speed", last(0.01))),
    "size of the forests": (WORLD, attribute("landmark_size", last(0.05))),
    "gain of the agents": (SPREAD, attribute("gain", lambda gain: gain * 1.01)),
    "position moves first": (TAG, lambda patch: MovesByOldVelocity),
    "landmarks in reverse": (TAG, lambda patch: LandmarksInReverse),
    "left and right": (TAG, lambda patch: SwapsLeftAndRight),
    "touch penalty": (SPREAD, constant("SPREAD_TOUCH_PENALTY", 1.0)),
    "landmark reward": (SPREAD, constant("SPREAD_MAX_REWARD", 11.0)),
    "catch reward": (WORLD, attribute("task", lambda task: replace(task, catch_reward=10.0))),
    "bounds penalty": (WORLD, constant("arena_penalty", torch.zeros_like)),
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
        "iterates in reverse, or the expert": lambda d, players: (
            d,
            [
                (p if len(players) > 2 else -1 - p, n)
                for (p, _), (_, n) in zip(players[::-1], players, strict=True)
            ],
        ),
    },
    "dependence": {
        "a product of own distributions": lambda patch, data: patch.setattr(mixes, "CLASSES", 1),
        "no training": lambda patch, data: patch.setattr(mixes, "UPDATES", 1),
        "others of another episode": lambda patch, data: data.actions[..., 0].copy_(
            data.actions[..., 0].roll(1, 0)
        ),
    },
}
