"""The batched worlds: against the reference built on `mpe2`, step by step (`play`), and both against numbers
worked out by hand; the game of two doors; what all worlds have in common, HalfCheetah too.

Each mistake of mutants_data.py matters in one event only (contacts, speed limits, catches, bounds, forests):
that `play` notices all shows that these events happen.
"""

import warnings
from functools import partial

import numpy as np
import pytest
import torch
from common import generator, one_line
from mutants_data import WORLDS
from scipy.stats import kstest

from envs import make_env, two_doors
from envs.particles import Worlds
from envs.pettingzoo import FRAME_SIZE, parallel_env
from envs.shipped import rollout
from envs.two_doors import TwoDoors
from utils.errors import InputError

KINDS = ["discrete", "continuous"]
TASKS = [("simple_spread", 3), ("simple_tag", 3), ("simple_world", 3)]
STEPS = 25
# Contacts are stiff, so squeezed bodies are chaotic: rounding errors grow several-fold per step (of two
# references started 1e-15 apart, the worst ended 1e-5 apart). Each step hence starts from equal states
# (worst met: 4e-14).
TOLERANCE = 1e-11

NUM_PLAYS = 4


def targets(env_id, play, position, landmarks):
    """Points [P, 2] that the bodies head for in each of the four plays; together they meet everything."""
    if env_id == "simple_spread":
        gather = np.broadcast_to(position[:1], position.shape)
        return [position, landmarks, np.broadcast_to(landmarks[:1], position.shape), gather][play]
    prey, outwards = position[3], position[3] + np.sign(position[3]) * [1.0, 0.7]
    if env_id == "simple_tag":
        prey_target = [prey, landmarks[0], outwards, landmarks[1]][play]
        predator_target = [prey, prey, landmarks[0], prey][play]
    else:
        food = landmarks[1 + np.linalg.norm(landmarks[1:3] - prey, axis=1).argmin()]
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


def play(env_id, kind, num_agents, seed, crowding=1.0, make=Worlds):
    """Run four episodes with the same actions on both sides, each step from the reference's state.

    seed: of starts and actions; crowding: factor on the starts; make: what builds the batched worlds.
    Returns the largest difference of what is observed and earned.
    """
    rng = np.random.default_rng(seed)
    worlds = make(env_id, NUM_PLAYS, kind, num_agents, dtype=torch.float64)
    envs = [parallel_env(env_id, kind, num_agents) for _ in range(NUM_PLAYS)]
    for env in envs:
        env.reset(seed=int(rng.integers(2**31)))
        start = [crowding * array for array in env.get_state()]
        env.set_state(start[0], rng.normal(0, 0.5, start[0].shape), start[2])
    names = envs[0].possible_agents
    apart = []

    def equalise():
        states = [np.stack(arrays) for arrays in zip(*(env.get_state() for env in envs), strict=True)]
        worlds.position, worlds.velocity, worlds.landmarks = map(torch.tensor, states)

    def compare(ours, theirs):
        ours, theirs = ours.numpy(), np.stack(theirs)
        assert ours.shape == theirs.shape
        apart.append(np.abs(ours - theirs).max())

    def compare_observations():
        for i, name in enumerate(names):
            compare(worlds.observe(i), [env.observe(name, np.float64) for env in envs])

    equalise()
    compare_observations()
    for _ in range(STEPS):
        actions = []
        for number, env in enumerate(envs):
            position, _, landmarks = env.get_state()
            actions.append(choose(kind, targets(env_id, number, position, landmarks) - position, rng))
        rewards = worlds.advance(torch.tensor(np.stack(actions)))
        named = [dict(zip(names, row, strict=True)) for row in actions]
        paid = [env.step(row)[1] for env, row in zip(envs, named, strict=True)]
        compare(rewards, [[row[name] for name in names] for row in paid])
        compare_observations()
        equalise()
    return np.max(apart)


@pytest.mark.parametrize(
    ("env_id", "num_agents", "kind"),
    [(*task, kind) for task in TASKS for kind in KINDS]
    + [("simple_spread", 5, "discrete"), ("simple_spread", 10, "continuous")],
)
def test_worlds_match_the_reference(env_id, num_agents, kind):
    """Each step of 25-step episodes agrees in all that agents see and earn."""
    for seed, crowding in [(0, 0.7), (1, 0.8), (2, 0.9), (5, 0.9)] if num_agents == 3 else [(0, 0.7)]:
        assert play(env_id, kind, num_agents, seed, crowding) < TOLERANCE


@pytest.mark.parametrize("mistake", WORLDS)
def test_a_mistake_is_noticed(mistake, monkeypatch):
    """By a wide margin, even when each step starts from the right state."""
    (env_id, kind), make = WORLDS[mistake]
    assert play(env_id, kind, 3, 1, 0.8, make=make(monkeypatch)) > 1e6 * TOLERANCE


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
    # the prey is pushed to 1.6 and capped at 1.3, 0.13 further, predator 1 to 0.9 only, 0.09 further. Two
    # catches: predators 0 and 1 end 0.11 from the prey (sizes 0.075 + 0.05), predator 2 at 2.0; the prey
    # outside, at x = -1.5, pays exp(1), and 0.5 for y = 0.95
    "tag": (
        "simple_tag",
        [[-1.35, 0.95], [-1.5, 1.15], [0.5, 0.95], [-1.63, 0.95]],
        [[-1.0 / 0.75 * 0.4, 0.0], [0.0, 0.0], [0.0, 0.0], [0.0, 0.0]],
        [[0.9, -0.9], [-0.9, -0.9]],
        [0, 3, 0, 2],
        [[-1.39, 0.95], [-1.5, 1.06], [0.5, 0.95], [-1.5, 0.95]],
        [20 - 0.222] * 3 + [0.222 - 20 - np.e - 0.5],
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


@pytest.mark.parametrize("case", HAND_COMPUTED)
@pytest.mark.parametrize("kind", KINDS)
def test_one_step_worked_out_by_hand(case, kind):
    """Both sides give the numbers that the published rules give on paper."""
    env_id, *state, actions, moved, expected = HAND_COMPUTED[case]
    directions = np.array([[0, 0], [-1, 0], [1, 0], [0, -1], [0, 1]], dtype=np.float64)
    actions = np.array(actions) if kind == "discrete" else directions[actions]
    worlds, env = Worlds(env_id, 1, kind, dtype=torch.float64), parallel_env(env_id, kind)
    tensors = [torch.tensor([values], dtype=torch.float64) for values in state]
    worlds.position, worlds.velocity, worlds.landmarks = tensors
    env.reset(seed=0)
    env.set_state(*state)
    _, rewards, _, _, _ = env.step(dict(zip(env.possible_agents, actions, strict=True)))
    np.testing.assert_allclose(worlds.advance(torch.tensor(actions[None]))[0].numpy(), expected, atol=1e-8)
    np.testing.assert_allclose(list(rewards.values()), expected, atol=1e-8)
    np.testing.assert_allclose(worlds.position[0].numpy(), moved, atol=1e-9)
    np.testing.assert_allclose(env.get_state()[0], moved, atol=1e-9)


# ------------------------------------------------------------------------------- the batched worlds alone


def some_actions(worlds, bodies=None, seed=0):
    """Uniform actions of the first `bodies` bodies, by default the learners: [W, N] or [W, N, A]."""
    shape = (worlds.num_worlds, bodies or worlds.num_learners)
    if worlds.action_kind == "discrete":
        return torch.randint(5, shape, generator=generator(seed))
    return 2 * torch.rand((*shape, worlds.action_dim), generator=generator(seed)) - 1


@pytest.mark.parametrize(("env_id", "num_agents"), [*TASKS, ("simple_spread", 10)])
def test_float32_stays_near_float64(env_id, num_agents):
    """One step from equal states: single precision costs no more than rounding, also in contact."""
    double = Worlds(env_id, 400, "continuous", num_agents, dtype=torch.float64, seed=1)
    single = Worlds(env_id, 400, "continuous", num_agents, dtype=torch.float32)
    double.velocity = torch.randn(double.velocity.shape, generator=generator(3), dtype=torch.float64)
    for name in ("position", "velocity", "landmarks"):
        setattr(single, name, getattr(double, name).float())
        setattr(double, name, getattr(single, name).double())
    actions = some_actions(double, double.num_bodies)
    rewards, precise = single.advance(actions), double.advance(actions)
    assert rewards.dtype == single.position.dtype == single.observe(0).dtype == torch.float32
    torch.testing.assert_close(single.position.double(), double.position, atol=1e-5, rtol=0)
    for body in range(double.num_bodies):
        torch.testing.assert_close(single.observe(body).double(), double.observe(body), atol=1e-4, rtol=0)
    torch.testing.assert_close(rewards.double(), precise, atol=1e-3, rtol=0)


def assert_uniform(values, half_width):
    """Values are uniform in [-half_width, half_width], up to chance."""
    values = np.ravel(np.asarray(values))
    assert kstest(values / half_width, "uniform", args=(-1, 2)).pvalue > 1e-4
    assert np.abs(values).max() <= half_width


@pytest.mark.parametrize(("env_id", "num_agents"), [*TASKS, ("simple_spread", 4)])
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


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("env_id", "num_agents"), TASKS)
def test_step_is_advance_with_the_prey_acting(env_id, num_agents, kind):
    """`step` shows the prey its own observation, lets it act and returns the learners' share."""
    shown = []

    def prey(observations):
        shown.append(observations)
        return torch.full((9,), 3) if kind == "discrete" else torch.tensor([[0.3, -0.9]]).expand(9, 2)

    one, two = (Worlds(env_id, 9, kind, prey=prey, seed=2) for _ in range(2))
    actions, has_prey = some_actions(one), env_id != "simple_spread"
    seen = two.observe(two.num_bodies - 1)
    joint = torch.cat([actions, prey(seen)[:, None]], dim=1) if has_prey else actions
    shown.clear()
    observations, rewards = one.step(actions)
    assert torch.equal(rewards, two.advance(joint)[:, :3]) and torch.equal(one.position, two.position)
    assert torch.equal(observations, torch.stack([two.observe(i) for i in range(3)], dim=1))
    assert len(shown) == has_prey and all(torch.equal(seen, x) for x in shown)


# ---------------------------------------------------------------------------- what all worlds have in common

SIZES = {  # kind of actions; agents, observation numbers, number of actions or of an action's numbers, steps
    "simple_spread": ("discrete", (3, 18, 5, 25)),
    "simple_tag": ("continuous", (3, 16, 2, 25)),
    "simple_world": ("discrete", (3, 24, 5, 25)),
    "HalfCheetah-2x3": ("continuous", (2, 6, 3, 1000)),
    two_doors.ENV_ID: ("discrete", (3, 3, 5, 25)),
}


@pytest.mark.parametrize("env_id", SIZES)
def test_all_worlds_have_one_interface(env_id):
    kind, sizes = SIZES[env_id]
    worlds, spread = make_env(env_id, 7, action_kind=kind), make_env("simple_spread", 7)
    for name in "env_id num_worlds num_learners horizon obs_dim action_dim action_kind device".split():
        assert type(getattr(worlds, name)) is type(getattr(spread, name)), name
    assert (worlds.num_learners, worlds.obs_dim, worlds.action_dim, worlds.horizon) == sizes
    first, (obs, rewards) = worlds.reset(), worlds.step(some_actions(worlds))
    assert first.shape == obs.shape == (7, *sizes[:2]) and rewards.shape == (7, sizes[0])
    assert first.dtype == obs.dtype == rewards.dtype == torch.float32
    if env_id != two_doors.ENV_ID:
        assert torch.equal(torch.stack([worlds.observe(i) for i in range(sizes[0])], 1), obs)


def roll(worlds, seed=None, copies=1):
    """Observations [W, 61, N, O] from a reset on; all agents do the same all the time."""
    obs, actions = [worlds.reset(seed, copies)], torch.ones_like(some_actions(worlds))
    return torch.stack(obs + [worlds.step(actions)[0] for _ in range(60)], 1)


@pytest.mark.parametrize("env_id", SIZES)
def test_episodes_are_fixed_by_the_seed_and_shared_by_copies(env_id):
    """Equal seeds give equal episodes, first and later ones; other seeds and later episodes give others."""
    make = lambda count, seed=0: make_env(env_id, count, seed=seed, action_kind=SIZES[env_id][0])  # noqa: E731
    worlds, same = make(6, 7), make(6, 7)
    first, later = roll(worlds), roll(worlds)
    torch.rand(3), np.random.rand(3)  # global random numbers must not matter
    assert torch.equal(first, roll(same)) and torch.equal(later, roll(same))
    for other in (later, roll(make(6, 8)), roll(worlds, seed=9), first.roll(1, 0)):
        assert not (first == other).all((1, 2, 3)).any()
    shared = roll(worlds, seed=9, copies=3)
    torch.testing.assert_close(shared, roll(make(2), seed=9).repeat(3, 1, 1, 1), atol=1e-3, rtol=0)
    assert not torch.equal(shared[0], shared[1]) and torch.equal(shared, roll(same, seed=9, copies=3))


@pytest.mark.parametrize(
    ("env_id", "kind", "shape", "dtype"),
    [
        ("simple_spread", "discrete", (4, 4), torch.int64),
        ("simple_spread", "discrete", (4, 3), torch.float32),
        ("simple_tag", "continuous", (5, 3, 2), torch.float32),
        ("simple_tag", "continuous", (4, 3, 2), torch.int64),
        (two_doors.ENV_ID, "discrete", (4, 2), torch.int64),
        (two_doors.ENV_ID, "discrete", (4, 3), torch.float32),
    ],
)
def test_wrong_actions_are_not_broadcast(env_id, kind, shape, dtype):
    worlds = make_env(env_id, 4, action_kind=kind)
    for move in (worlds.step, getattr(worlds, "advance", worlds.step)):
        with pytest.raises(InputError, match=f"{kind} actions must have shape"):
            move(torch.zeros(shape, dtype=dtype))


MAKERS = [partial(Worlds, num_worlds=2), parallel_env]  # of worlds and of the reference
MAKE_ENV = [partial(make_env, num_worlds=2)]


@pytest.mark.parametrize(
    ("makers", "env_id", "given", "words"),
    [
        (MAKERS, "simple_sprad", {}, "did you mean 'simple_spread'"),
        (MAKERS, "simple_spread", dict(num_agents=2), "has 3 to 10 agents, not 2"),
        (MAKERS, "simple_spread", dict(num_agents=11), "has 3 to 10 agents, not 11"),
        (MAKERS, "simple_tag", dict(num_agents=4), "has 3 agents, not 4"),
        (MAKERS, "simple_tag", dict(action_kind="discret"), "did you mean 'discrete'"),
        ([parallel_env], "simple_tag", dict(render_mode="human"), "render mode"),
        (MAKE_ENV, "HalfCheetah-2x3", dict(num_agents=3, action_kind="continuous"), "has 2 agents, not 3"),
        (MAKE_ENV, "HalfCheetah-2x3", {}, "unknown env-id 'HalfCheetah-2x3'"),
        (MAKE_ENV, two_doors.ENV_ID, dict(num_agents=4), "two_doors has 3 agents, not 4"),
        (MAKE_ENV, two_doors.ENV_ID, dict(action_kind="continuous"), "unknown env-id 'two_doors'"),
    ],
)
def test_bad_arguments_are_refused(makers, env_id, given, words):
    for make in makers:
        assert words in one_line(lambda make=make: make(env_id, **given))


# ------------------------------------------------------------ the reference behind PettingZoo's interface


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("env_id", "num_agents"), [*TASKS, ("simple_spread", 4)])
def test_parallel_api(env_id, num_agents, kind):
    """PettingZoo's own tests pass, without a warning; episodes are cut after 25 steps; sizes are those of the
    batched worlds; what it gives of its state are copies."""
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
    worlds = Worlds(env_id, 5, kind, num_agents)
    assert len(env.possible_agents) == worlds.num_bodies == num_agents + (env_id != "simple_spread")
    for body, name in enumerate(env.possible_agents):
        assert env.observation_space(name).shape == worlds.observe(body).shape[1:]
    before = [array.copy() for array in env.get_state()]
    for array in env.get_state():
        array += 1.0
    assert all(map(np.array_equal, before, env.get_state()))


@pytest.mark.parametrize(("task", "colours"), [("spread", 2), ("tag", 3), ("world", 5)])
def test_frames(task, colours):
    """Frames show every kind of body, tell agents apart, change when bodies move, and keep all in the
    picture."""
    env = parallel_env(f"simple_{task}", render_mode="rgb_array")
    env.reset(seed=1)
    before = env.render()
    env.step({name: 2 for name in env.agents})
    after = env.render()
    assert before.shape == (FRAME_SIZE, FRAME_SIZE, 3) and before.dtype == np.uint8
    counts = np.unique(before.reshape(-1, 3), axis=0, return_counts=True)[1]
    assert (counts >= 15).sum() >= colours + 1, "and the paper"
    assert (before != after).any(axis=-1).sum() > 50
    position, velocity, landmarks = env.get_state()
    env.set_state(position[[1, 0, *range(2, len(position))]], velocity, landmarks)
    assert (env.render() != after).any(axis=-1).sum() > 10, "two agents have changed places"
    env.set_state(10 * position, velocity, landmarks)
    frame = env.render()
    border = np.concatenate([frame[0], frame[-1], frame[:, 0], frame[:, -1]])
    assert (border == border[0]).all(), "a body touches the border"
    assert parallel_env(f"simple_{task}").render() is None


def test_bad_use_of_the_worlds_and_the_reference():
    tag, forces = parallel_env("simple_tag"), parallel_env("simple_tag", "continuous")
    without = Worlds("simple_tag", 2)
    assert "needs a prey" in one_line(lambda: without.step(torch.zeros(2, 3, dtype=torch.int64)))
    assert "reset" in one_line(lambda: tag.step({}))
    tag.reset(seed=0), forces.reset(seed=0)
    bad = [(tag, action, "0 to 4") for action in (5, -1, 1.5, [1, 2])]
    bad += [(forces, action, "2 numbers") for action in ([0.0, 1.1], [0.0], [0.0, np.nan], 1)]
    for env, action, words in bad:
        assert words in one_line(lambda env=env, action=action: env.step(dict.fromkeys(env.agents, action)))
    assert "adversary_1" in one_line(lambda: tag.step({"adversary_0": 0}))


# ------------------------------------------------------------------------------------ the game of two doors


def test_game_moves_blows_and_pays_as_its_text_says():
    mostly = 1 + (torch.arange(200) % 2).unsqueeze(1)  # one direction, so that doors are reached

    def act(obs, draws):
        astray = torch.rand((200, 3), generator=draws) > 0.7
        return torch.where(astray, torch.randint(5, astray.shape, generator=draws), mostly)

    log, gusts = rollout(TwoDoors(200, seed=4), act, generator(0)), generator(4)
    gust = torch.stack([torch.rand(200, generator=gusts) < 0.1 for _ in range(25)], 1)  # [W, T]
    obs = log["observations"]
    cells = (2 * obs[..., 0]).long()  # [W, T + 1, N]
    moved = (cells[:, :-1] + torch.tensor([0, -1, 1, 0, 0])[log["actions"]]).clamp(-2, 2)
    assert torch.equal(cells[:, 1:], torch.where(gust.unsqueeze(-1), 0, moved)) and (cells[:, 0] == 0).all()
    paid = (cells[:, 1:] == 2).all(-1) | (cells[:, 1:] == -2).all(-1)
    assert torch.equal(paid.float().unsqueeze(-1).expand(-1, -1, 3), log["rewards"]) and paid.sum() > 300
    for i, others in enumerate([[1, 2], [0, 2], [0, 1]]):
        assert torch.equal(obs[:, :, i, 1:], (cells[..., others] - cells[..., [i]]) / 4)


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
