"""Datasets of continuous actions, as test_datasets.py has it for discrete ones: shapes, scores, the same bits from the
same seed, rows that the worlds repeat, actions of the policies that are said to have played, and bad files refused.

HalfCheetah's episodes are short here (SHORT steps): nothing in a dataset depends on their length.
"""

import functools
import json

import h5py
import mujoco
import numpy as np
import pytest
import torch
from common import attribute, one_line, poke, put, swapped

import data.datasets as datasets
import data.mixes as coordination
from data.behaviour import CONTINUOUS_ENV_IDS, load_policies, mlp
from data.datasets import QUALITIES, SIMULATIONS, Dataset, load_dataset, make_env, normalise, plan
from envs.half_cheetah import OBSERVED, HalfCheetah
from envs.particles import ENV_IDS
from utils.errors import InputError

SHORT = 30
SHAPES = {  # agents, observation numbers, action numbers, steps
    "simple_spread": (3, 18, 2, 25),
    "simple_tag": (3, 16, 2, 25),
    "simple_world": (3, 24, 2, 25),
    "HalfCheetah-2x3": (2, 6, 3, SHORT),
}
PUBLISHED = {"simple_spread": (159.8, 516.8), "HalfCheetah-2x3": (-283.97, 3568.81)}  # the same worlds: their unit
LANDMARKS = {"simple_spread": 3, "simple_tag": 2, "simple_world": 5}
EPISODES = {"random": 1000, "medium-replay": 60, "medium": 1000, "expert": 1000}
CHEETAH_EPISODES = {"random": 60, "medium-replay": 50, "medium": 60, "expert": 60}
ALL = [(env_id, quality) for env_id in CONTINUOUS_ENV_IDS for quality in QUALITIES]


def episodes_of(env_id, quality):
    return (EPISODES if env_id in ENV_IDS else CHEETAH_EPISODES)[quality]


@pytest.fixture(scope="module")
def load():
    """load(env_id, quality, episodes, seed, folder), with HalfCheetah's episodes short, in this process alone."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
        monkeypatch.setattr(HalfCheetah, "horizon", SHORT)
        monkeypatch.setitem(datasets.HORIZONS, "HalfCheetah-2x3", SHORT)
        monkeypatch.setattr(coordination, "UPDATES", 2)  # dependence has tests of its own
        yield lambda env_id, quality, episodes, seed, folder: load_dataset(
            env_id, quality, episodes * SHAPES[env_id][3], seed, folder, "continuous"
        )


@pytest.fixture(scope="module")
def logged(load, tmp_path_factory):
    """logged(env_id, quality): the dataset of episodes_of(env_id, quality) episodes, simulated once."""
    folder = tmp_path_factory.mktemp("datasets")
    return functools.cache(lambda env_id, quality: load(env_id, quality, episodes_of(env_id, quality), 0, folder))


def arrays_of(dataset):
    """{name: tensor} of what a dataset has."""
    names = ("observations", "actions", "rewards", "states")
    return {name: getattr(dataset, name) for name in names if getattr(dataset, name) is not None}


# ------------------------------------------------------------------------------------- what the files hold


@pytest.mark.parametrize(("env_id", "quality"), ALL)
def test_dataset_has_the_documented_shapes_and_attributes(logged, env_id, quality):
    dataset, episodes, (num, obs_dim, dim, horizon) = (
        logged(env_id, quality),
        episodes_of(env_id, quality),
        SHAPES[env_id],
    )
    assert dataset.observations.shape == (episodes, horizon + 1, num, obs_dim)
    assert dataset.actions.shape == (episodes, horizon, num, dim) and dataset.rewards.shape == (episodes, horizon, num)
    assert {array.dtype for array in arrays_of(dataset).values()} == {torch.float32}
    assert dataset.actions.abs().max() <= 1 and (dataset.actions < -0.5).any() and (dataset.actions > 0.5).any()
    assert (dataset.actions.abs() == 1).any() == (quality != "random"), "samples of Gaussians are clipped"
    if env_id == "HalfCheetah-2x3":
        assert dataset.states.shape == (episodes, horizon + 1, 17)
        assert torch.equal(dataset.states[:, :, OBSERVED], dataset.observations), "agents see parts of the state"
        assert torch.equal(dataset.rewards[..., 0], dataset.rewards[..., 1])
    else:
        assert dataset.states is None and dataset.observations[:, 0, :, :2].abs().max() == 0, "velocities start at 0"
    starts = dataset.observations[:, 0].flatten(1)
    assert len(starts.unique(dim=0)) == episodes, "no start is met twice: every chunk has its own random numbers"

    facts, own = dataset.facts, load_policies(env_id, action_kind="continuous").facts
    assert [facts[k] for k in ("env_id", "quality", "action_kind", "seed")] == [env_id, quality, "continuous", 0]
    expected = PUBLISHED.get(env_id, (own["random_score"], own["expert_score"]))
    assert (facts["random_score"], facts["expert_score"]) == expected
    assert json.loads(facts["behaviour"])["training"] == own["training"]
    versions = {"torch": torch.__version__, "numpy": np.__version__, "h5py": h5py.__version__}
    assert json.loads(facts["versions"]).items() >= versions.items()
    if env_id == "HalfCheetah-2x3":
        assert json.loads(facts["versions"])["mujoco"] == mujoco.__version__


@pytest.mark.parametrize("env_id", CONTINUOUS_ENV_IDS)
def test_file_has_the_documented_arrays(load, env_id, tmp_path):
    dataset, (num, obs_dim, dim, horizon) = load(env_id, "random", 7, 3, tmp_path), SHAPES[env_id]
    (path,) = tmp_path.iterdir()
    assert path.name.startswith(f"{env_id}-continuous-random-{7 * horizon}-seed3-") and path.suffix == ".h5"
    expected = {
        "observations": ((7, horizon + 1, num, obs_dim), "<f4"),
        "actions": ((7, horizon, num, dim), "<f4"),
        "rewards": ((7, horizon, num), "<f4"),
        "terminals": ((7, horizon), "|b1"),
        "timeouts": ((7, horizon), "|b1"),
    }
    expected |= {} if env_id in ENV_IDS else {"states": ((7, horizon + 1, 17), "<f4")}
    with h5py.File(path) as file:
        assert {name: (array.shape, array.dtype.str) for name, array in file.items()} == expected
        assert not file["terminals"][()].any()
        assert file["timeouts"][:, -1].all() and not file["timeouts"][:, :-1].any()
        for name, tensor in arrays_of(dataset).items():
            assert np.array_equal(file[name][()], tensor.numpy()), name


@pytest.mark.parametrize(("env_id", "quality"), ALL)
def test_same_seed_same_bits_and_other_seed_other_data(load, env_id, quality, tmp_path):
    first = load(env_id, quality, 4, 5, tmp_path / "a")
    torch.rand(3), np.random.rand(3)  # global random numbers must not matter
    again, other = load(env_id, quality, 4, 5, tmp_path / "b"), load(env_id, quality, 4, 6, tmp_path / "b")
    assert len(list((tmp_path / "b").iterdir())) == 2 and first.facts == again.facts
    for name, array in arrays_of(first).items():
        assert torch.equal(array, getattr(again, name)) and not torch.equal(array, getattr(other, name)), name


def test_both_kinds_of_actions_have_files_of_their_own(tmp_path):
    forces = load_dataset("simple_spread", "medium", 100, 0, tmp_path, "continuous")
    buttons = load_dataset("simple_spread", "medium", 100, 0, tmp_path, "discrete")
    again = load_dataset("simple_spread", "medium", 100, 0, tmp_path, "continuous")
    assert len(list(tmp_path.iterdir())) == 2 and torch.equal(forces.actions, again.actions)
    assert (forces.actions.dtype, buttons.actions.dtype) == (torch.float32, torch.int64)


@pytest.mark.parametrize("env_id", CONTINUOUS_ENV_IDS)
def test_another_mujoco_has_files_of_its_own(load, env_id, tmp_path, monkeypatch):
    """HalfCheetah's trajectories differ between its versions; nothing else depends on it."""
    load(env_id, "random", 1, 0, tmp_path)
    version = datasets.version
    monkeypatch.setattr(datasets, "version", lambda name: "0.1.2" if name == "mujoco" else version(name))
    load(env_id, "random", 1, 0, tmp_path)
    assert len(list(tmp_path.iterdir())) == (1 if env_id in ENV_IDS else 2)


# ----------------------------------------------------------------------------- the rows are transitions


def rebuild(env_id, obs, states):
    """Worlds in the states [W, D] or, where there are none, those that the learners saw as obs [W, N, O]; the prey's is
    read off predator 0's."""
    worlds = make_env(env_id, len(obs), action_kind="continuous")
    if env_id == "HalfCheetah-2x3":
        states = np.concatenate([np.zeros((len(obs), 1)), states.double().numpy()], axis=1)  # how far it ran is unknown
        worlds._physics.reset(states[:, :9], states[:, 9:])
        return worlds
    landmarks = 4 + 2 * LANDMARKS[env_id]
    worlds.velocity, worlds.position = obs[..., :2], obs[..., 2:4]
    worlds.landmarks = obs[:, 0, 4:landmarks].unflatten(-1, (-1, 2)) + obs[:, :1, 2:4]
    if env_id != "simple_spread":
        _, _, prey, velocity = obs[:, :1, landmarks : landmarks + 8].split(2, dim=-1)  # after the other two predators
        worlds.position = torch.cat([worlds.position, prey + obs[:, :1, 2:4]], dim=1)
        worlds.velocity = torch.cat([worlds.velocity, velocity], dim=1)
    return worlds


def wrong_rows(dataset: Dataset) -> float:
    """Share of rows (s, o, a, r, s', o') that are not what the worlds do from s with a, or whose o is not of s."""
    obs, states, env_id = dataset.observations, dataset.states, dataset.facts["env_id"]
    start = None if states is None else states[:, :-1].flatten(0, 1)
    worlds = rebuild(env_id, obs[:, :-1].flatten(0, 1), start)
    far = lambda a, b, tolerance: ((a - b).abs() > tolerance).flatten(1).any(1)  # noqa: E731
    # Of HalfCheetah rounding, and what its solver remembers, are left out: velocities are of the order of 10.
    tolerance = 1e-3 if env_id in ENV_IDS else 0.05
    apart = far(torch.stack([worlds.observe(i) for i in range(obs.shape[2])], 1), obs[:, :-1].flatten(0, 1), 1e-3)
    seen, rewards = worlds.step(dataset.actions.flatten(0, 1))
    apart |= far(seen, obs[:, 1:].flatten(0, 1), tolerance)
    apart |= far(rewards, dataset.rewards.flatten(0, 1), tolerance)
    if states is not None:
        apart |= far(worlds.state(), states[:, 1:].flatten(0, 1), tolerance)
    return float(apart.double().mean())


@pytest.mark.parametrize(("env_id", "quality"), ALL)
def test_logged_rows_are_transitions_of_the_worlds(logged, env_id, quality):
    assert wrong_rows(logged(env_id, quality)) <= 1e-3


@pytest.mark.parametrize(("env_id", "quality"), [(e, q) for e, q in ALL if q != "medium-replay"])
def test_logged_episodes_are_those_of_the_worlds_to_the_last_bit(logged, env_id, quality):
    """From the seed of the first chunk alone, with the logged actions."""
    dataset, seed = logged(env_id, quality), int(np.random.SeedSequence([0, 0]).generate_state(1)[0])
    count = min(SIMULATIONS[env_id].chunk, len(dataset.actions))
    env = make_env(env_id, count, seed=seed, action_kind="continuous")
    assert torch.equal(env.reset(), dataset.observations[:count, 0])
    for t in range(env.horizon):
        obs, rewards = env.step(dataset.actions[:count, t])
        assert torch.equal(obs, dataset.observations[:count, t + 1]) and torch.equal(
            rewards, dataset.rewards[:count, t]
        )
        assert dataset.states is None or torch.equal(env.state(), dataset.states[:count, t + 1])


MISTAKES = {
    "observations a step late": lambda d: dict(observations=d.observations.roll(1, 1)),
    "actions a step late": lambda d: dict(actions=d.actions.roll(1, 1)),
    "rewards a step late": lambda d: dict(rewards=d.rewards.roll(1, 1)),
    "actions of two agents swapped": lambda d: dict(actions=swapped(d.actions, 2)),
    "observations of two agents swapped": lambda d: dict(observations=swapped(d.observations, 2)),
    "numbers of an action swapped": lambda d: dict(actions=d.actions.flip(-1)),
    "actions halved": lambda d: dict(actions=d.actions / 2),
    "actions of another episode": lambda d: dict(actions=d.actions.roll(1, 0)),
    "rewards scaled": lambda d: dict(rewards=1.2 * d.rewards),
    "last observation is the next start": lambda d: dict(
        observations=torch.cat([d.observations[:, :-1], d.observations[:, :1].roll(-1, 0)], 1)
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
@pytest.mark.parametrize("env_id", CONTINUOUS_ENV_IDS)
def test_replay_notices(logged, env_id, mistake):
    whole = logged(env_id, "medium")
    some = {name: array[:60] for name, array in arrays_of(whole).items()}
    assert wrong_rows(Dataset(**some, facts=whole.facts)) <= 1e-3
    assert wrong_rows(Dataset(**some | MISTAKES[mistake](Dataset(**some, facts={})), facts=whole.facts)) > 0.02


def test_replay_notices_wrong_states(logged):
    whole = logged("HalfCheetah-2x3", "medium")
    for change in (lambda x: x.roll(1, 1), lambda x: x.roll(1, 0), lambda x: x.roll(1, 2)):
        assert wrong_rows(Dataset(**arrays_of(whole) | dict(states=change(whole.states)), facts=whole.facts)) > 0.5


# ------------------------------------------------------------------------------ the right policies acted


def surprise(dataset: Dataset, players: list[tuple[int, int]]) -> float:
    """How far the logged numbers are from samples of the iterates `players` [(iterate, episodes)]: the largest |z| over
    agents and numbers of an action, of three counts that clipping to [-1, 1] does not change: above or below the mean,
    the same in proportion to the mean, and within the middle half."""
    iterates = load_policies(dataset.facts["env_id"], action_kind="continuous").iterates
    first, parts = 0, []  # parts: [N, rows, A] each, of signs and of their weights
    for player, count in players:
        rows = slice(first, first + count)
        obs, first = dataset.observations[rows, :-1].flatten(0, 1).transpose(0, 1), first + count  # [N, rows, O]
        actions = dataset.actions[rows].flatten(0, 1).transpose(0, 1)
        *network, log_std = iterates[player]
        mean, half = mlp(network, obs).tanh(), 0.67449 * log_std.exp()
        side, middle = (actions - mean).sign(), (half - (actions - mean).abs()).sign()
        for signs, weight in ((side, torch.ones_like(mean)), (side, mean), (middle, (mean.abs() + half < 1).float())):
            parts.append(torch.stack([signs * weight, weight**2]).double().sum(2))  # [2, N, A]
    scores = [hits / variance.clamp(min=1e-9).sqrt() for hits, variance in (sum(parts[i::3]) for i in range(3))]
    return float(torch.stack(scores).abs().max())


@pytest.mark.parametrize("env_id", CONTINUOUS_ENV_IDS)
@pytest.mark.parametrize("quality", QUALITIES[1:])
def test_actions_are_samples_of_the_planned_policies(logged, env_id, quality):
    dataset, medium = logged(env_id, quality), load_policies(env_id, action_kind="continuous").facts["medium_iterate"]
    episodes, chunk = episodes_of(env_id, quality), SIMULATIONS[env_id].chunk
    players = plan(quality, episodes, medium, chunk)
    assert surprise(dataset, players) < 4.5
    exchanged = Dataset(**arrays_of(dataset) | dict(actions=swapped(dataset.actions, 2)), facts=dataset.facts)
    assert surprise(exchanged, players) > 6
    if quality == "medium-replay":
        others = list(zip([i for i, _ in players[::-1]], [count for _, count in players], strict=True))
    else:
        others = plan("medium" if quality == "expert" else "expert", episodes, medium, chunk)
    assert surprise(dataset, others) > 6


@pytest.mark.parametrize("env_id", CONTINUOUS_ENV_IDS)
def test_random_actions_are_uniform_and_independent(logged, env_id):
    actions = logged(env_id, "random").actions.flatten(0, 1).flatten(1).double()  # [rows, N * A]
    error = 5 / np.sqrt(len(actions))
    share = torch.stack([((actions >= x) & (actions < x + 0.25)).double().mean(0) for x in np.arange(-1, 1, 0.25)])
    assert (share - 1 / 8).abs().max() < error * np.sqrt(7 / 64)
    correlation = torch.corrcoef(actions.T) - torch.eye(actions.shape[1])
    assert correlation.abs().max() < error
    steps = logged(env_id, "random").actions.double()
    assert ((steps[:, 1:] * steps[:, :-1]).mean((0, 1)) * 3).abs().max() < 1.1 * error


@pytest.mark.parametrize("env_id", ENV_IDS)
def test_scores_of_the_qualities(logged, env_id):
    score = {q: normalise(logged(env_id, q).mean_return, logged(env_id, q).facts) for q in QUALITIES}
    own = load_policies(env_id, action_kind="continuous").facts
    expected = {q: normalise(own[f"{q}_score"], logged(env_id, q).facts) for q in ("random", "medium", "expert")}
    assert all(abs(score[q] - expected[q]) < 4 for q in expected), "as measured when the policies were made"
    assert score["random"] + 3 < score["medium-replay"] < score["medium"] - 3 < score["expert"] - 20
    assert abs(score["random"]) < 3, "uniform play scores 0 in the published worlds too"


# -------------------------------------------------------------------------------------------- bad input


# Task, what is done to a valid file of 3 episodes, and the words that the complaint must hold beside the file's name.
BAD_FILES = {
    "action above 1": ("simple_spread", poke("actions", (1, 2, 0, 1), 1.01), "actions[1, 2, 0, 1] is not in [-1, 1]"),
    "action below -1": ("simple_spread", poke("actions", (2, 24, 2, 0), -7), "actions[2, 24, 2, 0] is not in [-1, 1]"),
    "action just above 1": ("simple_tag", poke("actions", (0, 0, 0, 0), 1 + 1e-6), "actions[0, 0, 0, 0] is not in"),
    "NaN action": ("simple_spread", poke("actions", (1, 2, 0, 1), np.nan), "actions[1, 2, 0, 1] is not finite"),
    "infinite action": ("simple_spread", poke("actions", (1, 2, 0, 1), -np.inf), "actions[1, 2, 0, 1] is not finite"),
    "integer actions": ("simple_spread", put("actions", lambda a: a.astype("i1")), "actions must be floats, not int8"),
    "indices": ("simple_spread", put("actions", lambda a: a[..., 0]), "actions must have shape (3, 25, 3, 2)"),
    "three numbers": (
        "simple_spread",
        put("actions", lambda a: a[..., [0, 1, 1]]),
        "actions must have shape (3, 25, 3, 2)",
    ),
    "two agents' actions": ("simple_spread", put("actions", lambda a: a[:, :, :2]), "must have shape (3, 25, 3, 2)"),
    "joined actions": ("simple_spread", put("actions", lambda a: a.reshape(3, 25, 6)), "must have shape (3, 25, 3, 2)"),
    "a step less": ("simple_spread", put("actions", lambda a: a[:, 1:]), "must have shape (3, 25, 3, 2)"),
    "no actions": ("simple_spread", lambda f: f.pop("actions"), "lacks actions"),
    "discrete": ("simple_spread", attribute("action_kind", "discrete"), "not continuous ones; use spacql.py"),
    "another kind": ("simple_spread", attribute("action_kind", "psychic"), "psychic actions, not continuous ones"),
    "another task": ("simple_spread", attribute("env_id", "simple_tag"), "data of simple_tag, not of simple_spread"),
    "short observations": (
        "simple_tag",
        put("observations", lambda a: a[..., :-1]),
        "has 16 observation numbers, not 15",
    ),
    "NaN reward": ("simple_tag", poke("rewards", (0, 3, 1), np.nan), "rewards[0, 3, 1] is not finite"),
    "an early end": ("simple_tag", poke("terminals", (2, 7), True), "terminals[2, 7] is True"),
    "no states": ("HalfCheetah-2x3", lambda f: f.pop("states"), "lacks states"),
    "states of another size": (
        "HalfCheetah-2x3",
        put("states", lambda a: a[..., :16]),
        f"states must have shape (3, {SHORT + 1}, 17)",
    ),
    "states of each agent": (
        "HalfCheetah-2x3",
        put("states", lambda a: np.stack([a, a], 2)),
        f"states must have shape (3, {SHORT + 1}, 17)",
    ),
    "no last state": ("HalfCheetah-2x3", put("states", lambda a: a[:, :-1]), f"must have shape (3, {SHORT + 1}, 17)"),
    "NaN state": ("HalfCheetah-2x3", poke("states", (2, SHORT, 16), np.nan), f"states[2, {SHORT}, 16] is not finite"),
    "text states": ("HalfCheetah-2x3", put("states", lambda a: a.astype("S4")), "states must be floats"),
    "forces for torques": (
        "HalfCheetah-2x3",
        put("actions", lambda a: a[..., :2]),
        f"actions must have shape (3, {SHORT}, 2, 3)",
    ),
    "torque above 1": ("HalfCheetah-2x3", poke("actions", (0, 9, 1, 2), 1.5), "actions[0, 9, 1, 2] is not in [-1, 1]"),
    "three agents": ("HalfCheetah-2x3", put("observations", lambda a: a[:, :, [0, 1, 1]]), "has 2 agents, not 3"),
    "one agent": ("HalfCheetah-2x3", put("observations", lambda a: a[:, :, :1]), "has 2 agents, not 1"),
    "spread's observations": (
        "HalfCheetah-2x3",
        put("observations", lambda a: np.zeros((*a.shape[:3], 18), "f4")),
        "has 6 observation numbers, not 18",
    ),
}


@pytest.fixture(scope="module")
def valid(load, tmp_path_factory):
    """valid(env_id): a small valid file, to be copied."""

    @functools.cache
    def make(env_id):
        folder = tmp_path_factory.mktemp(env_id)
        load(env_id, "random", 3, 0, folder)
        return next(folder.iterdir())

    return make


def refused(path, env_id):
    """The complaint about a file; it must name it."""
    message = one_line(lambda: load_dataset(env_id, str(path), action_kind="continuous"))
    assert str(path) in message
    return message


@pytest.mark.parametrize("name", BAD_FILES)
def test_bad_file_is_refused(name, valid, tmp_path):
    env_id, edit, words = BAD_FILES[name]
    path = tmp_path / "bad.h5"
    path.write_bytes(valid(env_id).read_bytes())
    load_dataset(env_id, str(path), action_kind="continuous")
    with h5py.File(path, "r+") as file:
        edit(file)
    before = path.read_bytes()
    assert words in refused(path, env_id)
    assert list(tmp_path.iterdir()) == [path] and path.read_bytes() == before


@pytest.mark.parametrize("env_id", ["simple_spread", "HalfCheetah-2x3"])
def test_truncated_file_is_refused(env_id, valid, tmp_path):
    whole = valid(env_id).read_bytes()
    for share in (0, 0.01, 0.5, 0.999):
        (tmp_path / "cut.h5").write_bytes(whole[: int(share * len(whole))])
        assert "truncated" in refused(tmp_path / "cut.h5", env_id)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (("HalfCheetah", "medium"), "did you mean 'HalfCheetah-2x3'?"),
        (("HalfCheetah-2x3", "medium", SHORT - 1), f"dataset size {SHORT - 1} is less than one episode of {SHORT} "),
        (("simple_tag", "medium", 24), "dataset size 24 is less than one episode of 25 transitions"),
        (("simple_tag", "meduim"), "did you mean 'medium'?"),
        (("simple_tag", "{}/none.h5"), "no dataset file"),
        (("simple_tag", "{}"), "is not an OMAR folder of simple_tag"),
    ],
)
def test_bad_request_is_refused(call, words, load, tmp_path):
    env_id, dataset, *rest = call
    request = functools.partial(load_dataset, env_id, dataset.format(tmp_path), *rest)
    assert words in one_line(lambda: request(folder=tmp_path, action_kind="continuous"))
    assert list(tmp_path.iterdir()) == []


def test_half_cheetah_has_no_discrete_actions(tmp_path):
    with pytest.raises(InputError, match="unknown env-id 'HalfCheetah-2x3'"):
        load_dataset("HalfCheetah-2x3", "medium", folder=tmp_path)
    with pytest.raises(InputError, match="HalfCheetah-2x3 has 2 agents, not 3"):
        make_env("HalfCheetah-2x3", 1, 3, action_kind="continuous")
    assert list(tmp_path.iterdir()) == []
