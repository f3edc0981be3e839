"""OG-MARL's vaults: is what is written by tensorstore in their layout read as it was, and is each kind of
damage refused in one line?"""

import json
import sys

import numpy as np
import pytest
from common import one_line

from data import omar
from data.datasets import load_dataset
from data.vaults import read_vault
from utils.errors import InputError

tensorstore = pytest.importorskip("tensorstore")
STATES = {"HalfCheetah-2x3": 17}


def make_arrays(env_id, episodes, prey=False, width=None, seed=0):
    """Leaves [R, ...] of a vault in which agents move as in the particle worlds."""
    agents, obs_dim, action_dim, horizon = omar.SHAPES[env_id]
    rng, stored, width = np.random.default_rng(seed), agents + prey, width or obs_dim
    rows = episodes * horizon
    observations = rng.normal(size=(episodes, horizon, stored, width)).astype(np.float32)
    steps = 0.1 * observations[..., 0:2]
    observations[..., 2:4] = np.cumsum(steps, axis=1)  # by the new velocity
    observations[..., obs_dim:] = -np.inf
    if prey:
        observations[:, :, -1, omar.PREY_DIM[env_id] :] = -np.inf
    ends = np.zeros((1, rows, stored), bool)
    ends[:, horizon - 1 :: horizon] = True
    return {
        "observations.": observations.reshape(1, rows, stored, width),
        "actions.": rng.uniform(-1, 1, (1, rows, stored, action_dim)).astype(np.float32),
        "rewards.": rng.normal(size=(1, rows, stored)).astype(np.float32),
        "terminals.": ends,
        "truncations.": np.zeros_like(ends),
        "infos.state.": rng.normal(size=(1, rows, STATES.get(env_id, 7))).astype(np.float32),
    }


def write_vault(folder, arrays, spare=0, chunk=40):
    """A vault with room for `spare` more time steps, in chunks of `chunk` of them."""
    folder.mkdir(parents=True)
    rows = arrays["rewards."].shape[1]
    for leaf, array in (arrays | dict(vault_index=np.array([rows], np.int32))).items():
        store = dict(driver="ocdbt", base=f"file://{folder}", path=leaf)
        shape = list(array.shape)
        metadata = dict(dtype=array.dtype.str if array.dtype != bool else "|b1", shape=shape, chunks=shape)
        if leaf != "vault_index":
            metadata["shape"] = [1, rows + spare, *shape[2:]]
            metadata["chunks"] = [1, min(chunk, rows + spare), *shape[2:]]
        spec = dict(driver="zarr", kvstore=store, metadata=metadata, create=True)
        stored = tensorstore.open(spec).result()
        part = stored if leaf == "vault_index" else stored[:, :rows]
        part.write(array).result()
    shapes = {leaf.rstrip("."): str((1, rows + spare, *array.shape[2:])) for leaf, array in arrays.items()}
    structure = {name: shape for name, shape in shapes.items() if "." not in name}
    structure["infos"] = dict(state=shapes["infos.state"])
    (folder / "metadata.json").write_text(json.dumps(dict(version=1.0, structure_shape=structure)))
    return folder


@pytest.mark.parametrize(
    ("env_id", "prey", "width"),
    [
        ("simple_spread", False, None),
        ("simple_tag", False, 18),
        ("simple_tag", True, 16),
        ("simple_world", True, 30),
        ("HalfCheetah-2x3", False, None),
    ],
)
def test_a_vault_is_read_as_it_was_written(tmp_path, capsys, env_id, prey, width):
    agents, obs_dim, _, horizon = omar.SHAPES[env_id]
    arrays = make_arrays(env_id, 4, prey, width)
    folder = write_vault(tmp_path / "2x.vlt" / "Medium-Replay", arrays, spare=33)
    found = load_dataset(env_id, str(folder), action_kind="continuous")
    for e in range(4):
        for t in range(horizon):
            row = e * horizon + t
            for i in range(agents):
                seen = arrays["observations."][0, row, i, :obs_dim]
                assert np.array_equal(found.observations[e, t, i], seen)
                assert np.array_equal(found.actions[e, t, i], arrays["actions."][0, row, i])
                assert found.rewards[e, t, i] == arrays["rewards."][0, row, i]
            if found.states is not None:
                assert np.array_equal(found.states[e, t], arrays["infos.state."][0, row])
    assert found.observations.shape == (4, horizon + 1, agents, obs_dim)
    assert (found.states is not None) == (env_id == "HalfCheetah-2x3")
    scores = found.facts["random_score"], found.facts["expert_score"]
    assert scores == omar.PUBLISHED_SCORES[env_id] and found.facts["quality"] == "medium-replay"
    said = capsys.readouterr().err
    assert ("the prey" in said, "the padding" in said) == (prey, (width or obs_dim) > obs_dim)


def broken(leaf, change):
    """A damage: the leaf becomes change(leaf)."""
    return lambda arrays: arrays | {leaf: change(arrays[leaf])}


def poked(place, value):
    def change(array):
        array = array.copy()
        array[place] = value
        return array

    return change


DAMAGES = {  # what is done to the leaves, and what is said
    "not a number": (broken("observations.", poked((0, 7, 1, 3), np.nan)), "row 7 of observations is not"),
    "an action outside": (broken("actions.", poked((0, 9, 1, 0), 1.5)), "row 9 is outside of [-1, 1]"),
    "a fifth agent": (broken("observations.", lambda x: np.tile(x, (1, 1, 2, 1))), "3 learning agents"),
    "fewer actions": (broken("actions.", lambda x: x[..., :1]), "actions must be floats of shape"),
    "rewards as integers": (broken("rewards.", lambda x: x.astype(np.int64)), "rewards must be floats"),
    "an end too early": (broken("terminals.", poked((0, 5), True)), "from step 5 on"),
    "an end that is missing": (broken("terminals.", poked((0, 24), False)), "from step 24 on"),
    "half an episode": (lambda arrays: {k: v[:, :60] for k, v in arrays.items()}, "not whole episodes of 25"),
    "padding that is none": (broken("observations.", poked((0, 3, 1, 17), 0.0)), "row 3 has more than 16"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_leaves_that_do_not_fit_are_refused(tmp_path, name):
    change, words = DAMAGES[name]
    arrays = change(make_arrays("simple_tag", 4, width=18))
    folder = write_vault(tmp_path / "x.vlt" / "Random", arrays)
    said = one_line(lambda: read_vault(folder, "simple_tag"))
    assert words in said and str(folder) in said


def test_damaged_and_other_folders_are_refused_in_one_line(tmp_path, monkeypatch):
    folder = write_vault(tmp_path / "x.vlt" / "Random", make_arrays("simple_spread", 2))
    said = one_line(lambda: load_dataset("simple_spread", str(folder.parent), action_kind="continuous"))
    assert "name one of its datasets" in said and "Random" in said
    said = one_line(lambda: load_dataset("simple_spread", str(folder)))
    assert "spacql_continuous.py" in said
    intact, refused = read_vault(folder, "simple_spread")[0], 0
    for path in [path for path in sorted(folder.rglob("*")) if path.is_file()]:
        whole = path.read_bytes()
        for content in (b"", whole[: len(whole) // 2], whole[::-1]):
            path.write_bytes(content)
            try:
                found = read_vault(folder, "simple_spread")[0]
            except InputError as error:
                refused += str(folder) in str(error) and "\n" not in str(error)
                continue
            # of what an OCDBT store wrote over, files may be left that nothing refers to
            assert all(np.array_equal(found[name], intact[name]) for name in intact)
        path.write_bytes(whole)
    assert refused >= 9, "metadata, manifest and data"
    read_vault(folder, "simple_spread")
    assert "x.vlt has Random" in one_line(lambda: read_vault(folder.with_name("Medium"), "simple_spread"))
    monkeypatch.setitem(sys.modules, "tensorstore", None)
    assert "pip install tensorstore" in one_line(lambda: read_vault(folder, "simple_spread"))
