"""OMAR's folders: read as a loop (`make_folder`, which shares no code with data/omar.py) writes them, refused
where they are damaged, written so that they read back bit for bit; the prey acts as the stored network."""

import itertools
import os
import shutil
from collections import OrderedDict
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from common import Trap, generator, one_line
from torch import nn

from data import datasets, export, mixes, omar
from data.datasets import find_prey, load_dataset
from data.export import write_folder, write_prey
from data.omar import PREY_DIM, PREY_FILE, facts_of, load_prey, read_folder
from envs.particles import WITH_PREY, Worlds
from envs.shipped import greedy, init_mlp, mlp, rollout
from utils.errors import InputError

SPREAD, TAG, WORLD, CHEETAH = "simple_spread", "simple_tag", "simple_world", "HalfCheetah-2x3"
# Agents, observation and action numbers, steps: the published shapes, written down once more; and the scores.
SHAPES = {SPREAD: (3, 18, 2, 25), TAG: (3, 16, 2, 25), WORLD: (3, 24, 2, 25), CHEETAH: (2, 6, 3, 1000)}
SCORES = dict(zip(SHAPES, [(159.8, 516.8), (-4.1, 185.6), (-6.8, 79.5), (-283.97, 3568.81)], strict=True))


def make_arrays(env_id, episodes, seed=0):
    """Random episodes: observations, actions, rewards and, for HalfCheetah, states."""
    (num, obs_dim, action_dim, horizon), rng = SHAPES[env_id], np.random.default_rng(seed)
    arrays = dict(
        observations=rng.normal(0, 3, (episodes, horizon + 1, num, obs_dim)),
        actions=rng.uniform(-1, 1, (episodes, horizon, num, action_dim)),
        rewards=rng.normal(0, 9, (episodes, horizon, num)),
    )
    if env_id == CHEETAH:
        arrays["states"] = rng.normal(0, 3, (episodes, horizon + 1, 17))
    return {k: v.astype(np.float32) for k, v in arrays.items()}


def make_folder(folder, arrays, dtype=np.float32, columns=False, dones=np.float32):
    """The files of OMAR's format, row by row. columns: rewards and dones as [R, 1]."""
    folder.mkdir(parents=True)
    episodes, horizon, num = arrays["rewards"].shape
    shape = (1,) if columns else ()
    for i in range(num):
        rows = {}
        for e, t in itertools.product(range(episodes), range(horizon)):
            row = dict(obs=arrays["observations"][e, t, i], next_obs=arrays["observations"][e, t + 1, i])
            row |= dict(acs=arrays["actions"][e, t, i], rews=np.full(shape, arrays["rewards"][e, t, i]))
            row |= dict(dones=np.full(shape, t == horizon - 1))
            if "states" in arrays:
                row |= dict(states=arrays["states"][e, t], next_states=arrays["states"][e, t + 1])
            for name, value in row.items():
                rows.setdefault(name, []).append(value)
        for name, values in rows.items():
            np.save(folder / f"{name}_{i}.npy", np.array(values, dones if name == "dones" else dtype))
    return folder


def same(read, arrays):
    """Whether arrays read are float32 and these, bit for bit."""
    bits = lambda arrays: {k: (v.dtype, v.shape, v.tobytes()) for k, v in arrays.items()}  # noqa: E731
    return bits(read) == bits(arrays)


def as_dataset(arrays, **facts):
    tensors = {k: torch.from_numpy(v) for k, v in arrays.items()}
    return SimpleNamespace(**{"states": None} | tensors, facts=facts)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """folders[env_id]: a folder of three episodes (HalfCheetah two) to copy from."""
    top, episodes = tmp_path_factory.mktemp("omar"), {SPREAD: 3, CHEETAH: 2}
    place = lambda env_id: top / env_id / "medium" / "seed_0_data"  # noqa: E731
    return {e: make_folder(place(e), make_arrays(e, count)) for e, count in episodes.items()}


@pytest.fixture
def copied(folders, tmp_path):
    """copied(env_id): a copy of such a folder."""
    return lambda env_id=SPREAD: shutil.copytree(folders[env_id], tmp_path / "x", dirs_exist_ok=True)


# ----------------------------------------------------------------------------------------------- reading


@pytest.mark.parametrize("env_id", SHAPES)
@pytest.mark.parametrize(("dtype", "columns", "dones"), [(np.float64, True, bool), (">f8", False, np.int64)])
def test_reads_what_a_loop_wrote(tmp_path, env_id, dtype, columns, dones):
    arrays = make_arrays(env_id, 1 if env_id == CHEETAH else 3)
    folder = make_folder(tmp_path / env_id / "medium-replay" / "seed_3_data", arrays, dtype, columns, dones)
    read, facts = read_folder(folder, env_id)
    assert same(read, arrays)
    expected = dict(env_id=env_id, quality="medium-replay", action_kind="continuous", source="omar")
    assert facts == expected | dict(zip(("random_score", "expert_score"), SCORES[env_id], strict=True))


def test_quality_is_the_last_such_component_of_the_path(tmp_path, monkeypatch):
    for path, quality in (("expert/random/x", "random"), ("mediums/replay/seed_0_data", "unknown")):
        (tmp_path / path).mkdir(parents=True)
        monkeypatch.chdir(tmp_path / path)
        for place in (tmp_path / path, Path(".")):
            assert facts_of(place, SPREAD, "omar")["quality"] == quality


def test_little_is_accepted_in_the_place_of_equal(copied):
    """Rounded actions are clipped, and copies rounded apart are one observation; the last next_obs is the
    only copy."""
    folder, arrays = copied(), make_arrays(SPREAD, 3)
    edit(folder / "acs_1.npy", setting((7, 1), 1.0009))
    edit(folder / "next_obs_2.npy", lambda a: a.__setitem__(slice(0, 24), a[:24] * (1 + 2e-6)))
    edit(folder / "next_obs_0.npy", setting(49, 5.0))
    arrays["actions"][0, 7, 1, 1] = 1
    arrays["observations"][1, 25, 0] = 5
    assert same(read_folder(folder, SPREAD)[0], arrays)


# ------------------------------------------------------------------------------------------------ damage


def edit(path, change):
    """Change an array in place, or put what `change` returns in its place."""
    array = np.load(path)
    returned = change(array)
    np.save(path, array if returned is None else returned)


def setting(index, value):
    return lambda a: a.__setitem__(index, value)


def all_files(change):
    """Damage to a file and all beside it, alike."""
    return lambda path: [edit(other, change) for other in path.parent.glob("*.npy")]


# Damage to a file's values comes with its row; the first of several such rows is named. Folders of spread
# have 75 rows, HalfCheetah's 2,000.
VALUES = [
    (SPREAD, "obs_1.npy", setting((40, 3), np.nan), "row 40 is not finite"),
    (SPREAD, "next_obs_0.npy", setting((74, 17), np.inf), "row 74 is not finite"),
    (SPREAD, "dones_0.npy", setting(26, np.nan), "row 26 is not finite"),
    (SPREAD, "rews_1.npy", lambda a: a.astype(float) + 1e300 * (np.arange(75) == 60), "row 60 is not finite"),
    (SPREAD, "acs_0.npy", setting((52, 0), 1.002), "row 52 is outside"),
    (SPREAD, "acs_1.npy", setting(([30, 52], 1), -1.5), "row 30 is outside"),
    (SPREAD, "dones_1.npy", setting(48, 1), "row 48 is done"),
    (SPREAD, "next_obs_2.npy", lambda a: np.roll(a, 1, 0), "row 0 differs from the row after"),
    (SPREAD, "next_obs_0.npy", lambda a: a + 1e-3 * (np.arange(75) == 51)[:, None], "row 51 differs from"),
    (CHEETAH, "dones_1.npy", setting(24, 1), "row 24 is done, but episodes end after 1000"),
    (CHEETAH, "next_states_0.npy", setting((3, 0), 9), "row 3 differs from the row after it in states_0.npy"),
    (CHEETAH, "states_1.npy", setting((1000, 2), 9), "row 1000 differs from states_0.npy, though the agents"),
    (CHEETAH, "next_states_1.npy", setting((999, 0), 9), "row 999 differs from next_states_0.npy, though"),
]


def change(array_change):
    """Damage to a file: its array is another one."""
    return lambda path: edit(path, array_change)


HEADERS = [
    ("rews_2.npy", Path.unlink, "it lacks rews_2.npy"),
    ("obs_0.npy", lambda p: p.write_text("no array\n" * 9), "cannot read"),
    ("obs_2.npy", lambda p: np.savez(p.open("wb"), x=np.load(p.parent / "obs_0.npy")), "several arrays"),
    ("next_obs_1.npy", lambda p: p.write_bytes(p.read_bytes() + b"0"), "longer"),
    ("obs_1.npy", change(lambda a: a.astype(int)), "must hold floats, not int64"),
    ("acs_1.npy", change(lambda a: a[:50]), "has 50 rows, but obs_0.npy has 75"),
    ("obs_0.npy", change(lambda a: a[:, :16]), "has 18 columns there, but the shape is (75"),
    ("rews_0.npy", change(lambda a: a[:, None].repeat(2, 1)), "no columns or 1"),
    ("obs_3.npy", lambda p: shutil.copy(p.parent / "obs_0.npy", p), "3 learning agents, 0..2"),
    ("obs_0.npy", all_files(lambda a: a[:70]), "70 rows are not whole episodes of 25"),
    ("obs_0.npy", all_files(lambda a: a[:0]), "obs_0.npy"),
    ("dones_0.npy", all_files(lambda a: np.roll(a, 3, 0)), "row 2 is done"),
    ("next_obs_0.npy", all_files(lambda a: a[[*range(5), 6, 5, *range(7, len(a))]]), "row 4 differs"),
]


@pytest.mark.parametrize(("env_id", "name", "change", "message"), VALUES)
def test_wrong_value_is_refused_with_its_row(monkeypatch, copied, env_id, name, change, message):
    folder = copied(env_id)
    edit(folder / name, change)
    said = one_line(lambda: read_folder(folder, env_id))
    assert message in said and str(folder / name) in said
    monkeypatch.setattr(omar, "refuse", lambda *args: None)  # nothing else would have noticed
    read_folder(folder, env_id)


@pytest.mark.parametrize(("name", "damage", "message"), HEADERS)
def test_wrong_files_are_refused(copied, name, damage, message):
    folder = copied()
    damage(folder / name)
    said = one_line(lambda: read_folder(folder, SPREAD))
    assert message in said and name in said


def test_folders_of_other_tasks_and_levels_are_refused(tmp_path, folders):
    spread, cheetah = folders[SPREAD], folders[CHEETAH]
    for folder, env_id, words in (
        (spread, TAG, "obs_0.npy: simple_tag has 16 columns"),
        (spread, CHEETAH, "it lacks states_0.npy, next_states_0.npy, states_1.npy and 1 more"),
        (cheetah, SPREAD, "it lacks obs_2.npy, acs_2.npy, rews_2.npy and 2 more"),
        (spread.parent, SPREAD, f"did you mean {spread}?"),
        (spread.parent.parent, SPREAD, f"did you mean {spread}?"),
        (tmp_path / "nothing", SPREAD, "no folder"),
    ):
        assert words in one_line(lambda folder=folder, env_id=env_id: read_folder(folder, env_id))


def test_truncated_anywhere_or_with_one_wrong_byte_in_the_header(copied):
    """A file cut anywhere is refused; one wrong byte of the header is refused or does not matter, but never
    worse."""
    folder = copied()
    path = folder / "obs_1.npy"
    whole, refused = path.read_bytes(), 0
    for length in [*range(0, 140, 7), *range(140, len(whole), 999), len(whole) - 1]:
        path.write_bytes(whole[:length])
        assert "obs_1.npy" in one_line(lambda: read_folder(folder, SPREAD))
    for place in range(0, 128, 2):
        path.write_bytes(whole[:place] + bytes([10 + 47 * (place % 4 == 0)]) + whole[place + 1 :])
        try:
            assert same(read_folder(folder, SPREAD)[0], make_arrays(SPREAD, 3))
        except InputError as error:
            assert str(error).isprintable() and "obs_1.npy" in str(error)
            refused += 1
    assert refused > 30


def test_pickles_in_arrays_are_not_executed(copied, tmp_path):
    folder, sprung = copied(), tmp_path / "sprung"
    path = folder / "rews_0.npy"
    np.save(path, np.array([Trap(sprung)] * 75, object), allow_pickle=True)
    for content in (path.read_bytes(), path.read_bytes()[128:]):  # the second is the bare pickle
        path.write_bytes(content)
        assert "rews_0.npy" in one_line(lambda: read_folder(folder, SPREAD)) and not sprung.exists()
    np.load(path, allow_pickle=True)
    assert sprung.exists(), "the trap does spring"


# ----------------------------------------------------------------------------------------------- writing


@pytest.mark.parametrize("env_id", SHAPES)
def test_what_is_written_reads_back_bit_for_bit(env_id, tmp_path):
    arrays = make_arrays(env_id, 1 if env_id == CHEETAH else 3)
    # Numbers that text or a half-precision file would lose.
    arrays["observations"].reshape(-1)[:5] = [-0.0, 1e-45, 3.4e38, -3.4e38, 1 + 2**-23]
    arrays["actions"].reshape(-1)[:4] = [-1, 1, -0.0, 1 - 2**-24]
    folder = tmp_path / "deep" / "expert" / "seed_0_data"
    write_folder(folder, as_dataset(arrays))
    read, facts = read_folder(folder, env_id)
    assert same(read, arrays) and facts["quality"] == "expert" and os.listdir(folder.parent) == [folder.name]
    made = make_folder(tmp_path / "made", arrays)
    assert sorted(os.listdir(folder)) == sorted(os.listdir(made))
    for path in made.glob("*.npy"):  # the same files as the loop's, but for the dones
        written, expected = np.load(folder / path.name), np.load(path)
        assert written.dtype == np.float32 and written.shape == expected.shape
        assert written.tobytes() == (0 * expected if "dones" in path.name else expected).tobytes()


def test_writing_spares_what_is_there(tmp_path):
    dataset = as_dataset(make_arrays(SPREAD, 1))
    for name in ("full", "empty"):
        (tmp_path / name).mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("mine")
    (tmp_path / "file").write_text("mine")
    for name, words in (("full", "exists"), ("file", "exists"), ("file/x", "cannot write")):
        assert words in one_line(lambda name=name: write_folder(tmp_path / name, dataset))
    assert (tmp_path / "full" / "thesis.txt").read_text() == (tmp_path / "file").read_text() == "mine"
    assert len(list(tmp_path.rglob("*"))) == 4
    write_folder(tmp_path / "empty", dataset)
    read_folder(tmp_path / "empty", SPREAD)
    dataset.actions = torch.zeros(1, 25, 3, dtype=torch.int64)
    assert "continuous" in one_line(lambda: write_folder(tmp_path / "discrete", dataset))


# ---------------------------------------------------------------------------------------------- the prey


def omars_network(inputs, outputs, hidden=64):
    """OMAR's network: batch normalisation, two ReLU layers, and tanh for a policy."""
    layers = dict(in_fn=nn.BatchNorm1d(inputs), fc1=nn.Linear(inputs, hidden), relu1=nn.ReLU())
    layers |= dict(fc2=nn.Linear(hidden, hidden), relu2=nn.ReLU(), fc3=nn.Linear(hidden, outputs))
    return nn.Sequential(OrderedDict(layers, tanh=nn.Tanh()))


def trained(inputs, seed=0):
    """A network whose normalisation has seen data, and whose affine part is not the identity."""
    torch.manual_seed(seed)
    network = omars_network(inputs, 2)
    nn.init.normal_(network.in_fn.weight, 1, 0.5)
    nn.init.normal_(network.in_fn.bias)
    for _ in range(50):
        network(torch.randn(64, inputs) * 3 + 1)
    return network.eval()


def prey_dict(env_id):
    networks = [*(trained(SHAPES[env_id][1], i) for i in range(3)), trained(PREY_DIM[env_id], 3)]
    params = [dict(policy=network.state_dict()) for network in networks]
    return dict(init_dict=dict(lr=0.01, alg_types=["td3"]), agent_params=params)


def acting(path, env_id):
    """The prey of a file, as worlds take it."""
    return greedy(load_prey(path, env_id), "continuous")


@pytest.mark.parametrize("env_id", WITH_PREY)
def test_prey_acts_as_the_stored_network_in_evaluation_mode(tmp_path, env_id):
    assert PREY_DIM[env_id] == Worlds(env_id, 1, "continuous").observe(3).shape[-1]
    stored, network = prey_dict(env_id), trained(PREY_DIM[env_id], 3)
    for state in (network.state_dict(), stored["agent_params"][3]["policy"]):
        state["in_fn.running_var"][0] = 1e-5  # an input that hardly moves: here eps matters
    torch.save(stored, tmp_path / PREY_FILE)
    prey = acting(tmp_path / PREY_FILE, env_id)
    obs = torch.randn(500, PREY_DIM[env_id]) * 3
    obs[:, 0] = network.in_fn.running_mean[0] + 0.003 * torch.randn(500)
    force = prey(obs)
    assert force.shape == (500, 2) and not force.requires_grad
    torch.testing.assert_close(force, network(obs), rtol=0, atol=1e-5)
    torch.testing.assert_close(prey(obs[:1]), force[:1], rtol=0, atol=1e-5)
    assert (force - network.train()(obs)).abs().max() > 0.03, "in training mode it would act otherwise"


@pytest.mark.skipif("OMAR_PREY" not in os.environ, reason="OMAR_PREY names no folder of OMAR's prey")
@pytest.mark.parametrize("env_id", WITH_PREY)
def test_uniform_forces_against_omars_own_prey_have_the_published_returns(env_id):
    prey = acting(Path(os.environ["OMAR_PREY"]) / env_id / PREY_FILE, env_id)
    rewards = rollout(Worlds(env_id, 20_000, "continuous", prey=prey), None, generator(1))["rewards"]
    returns, card = rewards.double().mean(-1).sum(1), omar.PUBLISHED_CARDS[env_id]["random"]
    assert abs(returns.mean() - card.mean) < 0.3
    assert returns.std() == pytest.approx(card.deviation, rel=0.06)


def asked(env_id, dataset, prey=None, policies=None):
    """What of a script's settings says which prey plays."""
    return SimpleNamespace(env_id=env_id, dataset=str(dataset), prey=prey and str(prey), policies=policies)


def test_prey_is_found_beside_above_and_where_it_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr(omar, "load_prey", lambda path, env_id: [SimpleNamespace(to=lambda device: path)])
    monkeypatch.setattr(datasets, "greedy", lambda prey, kind: prey[0])
    folder = tmp_path / "a" / TAG / "medium" / "seed_0_data"
    folder.mkdir(parents=True)
    find = lambda *given: find_prey(asked(TAG, *given))  # noqa: E731
    said = one_line(lambda: find(folder))
    assert PREY_FILE in said and str(folder) in said and "--prey PATH" in said
    (tmp_path / PREY_FILE).touch()
    one_line(lambda: find(folder))  # four folders above
    for place in (folder.parents[2], folder.parents[1], folder.parents[0], folder):
        (place / PREY_FILE).touch()
        assert find(folder) == place / PREY_FILE, "the nearest one"
    monkeypatch.chdir(folder.parent)
    assert find("seed_0_data") == folder / PREY_FILE
    other = tmp_path / "other.pt"
    other.touch()
    assert find(folder, other) == find("random", other) == find("x.h5", other) == other
    assert "no dataset" in one_line(lambda: find(tmp_path / "gone"))
    for none in (find("medium"), find(other), find("x.h5"), find_prey(asked(SPREAD, folder))):
        assert none is None


def parameter(name, change):
    def damage(stored):
        policy = stored["agent_params"][3]["policy"]
        policy[name] = change(policy[name])

    return damage


PREY_DAMAGES = [
    lambda stored: stored.pop("agent_params"),
    lambda stored: stored.update(agent_params=7),
    lambda stored: stored["agent_params"].pop(),
    lambda stored: stored["agent_params"][3]["policy"].pop("in_fn.running_var"),
    lambda stored: stored["agent_params"].reverse(),
    parameter("fc1.weight", lambda p: p.T),
    parameter("fc3.weight", lambda p: p.repeat(3, 1)[:5]),
    parameter("fc1.bias", lambda p: p.tolist()),
    parameter("fc2.weight", lambda p: p.index_fill(0, torch.tensor(5), torch.nan)),
    parameter("in_fn.running_var", lambda p: -p),
]


@pytest.mark.parametrize("damage", PREY_DAMAGES)
def test_damaged_prey_is_refused(tmp_path, damage):
    stored, path = prey_dict(TAG), tmp_path / PREY_FILE
    torch.save(stored, path)
    load_prey(path, TAG)
    damage(stored)
    torch.save(stored, path)
    assert f"cannot read {path} as the prey of simple_tag" in one_line(lambda: load_prey(path, TAG))


def test_foreign_and_truncated_prey_is_refused(tmp_path):
    path = tmp_path / PREY_FILE
    torch.save(prey_dict(WORLD), path)
    whole = path.read_bytes()
    assert "size mismatch" in one_line(lambda: load_prey(path, TAG))
    torch.save([1, 2], path)
    for content in (path.read_bytes(), b"hello" * 99, *(whole[:n] for n in range(0, len(whole), 3000))):
        path.write_bytes(content)
        assert PREY_FILE in one_line(lambda: load_prey(path, WORLD))
    assert "cannot read" in one_line(lambda: load_prey(tmp_path, WORLD))
    assert "unknown env-id" in one_line(lambda: load_prey(path, SPREAD))


def test_pickles_in_the_prey_are_not_executed(tmp_path):
    path, sprung = tmp_path / PREY_FILE, tmp_path / "sprung"
    for new_format in (True, False):
        stored = prey_dict(TAG) | dict(init_dict=Trap(sprung))
        torch.save(stored, path, _use_new_zipfile_serialization=new_format)
        assert PREY_FILE in one_line(lambda: load_prey(path, TAG)) and not sprung.exists()
    torch.load(path, weights_only=False)
    assert sprung.exists(), "the trap does spring"


@pytest.mark.parametrize("env_id", WITH_PREY)
def test_exported_prey_acts_the_same_here_and_in_the_code_of_omar(tmp_path, env_id):
    dim = PREY_DIM[env_id]
    layers, obs = init_mlp(1, (dim, 64, 64, 2), generator(1)), torch.randn(300, dim) * 5
    write_folder(tmp_path / "x", as_dataset(make_arrays(env_id, 1)), layers)
    expected, path = mlp(layers, obs[None])[0].tanh(), tmp_path / "x" / PREY_FILE
    for prey in (acting(path, env_id), find_prey(asked(env_id, tmp_path / "x"))):
        torch.testing.assert_close(prey(obs), expected, rtol=0, atol=1e-6)

    (params,) = torch.load(path, weights_only=True)["agent_params"][3:]  # after the predators: one prey
    agent = SimpleNamespace(policy=omars_network(dim, 2), critic=omars_network(dim + 2, 1))
    for name in ("policy", "critic", "target_policy", "target_critic"):
        getattr(agent, name.removeprefix("target_")).load_state_dict(params[name])
    torch.testing.assert_close(agent.policy.eval()(obs), expected, rtol=0, atol=1e-6)
    assert torch.equal(agent.policy.in_fn(obs), obs), "the exact identity"
    read_folder(tmp_path / "x", env_id)
    write_prey(tmp_path / "again.pt", layers)
    assert path.read_bytes() == (tmp_path / "again.pt").read_bytes(), "the same file each time"


# ---------------------------------------------------------------------------------------- the command line


@pytest.mark.filterwarnings("error")
def test_simulated_data_survive_export_and_import(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(mixes, "UPDATES", 2)
    places = ["--data-dir", str(tmp_path / "datasets"), "--out", str(tmp_path)]
    flags = [*places, "--dataset-size", "250", "--data-seed", "3", "--env-id"]
    for env_id in (SPREAD, TAG):
        export.main([*flags, env_id])
        folder = tmp_path / env_id / "random" / "seed_3_data"
        assert f"{folder}: 10 episodes of 25 steps" in capsys.readouterr().out
        simulated = load_dataset(env_id, "random", 250, 3, tmp_path / "datasets", "continuous")
        imported = load_dataset(env_id, str(folder), action_kind="continuous")
        for name in ("observations", "actions", "rewards"):
            assert torch.equal(getattr(simulated, name), getattr(imported, name)), name
        for more, words in (([], "exists already"), (["--dataset", str(folder)], "in OMAR's format already")):
            assert words in one_line(lambda more=more, env_id=env_id: export.main([*flags, env_id, *more]))
    obs, task = torch.randn(9, 14), tmp_path / TAG
    forces = [acting(place / PREY_FILE, TAG)(obs) for place in (folder, task)]
    assert torch.equal(*forces) and not list((tmp_path / SPREAD).rglob(PREY_FILE))
    (task / PREY_FILE).write_bytes(b"another")
    export.main([*flags, TAG, "--dataset", "expert"])
    assert "was kept" in capsys.readouterr().err and (task / PREY_FILE).read_bytes() == b"another"


def test_names_of_folders_are_omars_and_cannot_escape(tmp_path, monkeypatch):
    data = dict(quality="medium", seed=5)
    monkeypatch.setattr(export, "load_dataset", lambda env_id, *_: as_dataset(make_arrays(env_id, 1), **data))
    flags = ["--env-id", CHEETAH, "--out", str(tmp_path / "out")]
    export.main(flags)
    read_folder(tmp_path / "out" / "HalfCheetah-v2" / "medium" / "seed_5_data", CHEETAH)
    for wrong in (dict(quality="../up"), dict(quality="/up"), dict(quality=""), dict(seed="../1")):
        data |= dict(quality="medium", seed=5) | wrong
        assert "cannot name a folder" in one_line(lambda: export.main(flags))
