"""The datasets and the behaviour policies behind them: are the rows transitions, are the scores right, is bad input
refused in one line, and do files appear only when complete.

`wrong_rows` replays logged actions from logged states in the worlds, and `surprise` asks whether logged actions are
samples of the policy that is said to have played; a list of deliberate mistakes (`MISTAKES`) shows that they notice.
"""

import contextlib
import functools
import io
import json
import os
import signal
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from common import ROOT, Trap, attribute, one_line, poke, put, repeatable, swapped
from hypothesis import example, given, settings
from hypothesis import strategies as st

import data.behaviour as behaviour
import data.datasets as datasets
import data.mixes as coordination
from data.behaviour import Args, greedy, load_policies, mlp
from data.datasets import QUALITIES, SIMULATIONS, Dataset, load_dataset, make_env, normalise, plan
from envs.particles import ENV_IDS, HORIZON, NUM_ACTIONS, Worlds
from utils.errors import InputError
from utils.files import atomic, parse, run_script

EPISODES = {"random": 1500, "medium-replay": 300, "medium": 1500, "expert": 3000}
OBS_DIM = {"simple_spread": 18, "simple_tag": 16, "simple_world": 24}
LANDMARKS = {"simple_spread": 3, "simple_tag": 2, "simple_world": 5}
ALL = [(env_id, quality) for env_id in ENV_IDS for quality in QUALITIES]
CHUNK = SIMULATIONS["simple_spread"].chunk
quickly = settings(repeatable, max_examples=40)


@pytest.fixture(scope="module", autouse=True)
def hardly_measured():
    """Dependence has tests of its own (test_coordination.py); here the facts need only be there."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(coordination, "UPDATES", 2)
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("datasets")


@pytest.fixture(scope="module")
def logged(folder):
    """logged(env_id, quality): the dataset of EPISODES[quality] episodes, simulated once for this module."""
    return functools.cache(
        lambda env_id, quality: load_dataset(env_id, quality, EPISODES[quality] * HORIZON, 0, folder)
    )


def run_python(code, **kwargs):
    """A fresh interpreter in the repository's folder."""
    command = [sys.executable, *(["-c", code] if isinstance(code, str) else code)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, **kwargs)


# ------------------------------------------------------------------------------------- what the files hold


@pytest.mark.parametrize(("env_id", "quality"), ALL)
def test_dataset_has_the_documented_shapes_and_attributes(logged, env_id, quality):
    dataset, episodes, dim = logged(env_id, quality), EPISODES[quality], OBS_DIM[env_id]
    assert dataset.observations.shape == (episodes, HORIZON + 1, 3, dim)
    assert dataset.actions.shape == dataset.rewards.shape == (episodes, HORIZON, 3)
    assert (dataset.observations.dtype, dataset.rewards.dtype) == (torch.float32, torch.float32)
    assert dataset.actions.dtype == torch.int64
    assert set(dataset.actions.unique().tolist()) == set(range(NUM_ACTIONS))
    facts, shipped = dataset.facts, load_policies(env_id).facts
    assert (facts["env_id"], facts["quality"], facts["action_kind"], facts["seed"]) == (env_id, quality, "discrete", 0)
    assert [facts[k] for k in ("random_score", "expert_score")] == [shipped["random_score"], shipped["expert_score"]]
    assert json.loads(facts["behaviour"])["training"] == shipped["training"]
    assert json.loads(facts["versions"]) == {
        "torch": torch.__version__,
        "numpy": np.__version__,
        "h5py": h5py.__version__,
    }
    assert dataset.observations[:, 0, :, :2].abs().max() == 0, "velocities start at 0"
    starts = dataset.observations[:, 0].flatten(1)
    assert len(starts.unique(dim=0)) == episodes, "no start is met twice: every chunk has its own random numbers"
    if env_id != "simple_spread":
        assert torch.equal(dataset.rewards[..., 0], dataset.rewards[..., 1]), "predators share one reward"
        assert torch.equal(dataset.rewards[..., 0], dataset.rewards[..., 2])


@pytest.mark.parametrize("env_id", ENV_IDS)
def test_file_has_the_documented_arrays(env_id, tmp_path):
    dataset = load_dataset(env_id, "random", 7 * HORIZON + 24, 3, tmp_path)  # 24 more are no whole episode
    (path,) = tmp_path.iterdir()
    assert path.name.startswith(f"{env_id}-discrete-random-{7 * HORIZON + 24}-seed3-") and path.suffix == ".h5"
    with h5py.File(path) as file:
        assert {name: (array.shape, array.dtype.str) for name, array in file.items()} == {
            "observations": ((7, HORIZON + 1, 3, OBS_DIM[env_id]), "<f4"),
            "actions": ((7, HORIZON, 3), "|i1"),
            "rewards": ((7, HORIZON, 3), "<f4"),
            "terminals": ((7, HORIZON), "|b1"),
            "timeouts": ((7, HORIZON), "|b1"),
        }
        assert not file["terminals"][()].any()
        assert file["timeouts"][:, -1].all() and not file["timeouts"][:, :-1].any()
        attributes = "env_id quality action_kind random_score expert_score seed behaviour versions format"
        attributes += " dataset dependence dependence_error predictability"
        assert set(file.attrs) == set(attributes.split()) and file.attrs["seed"] == 3
        for name in ("observations", "actions", "rewards"):
            assert np.array_equal(file[name][()], getattr(dataset, name).numpy()), name


@pytest.mark.parametrize(("env_id", "quality"), ALL)
def test_same_seed_same_bits_and_other_seed_other_data(env_id, quality, tmp_path):
    load = functools.partial(load_dataset, env_id, quality, 6 * HORIZON)
    first = load(5, tmp_path / "a")
    torch.rand(3), np.random.rand(3)  # global random numbers must not matter
    again, other = load(5, tmp_path / "b"), load(6, tmp_path / "b")
    for name in ("observations", "actions", "rewards"):
        assert torch.equal(getattr(first, name), getattr(again, name)), name
        assert not torch.equal(getattr(first, name), getattr(other, name)), name
    assert first.facts == again.facts


def test_a_silenced_progress_bar_does_not_count_the_rows(tmp_path, monkeypatch):
    monkeypatch.setitem(SIMULATIONS, "simple_spread", replace(SIMULATIONS["simple_spread"], chunk=3))
    monkeypatch.setattr(datasets, "tqdm", functools.partial(datasets.tqdm, disable=True))
    dataset = load_dataset("simple_spread", "random", 10 * HORIZON, folder=tmp_path)
    assert (dataset.observations.flatten(1).abs().sum(1) > 0).all()


def test_second_load_reads_the_cached_file(tmp_path, monkeypatch):
    first = load_dataset("simple_tag", "expert", 100, 0, tmp_path)
    (path,) = tmp_path.iterdir()
    before = path.stat()
    monkeypatch.setattr(datasets, "simulate", lambda *_: pytest.fail("simulated again"))
    again = load_dataset("simple_tag", "expert", 100, 0, tmp_path)
    by_path = load_dataset("simple_tag", str(path))
    after = path.stat()
    assert (before.st_mtime_ns, before.st_ino) == (after.st_mtime_ns, after.st_ino)
    assert torch.equal(first.observations, again.observations) and first.facts == again.facts == by_path.facts
    assert list(tmp_path.iterdir()) == [path]


# ----------------------------------------------------------------------------- the rows are transitions


def rebuild(env_id, obs):
    """Worlds in the states that the learners saw as obs [W, N, O]; the prey's is read off predator 0's."""
    worlds, landmarks = make_env(env_id, len(obs), obs.shape[1]), 4 + 2 * LANDMARKS[env_id]
    worlds.velocity, worlds.position = obs[..., :2], obs[..., 2:4]
    worlds.landmarks = obs[:, 0, 4:landmarks].unflatten(-1, (-1, 2)) + obs[:, :1, 2:4]
    if env_id != "simple_spread":
        _, _, prey, velocity = obs[:, :1, landmarks : landmarks + 8].split(2, dim=-1)  # after the other two predators
        worlds.position = torch.cat([worlds.position, prey + obs[:, :1, 2:4]], dim=1)
        worlds.velocity = torch.cat([worlds.velocity, velocity], dim=1)
    return worlds


def wrong_rows(dataset: Dataset) -> float:
    """Share of rows (o, a, r, o') that are not what the worlds do from o with a, or whose o is not one state's."""
    obs, tolerance = dataset.observations, 1e-3
    worlds = rebuild(dataset.facts["env_id"], obs[:, :-1].flatten(0, 1))
    apart = (worlds._observe(slice(0, obs.shape[2])) - obs[:, :-1].flatten(0, 1)).abs().amax((1, 2)) > tolerance
    seen, rewards = worlds.step(dataset.actions.flatten(0, 1))
    apart |= (seen - obs[:, 1:].flatten(0, 1)).abs().amax((1, 2)) > tolerance
    apart |= (rewards - dataset.rewards.flatten(0, 1)).abs().amax(1) > tolerance
    return float(apart.double().mean())


def wrong_episodes(dataset: Dataset) -> float:
    """Share of episodes that the worlds do not repeat from the start state alone."""
    worlds = rebuild(dataset.facts["env_id"], dataset.observations[:, 0])
    apart = torch.zeros(len(dataset.actions), dtype=torch.bool)
    for t in range(dataset.actions.shape[1]):
        seen, rewards = worlds.step(dataset.actions[:, t])
        apart |= (seen - dataset.observations[:, t + 1]).abs().amax((1, 2)) > 0.01
        apart |= (rewards - dataset.rewards[:, t]).abs().amax(1) > 0.1
    return float(apart.double().mean())


# Measured: no row, and up to 0.7% of the episodes (contacts amplify rounding). A row may yet lie on a touch's edge.
ROWS, WHOLE_EPISODES = 1e-4, 0.03


@pytest.mark.parametrize(("env_id", "quality"), ALL)
def test_logged_rows_are_transitions_of_the_worlds(logged, env_id, quality):
    assert wrong_rows(logged(env_id, quality)) <= ROWS
    assert wrong_episodes(logged(env_id, quality)) <= WHOLE_EPISODES


MISTAKES = {
    "observations a step late": lambda d: (d.observations.roll(1, 1), d.actions, d.rewards),
    "actions a step late": lambda d: (d.observations, d.actions.roll(1, 1), d.rewards),
    "rewards a step late": lambda d: (d.observations, d.actions, d.rewards.roll(1, 1)),
    "actions of two agents swapped": lambda d: (d.observations, swapped(d.actions, 2), d.rewards),
    "observations of two agents swapped": lambda d: (swapped(d.observations, 2), d.actions, d.rewards),
    "actions of another episode": lambda d: (d.observations, d.actions.roll(1, 0), d.rewards),
    "actions counted from 1": lambda d: (d.observations, (d.actions + 1) % NUM_ACTIONS, d.rewards),
    "last observation is the next start": lambda d: (
        torch.cat([d.observations[:, :-1], d.observations[:, :1].roll(-1, 0)], 1),
        d.actions,
        d.rewards,
    ),
    "rewards scaled": lambda d: (d.observations, d.actions, d.rewards * 1.2),
}


@pytest.mark.parametrize("mistake", MISTAKES)
@pytest.mark.parametrize("env_id", ENV_IDS)
def test_replay_notices(logged, env_id, mistake):
    whole = logged(env_id, "medium")
    some = Dataset(whole.observations[:300], whole.actions[:300], whole.rewards[:300], whole.facts)
    assert wrong_rows(some) <= ROWS
    broken = Dataset(*MISTAKES[mistake](some), whole.facts)
    assert wrong_rows(broken) > 0.03
    assert wrong_episodes(broken) > 0.5


def test_replay_notices_swapped_rewards(logged):
    """Only agents that touch are paid differently, hence few rows."""
    dataset = logged("simple_spread", "medium")
    assert wrong_rows(Dataset(dataset.observations, dataset.actions, swapped(dataset.rewards, 2), dataset.facts)) > 0.01


@pytest.mark.parametrize("env_id", ENV_IDS[1:])
def test_replay_notices_another_prey(logged, env_id, monkeypatch):
    idle = lambda *args: Worlds(*args[:2], prey=lambda obs: torch.zeros(len(obs), dtype=torch.int64))  # noqa: E731
    monkeypatch.setitem(globals(), "make_env", idle)
    assert wrong_rows(logged(env_id, "medium")) > 0.3


# ------------------------------------------------------------------------------ the right policies acted


def surprise(dataset: Dataset, players: list[tuple[int, int]]) -> float:
    """Largest |z| of the log-likelihood and of each agent's count of each action, were the logged actions samples of
    the iterates `players` [(iterate, episodes)]."""
    iterates, first = load_policies(dataset.facts["env_id"]).iterates, 0
    total, variance = torch.zeros(3, NUM_ACTIONS + 1), torch.zeros(3, NUM_ACTIONS + 1)
    for player, count in players:
        rows = slice(first, first + count)
        obs, first = dataset.observations[rows, :-1].flatten(0, 1).transpose(0, 1), first + count
        log_pi = mlp(iterates[player], obs).log_softmax(-1).double()  # [N, rows, A]
        counts = torch.eye(NUM_ACTIONS, dtype=torch.double).expand(*log_pi.shape, -1)
        statistics = torch.cat([log_pi.unsqueeze(-1), counts], -1)  # [N, rows, A, 1 + A]: what each action would add
        pi = log_pi.exp().unsqueeze(-1)
        mean = (pi * statistics).sum(2)
        actions = dataset.actions[rows].flatten(0, 1).T[..., None, None].expand(-1, -1, 1, NUM_ACTIONS + 1)
        total += (statistics.gather(2, actions).squeeze(2) - mean).sum(1)
        variance += ((pi * statistics**2).sum(2) - mean**2).sum(1)
    return float((total / variance.sqrt()).abs().max())


@pytest.mark.parametrize("env_id", ENV_IDS)
@pytest.mark.parametrize("quality", QUALITIES[1:])
def test_actions_are_samples_of_the_planned_policies(logged, env_id, quality):
    dataset, medium = logged(env_id, quality), load_policies(env_id).facts["medium_iterate"]
    players = plan(quality, EPISODES[quality], medium, CHUNK)
    assert surprise(dataset, players) < 4.5
    swapped_agents = Dataset(dataset.observations, swapped(dataset.actions, 2), dataset.rewards, dataset.facts)
    assert surprise(swapped_agents, players) > 20
    if quality == "medium-replay":
        others = list(zip([i for i, _ in players[::-1]], [count for _, count in players], strict=True))
    else:
        others = plan("medium" if quality == "expert" else "expert", EPISODES[quality], medium, CHUNK)
    assert surprise(dataset, others) > 20


@pytest.mark.parametrize("env_id", ENV_IDS)
def test_random_actions_are_uniform_and_independent(logged, env_id):
    actions = logged(env_id, "random").actions
    agent = torch.stack([(actions == a).double().mean((0, 1)) for a in range(NUM_ACTIONS)])  # [A, N]
    assert (agent - 1 / NUM_ACTIONS).abs().max() < 0.01
    for i, j in ((0, 1), (0, 2), (1, 2)):
        pairs = (actions[..., i] * NUM_ACTIONS + actions[..., j]).flatten().bincount(minlength=NUM_ACTIONS**2)
        assert (pairs / pairs.sum() - 1 / NUM_ACTIONS**2).abs().max() < 0.005
    steps = (actions[:, 1:] * NUM_ACTIONS + actions[:, :-1]).flatten().bincount(minlength=NUM_ACTIONS**2)
    assert (steps / steps.sum() - 1 / NUM_ACTIONS**2).abs().max() < 0.005


@pytest.mark.parametrize("env_id", ENV_IDS)
def test_scores_of_the_qualities(logged, env_id):
    score = {q: normalise(logged(env_id, q).mean_return, logged(env_id, q).facts) for q in QUALITIES}
    assert abs(score["random"]) < 3
    assert abs(score["expert"] - 100) < 3
    assert abs(score["medium"] - 40) < 8
    assert score["random"] + 3 < score["medium-replay"] < score["medium"] - 3


def test_shipped_policies_are_good_enough():
    facts = {env_id: load_policies(env_id).facts for env_id in ENV_IDS}
    gain = {env_id: f["expert_score"] - f["random_score"] for env_id, f in facts.items()}
    assert facts["simple_spread"]["expert_score"] > 516.8, "the published expert"
    assert facts["simple_tag"]["random_score"] < -2 and facts["simple_world"]["random_score"] < -4
    assert gain["simple_tag"] > 60 and gain["simple_world"] > 25
    for env_id, f in facts.items():
        assert abs(100 * (f["medium_score"] - f["random_score"]) / gain[env_id] - 40) < 5, env_id
        assert len(load_policies(env_id).iterates) == f["medium_iterate"] + 2


def test_return_and_score_by_hand():
    rewards = torch.tensor([[[1.0, 2.0, 3.0], [0.0, 0.0, 6.0]], [[1.0, 1.0, 1.0], [2.0, 2.0, 2.0]]])  # [E, T, N]
    dataset = Dataset(torch.empty(0), torch.empty(0), rewards, dict(random_score=2.5, expert_score=4.5))
    assert dataset.mean_return == 3.5  # episodes 4 and 3
    assert normalise(dataset.mean_return, dataset.facts) == 50
    assert normalise(np.array([2.5, 4.5]), dataset.facts).tolist() == [0, 100]


@pytest.mark.parametrize("env_id", ENV_IDS[1:])
def test_prey_is_deterministic(env_id):
    worlds = make_env(env_id, 300, seed=1)
    obs = worlds.observe(3)
    torch.manual_seed(1)
    first = worlds.prey(obs)
    torch.manual_seed(2)
    assert torch.equal(first, worlds.prey(obs)) and torch.equal(first, make_env(env_id, 300, seed=9).prey(obs))
    assert torch.equal(first, torch.cat([worlds.prey(row[None]) for row in obs])), "neighbours in a batch do not matter"
    assert len(first.unique()) > 1


# ------------------------------------------------------------------------------------ who plays how often


@quickly
@given(st.sampled_from(QUALITIES), st.integers(1, 9000), st.integers(0, 40))
@example("medium-replay", 3, 40)  # fewer episodes than iterates
@example("medium-replay", 9000, 0)
@example("expert", CHUNK, 5)
@example("random", CHUNK + 1, 5)
def test_plan_is_complete_even_and_in_order(quality, episodes, medium):
    chunks = plan(quality, episodes, medium, CHUNK)
    assert sum(count for _, count in chunks) == episodes
    assert all(0 < count <= CHUNK for _, count in chunks)
    players = [player for player, _ in chunks]
    if quality != "medium-replay":
        assert set(players) == {{"random": None, "medium": medium, "expert": -1}[quality]}
        return
    assert players == sorted(players)
    shares = [sum(count for player, count in chunks if player == i) for i in range(medium + 1)]
    assert sum(shares) == episodes and max(shares) - min(shares) <= 1


# ------------------------------------------------------------------------------- complete files or none


def break_third_rollout(monkeypatch, error):
    calls, rollout = [], datasets.rollout

    def breaking(*args):
        calls.append(args)
        if len(calls) == 3:
            raise error
        return rollout(*args)

    monkeypatch.setattr(datasets, "rollout", breaking)


@pytest.mark.parametrize(
    "error", [RuntimeError("bug"), KeyboardInterrupt(), MemoryError()], ids=lambda e: type(e).__name__
)
def test_broken_simulation_leaves_nothing_and_the_next_succeeds(error, tmp_path, monkeypatch):
    load = functools.partial(load_dataset, "simple_spread", "medium-replay", 10 * HORIZON, 0)
    with monkeypatch.context() as patch:
        break_third_rollout(patch, error)
        with pytest.raises(type(error)):
            load(tmp_path)
    assert list(tmp_path.iterdir()) == []
    assert len(load(tmp_path).actions) == 10 and len(list(tmp_path.iterdir())) == 1


def test_killed_simulation_leaves_no_file_of_the_final_name(tmp_path):
    code = f"""
import os, signal, data.datasets as d
rollout, calls = d.rollout, []
def deadly(*args):
    calls.append(1)
    if len(calls) == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return rollout(*args)
d.rollout = deadly
d.load_dataset("simple_spread", "medium-replay", 250, 0, {str(tmp_path)!r})
"""
    assert run_python(code).returncode == -signal.SIGKILL
    left = list(tmp_path.iterdir())
    assert [".partial" in path.name for path in left] == [True]
    assert len(load_dataset("simple_spread", "medium-replay", 250, 0, tmp_path).actions) == 10
    assert len([path for path in tmp_path.iterdir() if ".partial" not in path.name]) == 1


def test_unwritable_folder_is_named(tmp_path):
    (tmp_path / "file").write_text("not a folder")
    message = one_line(lambda: load_dataset("simple_spread", "random", 100, 0, tmp_path / "file" / "datasets"))
    assert "cannot write" in message and str(tmp_path / "file" / "datasets") in message
    assert os.listdir(tmp_path) == ["file"]


def test_full_disk_is_one_line_and_leaves_nothing(tmp_path):
    """A limit on the size of files stands in for the disk; HDF5 reports it only on closing."""
    pytest.importorskip("resource")
    code = f"""
import resource, data.datasets as d
resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))
d.load_dataset("simple_spread", "random", 50_000, 0, {str(tmp_path)!r})
"""
    last = run_python(code).stderr.splitlines()[-1]
    assert last.startswith(f"utils.errors.InputError: cannot write {tmp_path}") and "too large" in last
    assert list(tmp_path.iterdir()) == []


def test_atomic_file_appears_only_at_the_end(tmp_path):
    path = tmp_path / "new" / "file.npz"
    with atomic(path) as partial:
        assert partial.suffix == ".npz" and partial.parent == path.parent
        partial.write_text("first")
        assert not path.exists()
    assert path.read_text() == "first"
    for error in (ValueError, KeyboardInterrupt):
        with pytest.raises(error), atomic(path) as partial:
            partial.write_text("half")
            assert path.read_text() == "first"
            raise error
    assert path.read_text() == "first" and list(path.parent.iterdir()) == [path]
    with atomic(path) as partial:
        partial.write_text("second")
    assert path.read_text() == "second" and list(path.parent.iterdir()) == [path]


def test_atomic_tells_of_failed_writes_in_one_line(tmp_path):
    def fail():
        with atomic(tmp_path / "x") as partial:
            partial.write_text("half")
            raise OSError("file write failed: time = noon\n, errno = 28")

    assert "errno = 28" in one_line(fail)
    assert list(tmp_path.iterdir()) == []


# -------------------------------------------------------------------------------------------- bad input


@pytest.fixture(scope="module")
def valid(folder):
    """A small valid file, to be copied."""
    load_dataset("simple_spread", "random", 4 * HORIZON, 0, folder / "valid")
    (path,) = (folder / "valid").iterdir()
    return path


def group(file):
    del file["rewards"]
    file.create_group("rewards")


def empty(file):
    del file["rewards"]
    file["rewards"] = h5py.Empty("f4")


def dangling(file):
    del file["rewards"]
    file["rewards"] = h5py.SoftLink("/nowhere")


def no_episodes(file):
    for name in ("observations", "actions", "rewards", "terminals", "timeouts"):
        put(name, lambda array: array[:0])(file)


def crowd(file):
    """11 agents, with observations as long as they would be."""
    put("observations", lambda a: np.zeros((*a.shape[:2], 11, 66), "f4"))(file)
    put("actions", lambda a: np.zeros((*a.shape[:2], 11), "i1"))(file)
    put("rewards", lambda a: np.zeros((*a.shape[:2], 11), "f4"))(file)


# What is done to a valid file, and the words that the complaint must contain beside the file's name.
BAD_FILES = {
    "no observations": (lambda f: f.pop("observations"), "lacks observations"),
    "no actions": (lambda f: f.pop("actions"), "lacks actions"),
    "no rewards": (lambda f: f.pop("rewards"), "lacks rewards"),
    "no terminals": (lambda f: f.pop("terminals"), "lacks terminals"),
    "nothing": (lambda f: f.clear(), "lacks observations, actions, rewards, terminals"),
    "no attributes": (lambda f: [f.attrs.pop(k) for k in list(f.attrs)], "lacks attribute env_id, attribute quality"),
    "no expert_score": (attribute("expert_score", None), "lacks attribute expert_score"),
    "group for a dataset": (group, "lacks rewards"),
    "dangling link": (dangling, "lacks rewards"),
    "empty dataspace": (empty, "lacks rewards"),
    "int env_id": (attribute("env_id", 3), "env_id must be a string"),
    "bytes quality": (attribute("quality", np.bytes_(b"random")), "quality must be a string"),
    "array action_kind": (attribute("action_kind", [1, 2]), "action_kind must be a string"),
    "text random_score": (attribute("random_score", "1.0"), "random_score must be a finite number"),
    "NaN random_score": (attribute("random_score", np.nan), "random_score must be a finite number"),
    "infinite expert_score": (attribute("expert_score", -np.inf), "expert_score must be a finite number"),
    "array expert_score": (attribute("expert_score", [1.0, 2.0]), "expert_score must be a finite number"),
    "empty expert_score": (attribute("expert_score", h5py.Empty("f8")), "expert_score must be a finite number"),
    "equal scores": (lambda f: f.attrs.update(random_score=7, expert_score=7.0), "random_score equals expert_score"),
    "another task": (attribute("env_id", "simple_tag"), "data of simple_tag, not of simple_spread"),
    "forces": (attribute("action_kind", "continuous"), "use spacql_continuous.py"),
    "unknown action kind": (attribute("action_kind", "telepathic"), "telepathic actions, not discrete ones"),
    "action -1": (poke("actions", (1, 2, 0), -1), "actions[1, 2, 0] is not in 0..4"),
    "action 5": (poke("actions", (3, 24, 2), 5), "actions[3, 24, 2] is not in 0..4"),
    "float actions": (put("actions", lambda a: a.astype("f4")), "actions must be integers, not float32"),
    "boolean actions": (put("actions", lambda a: a > 2), "actions must be integers, not bool"),
    "string actions": (put("actions", lambda a: a.astype("S1")), "actions must be integers"),
    "object actions": (put("actions", lambda a: a.astype(str).astype(h5py.string_dtype())), "actions must be integers"),
    "force actions": (put("actions", lambda a: np.zeros((*a.shape, 2), "f4")), "actions must be integers"),
    "one-hot actions": (put("actions", lambda a: np.eye(5, dtype="i1")[a]), "actions must have shape (4, 25, 3)"),
    "joint actions": (put("actions", lambda a: a[..., 0]), "actions must have shape (4, 25, 3)"),
    "scalar actions": (put("actions", lambda a: np.int8(1)), "actions must have shape (4, 25, 3)"),
    "complex observations": (put("observations", lambda a: a.astype("c8")), "observations must be floats"),
    "string observations": (put("observations", lambda a: a.astype("S4")), "observations must be floats"),
    "record observations": (put("observations", lambda a: a.view([("x", "f4")])), "observations must be floats"),
    "integer rewards": (put("rewards", lambda a: a.astype("i4")), "rewards must be floats, not int32"),
    "text terminals": (put("terminals", lambda a: np.full(a.shape, b"no")), "terminals must be booleans"),
    "NaN terminals": (put("terminals", lambda a: np.full(a.shape, np.nan)), "terminals must be booleans"),
    "flat observations": (
        put("observations", lambda a: a.reshape(-1, 18)),
        "observations must be [episodes",
    ),
    "scalar observations": (put("observations", lambda a: np.float32(1)), "observations must be [episodes"),
    "one-step episodes": (put("observations", lambda a: a[:, :2]), "observations must be [episodes"),
    "no episodes": (no_episodes, "observations must be [episodes"),
    "fewer actions": (put("actions", lambda a: a[:-1]), "actions must have shape (4, 25, 3)"),
    "fewer rewards": (put("rewards", lambda a: a[:-1]), "rewards must have shape (4, 25, 3)"),
    "fewer terminals": (put("terminals", lambda a: a[:-1]), "terminals must have shape (4, 25)"),
    "no last observation": (put("observations", lambda a: a[:, :-1]), "actions must have shape (4, 24, 3)"),
    "shorter rewards": (put("rewards", lambda a: a[:, :-1]), "rewards must have shape (4, 25, 3)"),
    "two agents' actions": (put("actions", lambda a: a[..., :2]), "actions must have shape (4, 25, 3)"),
    "one reward": (put("rewards", lambda a: a[..., :1]), "rewards must have shape (4, 25, 3)"),
    "two agents": (put("observations", lambda a: a[:, :, :2]), "3 to 10 agents, not 2"),
    "eleven agents": (crowd, "3 to 10 agents, not 11"),
    "short observations": (put("observations", lambda a: a[..., :-1]), "has 18 observation numbers, not 17"),
    "tag's observations": (put("observations", lambda a: a[..., :16]), "has 18 observation numbers, not 16"),
    "an early end": (poke("terminals", (2, 7), True), "terminals[2, 7] is True"),
    "NaN observation": (poke("observations", (0, 25, 2, 17), np.nan), "observations[0, 25, 2, 17] is not finite"),
    "too large for a float32": (
        put("rewards", lambda a: np.where(np.arange(3) == 1, 1e300, a.astype("f8"))),
        "rewards[0, 0, 1] is not finite",
    ),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_bad_file_is_refused(name, valid, tmp_path):
    edit, words = BAD_FILES[name]
    path = tmp_path / "bad.h5"
    path.write_bytes(valid.read_bytes())
    load_dataset("simple_spread", str(path))
    with h5py.File(path, "r+") as file:
        edit(file)
    before = path.read_bytes()
    message = one_line(lambda: load_dataset("simple_spread", str(path)))
    assert words in message and str(path) in message
    assert list(tmp_path.iterdir()) == [path] and path.read_bytes() == before


@quickly
@given(draw=st.data())
def test_what_is_not_finite_is_named_with_its_place(draw, valid, folder):
    path = folder / "poked.h5"
    path.write_bytes(valid.read_bytes())
    with h5py.File(path, "r+") as file:
        name = draw.draw(st.sampled_from(["observations", "rewards"]))
        place = tuple(draw.draw(st.integers(0, size - 1)) for size in file[name].shape)
        file[name][place] = draw.draw(st.sampled_from([np.nan, np.inf, -np.inf]))
    expected = f"{path}: {name}[{', '.join(map(str, place))}] is not finite"
    assert one_line(lambda: load_dataset("simple_spread", str(path))) == expected


@quickly
@given(share=st.floats(0, 1, exclude_max=True))
@example(share=0.0)
@example(share=0.001)
@example(share=0.999999)
def test_truncated_file_is_refused(share, valid, folder):
    whole, path = valid.read_bytes(), folder / "cut.h5"
    path.write_bytes(whole[: int(share * len(whole))])
    message = one_line(lambda: load_dataset("simple_spread", str(path)))
    assert str(path) in message and "truncated" in message


@quickly
@given(noise=st.binary(max_size=3000), signature=st.booleans())
def test_random_bytes_are_refused(noise, signature, folder):
    path = folder / "noise.h5"
    path.write_bytes(b"\x89HDF\r\n\x1a\n" * signature + noise)
    message = one_line(lambda: load_dataset("simple_spread", str(path)))
    assert str(path) in message and "cannot read" in message


@settings(quickly, max_examples=60)
@given(place=st.integers(0, 10**6), flip=st.integers(1, 255))
def test_damaged_bytes_are_refused_or_harmless(place, flip, valid, folder):
    """A flipped byte in an array cannot be noticed; in a header it must not end in anything but an InputError."""
    path, raw = folder / "flipped.h5", bytearray(valid.read_bytes())
    with h5py.File(valid) as file:
        arrays = [(d.id.get_offset(), d.id.get_storage_size()) for d in file.values()]
    headers = [i for i in range(len(raw)) if not any(start <= i < start + size for start, size in arrays)]
    raw[headers[place % len(headers)]] ^= flip
    path.write_bytes(raw)
    with contextlib.suppress(InputError):
        load_dataset("simple_spread", str(path))


# What is asked of load_dataset, in a folder `{}`, and words of the complaint.
BAD_CALLS = {
    "unknown env": (("simple_spred", "medium"), "unknown env-id 'simple_spred'", "did you mean 'simple_spread'"),
    "far from any env": (("", "medium"), "unknown env-id ''", "simple_spread, simple_tag, simple_world"),
    "unknown quality": (("simple_tag", "meduim"), "unknown dataset 'meduim'", "did you mean 'medium'"),
    "quality in capitals": (("simple_tag", "EXPERT"), "unknown dataset 'EXPERT'", "random, medium-replay, medium"),
    "missing file": (("simple_tag", "{}/nothing.h5"), "no dataset file", "nothing.h5"),
    "missing folder": (("simple_tag", "{}/nothing/data"), "no dataset file", "nothing/data"),
    "a folder": (("simple_tag", "{}"), "is a folder", "{}"),
    "the empty name": (("simple_tag", ""), "is a folder", ".h5"),
    "text file": (("simple_tag", "{}/text.h5"), "cannot read", "text.h5"),
    "text file of another name": (("simple_tag", "{}/text"), "cannot read", "text"),
    "empty file": (("simple_tag", "{}/empty.hdf5"), "cannot read", "empty.hdf5"),
    "less than an episode": (("simple_tag", "medium", HORIZON - 1), "size 24", "25"),
    "negative size": (("simple_tag", "medium", -5), "size -5", "25"),
    "negative seed": (("simple_tag", "medium", 100, -1), "seed -1", "negative"),
}


@pytest.mark.parametrize("name", BAD_CALLS)
def test_bad_request_is_refused(name, tmp_path):
    for file, content in (("text.h5", "hello\nworld"), ("text", "a,b\n1,2"), ("empty.hdf5", "")):
        (tmp_path / file).write_text(content)
    (env_id, dataset, *rest), *words = BAD_CALLS[name]
    before = sorted(tmp_path.rglob("*"))
    call = functools.partial(load_dataset, env_id, dataset.format(tmp_path), *rest)
    message = one_line(lambda: call(folder=tmp_path / "datasets"))
    assert all(word.format(tmp_path) in message for word in words), message
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(("num", "horizon", "kind"), [(5, 25, "f4"), (10, 25, "f4"), (3, 2, "f8"), (3, 40, "f2")])
def test_other_sizes_are_accepted(num, horizon, kind, tmp_path, valid):
    """People may bring data of 3 to 10 agents, other horizons and other precisions."""
    dim = Worlds("simple_spread", 1, num_agents=num).obs_dim
    assert dim == 4 + 2 * num + 4 * (num - 1)
    with h5py.File(tmp_path / "own.hdf5", "w") as file, h5py.File(valid) as old:
        file["observations"] = np.ones((2, horizon + 1, num, dim), kind)
        file["actions"] = np.full((2, horizon, num), 4, "u2")
        file["rewards"] = np.ones((2, horizon, num), kind)
        file["terminals"] = np.zeros((2, horizon), "u1")
        for k in ("env_id", "quality", "action_kind", "random_score", "expert_score"):
            file.attrs[k] = old.attrs[k]
    dataset = load_dataset("simple_spread", str(tmp_path / "own.hdf5"))
    assert dataset.observations.shape == (2, horizon + 1, num, dim) and dataset.mean_return == horizon
    assert (dataset.observations.dtype, dataset.actions.dtype) == (torch.float32, torch.int64)
    assert (dataset.actions == 4).all()


# ------------------------------------------------------------------------------------------ policy files


def without(name):
    return lambda arrays: arrays.pop(name)


def facts(**changes):
    """An edit of a policy file's arrays: other facts; None removes one."""

    def edit(arrays):
        new = json.loads(str(arrays["facts"])) | changes
        arrays["facts"] = np.array(json.dumps({k: v for k, v in new.items() if v is not None}))

    return edit


BAD_POLICIES = {
    "no actor": (without("actor5"), "actor5"),
    "no prey": (without("prey3"), "prey3"),
    "no facts": (without("facts"), "facts"),
    "facts that are no JSON": (lambda a: a.update(facts=np.array("{")), "JSON"),
    "facts that are a list": (lambda a: a.update(facts=np.array("[1]")), "TypeError"),
    "no medium": (facts(medium_iterate=None), "medium_iterate"),
    "no score": (facts(expert_score=None), "expert_score"),
    "NaN score": (facts(random_score=float("nan")), "scores are not finite"),
    "another task": (facts(env_id="simple_world"), "policies of simple_world"),
    "fewer iterates": (lambda a: a.update(actor0=a["actor0"][:-1]), "number of iterates"),
    "NaN parameter": (lambda a: a["actor2"].__setitem__((0, 0, 0, 0), np.nan), "parameter is not finite"),
    "text parameters": (lambda a: a.update(actor0=np.full(3, "x")), "could not convert"),
}


@pytest.mark.parametrize("name", BAD_POLICIES)
def test_bad_policy_file_is_refused(name, tmp_path):
    edit, words = BAD_POLICIES[name]
    with np.load(behaviour.POLICY_DIR / "simple_tag-discrete.npz") as file:
        arrays = dict(file)
    np.savez(tmp_path / "simple_tag-discrete.npz", **arrays)
    assert load_policies("simple_tag", folder=tmp_path).prey is not None
    edit(arrays)
    np.savez(tmp_path / "simple_tag-discrete.npz", **arrays)
    message = one_line(lambda: load_policies("simple_tag", folder=tmp_path))
    assert words in message and str(tmp_path / "simple_tag-discrete.npz") in message


@pytest.mark.parametrize("name", ["facts", "actor0", "extra"])
def test_pickled_objects_are_refused_and_not_executed(name, tmp_path):
    with np.load(behaviour.POLICY_DIR / "simple_spread-discrete.npz") as file:
        arrays = dict(file)
    arrays[name] = np.array([Trap(tmp_path / "executed")], dtype=object)
    np.savez(tmp_path / "simple_spread-discrete.npz", **arrays)
    message = one_line(lambda: load_policies("simple_spread", folder=tmp_path))
    assert "allow_pickle=False" in message and not (tmp_path / "executed").exists()


@quickly
@given(share=st.floats(0, 1, exclude_max=True), noise=st.binary(max_size=100))
@example(share=0.0, noise=b"")
@example(share=0.0, noise=b"hello\n")
def test_damaged_policy_file_is_refused(share, noise, folder):
    whole, path = (behaviour.POLICY_DIR / "simple_tag-discrete.npz").read_bytes(), folder / "simple_tag-discrete.npz"
    path.write_bytes(whole[: int(share * len(whole))] + noise)
    assert str(path) in one_line(lambda: load_policies("simple_tag", folder=folder))


def test_array_file_in_place_of_a_policy_file_is_refused(tmp_path):
    with open(tmp_path / "simple_tag-discrete.npz", "wb") as file:
        np.save(file, np.ones(3))
    assert "cannot read policy file" in one_line(lambda: load_policies("simple_tag", folder=tmp_path))


def test_missing_policy_file_names_its_command(tmp_path, monkeypatch):
    command = "python -m data.behaviour --env-id simple_world"
    assert command in one_line(lambda: load_policies("simple_world", folder=tmp_path))
    monkeypatch.setattr(datasets, "POLICY_DIR", tmp_path)
    assert command in one_line(lambda: load_dataset("simple_world", "random", 100, 0, tmp_path / "datasets"))
    assert "simple_world" in one_line(lambda: load_policies("simple_wrld"))
    assert list(tmp_path.iterdir()) == []


# -------------------------------------------------------------------------------------- training of behaviour


def make(monkeypatch, out, *flags):
    """Run `python -m data.behaviour --out out flags` here, judging on few episodes."""
    monkeypatch.setattr(behaviour, "SCORE_EPISODES", 300)
    monkeypatch.setattr(sys, "argv", ["behaviour", "--out", str(out), *map(str, flags)])
    behaviour.main()


@pytest.mark.parametrize("env_id", ENV_IDS)
def test_training_writes_a_file_that_loads_and_is_deterministic(env_id, tmp_path, monkeypatch):
    iterations = 8 if env_id == "simple_spread" else 4
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        flags = ("--env-id", env_id, "--seed", seed, "--iterations", iterations)
        make(monkeypatch, tmp_path / name, *flags, "--num-worlds", 32, "--selfplay-iterations", 2)
        assert os.listdir(tmp_path / name) == [f"{env_id}-discrete.npz"]
    first, again, other = (load_policies(env_id, folder=tmp_path / name) for name in "abc")
    same = [torch.equal(a, b) for a, b in zip(first.iterates[-1], again.iterates[-1], strict=True)]
    differ = [not torch.equal(a, b) for a, b in zip(first.iterates[-1], other.iterates[-1], strict=True)]
    assert all(same) and all(differ) and first.facts == again.facts
    assert len(first.iterates) == first.facts["medium_iterate"] + 2
    assert len(first.facts["training_returns"]) == iterations
    assert first.facts["training"]["iterations"] == iterations and first.facts["env_id"] == env_id
    assert all(not torch.equal(a, b) for a, b in zip(first.iterates[0], first.iterates[-1], strict=True)), "moved"
    assert (first.prey is None) == (env_id == "simple_spread")

    # The scores in the file are those of the half-precision networks in the file, not of what they were rounded from.
    judge = Worlds(env_id, 300, prey=first.prey and greedy(first.prey), seed=4)
    assert behaviour.score(judge, None, 5) == pytest.approx(first.facts["random_score"], abs=1e-4)
    assert behaviour.score(judge, first.iterates[-1], 5) == pytest.approx(first.facts["expert_score"], abs=1e-4)


def test_first_iterate_plays_almost_uniformly():
    for env_id in ENV_IDS:
        obs = Worlds(env_id, 200, seed=1).reset()
        assert mlp(load_policies(env_id).iterates[0], obs.transpose(0, 1)).softmax(-1).sub(0.2).abs().max() < 0.05


def test_ppo_raises_the_return(monkeypatch):
    """Against a prey of three iterations of self-play; seeds 1 to 3 gain 29 to 62."""
    monkeypatch.setattr(behaviour, "SCORE_EPISODES", 500)
    arrays = behaviour.train_behaviour(Args("simple_tag", iterations=40, num_worlds=64, selfplay_iterations=3))
    facts = json.loads(str(arrays["facts"]))
    assert facts["expert_score"] > facts["random_score"] + 10
    assert np.mean(facts["training_returns"][-5:]) > np.mean(facts["training_returns"][:5]) + 10
    assert 0 < facts["medium_iterate"] < 40 and len(arrays["actor0"]) == facts["medium_iterate"] + 2


def test_failed_training_leaves_no_file(tmp_path, monkeypatch):
    def half_written(partial, **_):
        Path(partial).write_text("half")
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(behaviour, "train_behaviour", lambda args: {"facts": np.array("{}")})
        patch.setattr(np, "savez_compressed", half_written)
        assert "No space left" in one_line(lambda: make(patch, tmp_path / "out"))
    assert list((tmp_path / "out").iterdir()) == []
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(behaviour, "train_behaviour", lambda args: pytest.fail("trained in vain"))
    assert "cannot write" in one_line(lambda: make(monkeypatch, tmp_path / "file" / "out"))


@pytest.mark.parametrize("flag", ["--iterations", "--num-worlds", "--epochs", "--minibatches", "--selfplay-iterations"])
def test_counts_below_one_are_refused(flag, tmp_path, monkeypatch):
    assert flag in one_line(lambda: make(monkeypatch, tmp_path / "out", flag, 0))
    assert list(tmp_path.iterdir()) == []


# ------------------------------------------------------------------------------------------- command lines


@pytest.mark.parametrize(
    ("encoding", "flags", "line"),
    [
        (
            "utf-8",
            "--env-id nonsense",
            "unknown env-id 'nonsense' (choose from simple_spread, simple_tag, simple_world)",
        ),
        (
            "ascii",
            "--iteration 5",
            "Unrecognized options: --iteration, 5; did you mean --iterations or --selfplay-iterations or "
            "--value-iterations?",
        ),
    ],
)
def test_script_ends_with_status_2_and_one_line(encoding, flags, line, tmp_path):
    command = ["-m", "data.behaviour", "--out", str(tmp_path), *flags.split()]
    done = run_python(command, env=os.environ | {"PYTHONIOENCODING": encoding, "COLUMNS": "40"})
    assert (done.returncode, done.stdout, done.stderr) == (2, "", f"data.behaviour: error: {line}\n")
    assert list(tmp_path.iterdir()) == []


COMPLAINTS = {
    "--nonsense 3": "Unrecognized options: --nonsense, 3",
    "--nonsense": "Unrecognized options: --nonsense",
    "stray": "Unrecognized options: stray",
    "--env-di simple_tag": "Unrecognized options: --env-di, simple_tag; did you mean --env-id?",
    "--iterations many": "Error parsing --iterations: invalid literal for int() with base 10: 'many'",
    "--iterations 1.5": "Error parsing --iterations: invalid literal for int() with base 10: '1.5'",
    "--gamma high": "Error parsing --gamma: could not convert string to float: 'high'",
    "--iterations": "Missing value for argument '--iterations'. Expected 1 values.",
}


@pytest.mark.parametrize("columns", ["30", "80", "300"])
@pytest.mark.parametrize("flags", COMPLAINTS)
def test_complaint_about_flags_is_one_line(flags, columns, monkeypatch):
    monkeypatch.setenv("COLUMNS", columns)
    message = one_line(lambda: parse(Args, flags.split()))
    if columns != "30":  # where words are broken
        assert message == COMPLAINTS[flags]
    assert "help" not in message and "│" not in message


def test_parse_reads_flags_and_defaults():
    args = parse(Args, ["--env-id", "simple_tag", "--gamma", "0.5"])
    assert asdict(args) == asdict(Args(env_id="simple_tag", gamma=0.5))
    assert parse(Args, ["--seed", "3"], default=args) == Args(env_id="simple_tag", gamma=0.5, seed=3)


def test_help_exits_with_0_and_explains_the_flags(capsys):
    with pytest.raises(SystemExit) as stop:
        parse(Args, ["--help"])
    assert stop.value.code in (0, None)
    said = capsys.readouterr().out
    assert "--num-worlds" in said and "worlds stepped together" in said


@pytest.mark.parametrize(
    ("error", "status", "line"),
    [(InputError("bad thing"), 2, "name: error: bad thing"), (KeyboardInterrupt(), 130, "name: interrupted")],
)
def test_run_script_ends_tidily(error, status, line):
    def main():
        raise error

    with pytest.raises(SystemExit) as stop, contextlib.redirect_stderr(io.StringIO()) as said:
        run_script("name", main)
    assert stop.value.code == status and said.getvalue().strip() == line


def test_run_script_hides_no_bug():
    def main():
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        run_script("name", main)
