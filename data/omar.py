"""Folders of arrays in the format of OMAR (Pan et al. 2022), which the paper's data come in.

A folder `<env>/<quality>/seed_<0..4>_data/` holds for each learning agent i, with R rows

    obs_i.npy, next_obs_i.npy       [R, O]            acs_i.npy                          [R, A], in [-1, 1]
    rews_i.npy, dones_i.npy         [R] or [R, 1]     states_i.npy, next_states_i.npy    [R, 17] (HalfCheetah)

The rows are whole episodes of T steps, one after the other; rows are counted from 0. The prey of simple_tag
and simple_world has no rows: it is a network in `pretrained_adv_model.pt`, in the folder `<env>/`.
`data/export.py` writes such folders.

Array letters: E episodes, T steps, N learning agents, O observation numbers, A action
numbers, D state numbers, W worlds, H hidden units.
"""

import os
import warnings
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from utils.errors import InputError, check_choice
from utils.files import reading


class Shape(NamedTuple):
    """Sizes of a task's arrays."""

    agents: int
    obs_dim: int
    action_dim: int
    horizon: int


SHAPES = {
    "simple_spread": Shape(3, 18, 2, 25),
    "simple_tag": Shape(3, 16, 2, 25),
    "simple_world": Shape(3, 24, 2, 25),
    "HalfCheetah-2x3": Shape(2, 6, 3, 1000),
}
STATE_DIM = 17  # HalfCheetah's
PUBLISHED_SCORES = {  # (random, expert): what the literature normalises returns with
    "simple_spread": (159.8, 516.8),
    "simple_tag": (-4.1, 185.6),
    "simple_world": (-6.8, 79.5),
    "HalfCheetah-2x3": (-283.97, 3568.81),
}
QUALITIES = ("random", "medium-replay", "medium", "expert")


class Card(NamedTuple):
    """What a public dataset card says: mean and deviation of the episode return, and transitions."""

    mean: float
    deviation: float | None
    transitions: int


PUBLISHED_CARDS = {  # OG-MARL's conversions of OMAR's files
    "simple_spread": {
        "random": Card(159.57, 60.46, 1_000_000),
        "medium-replay": Card(203.74, 80.49, 97_500),
        "medium": Card(273.39, 92.06, 1_000_000),
        "expert": Card(530.95, 71.41, 1_000_000),
    },
    "simple_tag": {
        "random": Card(-4.13, 10.81, 1_000_000),
        "medium-replay": Card(3.90, 20.28, 62_500),
        "medium": Card(116.36, 58.86, 1_000_000),
        "expert": Card(207.90, 77.51, 1_000_000),
    },
    "simple_world": {
        "random": Card(-6.83, 5.74, 1_000_000),
        "medium-replay": Card(1.23, 13.49, 80_000),
        "medium": Card(65.86, 29.55, 1_000_000),
        "expert": Card(85.21, 31.11, 1_000_000),
    },
    "HalfCheetah-2x3": {
        "random": Card(-282.89, 77.50, 1_000_000),
        "medium-replay": Card(423.49, 655.68, 460_000),
        "medium": Card(1568.87, 273.38, 1_000_000),
        "expert": Card(3338.69, 252.58, 1_000_000),
    },
}
FOLDER_NAMES = {"HalfCheetah-2x3": "HalfCheetah-v2"}  # where OMAR's name of a task is not ours
PREY_DIM = {"simple_tag": 14, "simple_world": 22}  # observation numbers of the prey
PREY_FILE = "pretrained_adv_model.pt"
BATCH_NORM_EPS = 1e-5  # torch's default, which OMAR's networks use
# Policies end in tanh and noise is clipped, so actions lie in [-1, 1], but for what scaling them to and fro
# in floats adds: that is clipped. More means another unit, or actions before the tanh.
ACTION_TOLERANCE = 1e-3
# The next observation of a row and the observation of the row after it are one array written twice, hence
# equal unless they were rounded differently. Rows out of order differ by whole steps, far more than this.
SAME = 1e-5


def read_folder(folder: Path, env_id: str) -> tuple[dict[str, np.ndarray], dict]:
    """Read and check one folder.

    Returns arrays: observations [E, T + 1, N, O] (the last one is where the episode was cut), actions [E, T,
    N, A], rewards [E, T, N] and, for HalfCheetah, states [E, T + 1, 17], all float32; and facts, with the
    published scores and the quality found in the path ("unknown" if it names none). A done at the last step
    is a time limit. Raises InputError, with the file and the row if there is one, for whatever does not fit.
    """
    files = open_files(folder, env_id)
    agents = [read_agent(folder, files, i, SHAPES[env_id].horizon) for i in range(SHAPES[env_id].agents)]
    names = dict(observations="obs", actions="acs", rewards="rews")
    arrays = {name: np.stack([agent[short] for agent in agents], axis=2) for name, short in names.items()}
    if has_states(env_id):
        arrays["states"] = agents[0]["states"]
        for i, agent in enumerate(agents[1:], start=1):
            apart = differ(arrays["states"], agent["states"])  # [E, T + 1, D]
            for name, wrong in (("states", apart[:, :-1]), ("next_states", apart[:, 1:])):
                what = f"differs from {name}_0.npy, though the agents share one state"
                refuse(folder / f"{name}_{i}.npy", wrong, what)
    return arrays, facts_of(folder, env_id, "omar")


def has_states(env_id: str) -> bool:
    """Whether the simulator's state is stored; elsewhere the observations side by side are the state."""
    return env_id == "HalfCheetah-2x3"


def facts_of(folder: Path, env_id: str, source: str) -> dict:
    """The facts of the paper's data: the published scores, and as quality the last component of the path that
    is one of QUALITIES, whatever its case, or "unknown"."""
    parts = [part.lower() for part in Path(os.path.abspath(folder)).parts]
    quality = next((part for part in reversed(parts) if part in QUALITIES), "unknown")
    random_score, expert_score = PUBLISHED_SCORES[env_id]
    scores = dict(random_score=random_score, expert_score=expert_score)
    return dict(env_id=env_id, quality=quality, action_kind="continuous", source=source, **scores)


def open_files(folder: Path, env_id: str) -> dict[tuple[str, int], np.ndarray]:
    """All files of a folder, memory-mapped: {(name, agent): [R, width], or [R] for rewards and dones}.

    Raises InputError for what files' headers show: missing or foreign ones, wrong shapes and types.
    """
    num, obs_dim, action_dim, horizon = SHAPES[env_id]
    widths = dict(obs=obs_dim, acs=action_dim, rews=None, next_obs=obs_dim, dones=None)
    widths |= dict(states=STATE_DIM, next_states=STATE_DIM) if has_states(env_id) else {}
    if not folder.is_dir():
        raise InputError(f"no folder {folder}")
    places = {(name, i): folder / f"{name}_{i}.npy" for i in range(num) for name in widths}
    missing = [path.name for path in places.values() if not path.is_file()]
    if missing:
        listed = ", ".join(missing[:3]) + (f" and {len(missing) - 3} more" if len(missing) > 3 else "")
        inner = [*sorted(folder.glob("*/obs_0.npy")), *sorted(folder.glob("*/*/obs_0.npy"))]
        inner += sorted(folder.glob("*.vlt/*/metadata.json"))
        hint = f"; did you mean {inner[0].parent}?" if inner else ""
        wanted = f"{', '.join(f'{name}_i.npy' for name in widths)} of agents 0..{num - 1} are expected"
        raise InputError(f"{folder} is not an OMAR folder of {env_id}: it lacks {listed} ({wanted}){hint}")
    for name in widths:
        for path in sorted(folder.glob(f"{name}_[0-9]*.npy")):
            if path not in places.values():
                raise InputError(f"{path}: {env_id} has {num} learning agents, 0..{num - 1}")
    files = {key: open_array(path, widths[key[0]], env_id) for key, path in places.items()}
    rows = len(files["obs", 0])
    for key, array in files.items():
        if len(array) != rows:
            raise InputError(f"{places[key]} has {len(array)} rows, but obs_0.npy has {rows}")
    if rows == 0 or rows % horizon:
        raise InputError(f"{folder / 'obs_0.npy'}: {rows} rows are not whole episodes of {horizon}")
    return files


def open_array(path: Path, width: int | None, env_id: str) -> np.ndarray:
    """A memory-mapped array of `width` columns, or of none where width is None (one column is dropped)."""
    with reading(path, "an array"):
        array = np.load(path, mmap_mode="r", allow_pickle=False)
        if not isinstance(array, np.memmap):
            raise ValueError("it holds several arrays")
        if path.stat().st_size != array.offset + array.nbytes:
            raise ValueError("it is longer than its header says")
    kinds = "biuf" if path.name.startswith("dones") else "f"
    if array.dtype.kind not in kinds:
        raise InputError(f"{path} must hold {'floats' if kinds == 'f' else 'numbers'}, not {array.dtype}")
    expected = [array.shape[:1], (*array.shape[:1], 1)] if width is None else [(*array.shape[:1], width)]
    if array.ndim == 0 or array.shape not in expected:
        columns = "no columns or 1" if width is None else f"{width} columns"
        raise InputError(f"{path}: {env_id} has {columns} there, but the shape is {array.shape}")
    return array[:, 0] if width is None and array.ndim == 2 else array


def read_agent(folder: Path, files: dict, i: int, horizon: int) -> dict[str, np.ndarray]:
    """Agent i's arrays, checked: obs [E, T + 1, O], acs [E, T, A], rews [E, T], states [E, T + 1, D]."""
    part, paths = {}, {name: folder / f"{name}_{i}.npy" for name, agent in files if agent == i}
    for name, path in paths.items():
        with np.errstate(over="ignore"):  # a double may be finite and too large for a float32
            rows = files[name, i].astype(np.float32)
        part[name] = rows.reshape(-1, horizon, *rows.shape[1:])  # [E, T, ...]
        refuse(path, ~np.isfinite(part[name]), "is not finite")
    part["acs"] = clipped(paths["acs"], part["acs"])
    early = part.pop("dones") != 0
    early[:, -1] = False  # there the time limit ends the episode
    refuse(paths["dones"], early, f"is done, but episodes end after {horizon} rows only")
    for name in [name for name in ("obs", "states") if name in part]:
        after = part.pop(f"next_{name}")
        apart = differ(after[:, :-1], part[name][:, 1:])
        apart = np.concatenate([apart, np.zeros_like(apart[:, :1])], axis=1)  # nothing follows the last row
        what = f"differs from the row after it in {name}_{i}.npy, though both are of one episode of {horizon}"
        refuse(paths[f"next_{name}"], apart, what)
        part[name] = np.concatenate([part[name], after[:, -1:]], axis=1)
    return part


def differ(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Where two arrays are different numbers, not one number rounded twice."""
    return np.abs(a - b) > SAME * np.maximum(1, np.abs(a))


def clipped(path: Path, actions: np.ndarray) -> np.ndarray:
    """Actions [E, T, ...] in [-1, 1]; those that are further off than rounding are refused."""
    refuse(path, np.abs(actions) > 1 + ACTION_TOLERANCE, "is outside of [-1, 1]")
    return actions.clip(-1, 1)


def refuse(path: Path, wrong: np.ndarray, what: str) -> None:
    """Raise InputError with the first row of `path` that is wrong: wrong [E, T, ...]."""
    if wrong.any():
        row = int(wrong.reshape(wrong.shape[0] * wrong.shape[1], -1).any(1).argmax())
        raise InputError(f"{path}: row {row} {what}")


def omar_network(inputs: int, hidden: int, outputs: int) -> torch.nn.ModuleDict:
    """A network as OMAR's files hold it: batch normalisation and three layers."""
    fc1, fc2 = torch.nn.Linear(inputs, hidden), torch.nn.Linear(hidden, hidden)
    fc3 = torch.nn.Linear(hidden, outputs)
    return torch.nn.ModuleDict(dict(in_fn=torch.nn.BatchNorm1d(inputs), fc1=fc1, fc2=fc2, fc3=fc3))


def load_prey(path: Path, env_id: str) -> list[torch.Tensor]:
    """The prey of a file as a network of envs/shipped.py: weights [1, in, out] and biases [1, 1, out].

    The file's has a batch normalisation with stored statistics, which goes into the first layer, two ReLU
    layers and a tanh. Raises InputError for damaged or foreign files; nothing in them is executed.
    """
    check_choice("env-id of a task with prey", env_id, PREY_DIM)
    with reading(path, f"the prey of {env_id}"):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns of pickles that it goes on to refuse
            stored = torch.load(path, map_location="cpu", weights_only=True)
        entries = stored["agent_params"]
        if len(entries) != 4:
            raise ValueError(f"it holds {len(entries)} agents, not 3 predators and a prey")
        policy = entries[3]["policy"]
        network = omar_network(PREY_DIM[env_id], len(policy["fc1.bias"]), 2)
        network.load_state_dict(policy)
        state = {name: p.double() for name, p in network.state_dict().items()}
        variance = state["in_fn.running_var"]
        if not all(p.isfinite().all() for p in state.values()) or (variance < 0).any():
            raise ValueError("a parameter is not finite, or a variance negative")
    scale = state["in_fn.weight"] / (variance + BATCH_NORM_EPS).sqrt()
    shift = state["in_fn.bias"] - state["in_fn.running_mean"] * scale
    state["fc1.bias"] += state["fc1.weight"] @ shift
    state["fc1.weight"] *= scale
    layers = [(state[f"fc{j}.weight"].T[None], state[f"fc{j}.bias"][None, None]) for j in (1, 2, 3)]
    return [p.float() for layer in layers for p in layer]
