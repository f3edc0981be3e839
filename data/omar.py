"""Folders of arrays in the format of OMAR (Pan et al. 2022), which the paper's data come in: read and
checked.

A folder `<env>/<quality>/seed_<0..4>_data/` holds for each learning agent i, with R rows (1,000,000 in the
published ones)

    obs_i.npy, next_obs_i.npy       [R, O]            acs_i.npy                          [R, A], in [-1, 1]
    rews_i.npy, dones_i.npy         [R] or [R, 1]     states_i.npy, next_states_i.npy    [R, 17] (HalfCheetah)

The rows are whole episodes of T steps, one after the other; rows are counted from 0. The prey of simple_tag
and
simple_world has no rows: it is a network in `pretrained_adv_model.pt`, in the folder `<env>/`.
`data/export.py` writes such folders.

Array letters: E episodes (e of them in a block), T steps, N learning agents, O observation numbers, A action
numbers, D state numbers, W worlds, H hidden units.
"""

import os
import re
import sys
import warnings
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from tqdm import tqdm

from utils.errors import InputError, check_choice
from utils.files import reading


class Shape(NamedTuple):
    """Sizes of a task's arrays."""

    agents: int
    obs_dim: int
    act_dim: int
    horizon: int


SHAPES = {
    "simple_spread": Shape(3, 18, 2, 25),
    "simple_tag": Shape(3, 16, 2, 25),
    "simple_world": Shape(3, 24, 2, 25),
    "HalfCheetah-2x3": Shape(2, 6, 3, 1000),
}
STATE_DIM = 17  # HalfCheetah's
# (random, expert): what the literature normalises returns with.
PUBLISHED_SCORES = {
    "simple_spread": (159.8, 516.8),
    "simple_tag": (-4.1, 185.6),
    "simple_world": (-6.8, 79.5),
    "HalfCheetah-2x3": (-283.97, 3568.81),
}
QUALITIES = ("random", "medium-replay", "medium", "expert")
FOLDER_NAMES = {"HalfCheetah-2x3": "HalfCheetah-v2"}  # where OMAR's name of a task is not ours
PREY_DIM = {"simple_tag": 14, "simple_world": 22}  # observation numbers of the prey
PREY_FILE = "pretrained_adv_model.pt"
PREY_LEVELS = 3  # how many folders above the data the prey's file is looked for
BATCH_NORM_EPS = 1e-5  # torch's default, which OMAR's networks use
BLOCK_ROWS = 50_000  # rows of one agent in memory at once while they are checked
# Policies end in tanh and noise is clipped, so actions lie in [-1, 1], but for what scaling them to and fro
# in floats adds: that is clipped. More means another unit, or actions before the tanh.
ACTION_TOLERANCE = 1e-3
# The next observation of a row and the observation of the row after it are one array written twice, hence
# equal unless the two files were rounded differently. Rows out of order differ by whole steps, far more than
# this.
SAME = 1e-5


def read_folder(folder: Path, env_id: str) -> tuple[dict[str, np.ndarray], dict]:
    """Read and check one folder.

    Returns arrays: observations [E, T + 1, N, O] (the last one is where the episode was cut), actions [E, T,
    N, A], rewards [E, T, N] and, for HalfCheetah, states [E, T + 1, 17], all float32; and facts, with the
    published scores and the quality found in the path ("unknown" if it names none). A done at the last step
    is a time limit. Raises InputError naming the file, and the row where there is one, for whatever does not
    fit.
    """
    folder = Path(folder)
    check_choice("env-id", env_id, SHAPES)
    num, obs_dim, act_dim, horizon = SHAPES[env_id]
    files = open_files(folder, env_id)
    episodes = len(files["obs", 0]) // horizon
    arrays = dict(
        observations=np.empty((episodes, horizon + 1, num, obs_dim), np.float32),
        actions=np.empty((episodes, horizon, num, act_dim), np.float32),
        rewards=np.empty((episodes, horizon, num), np.float32),
    )
    if has_states(env_id):
        arrays["states"] = np.empty((episodes, horizon + 1, STATE_DIM), np.float32)
    bar = tqdm(
        total=episodes, desc=f"reading {folder}", unit="episode", delay=2, leave=False, file=sys.stderr
    )
    # "over": a double may be finite and too large for a float32, which is then found not to be finite.
    with bar, np.errstate(over="ignore"):
        for first in range(0, episodes, step := max(1, BLOCK_ROWS // horizon)):
            block = slice(first, min(first + step, episodes))
            for i in range(num):
                part = read_agent(folder, files, i, block, horizon)
                arrays["observations"][block, :, i] = part["obs"]
                arrays["actions"][block, :, i] = part["acs"]
                arrays["rewards"][block, :, i] = part["rews"]
                if "states" in part:
                    if i == 0:
                        arrays["states"][block] = part["states"]
                    apart = differ(arrays["states"][block], part["states"])  # [e, T + 1, D]
                    for name, wrong in (("states", apart[:, :-1]), ("next_states", apart[:, 1:])):
                        what = f"differs from {name}_0.npy, though the agents share one state"
                        refuse(folder / f"{name}_{i}.npy", wrong, first, what)
            bar.update(block.stop - block.start)
    random_score, expert_score = PUBLISHED_SCORES[env_id]
    facts = dict(
        env_id=env_id,
        quality=quality_of(folder),
        action_kind="continuous",
        random_score=random_score,
        expert_score=expert_score,
        source="omar",
    )
    return arrays, facts


def has_states(env_id: str) -> bool:
    """Whether the simulator's state is stored; elsewhere the observations side by side are the state."""
    return env_id == "HalfCheetah-2x3"


def quality_of(folder: Path) -> str:
    """The last component of the path that is one of QUALITIES, or "unknown"."""
    parts = Path(os.path.abspath(folder)).parts
    return next((part for part in reversed(parts) if part in QUALITIES), "unknown")


def open_files(folder: Path, env_id: str) -> dict[tuple[str, int], np.ndarray]:
    """All files of a folder, memory-mapped: {(name, agent): [R, width], or [R] for rewards and dones}.

    Raises InputError for what the files' headers show: missing, unreadable or foreign files, wrong shapes and
    types.
    """
    num, obs_dim, act_dim, horizon = SHAPES[env_id]
    widths = dict(obs=obs_dim, acs=act_dim, rews=None, next_obs=obs_dim, dones=None)
    if has_states(env_id):
        widths |= dict(states=STATE_DIM, next_states=STATE_DIM)
    if not folder.is_dir():
        raise InputError(f"no folder {folder}")
    if ".partial" in folder.name:
        raise InputError(f"{folder} is what an interrupted export left behind")
    names = [f"{name}_{i}.npy" for i in range(num) for name in widths]
    if missing := [name for name in names if not (folder / name).is_file()]:
        listed = ", ".join(missing[:3]) + (f" and {len(missing) - 3} more" if len(missing) > 3 else "")
        inner = next(
            (p.parent for depth in ("*", "*/*") for p in sorted(folder.glob(f"{depth}/obs_0.npy"))), None
        )
        hint = f"; did you mean {inner}?" if inner else ""
        raise InputError(
            f"{folder} is not an OMAR folder of {env_id}: it lacks {listed} "
            f"({', '.join(f'{name}_i.npy' for name in widths)} of agents 0..{num - 1} are expected){hint}"
        )
    for path in sorted(folder.iterdir()):
        match = re.fullmatch(r"(\w+)_(\d+)\.npy", path.name)
        if match and match[1] in widths and int(match[2]) >= num:
            raise InputError(f"{path}: {env_id} has {num} learning agents, 0..{num - 1}")
    files = {
        (name, i): open_array(folder / f"{name}_{i}.npy", width, env_id)
        for i in range(num)
        for name, width in widths.items()
    }
    rows = len(files["obs", 0])
    for (name, i), array in files.items():
        if len(array) != rows:
            raise InputError(f"{folder / f'{name}_{i}.npy'} has {len(array)} rows, but obs_0.npy has {rows}")
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


def read_agent(folder: Path, files: dict, i: int, block: slice, horizon: int) -> dict[str, np.ndarray]:
    """The episodes `block` of agent i, checked: obs [e, T + 1, O], acs [e, T, A], rews [e, T], states [e, T +
    1, D]."""
    part, first = {}, block.start
    for name in (name for name, agent in files if agent == i):
        rows = files[name, i][first * horizon : block.stop * horizon].astype(np.float32)
        part[name] = rows.reshape(-1, horizon, *rows.shape[1:])  # [e, T, ...]
        refuse(folder / f"{name}_{i}.npy", ~np.isfinite(part[name]), first, "is not finite")
    refuse(
        folder / f"acs_{i}.npy", np.abs(part["acs"]) > 1 + ACTION_TOLERANCE, first, "is outside of [-1, 1]"
    )
    part["acs"] = part["acs"].clip(-1, 1)
    early = part.pop("dones") != 0
    early[:, -1] = False  # there the time limit ends the episode
    refuse(folder / f"dones_{i}.npy", early, first, f"is done, but episodes end after {horizon} rows only")
    for name in ("obs", "states") if "states" in part else ("obs",):
        after = part.pop(f"next_{name}")
        apart = np.zeros(after.shape, bool)
        apart[:, :-1] = differ(after[:, :-1], part[name][:, 1:])
        what = f"differs from the row after it in {name}_{i}.npy, though both are of one episode of {horizon}"
        refuse(folder / f"next_{name}_{i}.npy", apart, first, what)
        part[name] = np.concatenate([part[name], after[:, -1:]], axis=1)
    return part


def differ(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Where two arrays are different numbers, not one number rounded twice."""
    return np.abs(a - b) > SAME * np.maximum(1, np.abs(a))


def refuse(path: Path, wrong: np.ndarray, first: int, what: str) -> None:
    """Raise InputError with the first row of `path` that is wrong: wrong [e, T, ...], from episode `first`
    on."""
    if wrong.any():
        episodes, horizon = wrong.shape[:2]
        row = first * horizon + int(wrong.reshape(episodes * horizon, -1).any(1).argmax())
        raise InputError(f"{path}: row {row} {what}")


# ------------------------------------------------------------------------------------------------- the prey


def find_prey_file(env_id: str, folder: Path, prey: Path | str | None = None) -> Path:
    """The file of the prey that `folder` was logged with: `prey` if given, else beside the data or above
    them.

    Raises InputError where the task has no prey, or there is no such file.
    """
    if env_id not in PREY_DIM:
        raise InputError(f"{env_id} has no prey")
    if prey:
        if not Path(prey).is_file():
            raise InputError(f"--prey: no file {prey}")
        return Path(prey)
    folder = Path(os.path.abspath(folder))
    for place in (folder, *folder.parents[:PREY_LEVELS]):
        if (place / PREY_FILE).is_file():
            return place / PREY_FILE
    raise InputError(
        f"no {PREY_FILE}, the prey of {env_id}, in {folder} or up to {PREY_LEVELS} folders above it "
        f"(OMAR's download has it in {env_id}/); name it with --prey PATH"
    )


def load_prey(path: Path, env_id: str, device="cpu"):
    """The prey of a file as a function for `Worlds(prey=...)`: observations [W, 14 or 22] -> forces [W, 2] in
    [-1, 1].

    Batch normalisation with the stored statistics, two ReLU layers and a tanh. Raises InputError for damaged
    or foreign files; nothing in them is executed.
    """
    path = Path(path)
    check_choice("env-id of a task with prey", env_id, PREY_DIM)
    with reading(path, f"the prey of {env_id}"):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns of pickles that it goes on to refuse
            stored = torch.load(path, map_location="cpu", weights_only=True)
        entries = stored["agent_params"]
        if len(entries) != 4:
            raise ValueError(f"it holds {len(entries)} agents, not 3 predators and a prey")
        policy = entries[3]["policy"]
        dim, hidden = PREY_DIM[env_id], policy["fc1.weight"].shape[0]
        shapes = {f"in_fn.{k}": (dim,) for k in ("running_mean", "running_var", "weight", "bias")}
        for layer, (fan_in, fan_out) in enumerate([(dim, hidden), (hidden, hidden), (hidden, 2)], start=1):
            shapes |= {f"fc{layer}.weight": (fan_out, fan_in), f"fc{layer}.bias": (fan_out,)}
        for name, shape in shapes.items():
            if tuple(policy[name].shape) != shape or not policy[name].is_floating_point():
                raise ValueError(f"{name} must be floats of shape {shape}, not {tuple(policy[name].shape)}")
        params = [policy[name].detach().float() for name in shapes]
        if not all(p.isfinite().all() for p in params) or (params[1] < 0).any():
            raise ValueError("a parameter is not finite, or a variance negative")
    *norm, w1, b1, w2, b2, w3, b3 = (p.to(device) for p in params)

    @torch.no_grad()
    def prey(obs: torch.Tensor) -> torch.Tensor:
        x = F.batch_norm(obs.float(), *norm, eps=BATCH_NORM_EPS)
        x = F.linear(F.linear(x, w1, b1).relu(), w2, b2).relu()
        return F.linear(x, w3, b3).tanh().to(obs.dtype)

    return prey
