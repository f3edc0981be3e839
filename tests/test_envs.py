"""The batched particle worlds against the reference built on `mpe2`, and both against numbers worked out by
hand; the game of two doors against a slow one.

`play` runs whole episodes on both sides and reports the largest difference and which events happened on the
way; the tests built on it fail when an event (a contact, the speed limit, food, ...) was never visited, and
deliberate mistakes (mutants_data.py) show that the same comparison notices each of them.
"""

import itertools
import warnings

import numpy as np
import pytest
import torch
from common import generator, repeatable
from hypothesis import given
from hypothesis import strategies as st
from mutants_data import WORLDS, WORLDS_PLAYED
from scipy.stats import kstest

from envs import make_env, two_doors
from envs.particles import Worlds
from envs.pettingzoo import FRAME_SIZE, parallel_env
from envs.shipped import rollout
from envs.two_doors import TwoDoors
from utils.errors import InputError

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


def distances(a, b):
    """Distances [A, B] between points [A, 2] and [B, 2]."""
    return np.linalg.norm(a[:, None] - b[None], axis=-1)


def events_of(env_id, position, velocity, landmarks):
    """{event: whether it happened} of a state just after a step (positions, velocities [P, 2]; landmarks [L,
    2])."""
    size, prey_size = BODY_SIZE[env_id]
    if env_id == "simple_spread":
        touch = distances(position, position)[np.triu_indices(len(position), 1)] < 2 * size
        nearest = distances(landmarks, position).min(axis=1)
        return {
            "agents touch": touch.any(),
            "agents apart": not touch.all(),
            "landmark reward at its maximum": (nearest < 0.1).any(),
            "landmark reward below": (nearest > 0.1).any(),
        }
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
        happened |= {f"predator in forest {i}": predator_in[:, i].any() for i in range(2)}
        happened |= {f"prey in forest {i}": prey_in[0, i] for i in range(2)}
        happened["food touched"] = (distances(prey, landmarks[FOODS]) < prey_size + FOOD_SIZE).any()
        happened["on different sides of a forest's edge"] = (predator_in != prey_in).any()
    return happened


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
    reference's state. Returns (largest difference by name, {event: whether it was visited}).
    """
    rng = np.random.default_rng(seed)
    worlds = make(env_id, NUM_PLAYS, kind, num_agents, dtype=torch.float64)
    envs = [parallel_env(env_id, kind, num_agents) for _ in range(NUM_PLAYS)]
    for env in envs:
        env.reset(seed=int(rng.integers(2**31)))
        start = [crowding * array for array in env.get_state()]
        env.set_state(start[0], rng.normal(0, speed, start[0].shape), start[2])
    names = envs[0].possible_agents
    differences = dict.fromkeys(["observations", "rewards", "positions", "velocities"], 0.0)
    visited = {}

    def equalise():
        states = [np.stack(arrays) for arrays in zip(*(env.get_state() for env in envs), strict=True)]
        worlds.position, worlds.velocity, worlds.landmarks = map(torch.tensor, states)

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
        results = [
            env.step(dict(zip(names, row, strict=True))) for env, row in zip(envs, actions, strict=True)
        ]
        differ("rewards", rewards, [[result[1][name] for name in names] for result in results])
        differ("positions", worlds.position, [env.get_state()[0] for env in envs])
        differ("velocities", worlds.velocity, [env.get_state()[1] for env in envs])
        differ_in_observations()
        for env in envs:
            for name, happened in events_of(env_id, *env.get_state()).items():
                visited[name] = visited.get(name, False) or bool(happened)
        if not free:
            equalise()
    return differences, visited


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("env_id", "num_agents"), TASKS_AND_CROWDS)
def test_every_step_matches_the_reference(env_id, num_agents, kind):
    """Each step of 25-step episodes agrees in all that agents see and earn; all events happen on the way."""
    visited, rng = [], np.random.default_rng(1)
    plays = [(0, 0.7, 0.5), (1, 0.8, 0.5), (2, 0.9, 0.5), (5, 0.9, 0.5)]  # these visit every event
    plays += [(seed, rng.uniform(0.4, 1.3), rng.uniform(0, 2)) for seed in range(10, 15)]
    for seed, crowding, speed in plays if num_agents == 3 else plays[-3:]:
        differences, events = play(env_id, kind, num_agents, seed, crowding, speed)
        visited.append(events)
        assert all(difference < STEP_TOLERANCE for difference in differences.values()), differences
    assert [name for name in visited[0] if not any(events[name] for events in visited)] == []


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("env_id", "num_agents"), TASKS_AND_CROWDS)
def test_whole_episodes_match_the_reference(env_id, num_agents, kind):
    """Episodes left to themselves for 25 steps agree, and visit every event too."""
    played = [
        play(env_id, kind, num_agents, seed, free=True) for seed in range({3: 6, 5: 2, 10: 1}[num_agents])
    ]
    assert all(max(differences.values()) < EPISODE_TOLERANCE for differences, _ in played)
    assert [name for name in played[0][1] if not any(visited[name] for _, visited in played)] == []


@pytest.mark.parametrize(("area", "mistake"), [(area, name) for area in WORLDS for name in WORLDS[area]])
def test_a_mistake_is_noticed(area, mistake, monkeypatch):
    """Both comparisons fail by a wide margin once the batched worlds have one thing wrong."""
    make = WORLDS[area][mistake](monkeypatch)
    for free in (False, True):
        differences, _ = play(*WORLDS_PLAYED[area], 3, seed=1, free=free, make=make)
        assert max(differences.values()) > 1e4 * EPISODE_TOLERANCE, differences


# -------------------------------------------------------------------------------- numbers worked out by hand

# Task, positions, velocities, landmarks and actions; then positions and rewards after the step.
HAND_COMPUTED = {
    # 0.75 * 2 + 0.1 * 5 = 2.0 for agent 0 and no limit to its speed; agents 1 and 2 touch (0.25 apart) and
    # push each other: penetration 0.05, force 5, speed 0.5, so they end up 0.35 apart and touch no more
    "spread contact": (
        "simple_spread",
        [[0.0, 1.0], [0.0, 0.0], [0.25, 0.0]],
        [[2.0, 0.0], [0.0, 0.0], [0.0, 0.0]],
        [[0.2, 0.9], [0.2, 1.5], [-0.05, -1.0]],
        [2, 0, 0],
        [[0.2, 1.0], [-0.05, 0.0], [0.3, 0.0]],
        [10 + 2 + 1] * 3,
    ),
    # the prey is pushed to 1.6 and capped at 1.3: 0.13 further; the predator at 0.9: 0.09 further. predators
    # at 0.61, 0.7 and 0.8 from the prey; |x| = 0.93 costs the prey 0.3
    "tag": (
        "simple_tag",
        [[0.23, 0.0], [0.93, 0.7], [0.93, -0.8], [0.8, 0.0]],
        [[0.0, 0.0]] * 4,
        [[-0.9, -0.9], [-0.9, 0.9]],
        [2, 0, 0, 2],
        [[0.32, 0.0], [0.93, 0.7], [0.93, -0.8], [0.93, 0.0]],
        [-0.211] * 3 + [0.211 - 0.3],
    ),
    # one catch: predator 0 ends 0.11 from the prey (sizes 0.075 + 0.05), predators 1 and 2 at 1.0 and 2.0;
    # the prey outside, at x = -1.5, pays exp(1), and 0.5 for y = 0.95
    "tag catch": (
        "simple_tag",
        [[-1.35, 0.95], [-0.5, 0.95], [0.5, 0.95], [-1.63, 0.95]],
        [[-1.0 / 0.75 * 0.4, 0.0], [0.0, 0.0], [0.0, 0.0], [0.0, 0.0]],
        [[0.9, -0.9], [-0.9, -0.9]],
        [0, 0, 0, 2],
        [[-1.39, 0.95], [-0.5, 0.95], [0.5, 0.95], [-1.5, 0.95]],
        [10 - 0.311] * 3 + [0.311 - 10 - np.e - 0.5],
    ),
    # the prey ends 0.07 from one food (sizes 0.045 + 0.03) and 0.2 from the other, predators at 0.5, 0.6, 0.7
    "world": (
        "simple_world",
        [[0.5, 0.0], [-0.6, 0.0], [0.0, 0.7], [0.0, -0.13]],
        [[0.0, 0.0]] * 4,
        [[-0.8, -0.8], [0.0, 0.07], [0.0, -0.2], [0.5, 0.2], [0.0, -0.5]],
        [0, 0, 0, 4],
        [[0.5, 0.0], [-0.6, 0.0], [0.0, 0.7], [0.0, 0.0]],
        [-0.18] * 3 + [0.18 + 2 + 0.05 * 0.07],
    ),
}


def put(worlds, *state):
    """Put positions, velocities and landmarks into the one world of `worlds`."""
    state = (torch.tensor(np.array([values]), dtype=torch.float64) for values in state)
    worlds.position, worlds.velocity, worlds.landmarks = state


@pytest.mark.parametrize("case", HAND_COMPUTED)
@pytest.mark.parametrize("kind", KINDS)
def test_one_step_worked_out_by_hand(case, kind):
    """Both sides give the numbers that the published rules give on paper."""
    env_id, *state, actions, moved, expected = HAND_COMPUTED[case]
    directions = np.array([[0, 0], [-1, 0], [1, 0], [0, -1], [0, 1]], dtype=np.float64)
    actions = np.array(actions) if kind == "discrete" else directions[actions]
    worlds, env = Worlds(env_id, 1, kind, dtype=torch.float64), parallel_env(env_id, kind)
    put(worlds, *state)
    env.reset(seed=0)
    env.set_state(*state)
    _, rewards, _, _, _ = env.step(dict(zip(env.possible_agents, actions, strict=True)))
    np.testing.assert_allclose(worlds.advance(torch.tensor(actions[None]))[0].numpy(), expected, atol=1e-8)
    np.testing.assert_allclose(list(rewards.values()), expected, atol=1e-8)
    np.testing.assert_allclose(worlds.position[0].numpy(), moved, atol=1e-9)
    np.testing.assert_allclose(env.get_state()[0], moved, atol=1e-9)


def test_observations_written_out():
    """The order of simple_world's observation, number by number, for a predator and the prey."""
    position = np.array([[0.1, 0.2], [0.3, 0.4], [0.5, 0.6], [0.7, 0.8]])
    velocity = np.array([[0.01, 0.02], [0.03, 0.04], [0.05, 0.06], [0.07, 0.08]])
    landmarks = np.array([[-0.1, -0.2], [-0.3, -0.4], [-0.5, -0.6], [0.1, 0.3], [0.8, 0.9]])
    worlds, env = Worlds("simple_world", 1, dtype=torch.float64), parallel_env("simple_world")
    put(worlds, position, velocity, landmarks)
    env.set_state(position, velocity, landmarks)
    for body, others in ((1, [0, 2, 3]), (3, [0, 1, 2])):
        expected = [velocity[body], position[body], *(landmarks - position[body])]
        expected += [*(position[others] - position[body]), *([velocity[3]] if body == 1 else [])]
        expected = np.concatenate([*expected, [1.0, -1.0] if body == 1 else [-1.0, 1.0]])
        np.testing.assert_allclose(worlds.observe(body)[0].numpy(), expected, atol=1e-15)
        np.testing.assert_allclose(env.observe(env.possible_agents[body], np.float64), expected, atol=1e-15)


# ------------------------------------------------------------------------------------- the batched worlds
# alone


def random_actions(worlds, bodies, draws):
    """Uniform actions of the first `bodies` bodies: [W, bodies] or [W, bodies, 2]."""
    shape = (worlds.num_worlds, bodies)
    if worlds.action_kind == "discrete":
        return torch.randint(5, shape, generator=draws)
    return 2 * torch.rand((*shape, 2), generator=draws) - 1


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("env_id", "num_agents"), TASKS_AND_CROWDS)
def test_float32_stays_near_float64(env_id, num_agents, kind):
    """One step from equal states: single precision costs no more than rounding, also in contact."""
    draws = generator(3)
    double = Worlds(env_id, 400, kind, num_agents, dtype=torch.float64, seed=1)
    single = Worlds(env_id, 400, kind, num_agents, dtype=torch.float32)
    double.velocity = torch.randn(double.velocity.shape, generator=draws, dtype=torch.float64)
    for name in ("position", "velocity", "landmarks"):
        setattr(single, name, getattr(double, name).float())
        setattr(double, name, getattr(single, name).double())
    actions = random_actions(double, double.num_bodies, draws)
    rewards, precise = single.advance(actions), double.advance(actions)
    assert rewards.dtype == single.position.dtype == single.observe(0).dtype == torch.float32
    torch.testing.assert_close(single.position.double(), double.position, atol=1e-5, rtol=0)
    torch.testing.assert_close(single.velocity.double(), double.velocity, atol=1e-4, rtol=0)
    for body in range(double.num_bodies):
        torch.testing.assert_close(single.observe(body).double(), double.observe(body), atol=1e-4, rtol=0)
    torch.testing.assert_close(rewards.double(), precise, atol=1e-3, rtol=0)


def assert_uniform(values, half_width):
    """Values are uniform in [-half_width, half_width], up to chance."""
    values = np.ravel(np.asarray(values))
    assert kstest(values / half_width, "uniform", args=(-1, 2)).pvalue > 1e-4
    assert np.abs(values).max() <= half_width


@pytest.mark.parametrize(("env_id", "num_agents"), [*TASKS, ("simple_spread", 4), ("simple_spread", 10)])
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
    assert correlation.abs().max() < 5 / np.sqrt(4000) and (worlds.velocity == 0).all()

    env, states = parallel_env(env_id, num_agents=num_agents), []
    for seed in range(150):
        env.reset(seed=seed)
        states.append(env.get_state())
    positions, velocities, landmarks = (np.stack(arrays) for arrays in zip(*states, strict=True))
    assert_uniform(positions, half_width)
    assert_uniform(landmarks, landmark_half_width)
    assert (velocities == 0).all()


@pytest.mark.parametrize(("env_id", "num_agents"), TASKS)
def test_reset_is_fixed_by_the_seed(env_id, num_agents):
    """Equal seeds give equal episodes, first and later ones; other seeds and later episodes give others;
    copies start alike."""
    first, same, other = (Worlds(env_id, 6, seed=seed) for seed in (7, 7, 8))
    starts = [first.reset() for _ in range(3)]
    for observations in starts:
        assert observations.shape == (6, first.num_learners, first.obs_dim)
        assert torch.equal(observations, same.reset())
        assert not torch.isclose(observations, other.reset())[..., 2:4].any()
    for before, after in itertools.pairwise(starts):
        assert not torch.isclose(before, after)[..., 2:4].any()
    copies = first.reset(seed=9, copies=3)
    assert torch.equal(copies, Worlds(env_id, 2).reset(seed=9).repeat(3, 1, 1))
    assert not torch.equal(copies[0], copies[1])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("env_id", "num_agents"), TASKS)
def test_step_is_advance_with_the_prey_acting(env_id, num_agents, kind):
    """`step` shows the prey its own observation, lets it act and returns the learners' share."""
    shown = []

    def prey(observations):
        shown.append(observations)
        return torch.full((9,), 3) if kind == "discrete" else torch.tensor([[0.3, -0.9]]).expand(9, 2)

    one, two = (Worlds(env_id, 9, kind, prey=prey, seed=2) for _ in range(2))
    actions = random_actions(one, 3, generator(0))
    has_prey = env_id != "simple_spread"
    seen = two.observe(two.num_bodies - 1)
    joint = torch.cat([actions, prey(seen)[:, None]], dim=1) if has_prey else actions
    shown.clear()
    observations, rewards = one.step(actions)
    assert torch.equal(rewards, two.advance(joint)[:, :3]) and torch.equal(one.position, two.position)
    assert torch.equal(observations, torch.stack([two.observe(i) for i in range(3)], dim=1))
    assert len(shown) == has_prey and all(torch.equal(seen, x) for x in shown)


@pytest.mark.parametrize("env_id", ["simple_tag", "simple_world"])
def test_shipped_prey_is_deterministic(env_id):
    worlds = make_env(env_id, 300, seed=1)
    obs = worlds.observe(3)
    first = worlds.prey(obs)
    torch.rand(3)  # global random numbers must not matter
    assert torch.equal(first, worlds.prey(obs)) and torch.equal(
        first, make_env(env_id, 300, seed=9).prey(obs)
    )
    assert torch.equal(first, torch.cat([worlds.prey(row[None]) for row in obs])), "neighbours do not matter"
    assert len(first.unique()) > 1


@pytest.mark.parametrize(("kind", "score"), [("continuous", 159.8), ("discrete", 157.7)])
def test_score_of_uniform_random_play(kind, score):
    """Uniform random play of simple_spread scores what the benchmark publishes for forces, 159.8."""
    rewards = rollout(Worlds("simple_spread", 20_000, kind, seed=11), None, generator(12))["rewards"]
    assert abs(rewards.mean(-1).sum(1).mean().item() - score) < 1.5


# ----------------------------------------------------------------------- the reference behind PettingZoo's
# interface


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("env_id", "num_agents"), [*TASKS, ("simple_spread", 4)])
def test_parallel_api(env_id, num_agents, kind):
    """PettingZoo's own tests pass, without a warning; episodes are cut after 25 steps; sizes are as
    published."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # this import warns about something else
        from pettingzoo.test import parallel_api_test, parallel_seed_test
    env = parallel_env(env_id, kind, num_agents)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        parallel_api_test(parallel_env(env_id, kind, num_agents), num_cycles=30)
        parallel_seed_test(lambda: parallel_env(env_id, kind, num_agents), num_cycles=30)
    env.reset(seed=1)
    for step in range(1, STEPS + 1):
        actions = {name: env.action_space(name).sample() for name in env.agents}
        _, _, terminations, truncations, _ = env.step(actions)
        assert set(terminations.values()) == {False} and set(truncations.values()) == {step == STEPS}
    worlds, sizes = (
        Worlds(env_id, 5, kind, num_agents),
        {"simple_tag": (4, 2, 16), "simple_world": (4, 5, 24)},
    )
    assert (worlds.num_learners, worlds.action_dim) == (num_agents, 5 if kind == "discrete" else 2)
    expected = sizes.get(env_id, (num_agents, num_agents, 6 * num_agents))
    assert (worlds.num_bodies, worlds.num_landmarks, worlds.obs_dim) == expected
    for body, name in enumerate(env.possible_agents):
        assert env.observation_space(name).shape == worlds.observe(body).shape[1:]
    before = [array.copy() for array in env.get_state()]
    for array in env.get_state():
        array += 1.0  # of a copy
    assert all(map(np.array_equal, before, env.get_state()))


@pytest.mark.parametrize(
    ("env_id", "num_agents", "colours"), [(*TASKS[0], 2), (*TASKS[1], 3), (*TASKS[2], 5)]
)
def test_frames(env_id, num_agents, colours):
    """Frames show every kind of body, tell agents apart, change when bodies move, and keep all in the
    picture."""
    env = parallel_env(env_id, num_agents=num_agents, render_mode="rgb_array")
    env.reset(seed=1)
    frames = [env.render()]
    for _ in range(3):
        env.step({name: 2 for name in env.agents})
        frames.append(env.render())
    for before, after in itertools.pairwise(frames):
        assert before.shape == (FRAME_SIZE, FRAME_SIZE, 3) and before.dtype == np.uint8
        counts = np.unique(before.reshape(-1, 3), axis=0, return_counts=True)[1]
        assert (counts >= 15).sum() >= colours + 1, "and the paper"
        assert (before != after).any(axis=-1).sum() > 50
    position, velocity, landmarks = env.get_state()
    env.set_state(position[[1, 0, *range(2, len(position))]], velocity, landmarks)
    assert (env.render() != frames[-1]).any(axis=-1).sum() > 10, "two agents have changed places"
    for scale in (1, 10):
        env.set_state(scale * position, velocity, landmarks)
        frame = env.render()
        border = np.concatenate([frame[0], frame[-1], frame[:, 0], frame[:, -1]])
        assert (border == border[0]).all(), "a body touches the border"
    assert parallel_env(env_id, num_agents=num_agents).render() is None


# -------------------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (dict(env_id="simple_sprad"), "did you mean 'simple_spread'"),
        (dict(env_id="simple_spread", num_agents=2), "has 3 to 10 agents, not 2"),
        (dict(env_id="simple_spread", num_agents=11), "has 3 to 10 agents, not 11"),
        (dict(env_id="simple_tag", num_agents=4), "has 3 agents, not 4"),
        (dict(env_id="simple_tag", action_kind="discret"), "did you mean 'discrete'"),
    ],
)
def test_bad_arguments(arguments, words):
    """A ValueError of one line that names what is allowed, on both sides."""
    for make in (parallel_env, lambda **given: Worlds(given.pop("env_id"), 2, **given)):
        with pytest.raises(ValueError, match=words) as caught:
            make(**arguments)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("env_id", ["simple_spread", "simple_tag"])
@pytest.mark.parametrize("method", ["advance", "step"])
@pytest.mark.parametrize(
    ("kind", "shape", "dtype"),
    [
        ("discrete", (4, 1), torch.int64),
        ("discrete", (5, 0), torch.int64),
        ("discrete", (4, 0), torch.float32),
        ("discrete", (4, 0, 1), torch.int64),
        ("continuous", (4, 0), torch.float32),
        ("continuous", (4, 0, 3), torch.float32),
        ("continuous", (4, 0, 2), torch.int64),
    ],
)
def test_bad_action_shapes(env_id, method, kind, shape, dtype):
    """Actions of the wrong shape (the second number counts from that of bodies) or type are not broadcast."""
    worlds = Worlds(env_id, 4, kind, prey=lambda obs: torch.zeros(4, dtype=torch.int64))
    bodies = worlds.num_bodies if method == "advance" else worlds.num_learners
    with pytest.raises(InputError, match=f"{kind} actions must have shape"):
        getattr(worlds, method)(torch.zeros((shape[0], shape[1] + bodies, *shape[2:]), dtype=dtype))


def test_bad_use_of_the_worlds_and_the_reference():
    with pytest.raises(ValueError, match="needs a prey"):
        Worlds("simple_tag", 2).step(torch.zeros(2, 3, dtype=torch.int64))
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


# -------------------------------------------------------------------------------------------- the game of two
# doors


class SlowGame:
    """One game, as its text says."""

    def __init__(self):
        self.cells = [0, 0, 0]

    def step(self, actions, gust):
        for i, action in enumerate(actions):
            moved = self.cells[i] + {1: -1, 2: 1}.get(action, 0)
            self.cells[i] = moved if -2 <= moved <= 2 else self.cells[i]
        if gust:
            self.cells = [0, 0, 0]
        return 1.0 if self.cells in ([-2, -2, -2], [2, 2, 2]) else 0.0

    def observe(self, i):
        others = [self.cells[j] - self.cells[i] for j in range(3) if j != i]
        return [self.cells[i] / 2, *(apart / 4 for apart in others)]


def follow(game, gust_seed):
    """Play the batched game beside slow ones, with gusts from a seed; returns the sum of the rewards."""
    draws, gusts = generator(0), generator(gust_seed)
    slow, rewarded = [SlowGame() for _ in range(game.num_worlds)], 0
    mostly = 1 + (torch.arange(game.num_worlds) % 2).unsqueeze(1)  # one direction, so that doors are reached
    for _ in range(game.horizon):
        astray = torch.rand((game.num_worlds, 3), generator=draws) > 0.7
        actions = torch.where(astray, torch.randint(5, astray.shape, generator=draws), mostly)
        gust = torch.rand(game.num_worlds, generator=gusts) < 0.1
        obs, rewards = game.step(actions)
        for w, one in enumerate(slow):
            expected = one.step(actions[w].tolist(), bool(gust[w]))
            assert rewards[w].tolist() == [expected] * 3
            assert obs[w].tolist() == [one.observe(i) for i in range(3)]
            rewarded += expected
    return rewarded


def test_game_is_the_slow_reference_step_by_step():
    game = TwoDoors(60, seed=4)
    assert game.reset().tolist() == [[[0.0, 0.0, 0.0]] * 3] * 60
    assert follow(game, 4) > 100
    with pytest.raises(AssertionError):
        follow(TwoDoors(60, seed=4), 5)


def test_game_has_the_interface_of_the_worlds():
    game, worlds = make_env(two_doors.ENV_ID, 7), make_env("simple_spread", 7)
    for name in "env_id num_worlds num_learners horizon obs_dim action_dim action_kind device prey".split():
        assert type(getattr(game, name)) is type(getattr(worlds, name)), name
    assert (game.env_id, game.num_learners, game.horizon, game.obs_dim) == ("two_doors", 3, 25, 3)
    obs, rewards = game.step(torch.zeros(7, 3, dtype=torch.int64))
    assert (obs.shape, rewards.shape, obs.dtype, rewards.dtype) == (
        (7, 3, 3),
        (7, 3),
        torch.float32,
        torch.float32,
    )


def roll(game, seed=None, copies=1, steps=60):
    """Observations [W, steps, ...] of everybody going left, from a reset on."""
    game.reset(seed, copies)
    return torch.stack(
        [game.step(torch.ones(game.num_worlds, 3, dtype=torch.int64))[0] for _ in range(steps)], 1
    )


def test_gusts_are_fixed_by_the_seed_and_shared_by_copies():
    game = TwoDoors(8, seed=3)
    first, later = roll(game), roll(game)
    assert torch.equal(first, roll(TwoDoors(8, seed=3))) and not torch.equal(first, later)
    assert torch.equal(first, roll(game, seed=3)) and not torch.equal(first, roll(game, seed=4))
    shared = roll(game, seed=3, copies=2)
    assert torch.equal(shared[:4], shared[4:]) and torch.equal(shared[:4], roll(TwoDoors(4), seed=3))
    assert len(shared[:4].flatten(1).unique(dim=0)) == 4
    blown = (
        (roll(TwoDoors(500), seed=1, steps=40) == 0).all((2, 3)).double()
    )  # [W, steps]: all back on cell 0
    assert abs(blown.mean() - 0.1) < 5 * (0.09 / blown.numel()) ** 0.5
    assert abs((blown[:, 1:] * blown[:, :-1]).mean() - 0.01) < 5 * (0.0099 / blown.numel()) ** 0.5


@repeatable
@given(shape=st.sampled_from([(4, 2), (5, 3), (4, 3, 2)]), whole=st.booleans())
def test_other_games_and_actions_are_refused(shape, whole):
    with pytest.raises(InputError, match=r"discrete actions must have shape \(4, 3\)"):
        TwoDoors(4).step(torch.zeros(shape, dtype=torch.int64 if whole else torch.float32))
    with pytest.raises(InputError, match=r"discrete actions must have shape \(4, 3\)"):
        TwoDoors(4).step(torch.zeros(4, 3))
    with pytest.raises(InputError, match="two_doors has 3 agents, not 4"):
        make_env(two_doors.ENV_ID, 1, 4)
    with pytest.raises(InputError, match="unknown env-id 'two_doors'"):
        make_env(two_doors.ENV_ID, 1, action_kind="continuous")


@pytest.mark.parametrize("team", ["random", "left", "right", "halves"])
def test_exact_scores_are_those_of_simulations(team):
    """Both conventions are optimal, and equally good; those that do not match get nothing."""
    halves = lambda obs, _: torch.tensor([1, 2, 1]).expand(obs.shape[:2])  # noqa: E731
    act = dict(random=None, left=two_doors.walk(1), right=two_doors.walk(2), halves=halves)[team]
    exact = dict(random=two_doors.random_score(), halves=0.0).get(team, two_doors.optimal_score())
    returns = rollout(TwoDoors(20_000), act, generator(1))["rewards"].double().mean(-1).sum(1)
    assert abs(returns.mean() - exact) <= 5 * returns.std() / len(returns) ** 0.5
    assert 0.01 < two_doors.random_score() < 1
    # After a start or a gust the door is reached in the second step: a step pays if no gust came in it and
    # the one before; the first never does.
    assert two_doors.optimal_score() == pytest.approx((25 - 1) * (1 - 0.1) ** 2)
