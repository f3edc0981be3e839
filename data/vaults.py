"""OG-MARL's vaults, as which the paper's datasets are public today: flashbax's format, read by tensorstore.

A vault is a folder `<name>.vlt`, of which each subfolder (Random, Medium-Replay, Medium, Expert) holds one
dataset: `metadata.json`, and an OCDBT store with one Zarr array for each leaf, named by its path with a dot
at the end. With R time steps, of which the first `vault_index` are valid, and M agents:

    observations.   [1, R, M, width]  padded with -inf to the widest agent's
    actions.        [1, R, M, A]      in [-1, 1]
    rewards.        [1, R, M]
    terminals.      [1, R, M] or [1, R]; as truncations., which may be missing
    infos.state.    [1, R, 17]        HalfCheetah

Episodes follow one another. Where the prey of simple_tag and simple_world is stored as a fourth agent, it and
the padding are dropped. The observation after an episode's last step is not stored: it is the last one once
more here, which no transition takes (the last step has no next logged action).
"""

import json
from pathlib import Path

import numpy as np

from data import omar
from utils.errors import InputError
from utils.files import reading, say

SUFFIX = ".vlt"


def is_vault(folder: Path) -> bool:
    """Whether a folder is a vault, or one of its datasets."""
    return SUFFIX in (folder.suffix, folder.absolute().parent.suffix)


def read_vault(folder: Path, env_id: str) -> tuple[dict[str, np.ndarray], dict]:
    """Read and check one dataset of a vault, as data/omar.py's read_folder does a folder of arrays.

    Raises InputError, in one line, for whatever does not fit, and where tensorstore is not installed.
    """
    try:
        import tensorstore
    except ImportError:
        raise InputError("vaults are read by the tensorstore package: pip install tensorstore") from None
    folder = folder.absolute()
    if folder.suffix == SUFFIX:
        inner = ", ".join(sorted(path.name for path in folder.glob("*/"))) or "none"
        raise InputError(f"{folder} is a vault: name one of its datasets, {folder}/NAME, of {inner}")
    if not (folder / "metadata.json").is_file():
        inner = ", ".join(sorted(path.name for path in folder.parent.glob("*/")))
        raise InputError(f"{folder} is no dataset of a vault: {folder.parent} has {inner or 'none'}")
    with reading(folder / "metadata.json", "what describes a vault"):
        named = json.loads((folder / "metadata.json").read_text())["structure_shape"]
        leaves = ["observations", "actions", "rewards", "terminals"]
        leaves += ["truncations"] if "truncations" in named else []
        leaves += ["infos.state"] if omar.has_states(env_id) else []

    def open_leaf(name):
        store = dict(driver="ocdbt", base=f"file://{folder}", path=name)
        return tensorstore.open(dict(driver="zarr", kvstore=store), read=True).result()

    arrays = {}
    with reading(folder, "a vault"):
        steps = int(open_leaf("vault_index").read().result()[0])
        for leaf in leaves:
            stored = open_leaf(f"{leaf}.")
            if stored.shape[0] != 1 or stored.shape[1] < steps:
                raise ValueError(f"{leaf} has shape {stored.shape}, where {steps} time steps are valid")
            arrays[leaf] = stored[0, :steps].read().result()  # [R, ...]
        if steps == 0 or arrays["observations"].ndim != 3:
            raise ValueError(f"its observations have shape {arrays['observations'].shape}")
    return episodes(folder, arrays, env_id), omar.facts_of(folder, env_id, "vault")


def episodes(folder: Path, arrays: dict[str, np.ndarray], env_id: str) -> dict[str, np.ndarray]:
    """The arrays of a Dataset from a vault's leaves [R, ...]. Raises InputError for what does not fit."""
    agents, obs_dim, action_dim, horizon = omar.SHAPES[env_id]
    rows, stored = arrays["observations"].shape[:2]
    if stored not in (agents, agents + (env_id in omar.PREY_DIM)):
        raise InputError(f"{folder}: {env_id} has {agents} learning agents, the observations are of {stored}")
    ends = np.zeros(rows, bool)
    for name in ("terminals", "truncations"):
        if name in arrays:
            ends |= arrays.pop(name).reshape(rows, -1).any(1)
    wanted = np.arange(1, rows + 1) % horizon == 0
    if rows % horizon or (ends != wanted).any():
        row = int((ends != wanted).argmax()) if (ends != wanted).any() else rows // horizon * horizon
        raise InputError(f"{folder}: {rows} steps are not whole episodes of {horizon}, from step {row} on")
    shapes = dict(observations=(rows, stored, max(obs_dim, arrays["observations"].shape[-1])))
    shapes |= dict(actions=(rows, stored, action_dim), rewards=(rows, stored))
    shapes |= {"infos.state": (rows, omar.STATE_DIM)}
    for name, array in arrays.items():
        if array.shape != shapes[name] or array.dtype.kind != "f":
            expected = f"floats of shape {shapes[name]}"
            raise InputError(f"{folder}: {name} must be {expected}, not {array.dtype} {array.shape}")
    padding = arrays["observations"][:, :agents, obs_dim:]
    arrays["observations"] = arrays["observations"][..., :obs_dim]
    dropped = ["the prey"] * (stored > agents) + ["the padding"] * (padding.size > 0)
    if dropped:
        say(f"{folder}: {' and '.join(dropped)} dropped")
    more = (padding != -np.inf).any((1, 2)).reshape(-1, horizon)
    omar.refuse(folder, more, f"has more than {obs_dim} observation numbers")
    cut = {}
    for name, array in arrays.items():
        array = array[:, :agents] if name != "infos.state" else array
        with np.errstate(over="ignore"):  # a double may be finite and too large for a float32
            array = array.astype(np.float32).reshape(-1, horizon, *array.shape[1:])
        omar.refuse(folder, ~np.isfinite(array), f"of {name} is not finite")
        if name in ("observations", "infos.state"):
            array = np.concatenate([array, array[:, -1:]], axis=1)
        cut[name.replace("infos.state", "states")] = array
    cut["actions"] = omar.clipped(folder, cut["actions"])
    return cut
