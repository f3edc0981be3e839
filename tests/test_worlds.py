"""The batched worlds against the reference built on `mpe2`, and both against numbers worked out by hand.

`play` runs whole episodes on both sides and reports the largest difference and which events happened on the
way; the tests built on it fail when an event (a contact, the speed limit, food, ...) was never visited, and a
list of deliberate mistakes (`MISTAKES`) shows that the same comparison notices each of them.
"""

import dataclasses
import itertools
import warnings

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

import envs.particles as worlds_module
from envs.particles import Worlds
from envs.pettingzoo import FRAME_SIZE, parallel_env

KINDS = ["discrete", "continuous"]
TASKS = [("simple_spread", 3), ("simple_tag", 3), ("simple_world", 3)]
TASKS_AND_CROWDS = [*TASKS, ("simple_spread", 5), ("simple_spread", 10)]
STEPS = 25
# Contacts are stiff, so squeezed bodies are chaotic: rounding errors grow several-fold per step (of two
# references started 1e-15 apart, the worst ended 1e-5 apart). The strict comparison hence starts each step
# from equal states (worst met: 4e-14); episodes left to themselves have fixed starts (worst: 2e-10).
STEP_TOLERANCE, EPISODE_TOLERANCE = 1e-11, 1e-9

# The tables of the tasks, written out once more so that neither side of a comparison supplies them.
BODY_SIZE = {"simple_spread": (0.15, None), "simple_tag": (0.075, 0.05), "simple_world": (0.075, 0.045)}
SPEED_LIMITS = np.array([1.0, 1.0, 1.0, 1.3])  # 3 predators and the prey
OBSTACLE_SIZE, FOOD_SIZE, FOREST_SIZE = 0.2, 0.03, 0.3
OBSTACLES = {"simple_tag": slice(0, 2), "simple_world": slice(0, 1)}
FOODS, FORESTS = slice(1, 3), slice(3, 5)

EVENTS = {
    "simple_spread": {
        "agents touch",
        "agents apart",
        "landmark reward at its maximum",
        "landmark reward below",
    },
    "simple_tag": {
        "predators touch",
        "prey caught once",
        "prey caught by several",
        "obstacle touched by a predator",
        "obstacle touched by the prey",
        "predator at its speed limit",
        "prey at its speed limit",
        "below the speed limit",
        "prey inside 0.9",
        "prey between 0.9 and 1",
        "prey outside 1",
        "prey so far out that the penalty is at its maximum",
    },
}
EVENTS["simple_world"] = EVENTS["simple_tag"] | {
    "food touched",
    "predator in forest 0",
    "predator in forest 1",
    "prey in forest 0",
    "prey in forest 1",
    "predator and prey on different sides of a forest's edge",
}


def distances(a, b):
    """Distances [A, B] between points [A, 2] and [B, 2]."""
    return np.linalg.norm(a[:, None] - b[None], axis=-1)


def events_of(env_id, position, velocity, landmarks):
    """Names of the events in a state, just after a step (positions, velocities [P, 2]; landmarks [L, 2])."""
    size, prey_size = BODY_SIZE[env_id]
    if env_id == "simple_spread":
        touch = distances(position, position)[np.triu_indices(len(position), 1)] < 2 * size
        nearest = distances(landmarks, position).min(axis=1)
        happened = {
            "agents touch": touch.any(),
            "agents apart": not touch.all(),
            "landmark reward at its maximum": (nearest < 0.1).any(),
            "landmark reward below": (nearest > 0.1).any(),
        }
        return {name for name, yes in happened.items() if yes}
    predators, prey = position[:3], position[3:]
    hits = (distances(predators, prey) < size + prey_size).sum()
    obstacles = landmarks[OBSTACLES[env_id]]
    capped = np.abs(np.linalg.norm(velocity, axis=1) - SPEED_LIMITS) < 1e-12
    out = np.abs(prey[0])
    happened = {
        "predators touch": (distances(predators, predators)[np.triu_indices(3, 1)] < 2 * size).any(),
        "prey caught once": hits == 1,
        "prey caught by several": hits > 1,
        "obstacle touched by a predator": (distances(predators, obstacles) < size + OBSTACLE_SIZE).any(),
        "obstacle touched by the prey": (distances(prey, obstacles) < prey_size + OBSTACLE_SIZE).any(),
        "predator at its speed limit": capped[:3].any(),
        "prey at its speed limit": capped[3],
        "below the speed limit": not capped.all(),
        "prey inside 0.9": (out < 0.9).any(),
        "prey between 0.9 and 1": ((out > 0.9) & (out < 1)).any(),
        "prey outside 1": ((out > 1) & (np.exp(2 * out - 2) < 10)).any(),
        "prey so far out that the penalty is at its maximum": (np.exp(2 * out - 2) > 10).any(),
    }
    if env_id == "simple_world":
        predator_in = distances(predators, landmarks[FORESTS]) < size + FOREST_SIZE  # [3, 2]
        prey_in = distances(prey, landmarks[FORESTS]) < prey_size + FOREST_SIZE  # [1, 2]
        happened |= {
            "food touched": (distances(prey, landmarks[FOODS]) < prey_size + FOOD_SIZE).any(),
            "predator in forest 0": predator_in[:, 0].any(),
            "predator in forest 1": predator_in[:, 1].any(),
            "prey in forest 0": prey_in[0, 0],
            "prey in forest 1": prey_in[0, 1],
            "predator and prey on different sides of a forest's edge": (predator_in != prey_in).any(),
        }
    return {name for name, yes in happened.items() if yes}


NUM_PLAYS = 4


def targets(env_id, play, position, landmarks):
    """Points [P, 2] that the bodies head for in each of the four plays; together they visit every event."""
    if env_id == "simple_spread":
        gather = np.broadcast_to(position[:1], position.shape)
        return [position, landmarks, np.broadcast_to(landmarks[:1], position.shape), gather][play]
    prey, outwards = position[3], position[3] + np.sign(position[3]) * [1.0, 0.7]
    if env_id == "simple_tag":
        prey_target = [prey, landmarks[0], outwards, landmarks[1]][play]
        predator_target = [prey, prey, landmarks[0], prey][play]
    else:
        food = landmarks[FOODS][distances(position[3:], landmarks[FOODS])[0].argmin()]
        prey_target = [landmarks[0], food, outwards, landmarks[3]][play]
        predator_target = [landmarks[3], prey, landmarks[0], landmarks[4]][play]
    return np.stack([predator_target] * 3 + [prey_target])


def choose(kind, headings, rng):
    """Actions ([P] integers or [P, 2] forces) along headings [P, 2]; a third of them are random instead."""
    count = len(headings)
    at_random = rng.random(count) < 1 / 3
    if kind == "continuous":
        forces = np.clip(8 * headings, -1, 1)
        return np.where(at_random[:, None], rng.uniform(-1, 1, (count, 2)), forces)
    axis = np.abs(headings).argmax(axis=1)
    positive = headings[np.arange(count), axis] > 0
    return np.where(at_random, rng.integers(0, 5, count), 1 + 2 * axis + positive)


def play(env_id, kind, num_agents, seed, crowding=1.0, speed=0.5, make=Worlds, free=False):
    """Run four episodes from equal states on both sides with the same actions.

    seed: of starts and actions; crowding: factor on the starts; speed: deviation of the starting velocities.
    make: what builds the batched worlds; free: let both run on their own, else each step starts from the
    reference's state. Returns (largest difference by name, names of the events visited).
    """
    rng = np.random.default_rng(seed)
    worlds = make(env_id, NUM_PLAYS, kind, num_agents, dtype=torch.float64)
    envs = [parallel_env(env_id, kind, num_agents) for _ in range(NUM_PLAYS)]
    for env in envs:
        env.reset(seed=int(rng.integers(2**31)))
        start = [crowding * array for array in env.get_state()]
        env.set_state(start[0], rng.normal(0, speed, start[0].shape), start[2])
    names = envs[0].possible_agents

    def equalise():
        states = [np.stack(arrays) for arrays in zip(*(env.get_state() for env in envs), strict=True)]
        worlds.position, worlds.velocity, worlds.landmarks = map(torch.tensor, states)

    differences = dict.fromkeys(["observations", "rewards", "positions", "velocities"], 0.0)
    visited = set()

    def differ(name, ours, theirs):
        ours, theirs = ours.numpy(), np.stack(theirs)
        assert ours.shape == theirs.shape, f"{name}: {ours.shape} against {theirs.shape}"
        # np.maximum keeps a nan, where max would lose it
        differences[name] = float(np.maximum(differences[name], np.abs(ours - theirs).max()))

    def differ_in_observations():
        for i, name in enumerate(names):
            differ("observations", worlds.observe(i), [env.observe(name, np.float64) for env in envs])

    equalise()
    differ_in_observations()
    for _ in range(STEPS):
        actions = []
        for number, env in enumerate(envs):
            position, _, landmarks = env.get_state()
            actions.append(choose(kind, targets(env_id, number, position, landmarks) - position, rng))
        rewards = worlds.advance(torch.tensor(np.stack(actions)))
        results = [env.step(dict(zip(names, row, strict=True))) for env, row in zip(envs, actions, strict=True)]
        differ("rewards", rewards, [[result[1][name] for name in names] for result in results])
        differ("positions", worlds.position, [env.get_state()[0] for env in envs])
        differ("velocities", worlds.velocity, [env.get_state()[1] for env in envs])
        differ_in_observations()
        for env in envs:
            visited |= events_of(env_id, *env.get_state())
        if not free:
            equalise()
    return differences, visited


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("env_id", "num_agents"), TASKS_AND_CROWDS)
def test_every_step_matches_the_reference(env_id, num_agents, kind):
    """Each step of 25-step episodes agrees in all that agents see and earn; all events happen on the way."""
    visited = set()

    @settings(
        max_examples={3: 12, 5: 6, 10: 2}[num_agents],
        deadline=None,
        database=None,
        suppress_health_check=[HealthCheck.too_slow],
    )
    @given(seed=st.integers(0, 2**32 - 1), crowding=st.floats(0.4, 1.3), speed=st.floats(0.0, 2.0))
    @example(seed=0, crowding=0.7, speed=0.5)  # these four visit every event, whatever else is drawn
    @example(seed=1, crowding=0.8, speed=0.5)
    @example(seed=2, crowding=0.9, speed=0.5)
    @example(seed=5, crowding=0.9, speed=0.5)
    def steps_match(seed, crowding, speed):
        differences, events = play(env_id, kind, num_agents, seed, crowding, speed)
        visited.update(events)
        assert all(difference < STEP_TOLERANCE for difference in differences.values()), differences

    steps_match()
    assert EVENTS[env_id] - visited == set(), "events that no episode visited"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("env_id", "num_agents"), TASKS_AND_CROWDS)
def test_whole_episodes_match_the_reference(env_id, num_agents, kind):
    """Episodes left to themselves for 25 steps agree, and visit every event too."""
    visited = set()
    for seed in range(6 if num_agents == 3 else 2):
        differences, events = play(env_id, kind, num_agents, seed, free=True)
        visited |= events
        assert all(difference < EPISODE_TOLERANCE for difference in differences.values()), differences
    assert EVENTS[env_id] - visited == set(), "events that no episode visited"


class MovesByOldVelocity(Worlds):
    """`mpe2`'s own order: the position moves before the velocity changes."""

    def advance(self, actions):
        moved = self.position + self.velocity * worlds_module.DT
        super().advance(actions)
        self.position = moved
        return self._rewards()


class DampsAfterTheForce(Worlds):
    """Damping applied to the new velocity, forces included."""

    def advance(self, actions):
        before, old = self.position, self.velocity
        super().advance(actions)
        force = self.velocity - old * (1 - worlds_module.DAMPING)
        self.velocity = (old + force) * (1 - worlds_module.DAMPING)
        self.position = before + self.velocity * worlds_module.DT
        return self._rewards()


class LandmarksInReverse(Worlds):
    """Observes the landmarks in the wrong order."""

    def observe(self, i):
        right = self.landmarks
        self.landmarks = right.flip(1)
        seen = super().observe(i)
        self.landmarks = right
        return seen


class SwapsLeftAndRight(Worlds):
    """Takes discrete action 1 for +x."""

    def advance(self, actions):
        return super().advance(torch.tensor([0, 2, 1, 3, 4])[actions])


def with_attribute(name, change):
    """Worlds of which one attribute was changed after they were built."""

    def make(*args, **kwargs):
        worlds = Worlds(*args, **kwargs)
        setattr(worlds, name, change(getattr(worlds, name)))
        return worlds

    return make


def with_task(**changes):
    """Worlds that have other constants of the task."""
    return with_attribute("task", lambda task: dataclasses.replace(task, **changes))


def shift_last(step):
    """Adds `step` to the last entry: the prey's, or the last landmark's."""
    return lambda values: values + step * (torch.arange(len(values)) == len(values) - 1)


# name: (task, action kind, what builds the wrong worlds, wrong constants of the module)
MISTAKES = {
    "contact force": ("simple_spread", "continuous", Worlds, {"CONTACT_FORCE": 101.0}),
    "contact margin": ("simple_tag", "continuous", Worlds, {"CONTACT_MARGIN": 1.1e-3}),
    "damping": ("simple_spread", "discrete", Worlds, {"DAMPING": 0.26}),
    "time step": ("simple_tag", "discrete", Worlds, {"DT": 0.101}),
    "speed limit of the prey": (
        "simple_tag",
        "continuous",
        with_attribute("max_speed", shift_last(0.01)),
        {},
    ),
    "gain of the prey": ("simple_world", "continuous", with_attribute("gain", shift_last(-1.0)), {}),
    "gain of the agents": ("simple_spread", "discrete", with_attribute("gain", lambda gain: gain * 1.01), {}),
    "contact distances": (
        "simple_world",
        "discrete",
        with_attribute("contact_distance", lambda d: d + 1e-3),
        {},
    ),
    "size of the forests": (
        "simple_world",
        "discrete",
        with_attribute("landmark_size", shift_last(0.05)),
        {},
    ),
    "position moves first": ("simple_spread", "continuous", MovesByOldVelocity, {}),
    "position moves first (tag)": ("simple_tag", "discrete", MovesByOldVelocity, {}),
    "damping after the force": ("simple_world", "continuous", DampsAfterTheForce, {}),
    "order of the landmarks": ("simple_world", "discrete", LandmarksInReverse, {}),
    "directions": ("simple_tag", "discrete", SwapsLeftAndRight, {}),
    "touch penalty": ("simple_spread", "discrete", Worlds, {"SPREAD_TOUCH_PENALTY": 1.0}),
    "landmark reward": ("simple_spread", "discrete", Worlds, {"SPREAD_MAX_REWARD": 11.0}),
    "catch reward": ("simple_tag", "discrete", with_task(catch_reward=5.0), {}),
    "weight of the bounds": ("simple_world", "continuous", with_task(bound_weight=1.0), {}),
    "bounds penalty": ("simple_tag", "continuous", Worlds, {"arena_penalty": torch.zeros_like}),
    "place of the food": ("simple_world", "continuous", Worlds, {"FOODS": slice(2, 4)}),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_noticed(mistake, monkeypatch):
    """Both comparisons fail by a wide margin once the batched worlds have one thing wrong."""
    env_id, kind, make, constants = MISTAKES[mistake]
    for name, value in constants.items():
        monkeypatch.setattr(worlds_module, name, value)
    for free in (False, True):
        differences, _ = play(env_id, kind, 3, seed=1, free=free, make=make)
        assert max(differences.values()) > 1e4 * EPISODE_TOLERANCE, differences


# -- numbers worked out by hand ------------------------------------------------------------------------------

HAND_COMPUTED = {
    # v = 0.1 * 5 from rest, p = 0.1 * v; landmark distances after that step: 0.05, 0.55 and 0.75 (no touch)
    "spread": dict(
        task="simple_spread",
        positions=[[0.0, 0.0], [0.6, -1.0], [-0.7, 0.8]],
        velocities=[[0.0, 0.0]] * 3,
        landmarks=[[0.0, 0.0], [0.6, 0.0], [0.05, 0.75]],
        actions=[2, 0, 0],
        moved=[[0.05, 0.0], [0.6, -1.0], [-0.7, 0.8]],
        rewards=[10 + 1 / 0.55 + 1 / 0.75] * 3,
    ),
    # 0.75 * 2 + 0.1 * 5 = 2.0 for agent 0 and no limit to its speed; agents 1 and 2 touch (0.25 apart) and
    # push each other: penetration 0.05, force 5, speed 0.5, so they end up 0.35 apart and touch no more
    "spread contact": dict(
        task="simple_spread",
        positions=[[0.0, 1.0], [0.0, 0.0], [0.25, 0.0]],
        velocities=[[2.0, 0.0], [0.0, 0.0], [0.0, 0.0]],
        landmarks=[[0.2, 0.9], [0.2, 1.5], [-0.05, -1.0]],
        actions=[2, 0, 0],
        moved=[[0.2, 1.0], [-0.05, 0.0], [0.3, 0.0]],
        rewards=[10 + 2 + 1] * 3,
    ),
    # the prey is pushed to 1.6 and capped at 1.3: 0.13 further; the predator at 0.9: 0.09 further.
    # predators at 0.61, 0.7 and 0.8 from the prey; |x| = 0.93 costs the prey 0.3
    "tag": dict(
        task="simple_tag",
        positions=[[0.23, 0.0], [0.93, 0.7], [0.93, -0.8], [0.8, 0.0]],
        velocities=[[0.0, 0.0]] * 4,
        landmarks=[[-0.9, -0.9], [-0.9, 0.9]],
        actions=[2, 0, 0, 2],
        moved=[[0.32, 0.0], [0.93, 0.7], [0.93, -0.8], [0.93, 0.0]],
        rewards=[-0.211] * 3 + [0.211 - 0.3],
    ),
    # one catch: predator 0 ends 0.11 from the prey (sizes 0.075 + 0.05), predators 1 and 2 at 1.0 and 2.0;
    # the prey outside, at x = -1.5, pays exp(1), and 0.5 for y = 0.95
    "tag catch": dict(
        task="simple_tag",
        positions=[[-1.35, 0.95], [-0.5, 0.95], [0.5, 0.95], [-1.63, 0.95]],
        velocities=[[-1.0 / 0.75 * 0.4, 0.0], [0.0, 0.0], [0.0, 0.0], [0.0, 0.0]],
        landmarks=[[0.9, -0.9], [-0.9, -0.9]],
        actions=[0, 0, 0, 2],
        moved=[[-1.39, 0.95], [-0.5, 0.95], [0.5, 0.95], [-1.5, 0.95]],
        rewards=[10 - 0.311] * 3 + [0.311 - 10 - np.e - 0.5],
    ),
    # the prey ends 0.07 from one food (sizes 0.045 + 0.03) and 0.2 from the other, predators at 0.5, 0.6, 0.7
    "world": dict(
        task="simple_world",
        positions=[[0.5, 0.0], [-0.6, 0.0], [0.0, 0.7], [0.0, -0.13]],
        velocities=[[0.0, 0.0]] * 4,
        landmarks=[[-0.8, -0.8], [0.0, 0.07], [0.0, -0.2], [0.5, 0.2], [0.0, -0.5]],
        actions=[0, 0, 0, 4],
        moved=[[0.5, 0.0], [-0.6, 0.0], [0.0, 0.7], [0.0, 0.0]],
        rewards=[-0.18] * 3 + [0.18 + 2 + 0.05 * 0.07],
    ),
}


@pytest.mark.parametrize("case", HAND_COMPUTED)
@pytest.mark.parametrize("side", ["reference", "worlds"])
@pytest.mark.parametrize("kind", KINDS)
def test_one_step_worked_out_by_hand(case, side, kind):
    """Both sides give the numbers that the published rules give on paper."""
    case = HAND_COMPUTED[case]
    directions = np.array([[0, 0], [-1, 0], [1, 0], [0, -1], [0, 1]], dtype=np.float64)
    actions = np.array(case["actions"]) if kind == "discrete" else directions[case["actions"]]
    if side == "worlds":
        worlds = Worlds(case["task"], 1, kind, dtype=torch.float64)
        for name in ("position", "velocity", "landmarks"):
            key = {"position": "positions", "velocity": "velocities", "landmarks": "landmarks"}[name]
            setattr(worlds, name, torch.tensor([case[key]], dtype=torch.float64))
        rewards = worlds.advance(torch.tensor(actions[None]))[0].tolist()
        moved = worlds.position[0].numpy()
    else:
        env = parallel_env(case["task"], kind)
        env.reset(seed=0)
        env.set_state(case["positions"], case["velocities"], case["landmarks"])
        _, rewards, _, _, _ = env.step(dict(zip(env.possible_agents, actions, strict=True)))
        rewards, moved = list(rewards.values()), env.get_state()[0]
    np.testing.assert_allclose(moved, case["moved"], atol=1e-9)
    np.testing.assert_allclose(rewards, case["rewards"], atol=1e-8)


def test_observations_written_out():
    """The order of simple_world's observation, number by number, for a predator and the prey."""
    position = np.array([[0.1, 0.2], [0.3, 0.4], [0.5, 0.6], [0.7, 0.8]])
    velocity = np.array([[0.01, 0.02], [0.03, 0.04], [0.05, 0.06], [0.07, 0.08]])
    landmarks = np.array([[-0.1, -0.2], [-0.3, -0.4], [-0.5, -0.6], [0.1, 0.3], [0.8, 0.9]])
    others = [[0, 2, 3], [0, 1, 2]]
    worlds = Worlds("simple_world", 1, dtype=torch.float64)
    worlds.position, worlds.velocity, worlds.landmarks = (
        torch.tensor(array[None]) for array in (position, velocity, landmarks)
    )
    env = parallel_env("simple_world")
    env.set_state(position, velocity, landmarks)
    for row, body in enumerate((1, 3)):
        expected = [
            velocity[body],
            position[body],
            *(landmarks - position[body]),
            *(position[others[row]] - position[body]),
            *([velocity[3]] if body == 1 else []),
            [1.0 if body == 1 else -1.0, -1.0 if body == 1 else 1.0],
        ]
        np.testing.assert_allclose(worlds.observe(body)[0].numpy(), np.concatenate(expected), atol=1e-15)
        seen = env.observe(env.possible_agents[body], np.float64)
        np.testing.assert_allclose(seen, np.concatenate(expected), atol=1e-15)


# -- the batched worlds alone --------------------------------------------------------------------------------


def random_actions(worlds, bodies, generator):
    """Uniform actions of the first `bodies` bodies: [W, bodies] or [W, bodies, 2]."""
    shape = (worlds.num_worlds, bodies)
    if worlds.action_kind == "discrete":
        return torch.randint(5, shape, generator=generator)
    return 2 * torch.rand((*shape, 2), generator=generator) - 1


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("env_id", "num_agents"), TASKS_AND_CROWDS)
def test_float32_stays_near_float64(env_id, num_agents, kind):
    """One step from equal states: single precision costs no more than rounding, also in contact."""
    generator = torch.Generator().manual_seed(3)
    double = Worlds(env_id, 400, kind, num_agents, dtype=torch.float64, seed=1)
    single = Worlds(env_id, 400, kind, num_agents, dtype=torch.float32)
    double.velocity = torch.randn(double.velocity.shape, generator=generator, dtype=torch.float64)
    for name in ("position", "velocity", "landmarks"):
        single_value = getattr(double, name).float()
        setattr(single, name, single_value)
        setattr(double, name, single_value.double())
    actions = random_actions(double, double.num_bodies, generator)
    rewards, precise = single.advance(actions), double.advance(actions)
    assert rewards.dtype == single.position.dtype == single.observe(0).dtype == torch.float32
    torch.testing.assert_close(single.position.double(), double.position, atol=1e-5, rtol=0)
    torch.testing.assert_close(single.velocity.double(), double.velocity, atol=1e-4, rtol=0)
    for body in range(double.num_bodies):
        torch.testing.assert_close(single.observe(body).double(), double.observe(body), atol=1e-4, rtol=0)
    torch.testing.assert_close(rewards.double(), precise, atol=1e-3, rtol=0)


def assert_uniform(values, half_width):
    """Values are uniform in [-half_width, half_width]: the bounds, and 20 bins within 5 deviations."""
    values = np.asarray(values).ravel()
    assert np.abs(values).max() <= half_width
    counts, _ = np.histogram(values, bins=20, range=(-half_width, half_width))
    expected = len(values) / 20
    assert np.abs(counts - expected).max() < 5 * np.sqrt(expected), counts


def test_assert_uniform_can_fail():
    rng = np.random.default_rng(0)
    for wrong in (
        rng.uniform(-0.9, 0.9, 4000),
        rng.uniform(-1.01, 1.01, 4000),
        rng.normal(0, 0.3, 4000).clip(-1, 1),
    ):
        with pytest.raises(AssertionError):
            assert_uniform(wrong, 1.0)


@pytest.mark.parametrize(("env_id", "num_agents"), [*TASKS_AND_CROWDS, ("simple_spread", 4)])
def test_reset_distribution(env_id, num_agents):
    """Starts are uniform in the published squares, at rest and independent, on both sides."""
    half_width = 2.0 if num_agents > 3 else 1.0
    landmark_half_width = half_width if env_id == "simple_spread" else 0.9
    worlds = Worlds(env_id, 4000, num_agents=num_agents)
    for body in range(worlds.num_bodies):
        assert_uniform(worlds.position[:, body], half_width)
    for landmark in range(worlds.num_landmarks):
        assert_uniform(worlds.landmarks[:, landmark], landmark_half_width)
    places = torch.cat([worlds.position, worlds.landmarks], dim=1).flatten(1)  # [W, 2 (P + L)]
    correlation = torch.corrcoef(places.T) - torch.eye(places.shape[1])
    assert correlation.abs().max() < 5 / np.sqrt(4000)
    assert (worlds.velocity == 0).all()

    env = parallel_env(env_id, num_agents=num_agents)
    states = []
    for seed in range(150):
        env.reset(seed=seed)
        states.append(env.get_state())
    positions, velocities, landmarks = (np.stack(arrays) for arrays in zip(*states, strict=True))
    assert_uniform(positions, half_width)
    assert_uniform(landmarks, landmark_half_width)
    assert (velocities == 0).all()


@pytest.mark.parametrize(("env_id", "num_agents"), TASKS)
def test_reset_is_fixed_by_the_seed(env_id, num_agents):
    """Equal seeds give equal episodes, first and later ones; other seeds and later episodes give others."""
    first, same, other = (Worlds(env_id, 6, seed=seed) for seed in (7, 7, 8))
    starts = []
    for _ in range(3):
        observations = first.reset()
        assert observations.shape == (6, first.num_learners, first.obs_dim)
        assert torch.equal(observations, same.reset())
        assert not torch.isclose(observations, other.reset())[..., 2:4].any()
        assert (first.velocity == 0).all()
        starts.append(observations)
        first.advance(torch.ones(6, first.num_bodies, dtype=torch.int64))
        same.advance(torch.ones(6, same.num_bodies, dtype=torch.int64))
        assert torch.equal(first.position, same.position)
    assert not torch.isclose(starts[0], starts[1])[..., 2:4].any()
    assert not torch.isclose(starts[1], starts[2])[..., 2:4].any()


@pytest.mark.parametrize(
    ("env_id", "num_agents", "bodies", "landmarks", "width"),
    [
        ("simple_spread", 3, 3, 3, 18),
        ("simple_spread", 10, 10, 10, 60),
        ("simple_tag", 3, 4, 2, 16),
        ("simple_world", 3, 4, 5, 24),
    ],
)
def test_shapes(env_id, num_agents, bodies, landmarks, width):
    """Counts and sizes of observations are the published ones, and agree with the reference's spaces."""
    worlds = Worlds(env_id, 5, num_agents=num_agents)
    assert (worlds.num_learners, worlds.num_bodies, worlds.num_landmarks) == (num_agents, bodies, landmarks)
    assert (worlds.obs_dim, worlds.horizon) == (width, STEPS)
    env = parallel_env(env_id, num_agents=num_agents)
    for body, name in enumerate(env.possible_agents):
        assert env.observation_space(name).shape == worlds.observe(body).shape[1:]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("env_id", "num_agents"), TASKS)
def test_step_is_advance_with_the_prey_acting(env_id, num_agents, kind):
    """`step` shows the prey its own observation, lets it act and returns the learners' share."""
    shown = []

    def prey(observations):
        shown.append(observations)
        return torch.full((9,), 3) if kind == "discrete" else torch.tensor([[0.3, -0.9]]).expand(9, 2)

    one, two = (Worlds(env_id, 9, kind, prey=prey, seed=2) for _ in range(2))
    actions = random_actions(one, 3, torch.Generator().manual_seed(0))
    has_prey = env_id != "simple_spread"
    seen = two.observe(two.num_bodies - 1) if has_prey else None
    joint = torch.cat([actions, prey(seen)[:, None]], dim=1) if has_prey else actions
    shown.clear()
    observations, rewards = one.step(actions)
    expected = two.advance(joint)
    assert torch.equal(rewards, expected[:, :3])
    assert torch.equal(observations, torch.stack([two.observe(i) for i in range(3)], dim=1))
    assert torch.equal(one.position, two.position)
    if has_prey:
        assert len(shown) == 1 and torch.equal(shown[0], seen)
    else:
        assert shown == []


@pytest.mark.parametrize(("kind", "score"), [("continuous", 159.8), ("discrete", 157.7)])
def test_score_of_uniform_random_play(kind, score):
    """Uniform random play of simple_spread scores what the benchmark publishes for forces, 159.8."""
    worlds = Worlds("simple_spread", 20_000, kind, seed=11)
    generator = torch.Generator().manual_seed(12)
    returns = torch.zeros(20_000)
    for _ in range(worlds.horizon):
        _, rewards = worlds.step(random_actions(worlds, 3, generator))
        returns += rewards.mean(dim=1)
    assert abs(returns.mean().item() - score) < 1.5


# -- the reference behind PettingZoo's interface -------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("env_id", "num_agents"), [*TASKS, ("simple_spread", 4)])
def test_parallel_api(env_id, num_agents, kind):
    """PettingZoo's own test passes, and no warning is raised on the way."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # this import warns about something else
        from pettingzoo.test import parallel_api_test
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        parallel_api_test(parallel_env(env_id, kind, num_agents), num_cycles=30)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("env_id", "num_agents"), TASKS)
def test_reference_episode_is_fixed_by_the_seed(env_id, num_agents, kind):
    """A seeded reset and seeded action spaces fix an episode of 25 steps, which ends by truncation."""

    def episode(seed):
        env = parallel_env(env_id, kind)
        observations, _ = env.reset(seed=seed)
        for number, name in enumerate(env.agents):
            env.action_space(name).seed(number)
        record = [np.concatenate(list(observations.values()))]
        while env.agents:
            names = env.agents
            observations, rewards, terminations, truncations, _ = env.step(
                {name: env.action_space(name).sample() for name in names}
            )
            assert not any(terminations.values())
            assert all(env.observation_space(name).contains(observations[name]) for name in names)
            record.append(np.concatenate([*observations.values(), list(rewards.values())]))
        assert all(truncations.values())
        assert env.state_space.contains(env.state())
        return record

    first, same, other = episode(4), episode(4), episode(5)
    assert len(first) == STEPS + 1
    assert all(np.array_equal(a, b) for a, b in zip(first, same, strict=True))
    assert not np.array_equal(first[0], other[0])


def test_state_is_copied():
    """Neither reading nor setting the state shares memory with the running world."""
    env = parallel_env("simple_tag", "continuous")
    env.reset(seed=0)
    before = [array.copy() for array in env.get_state()]
    for array in env.get_state():
        array += 1.0
    assert all(np.array_equal(a, b) for a, b in zip(before, env.get_state(), strict=True))
    given_state = [array.copy() for array in before]
    env.set_state(*given_state)
    env.step({name: np.ones(2) for name in env.agents})
    assert all(np.array_equal(a, b) for a, b in zip(before, given_state, strict=True))
    assert not np.array_equal(env.get_state()[0], before[0])


@pytest.mark.parametrize(("env_id", "num_agents"), [*TASKS, ("simple_spread", 10)])
def test_frames(env_id, num_agents):
    """Frames show every kind of body, change when bodies move, and keep all bodies in the picture."""
    env = parallel_env(env_id, num_agents=num_agents, render_mode="rgb_array")
    env.reset(seed=1)
    frames = [env.render()]
    for _ in range(3):
        env.step({name: 2 for name in env.agents})
        frames.append(env.render())
    for frame in frames:
        assert frame.shape == (FRAME_SIZE, FRAME_SIZE, 3) and frame.dtype == np.uint8
        kinds = 2 if env_id == "simple_spread" else 3 if env_id == "simple_tag" else 5
        colours, counts = np.unique(frame.reshape(-1, 3), axis=0, return_counts=True)
        assert (counts >= 20).sum() >= kinds + 1, colours[counts >= 20]  # and the paper
    for before, after in itertools.pairwise(frames):
        assert (before != after).any(axis=-1).sum() > 50
    position, velocity, landmarks = env.get_state()
    for scale in (1, 10):
        env.set_state(scale * position, velocity, landmarks)
        frame = env.render()
        border = np.concatenate([frame[0], frame[-1], frame[:, 0], frame[:, -1]])
        assert (border == border[0]).all(), "a body touches the border"
    assert parallel_env(env_id, num_agents=num_agents).render() is None


# -- bad input -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (dict(env_id="simple_sprad"), "simple_spread"),
        (dict(env_id="simple_spread", num_agents=2), "3 to 10"),
        (dict(env_id="simple_spread", num_agents=11), "3 to 10"),
        (dict(env_id="simple_tag", num_agents=4), "3"),
        (dict(env_id="simple_tag", action_kind="discret"), "discrete"),
    ],
)
@pytest.mark.parametrize("side", ["reference", "worlds"])
def test_bad_arguments(side, arguments, words):
    """A ValueError of one line that names what is allowed."""
    with pytest.raises(ValueError, match=words) as caught:
        if side == "worlds":
            arguments = dict(arguments)
            Worlds(arguments.pop("env_id"), 2, **arguments)
        else:
            parallel_env(**arguments)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("env_id", ["simple_spread", "simple_tag"])
@pytest.mark.parametrize("method", ["advance", "step"])
@pytest.mark.parametrize(
    ("kind", "actions"),
    [
        ("discrete", lambda bodies: torch.zeros(4, bodies + 1, dtype=torch.int64)),
        ("discrete", lambda bodies: torch.zeros(5, bodies, dtype=torch.int64)),
        ("discrete", lambda bodies: torch.zeros(4, bodies)),
        ("discrete", lambda bodies: torch.zeros(4, bodies, 2)),
        ("discrete", lambda bodies: torch.zeros(4, bodies, 1, dtype=torch.int64)),
        ("continuous", lambda bodies: torch.zeros(4, bodies)),
        ("continuous", lambda bodies: torch.zeros(4, bodies, 3)),
        ("continuous", lambda bodies: torch.zeros(4, bodies, dtype=torch.int64)),
    ],
)
def test_bad_action_shapes(env_id, method, kind, actions):
    """Actions of the wrong shape or type are refused instead of broadcast."""

    def prey(observations):
        return torch.zeros(4, dtype=torch.int64) if kind == "discrete" else torch.zeros(4, 2)

    worlds = Worlds(env_id, 4, kind, prey=prey)
    bodies = worlds.num_bodies if method == "advance" else worlds.num_learners
    with pytest.raises(ValueError):
        getattr(worlds, method)(actions(bodies))


def test_step_without_prey_policy():
    with pytest.raises(ValueError, match="prey"):
        Worlds("simple_tag", 2).step(torch.zeros(2, 3, dtype=torch.int64))


def test_bad_use_of_the_reference():
    env = parallel_env("simple_tag")
    with pytest.raises(ValueError, match="reset"):
        env.step({})
    env.reset(seed=0)
    with pytest.raises(ValueError, match="adversary_1"):
        env.step({"adversary_0": 0})
    for action in (5, -1, 1.5, [1, 2]):
        with pytest.raises(ValueError, match="0 to 4"):
            env.step(dict.fromkeys(env.agents, action))
    with pytest.raises(ValueError, match="shape"):
        env.set_state(np.zeros((3, 2)), np.zeros((4, 2)), np.zeros((2, 2)))
    with pytest.raises(ValueError, match="render mode"):
        parallel_env("simple_tag", render_mode="human")
    env = parallel_env("simple_tag", "continuous")
    env.reset(seed=0)
    for action in ([0.0, 1.1], [0.0], [0.0, np.nan], 1):
        with pytest.raises(ValueError, match="2 numbers"):
            env.step(dict.fromkeys(env.agents, action))
