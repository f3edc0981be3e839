"""Deliberate mistakes in worlds and data, at most four a property: {property: {name: wrong function}}. The
test of the property must reject each of them. Mistakes in worlds get pytest's monkeypatch and return what
builds worlds."""

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


class DampsAfterTheForce(Worlds):
    """Damping applied to the new velocity, forces included."""

    def advance(self, actions):
        before, old = self.position, self.velocity
        super().advance(actions)
        force = self.velocity - old * (1 - particles.DAMPING)
        self.velocity = (old + force) * (1 - particles.DAMPING)
        self.position = before + self.velocity * particles.DT
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


def task(**changes):
    """Worlds with other constants of their task."""
    return attribute("task", lambda task: replace(task, **changes))


WORLDS = {
    "forces": {
        "contact force": constant("CONTACT_FORCE", 101.0),
        "contact margin": constant("CONTACT_MARGIN", 1.1e-3),
        "damping": constant("DAMPING", 0.26),
        "time step": constant("DT", 0.101),
    },
    "bodies": {
        "speed limit of the prey": attribute("max_speed", last(0.01)),
        "gain of the prey": attribute("gain", last(-1.0)),
        "contact distances": attribute("contact_distance", lambda d: d + 1e-3),
        "size of the forests": attribute("landmark_size", last(0.05)),
    },
    "order": {
        "position moves first": lambda patch: MovesByOldVelocity,
        "damping after the force": lambda patch: DampsAfterTheForce,
        "landmarks in reverse": lambda patch: LandmarksInReverse,
        "left and right": lambda patch: SwapsLeftAndRight,
    },
    "spread": {
        "gain of the agents": attribute("gain", lambda gain: gain * 1.01),
        "touch penalty": constant("SPREAD_TOUCH_PENALTY", 1.0),
        "landmark reward": constant("SPREAD_MAX_REWARD", 11.0),
        "position moves first": lambda patch: MovesByOldVelocity,
    },
    "chase": {
        "catch reward": task(catch_reward=10.0),
        "weight of the bounds": task(bound_weight=1.0),
        "bounds penalty": constant("arena_penalty", torch.zeros_like),
        "place of the food": constant("FOODS", slice(2, 4)),
    },
}
WORLDS_PLAYED = {  # in which worlds the mistakes are made
    "forces": ("simple_tag", "continuous"),
    "bodies": ("simple_world", "continuous"),
    "order": ("simple_tag", "discrete"),
    "spread": ("simple_spread", "discrete"),
    "chase": ("simple_world", "continuous"),
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


def other_actions(dataset):
    """Actions counted from 1, or halved."""
    discrete = not dataset.actions.is_floating_point()
    return dict(actions=(dataset.actions + 1) % 5 if discrete else dataset.actions / 2)


TABLE = {
    "logged times": {
        "observations a step late": lambda d: dict(observations=d.observations.roll(1, 1)),
        "actions a step late": lambda d: dict(actions=d.actions.roll(1, 1)),
        "rewards a step late": lambda d: dict(rewards=d.rewards.roll(1, 1)),
        "last observation is the next start": lambda d: dict(
            observations=torch.cat([d.observations[:, :-1], d.observations[:, :1].roll(-1, 0)], 1)
        ),
    },
    "logged agents": {
        "actions of two agents swapped": lambda d: dict(actions=swapped(d.actions, 2)),
        "observations of two agents swapped": lambda d: dict(observations=swapped(d.observations, 2)),
        "actions of another episode": lambda d: dict(actions=d.actions.roll(1, 0)),
        "numbers of an action swapped": lambda d: dict(actions=d.actions.flip(-1)),
    },
    "logged sizes": {
        "rewards scaled": lambda d: dict(rewards=d.rewards * 1.2),
        "other actions": other_actions,
    },
    "logged states": {
        "a step late": lambda d: dict(states=d.states.roll(1, 1)),
        "of another episode": lambda d: dict(states=d.states.roll(1, 0)),
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
        "others ignored": lambda patch, data: patch.setattr(
            mixes, "CLASSES", 1
        ),  # a product of own distributions
        "no training": lambda patch, data: patch.setattr(mixes, "UPDATES", 1),
        "others of another episode": lambda patch, data: data.actions[..., 0].copy_(
            data.actions[..., 0].roll(1, 0)
        ),
    },
}
