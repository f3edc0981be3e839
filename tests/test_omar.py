"""OMAR's folders: are they read as an obvious loop writes them, is each kind of damage refused in one line that names
the file and row, does what is written read back bit for bit, and does the prey act as the network that was stored?

The folders are made here row by row, by `make_folder`, which shares no code with data/omar.py.
"""

import os
import shutil
import sys
import tempfile
import tracemalloc
import types
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from common import Trap, one_line, repeatable
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import data.omar as omar
from data.behaviour import init_mlp, mlp
from data.datasets import load_dataset
from data.omar import PREY_DIM, PREY_FILE, find_prey_file, load_prey, read_folder, write_folder, write_prey
from envs.particles import WITH_PREY, Worlds
from utils.errors import InputError

# Agents, observation and action numbers, steps: the published shapes, written down once more.
SHAPES = {
    "simple_spread": (3, 18, 2, 25),
    "simple_tag": (3, 16, 2, 25),
    "simple_world": (3, 24, 2, 25),
    "HalfCheetah-2x3": (2, 6, 3, 1000),
}


def make_arrays(env_id, episodes, seed=0):
    """Random episodes: observations, actions, rewards and, for HalfCheetah, states."""
    (num, obs_dim, act_dim, horizon), rng = SHAPES[env_id], np.random.default_rng(seed)
    arrays = dict(
        observations=rng.normal(0, 3, (episodes, horizon + 1, num, obs_dim)),
        actions=rng.uniform(-1, 1, (episodes, horizon, num, act_dim)),
        rewards=rng.normal(0, 9, (episodes, horizon, num)),
    )
    if env_id == "HalfCheetah-2x3":
        arrays["states"] = rng.normal(0, 3, (episodes, horizon + 1, 17))
    return {k: v.astype(np.float32) for k, v in arrays.items()}


def make_folder(folder, arrays, dtype=np.float32, columns=False, dones=np.float32):
    """The files of OMAR's format, row by row. columns: rewards and dones as [R, 1]."""
    folder.mkdir(parents=True)
    episodes, horizon, num = arrays["rewards"].shape
    for i in range(num):
        rows = {}
        for e in range(episodes):
            for t in range(horizon):
                row = dict(obs=arrays["observations"][e, t, i], next_obs=arrays["observations"][e, t + 1, i])
                row |= dict(acs=arrays["actions"][e, t, i], rews=arrays["rewards"][e, t, i], dones=t == horizon - 1)
                if "states" in arrays:
                    row |= dict(states=arrays["states"][e, t], next_states=arrays["states"][e, t + 1])
                for name, value in row.items():
                    rows.setdefault(name, []).append([value] if columns and name in ("rews", "dones") else value)
        for name, values in rows.items():
            np.save(folder / f"{name}_{i}.npy", np.array(values, dones if name == "dones" else dtype))
    return folder


def same(read, arrays):
    return read.keys() == arrays.keys() and all(
        read[k].dtype == np.float32 and read[k].shape == arrays[k].shape and read[k].tobytes() == arrays[k].tobytes()
        for k in arrays
    )


def as_dataset(arrays, **facts):
    tensors = {k: torch.from_numpy(v) for k, v in arrays.items()}
    return SimpleNamespace(**{"states": None} | tensors, facts=facts)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """folders[env_id]: a folder of three episodes (HalfCheetah two) to copy from."""
    top = tmp_path_factory.mktemp("omar")
    episodes = {"simple_spread": 3, "simple_tag": 3, "HalfCheetah-2x3": 2}
    return {
        env_id: make_folder(top / env_id / "medium" / "seed_0_data", make_arrays(env_id, count))
        for env_id, count in episodes.items()
    }


# ----------------------------------------------------------------------------------------------- reading


@pytest.mark.parametrize("env_id", SHAPES)
@pytest.mark.parametrize(
    ("dtype", "columns", "dones"), [(np.float32, False, np.float32), (np.float64, True, bool), (">f8", True, np.int64)]
)
def test_reads_what_a_loop_wrote(tmp_path, env_id, dtype, columns, dones):
    arrays = make_arrays(env_id, 2 if env_id == "HalfCheetah-2x3" else 4)
    folder = make_folder(tmp_path / env_id / "medium-replay" / "seed_3_data", arrays, dtype, columns, dones)
    read, facts = read_folder(folder, env_id)
    assert same(read, arrays)
    published = dict(zip(omar.SHAPES, [(159.8, 516.8), (-4.1, 185.6), (-6.8, 79.5), (-283.97, 3568.81)], strict=True))
    assert facts == dict(
        env_id=env_id,
        quality="medium-replay",
        action_kind="continuous",
        random_score=published[env_id][0],
        expert_score=published[env_id][1],
        source="omar",
    )


@pytest.mark.parametrize(
    ("path", "quality"),
    [
        ("simple_spread/expert/seed_0_data", "expert"),
        ("expert/random", "random"),
        ("medium/expert_old/x", "medium"),
        ("mediums/replay/seed_0_data", "unknown"),
    ],
)
def test_quality_is_the_last_such_component_of_the_path(tmp_path, monkeypatch, folders, path, quality):
    shutil.copytree(folders["simple_spread"], tmp_path / path)
    assert read_folder(tmp_path / path, "simple_spread")[1]["quality"] == quality
    monkeypatch.chdir(tmp_path / path)
    assert read_folder(Path("."), "simple_spread")[1]["quality"] == quality


def test_unknown_task_names_the_nearest():
    assert "simple_spread" in one_line(lambda: read_folder(Path("."), "simple_spreed"))


def test_little_is_accepted_in_the_place_of_equal(tmp_path, folders):
    """Rounded actions are clipped, and copies rounded apart are one observation; the last next_obs is the only copy."""
    folder, arrays = tmp_path / "x", make_arrays("simple_spread", 3)
    shutil.copytree(folders["simple_spread"], folder)
    edit(folder / "acs_1.npy", lambda a: a.__setitem__((7, 1), 1.0009))
    edit(folder / "next_obs_2.npy", lambda a: a.__setitem__(slice(0, 24), a[:24] * (1 + 2e-6)))
    edit(folder / "next_obs_0.npy", lambda a: a.__setitem__(49, 5.0))
    arrays["actions"][0, 7, 1, 1] = 1
    arrays["observations"][1, 25, 0] = 5
    assert same(read_folder(folder, "simple_spread")[0], arrays)


def test_reading_maps_the_files_and_takes_little_memory(tmp_path, monkeypatch):
    arrays = make_arrays("simple_spread", 4000)
    write_folder(tmp_path / "x", as_dataset(arrays))
    calls, load = [], np.load
    monkeypatch.setattr(np, "load", lambda *args, **kwargs: calls.append(kwargs) or load(*args, **kwargs))
    monkeypatch.setattr(omar, "BLOCK_ROWS", 5000)
    tracemalloc.start()
    read, _ = read_folder(tmp_path / "x", "simple_spread")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert calls == [dict(mmap_mode="r", allow_pickle=False)] * 15
    assert same(read, arrays)
    assert peak - sum(v.nbytes for v in read.values()) < 4e6, "the files hold 47 MB"


# ------------------------------------------------------------------------------------------------ damage


def edit(path, change):
    """Change an array in place, or put what `change` returns in its place."""
    array = np.load(path)
    returned = change(array)
    np.save(path, array if returned is None else returned)


def setting(index, value):
    return lambda a: a.__setitem__(index, value)


def all_files(change):
    def damage(folder):
        for path in folder.glob("*.npy"):
            edit(path, change)

    return damage


def swap_rows(folder):
    """Two rows of the first episode change places, in every file."""
    all_files(lambda a: a[[*range(5), 6, 5, *range(7, len(a))]])(folder)


# What is done to a folder of 75 rows of simple_spread, and what the message must hold. Damage to a file's values comes
# with its row; the first of several such rows is named.
VALUES = {
    "nan in obs": ("obs_1.npy", setting((40, 3), np.nan), "row 40 is not finite"),
    "inf in next_obs": ("next_obs_0.npy", setting((74, 17), np.inf), "row 74 is not finite"),
    "nan in acs": ("acs_2.npy", setting((0, 1), np.nan), "row 0 is not finite"),
    "nan in rews": ("rews_2.npy", setting(33, np.nan), "row 33 is not finite"),
    "nan in dones": ("dones_0.npy", setting(26, np.nan), "row 26 is not finite"),
    "too large for float32": (
        "rews_1.npy",
        lambda a: a.astype(float) + 1e300 * (np.arange(75) == 60),
        "row 60 is not finite",
    ),
    "action above 1": ("acs_0.npy", setting((52, 0), 1.002), "row 52 is outside"),
    "action below -1": ("acs_1.npy", setting(([30, 52], 1), -1.5), "row 30 is outside"),
    "early done": ("dones_1.npy", setting(48, 1), "row 48 is done"),
    "next_obs of another row": ("next_obs_2.npy", lambda a: np.roll(a, 1, 0), "row 0 differs from the row after"),
    "one number of next_obs": (
        "next_obs_2.npy",
        setting((70, 5), 0.5),
        "row 70 differs from the row after it in obs_2",
    ),
    "a little": (
        "next_obs_0.npy",
        lambda a: a + 1e-3 * (np.arange(75) == 51)[:, None],
        "row 51 differs from the row after",
    ),
    "obs of another agent": ("obs_1.npy", lambda a: a[::-1], "next_obs_1.npy: row 0 differs"),
}
HEADERS = {
    "missing": ("rews_2.npy", Path.unlink, "it lacks rews_2.npy"),
    "a folder": ("acs_0.npy", lambda p: (p.unlink(), p.mkdir()), "it lacks acs_0.npy"),
    "text": ("obs_0.npy", lambda p: p.write_text("no array\n" * 9), "cannot read"),
    "empty": ("obs_0.npy", lambda p: p.write_bytes(b""), "cannot read"),
    "npz": ("obs_2.npy", lambda p: np.savez(p.open("wb"), x=np.load(p.parent / "obs_0.npy")), "several arrays"),
    "truncated": ("next_obs_1.npy", lambda p: p.write_bytes(p.read_bytes()[:-1]), "cannot read"),
    "longer": ("next_obs_1.npy", lambda p: p.write_bytes(p.read_bytes() + b"0"), "longer"),
    "garbled header": (
        "dones_0.npy",
        lambda p: p.write_bytes(p.read_bytes().replace(b"descr", b"de\x00\n{")),
        "cannot",
    ),
    "integers": ("obs_1.npy", lambda p: edit(p, lambda a: a.astype(int)), "must hold floats, not int64"),
    "complex": ("rews_1.npy", lambda p: edit(p, lambda a: a.astype(complex)), "must hold floats, not complex128"),
    "text as dones": ("dones_2.npy", lambda p: edit(p, lambda a: a.astype(str)), "must hold numbers"),
    "objects": ("acs_1.npy", lambda p: np.save(p, np.full((75, 2), None, object)), "cannot read"),
    "fewer rows": ("acs_1.npy", lambda p: edit(p, lambda a: a[:50]), "has 50 rows, but obs_0.npy has 75"),
    "fewer columns": (
        "obs_0.npy",
        lambda p: edit(p, lambda a: a[:, :16]),
        r"18 columns there, but the shape is \(75, 16",
    ),
    "three action numbers": ("acs_2.npy", lambda p: edit(p, lambda a: a[:, [0, 1, 1]]), "2 columns"),
    "flat obs": ("obs_0.npy", lambda p: edit(p, lambda a: a.reshape(-1)), "18 columns"),
    "rewards of two": ("rews_0.npy", lambda p: edit(p, lambda a: a[:, None].repeat(2, 1)), "no columns or 1"),
    "deep dones": ("dones_0.npy", lambda p: edit(p, lambda a: a[:, None, None]), "no columns or 1"),
    "one number": ("rews_0.npy", lambda p: edit(p, lambda a: a[0]), r"the shape is \(\)"),
    "a fourth agent": ("obs_3.npy", lambda p: shutil.copy(p.parent / "obs_0.npy", p), "3 learning agents, 0..2"),
}


def test_undamaged_folder_is_accepted(folders):
    for env_id, folder in folders.items():
        read_folder(folder, env_id)


@pytest.mark.parametrize("block_rows", [10, 50_000])
@pytest.mark.parametrize("kind", VALUES)
def test_wrong_value_is_refused_with_its_row(tmp_path, monkeypatch, folders, kind, block_rows):
    name, change, message = VALUES[kind]
    folder = tmp_path / "x"
    shutil.copytree(folders["simple_spread"], folder)
    edit(folder / name, change)
    monkeypatch.setattr(omar, "BLOCK_ROWS", block_rows)
    said = one_line(lambda: read_folder(folder, "simple_spread"))
    assert message in said and str(folder) in said and (name in said)
    monkeypatch.setattr(omar, "refuse", lambda *args: None)  # nothing else would have noticed
    read_folder(folder, "simple_spread")


@pytest.mark.parametrize("kind", HEADERS)
def test_wrong_file_is_refused(tmp_path, folders, kind):
    name, damage, message = HEADERS[kind]
    folder = tmp_path / "x"
    shutil.copytree(folders["simple_spread"], folder)
    damage(folder / name)
    with pytest.raises(InputError, match=message):
        read_folder(folder, "simple_spread")
    assert name in one_line(lambda: read_folder(folder, "simple_spread"))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (all_files(lambda a: a[:70]), "obs_0.npy: 70 rows are not whole episodes of 25"),
        (all_files(lambda a: a[:0]), "obs_0.npy"),
        (all_files(lambda a: np.roll(a, 3, 0)), "dones_0.npy: row 2 is done"),
        (swap_rows, "next_obs_0.npy: row 4 differs"),
    ],
)
def test_rows_in_another_order_are_refused(tmp_path, folders, damage, message):
    shutil.copytree(folders["simple_spread"], tmp_path / "x")
    damage(tmp_path / "x")
    assert message in one_line(lambda: read_folder(tmp_path / "x", "simple_spread"))


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("states_1.npy", setting((1500, 16), 9), "states_1.npy: row 1499 differs from the row after it in states_1"),
        ("next_states_0.npy", setting((3, 0), 9), "row 3 differs from the row after it in states_0.npy"),
        ("next_states_1.npy", setting((999, 0), 9), "row 999 differs from next_states_0.npy, though the agents share"),
        ("states_1.npy", setting((1000, 2), 9), "row 1000 differs from states_0.npy, though the agents share"),
        ("states_0.npy", setting((1001, 2), np.nan), "row 1001 is not finite"),
        ("dones_1.npy", setting(24, 1), "row 24 is done, but episodes end after 1000"),
        ("acs_0.npy", lambda a: a[:, :2], "3 columns"),
    ],
)
def test_half_cheetah_is_checked_too(tmp_path, folders, name, change, message):
    shutil.copytree(folders["HalfCheetah-2x3"], tmp_path / "x")
    edit(tmp_path / "x" / name, change)
    said = one_line(lambda: read_folder(tmp_path / "x", "HalfCheetah-2x3"))
    assert message in said and name in said


def test_folders_of_other_tasks_and_levels_are_refused(tmp_path, folders):
    spread, cheetah = folders["simple_spread"], folders["HalfCheetah-2x3"]
    assert "obs_0.npy: simple_tag has 16 columns" in one_line(lambda: read_folder(spread, "simple_tag"))
    said = one_line(lambda: read_folder(spread, "HalfCheetah-2x3"))
    assert "it lacks states_0.npy, next_states_0.npy, states_1.npy and 1 more" in said
    assert "it lacks obs_2.npy, acs_2.npy, rews_2.npy and 2 more" in one_line(
        lambda: read_folder(cheetah, "simple_spread")
    )
    for above in (spread.parent, spread.parent.parent):
        said = one_line(lambda above=above: read_folder(above, "simple_spread"))
        assert "OMAR folder" in said and said.endswith(f"did you mean {spread}?")
    assert "no folder" in one_line(lambda: read_folder(tmp_path / "nothing", "simple_spread"))


def test_truncated_anywhere_or_with_one_wrong_byte_in_the_header(tmp_path, folders):
    """A file cut anywhere is refused; one wrong byte of the header is refused or does not matter, but never worse."""
    shutil.copytree(folders["simple_spread"], tmp_path / "x")
    path = tmp_path / "x" / "obs_1.npy"
    whole = path.read_bytes()
    for length in [*range(0, 140, 7), *range(140, len(whole), 999), len(whole) - 1]:
        path.write_bytes(whole[:length])
        assert "obs_1.npy" in one_line(lambda: read_folder(tmp_path / "x", "simple_spread"))
    refused = 0
    for place in range(128):
        for byte in (10, 57):
            path.write_bytes(whole[:place] + bytes([byte]) + whole[place + 1 :])
            try:
                read, _ = read_folder(tmp_path / "x", "simple_spread")
                assert same(read, make_arrays("simple_spread", 3))
            except InputError as error:
                assert str(error).isprintable() and "obs_1.npy" in str(error)
                refused += 1
    assert refused > 120


def test_pickles_in_arrays_are_not_executed(tmp_path, folders):
    shutil.copytree(folders["simple_spread"], tmp_path / "x")
    path, sprung = tmp_path / "x" / "rews_0.npy", tmp_path / "sprung"
    np.save(path, np.array([Trap(sprung)] * 75, object), allow_pickle=True)
    assert "rews_0.npy" in one_line(lambda: read_folder(tmp_path / "x", "simple_spread"))
    path.write_bytes(path.read_bytes()[128:])  # the bare pickle
    assert "rews_0.npy" in one_line(lambda: read_folder(tmp_path / "x", "simple_spread"))
    assert not sprung.exists()
    np.load(path, allow_pickle=True)
    assert sprung.exists(), "the trap does spring"


# ----------------------------------------------------------------------------------------------- writing


@repeatable
@given(st.sampled_from(list(SHAPES)), st.integers(1, 4), st.integers(0, 2**32 - 1), st.booleans())
def test_what_is_written_reads_back_bit_for_bit(env_id, episodes, seed, odd):
    arrays = make_arrays(env_id, 1 if env_id == "HalfCheetah-2x3" else episodes, seed)
    if odd:  # numbers that text or a half-precision file would lose
        arrays["observations"].reshape(-1)[:5] = [-0.0, 1e-45, 3.4e38, -3.4e38, 1 + 2**-23]
        arrays["actions"].reshape(-1)[:4] = [-1, 1, -0.0, 1 - 2**-24]
    with tempfile.TemporaryDirectory() as top:
        folder = Path(top) / "deep" / "expert" / "seed_0_data"
        write_folder(folder, as_dataset(arrays))
        read, facts = read_folder(folder, env_id)
        assert same(read, arrays) and facts["quality"] == "expert"
        made = make_folder(Path(top) / "made", arrays)
        assert sorted(p.name for p in folder.iterdir()) == sorted(p.name for p in made.iterdir())
        for path in made.glob("*.npy"):  # the same files as the loop's, but for the dones
            written = np.load(folder / path.name)
            assert written.dtype == np.float32 and written.shape == np.load(path).shape
            if path.name.startswith("dones"):
                assert not written.any()
            else:
                assert written.tobytes() == np.load(path).tobytes()


def test_writing_spares_what_is_there(tmp_path):
    dataset = as_dataset(make_arrays("simple_spread", 1))
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("mine")
    (tmp_path / "file").write_text("mine")
    for name in ("full", "file"):
        assert "exists" in one_line(lambda name=name: write_folder(tmp_path / name, dataset))
    assert (tmp_path / "full" / "thesis.txt").read_text() == (tmp_path / "file").read_text() == "mine"
    assert len(list(tmp_path.rglob("*"))) == 3
    (tmp_path / "empty").mkdir()
    write_folder(tmp_path / "empty", dataset)
    read_folder(tmp_path / "empty", "simple_spread")
    assert "cannot write" in one_line(lambda: write_folder(tmp_path / "file" / "x", dataset))
    dataset.actions = torch.zeros(1, 25, 3, dtype=torch.int64)
    assert "continuous" in one_line(lambda: write_folder(tmp_path / "discrete", dataset))


@pytest.mark.parametrize("after", [0, 1, 7, 14])
@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(28, "No space left on device"), MemoryError()])
def test_interrupted_write_leaves_nothing(tmp_path, monkeypatch, after, error):
    dataset, save, count = as_dataset(make_arrays("simple_spread", 2)), np.save, iter(range(99))

    def failing(path, array):
        if next(count) == after:
            Path(path).write_bytes(b"\x93NUM")
            raise error
        save(path, array)

    with monkeypatch.context() as patch:
        patch.setattr(np, "save", failing)
        if isinstance(error, OSError):
            said = one_line(lambda: write_folder(tmp_path / "x", dataset))
            assert "No space left" in said and str(tmp_path / "x") in said
        else:
            with pytest.raises(type(error)):
                write_folder(tmp_path / "x", dataset)
    assert not list(tmp_path.iterdir())


def test_failed_renaming_leaves_nothing(tmp_path, monkeypatch):
    def failing(*names):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "replace", failing)
    assert "Permission" in one_line(lambda: write_folder(tmp_path / "x", as_dataset(make_arrays("simple_spread", 1))))
    assert not list(tmp_path.iterdir())


def test_leftover_of_a_killed_write_is_not_data(tmp_path, monkeypatch):
    """Killed between the last file and the new name: nothing bears the final name, and the rest is refused."""
    dataset = as_dataset(make_arrays("simple_spread", 1))
    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        patch.setattr(os, "replace", lambda *names: sys.exit(9))
        patch.setattr(shutil, "rmtree", lambda *args, **kwargs: None)
        write_folder(tmp_path / "seed_0_data", dataset)
    (leftover,) = tmp_path.iterdir()
    assert len(list(leftover.iterdir())) == 15
    assert "interrupted" in one_line(lambda: read_folder(leftover, "simple_spread"))
    write_folder(tmp_path / "seed_0_data", dataset)
    assert same(read_folder(tmp_path / "seed_0_data", "simple_spread")[0], make_arrays("simple_spread", 1))


# ---------------------------------------------------------------------------------------------- the prey


class Network(nn.Module):
    """OMAR's network: batch normalisation, two ReLU layers, and tanh for a policy."""

    def __init__(self, inputs, outputs, hidden=64):
        super().__init__()
        self.in_fn = nn.BatchNorm1d(inputs)
        self.fc1, self.fc2 = nn.Linear(inputs, hidden), nn.Linear(hidden, hidden)
        self.fc3 = nn.Linear(hidden, outputs)

    def forward(self, x):
        return torch.tanh(self.fc3(torch.relu(self.fc2(torch.relu(self.fc1(self.in_fn(x)))))))


def trained(inputs, seed=0):
    """A network whose normalisation has seen data, and whose affine part is not the identity."""
    torch.manual_seed(seed)
    network = Network(inputs, 2)
    nn.init.normal_(network.in_fn.weight, 1, 0.5)
    nn.init.normal_(network.in_fn.bias)
    for _ in range(50):
        network(torch.randn(64, inputs) * 3 + 1)
    return network.eval()


def prey_dict(env_id):
    predator = {"simple_tag": 16, "simple_world": 24}[env_id]
    networks = [*(trained(predator, i) for i in range(3)), trained(PREY_DIM[env_id], 3)]
    return dict(
        init_dict=dict(lr=0.01, alg_types=["td3"]), agent_params=[dict(policy=n.state_dict()) for n in networks]
    )


def test_tasks_with_prey_are_those_of_the_worlds():
    assert PREY_DIM == {env_id: Worlds(env_id, 1, "continuous").observe(3).shape[-1] for env_id in WITH_PREY}


@pytest.mark.parametrize("env_id", PREY_DIM)
def test_prey_acts_as_the_stored_network_in_evaluation_mode(tmp_path, env_id):
    stored, network = prey_dict(env_id), trained(PREY_DIM[env_id], 3)
    for state in (network.state_dict(), stored["agent_params"][3]["policy"]):
        state["in_fn.running_var"][0] = 1e-5  # an input that hardly moves: here eps matters
    torch.save(stored, tmp_path / PREY_FILE)
    prey = load_prey(tmp_path / PREY_FILE, env_id)
    obs = torch.randn(500, PREY_DIM[env_id]) * 3
    obs[:, 0] = network.in_fn.running_mean[0] + 0.003 * torch.randn(500)
    force = prey(obs)
    assert force.shape == (500, 2) and not force.requires_grad and prey(obs.double()).dtype == torch.double
    torch.testing.assert_close(force, network(obs), rtol=0, atol=1e-6)
    torch.testing.assert_close(prey(obs[:1]), force[:1], rtol=0, atol=1e-6)
    assert (force - network.train()(obs)).abs().max() > 0.03, "in training mode it would act otherwise"
    worlds = Worlds(env_id, 7, "continuous", prey=prey)
    before = worlds.position[:, -1].clone()
    worlds.step(torch.zeros(7, 3, 2))
    assert (worlds.position[:, -1] != before).any()


def test_prey_is_found_beside_above_and_where_it_is_told(tmp_path):
    folder = tmp_path / "a" / "simple_tag" / "medium" / "seed_0_data"
    folder.mkdir(parents=True)
    said = one_line(lambda: find_prey_file("simple_tag", folder))
    assert PREY_FILE in said and str(folder) in said and "--prey PATH" in said
    (tmp_path / PREY_FILE).touch()
    one_line(lambda: find_prey_file("simple_tag", folder))  # four folders above
    for place in (folder.parents[2], folder.parents[1], folder.parents[0], folder):
        (place / PREY_FILE).touch()
        assert find_prey_file("simple_tag", folder) == place / PREY_FILE, "the nearest one"
    other = tmp_path / "other.pt"
    assert "other.pt" in one_line(lambda: find_prey_file("simple_tag", folder, other))
    other.touch()
    assert find_prey_file("simple_tag", folder, str(other)) == other
    assert "no prey" in one_line(lambda: find_prey_file("simple_spread", folder, other))
    assert "prey" in one_line(lambda: load_prey(other, "simple_spread"))


def test_prey_is_found_from_a_relative_folder(tmp_path, monkeypatch):
    folder = tmp_path / "simple_tag" / "medium"
    folder.mkdir(parents=True)
    (tmp_path / "simple_tag" / PREY_FILE).touch()
    monkeypatch.chdir(folder)
    assert find_prey_file("simple_tag", Path(".")).samefile(tmp_path / "simple_tag" / PREY_FILE)


def set_parameter(name, change):
    def damage(stored):
        policy = stored["agent_params"][3]["policy"]
        policy[name] = change(policy[name])

    return damage


PREY_DAMAGES = {
    "no agent_params": lambda stored: stored.pop("agent_params"),
    "three agents": lambda stored: stored["agent_params"].pop(),
    "five agents": lambda stored: stored["agent_params"].append(stored["agent_params"][3]),
    "no prey": lambda stored: stored["agent_params"].__setitem__(3, None),
    "no policy": lambda stored: stored["agent_params"][3].pop("policy"),
    "no batch-norm": lambda stored: stored["agent_params"][3]["policy"].pop("in_fn.running_var"),
    "no last layer": lambda stored: stored["agent_params"][3]["policy"].pop("fc3.bias"),
    "predator as prey": lambda stored: stored["agent_params"].reverse(),
    "layout [in, out]": set_parameter("fc1.weight", lambda p: p.T),
    "five outputs": set_parameter("fc3.weight", lambda p: p.repeat(3, 1)[:5]),
    "scalar": set_parameter("fc1.weight", lambda p: p[0, 0]),
    "numbers": set_parameter("fc1.bias", lambda p: p.tolist()),
    "integers": set_parameter("fc2.bias", lambda p: p.long()),
    "nan": set_parameter("fc2.weight", lambda p: p.index_fill(0, torch.tensor(5), torch.nan)),
    "inf": set_parameter("in_fn.running_mean", lambda p: p / 0),
    "negative variance": set_parameter("in_fn.running_var", lambda p: -p),
}


@pytest.mark.parametrize("kind", PREY_DAMAGES)
def test_damaged_prey_is_refused(tmp_path, kind):
    stored, path = prey_dict("simple_tag"), tmp_path / PREY_FILE
    torch.save(stored, path)
    load_prey(path, "simple_tag")
    PREY_DAMAGES[kind](stored)
    torch.save(stored, path)
    said = one_line(lambda: load_prey(path, "simple_tag"))
    assert str(path) in said and "simple_tag" in said


def test_foreign_and_truncated_prey_is_refused(tmp_path):
    path = tmp_path / PREY_FILE
    for content in (b"", b"hello" * 99, torch.zeros(3).numpy().tobytes()):
        path.write_bytes(content)
        assert PREY_FILE in one_line(lambda: load_prey(path, "simple_tag"))
    for content in ([1, 2], torch.zeros(4), "text", dict(agent_params=7)):
        torch.save(content, path)
        assert PREY_FILE in one_line(lambda: load_prey(path, "simple_tag"))
    torch.save(prey_dict("simple_world"), path)
    load_prey(path, "simple_world")
    assert "(14,)" in one_line(lambda: load_prey(path, "simple_tag"))
    whole = path.read_bytes()
    for length in np.linspace(1, len(whole) - 1, 60).astype(int):
        path.write_bytes(whole[:length])
        assert PREY_FILE in one_line(lambda: load_prey(path, "simple_world"))
    assert "cannot read" in one_line(lambda: load_prey(tmp_path, "simple_world"))


@pytest.mark.parametrize("old_format", [False, True])
@pytest.mark.parametrize("place", ["init_dict", "agent_params"])
def test_pickles_in_the_prey_are_not_executed(tmp_path, place, old_format):
    stored, path, sprung = prey_dict("simple_tag"), tmp_path / PREY_FILE, tmp_path / "sprung"
    torch.save(stored, path, _use_new_zipfile_serialization=not old_format)
    load_prey(path, "simple_tag")
    stored[place] = [stored[place], Trap(sprung)]
    torch.save(stored, path, _use_new_zipfile_serialization=not old_format)
    assert PREY_FILE in one_line(lambda: load_prey(path, "simple_tag"))
    assert not sprung.exists()
    torch.load(path, weights_only=False)
    assert sprung.exists(), "the trap does spring"


@pytest.mark.parametrize("env_id", PREY_DIM)
def test_exported_prey_acts_the_same_here_and_in_the_code_of_omar(tmp_path, env_id):
    dim = PREY_DIM[env_id]
    layers = init_mlp(1, (dim, 64, 64, 2), torch.Generator().manual_seed(1))
    dataset = as_dataset(make_arrays(env_id, 1))
    write_folder(tmp_path / "x", dataset, layers)
    path = find_prey_file(env_id, tmp_path / "x")
    assert path.parent == tmp_path / "x"
    obs = torch.randn(300, dim) * 5
    expected = mlp(layers, obs[None])[0].tanh()
    torch.testing.assert_close(load_prey(path, env_id)(obs), expected, rtol=0, atol=1e-6)

    params = torch.load(path, weights_only=True)["agent_params"][3:]  # what follows the predators: one prey
    agent = types.SimpleNamespace(policy=Network(dim, 2), critic=Network(dim + 2, 1))
    for name in ("policy", "critic", "target_policy", "target_critic"):
        getattr(agent, name.removeprefix("target_")).load_state_dict(params[0][name])
    torch.testing.assert_close(agent.policy.eval()(obs), expected, rtol=0, atol=1e-6)
    assert torch.equal(agent.policy.in_fn(obs), obs), "the exact identity"
    read_folder(tmp_path / "x", env_id)
    write_prey(tmp_path / "again.pt", layers)
    assert path.read_bytes() == (tmp_path / "again.pt").read_bytes(), "the same file each time"


# ---------------------------------------------------------------------------------------- the command line


@pytest.fixture
def stubs(monkeypatch):
    """Stands in for simulated datasets and shipped policies; returns the calls."""
    calls, layers = [], init_mlp(1, (14, 64, 64, 2), torch.Generator().manual_seed(1))

    def load_dataset(env_id, dataset, size, seed, folder, action_kind="discrete"):
        calls.append((env_id, dataset, size, seed, str(folder), action_kind))
        source = {"source": "omar"} if dataset == "folder" else {"seed": 5} if dataset == "x.h5" else {"seed": seed}
        return as_dataset(make_arrays(env_id, 2), quality="expert" if dataset == "x.h5" else dataset, **source)

    policies = SimpleNamespace(load_policies=lambda env_id, action_kind: SimpleNamespace(prey=layers))
    monkeypatch.setitem(sys.modules, "data.datasets", SimpleNamespace(load_dataset=load_dataset))
    monkeypatch.setitem(sys.modules, "data.behaviour", policies)
    return calls


def test_command_line_writes_the_layout_of_omar(tmp_path, stubs, capsys):
    out = ["--out", str(tmp_path)]
    omar.main(["--env-id", "simple_spread", "--dataset", "medium", *out])
    assert stubs[-1] == ("simple_spread", "medium", 1_000_000, 0, "datasets", "continuous")
    folder = tmp_path / "simple_spread" / "medium" / "seed_0_data"
    assert str(folder) in capsys.readouterr().out
    assert same(read_folder(folder, "simple_spread")[0], make_arrays("simple_spread", 2))
    assert "exists" in one_line(lambda: omar.main(["--env-id", "simple_spread", "--dataset", "medium", *out]))
    assert not list(tmp_path.rglob(PREY_FILE))

    flags = ["--dataset-size", "50", "--data-seed", "3", "--data-dir", "d"]
    omar.main(["--env-id", "simple_tag", "--dataset", "random", *flags, *out])
    assert stubs[-1] == ("simple_tag", "random", 50, 3, "d", "continuous")
    folder = tmp_path / "simple_tag" / "random" / "seed_3_data"
    obs = torch.randn(9, 14)
    forces = [load_prey(place / PREY_FILE, "simple_tag")(obs) for place in (folder, folder.parent.parent)]
    assert torch.equal(*forces)

    (tmp_path / "simple_tag" / PREY_FILE).write_bytes(b"another")
    omar.main(["--env-id", "simple_tag", "--dataset", "x.h5", *out])
    assert "was kept" in capsys.readouterr().err
    assert (tmp_path / "simple_tag" / PREY_FILE).read_bytes() == b"another"
    load_prey(find_prey_file("simple_tag", tmp_path / "simple_tag" / "expert" / "seed_5_data"), "simple_tag")

    omar.main(["--env-id", "HalfCheetah-2x3", "--dataset", "expert", *out])
    read_folder(tmp_path / "HalfCheetah-v2" / "expert" / "seed_0_data", "HalfCheetah-2x3")
    assert "already" in one_line(lambda: omar.main(["--dataset", "folder", *out]))
    assert "did you mean" in one_line(lambda: omar.main(["--env-id", "simple_tags", *out]))
    assert "--date-dir" in one_line(lambda: omar.main(["--date-dir", "x"]))
    for escape in ("../up", "/up", ""):  # a quality of somebody else's file
        assert "cannot name a folder" in one_line(lambda name=escape: omar.main(["--dataset", name, *out]))


def test_simulated_data_survive_export_and_import(tmp_path):
    size = ["--dataset-size", "250", "--data-dir", str(tmp_path / "datasets"), "--out", str(tmp_path)]
    omar.main(["--env-id", "simple_spread", "--dataset", "random", *size])
    simulated = load_dataset("simple_spread", "random", 250, 0, tmp_path / "datasets", action_kind="continuous")
    folder = tmp_path / "simple_spread" / "random" / "seed_0_data"
    imported = load_dataset("simple_spread", str(folder), action_kind="continuous")
    for name in ("observations", "actions", "rewards"):
        assert torch.equal(getattr(simulated, name), getattr(imported, name)), name
    assert len(simulated.rewards) == 10
    assert "already" in one_line(lambda: omar.main(["--env-id", "simple_spread", "--dataset", str(folder), *size]))
