"""Datasets and environments: `load_dataset(...)` finds, simulates, checks and caches; `make_env(...)` builds worlds.

A dataset is one HDF5 file. E episodes of T steps, N learning agents, O observation numbers:

    observations  [E, T + 1, N, O]  float32   the last one is where the episode was cut (no next_observations copy)
    actions       [E, T, N]         int       0..4; forces are float32 [E, T, N, 2] in [-1, 1]
    rewards       [E, T, N]         float32
    terminals     [E, T]            bool      all False: these tasks only stop by their time limit
    timeouts      [E, T]            bool      True at the last step of an episode
    attributes    format, env_id, quality, action_kind, random_score, expert_score, seed, behaviour (JSON), versions

Files are simulated from the shipped behaviour policies, deterministically from a seed, and written to a temporary name
that is renamed when complete. Only the learners' rows are stored; the prey belongs to the environment.
"""

import contextlib
import hashlib
import json
import os
import sys
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import h5py
import numpy as np
import torch
from tqdm import tqdm

from data import behaviour, worlds
from data.behaviour import POLICY_DIR, greedy, load_policies, policy_file, rollout
from data.errors import InputError, check_choice
from data.files import atomic
from data.worlds import ENV_IDS, HORIZON, NUM_ACTIONS, Worlds

QUALITIES = ("random", "medium-replay", "medium", "expert")
FORMAT = "spacql-dataset-1"
CHUNK_EPISODES = 2000  # simulated at once, by one policy
SCRIPT_OF_KIND = {"discrete": "spacql.py", "continuous": "spacql_continuous.py"}
ATTRIBUTES = ("env_id", "quality", "action_kind", "random_score", "expert_score")


@dataclass(frozen=True)
class Dataset:
    """Episodes in memory (shapes in the module docstring; actions as int64) and the file's attributes."""

    observations: torch.Tensor
    actions: torch.Tensor
    rewards: torch.Tensor
    facts: dict

    @property
    def mean_return(self) -> float:
        """Mean undiscounted episode return, mean over agents (in tag and world all predators get the same)."""
        return float(self.rewards.double().mean(-1).sum(-1).mean())


def normalise(score, facts: dict):
    """100 * (score - random) / (expert - random), by the scores of the dataset's own environment."""
    return 100 * (score - facts["random_score"]) / (facts["expert_score"] - facts["random_score"])


def make_env(env_id: str, num_worlds: int, num_agents: int = 3, device="cpu", seed: int = 0) -> Worlds:
    """Batched worlds of a task with discrete actions, with the shipped prey where the task has one."""
    check_choice("env-id", env_id, ENV_IDS)
    prey = None if env_id == "simple_spread" else greedy(load_policies(env_id, device).prey)
    return Worlds(env_id, num_worlds, num_agents=num_agents, prey=prey, device=device, seed=seed)


def load_dataset(
    env_id: str, dataset: str, size: int = 1_000_000, seed: int = 0, folder: Path = Path("datasets")
) -> Dataset:
    """The discrete-action dataset of a task.

    dataset: one of QUALITIES (simulated into `folder` once: `size` transitions from `seed`), or the path of an .h5
    file. Raises InputError, in one line, for whatever is wrong with any of them.
    """
    check_choice("env-id", env_id, ENV_IDS)
    if dataset not in QUALITIES:
        if Path(dataset).suffix in (".h5", ".hdf5") or Path(dataset).exists() or os.sep in dataset:
            return read_dataset(Path(dataset), env_id, "discrete")
        check_choice("dataset", dataset, QUALITIES)
    if size < HORIZON:
        raise InputError(f"dataset size {size} is less than one episode of {HORIZON} transitions")
    if seed < 0:
        raise InputError(f"dataset seed {seed} is negative")
    sources = [policy_file(env_id, POLICY_DIR), *map(Path, (worlds.__file__, behaviour.__file__, __file__))]
    digest = hashlib.sha256(b"".join(source.read_bytes() for source in sources)).hexdigest()[:8]
    # Other policies or other code that simulates: another file name.
    path = Path(folder) / f"{env_id}-discrete-{dataset}-{size}-seed{seed}-{digest}.h5"
    if not path.exists():
        simulate(path, env_id, dataset, size, seed)
    return read_dataset(path, env_id, "discrete")


def plan(quality: str, episodes: int, medium: int) -> list[tuple[int | None, int]]:
    """Which policy plays how many episodes, in chunks: [(iterate, or None for uniform actions; episodes)].

    medium-replay shares its episodes evenly over the iterates 0 .. medium, in the order of training.
    """
    if quality == "medium-replay":
        players = [e * (medium + 1) // episodes for e in range(episodes)]
        shares = [(i, players.count(i)) for i in range(medium + 1)]
    else:
        shares = [({"random": None, "medium": medium, "expert": -1}[quality], episodes)]
    return [
        (player, min(CHUNK_EPISODES, count - start))
        for player, count in shares
        for start in range(0, count, CHUNK_EPISODES)
    ]


def simulate(path: Path, env_id: str, quality: str, size: int, seed: int) -> None:
    """Write the dataset `path`: `size` transitions (whole episodes) of `quality`, the same for the same seed."""
    policies = load_policies(env_id)
    episodes = size // HORIZON
    chunks = plan(quality, episodes, policies.facts["medium_iterate"])
    env = make_env(env_id, 1)
    attributes = dict(
        env_id=env_id,
        quality=quality,
        action_kind="discrete",
        random_score=policies.facts["random_score"],
        expert_score=policies.facts["expert_score"],
        seed=seed,
        behaviour=json.dumps({k: v for k, v in policies.facts.items() if k != "training_returns"}),
        versions=json.dumps({name: version(name) for name in ("torch", "numpy", "h5py")}),
    )
    with (
        atomic_hdf5(path, attributes, (episodes, HORIZON, env.num_learners, env.obs_dim)) as file,
        tqdm(total=episodes, desc=f"simulating {env_id} {quality}", unit="episode", file=sys.stderr) as bar,
    ):
        for chunk, (player, count) in enumerate(chunks):
            chunk_seed = int(np.random.SeedSequence([seed, chunk]).generate_state(1)[0])
            env = make_env(env_id, count, seed=chunk_seed)
            actor = None if player is None else policies.iterates[player]
            arrays = rollout(env, actor, torch.Generator().manual_seed(chunk_seed + 1))
            rows = slice(bar.n, bar.n + count)
            for name, array in zip(("observations", "actions", "rewards"), arrays, strict=True):
                file[name][rows] = array.numpy()
            bar.update(count)


@contextlib.contextmanager
def atomic_hdf5(path: Path, attributes: dict, shape: tuple[int, int, int, int]):
    """An empty discrete dataset of shape (E, T, N, O) to fill; it appears under `path` only when complete."""
    episodes, horizon, num, obs_dim = shape
    with atomic(path) as partial:
        try:
            with h5py.File(partial, "w") as file:
                file.create_dataset("observations", (episodes, horizon + 1, num, obs_dim), "f4")
                file.create_dataset("actions", (episodes, horizon, num), "i1")
                file.create_dataset("rewards", (episodes, horizon, num), "f4")
                file.create_dataset("terminals", data=np.zeros((episodes, horizon), bool))
                file.create_dataset("timeouts", data=np.arange(horizon)[None].repeat(episodes, 0) == horizon - 1)
                file.attrs.update(attributes, format=FORMAT)
                yield file
        except RuntimeError as error:  # HDF5 says so when a disk is full as it closes
            raise OSError(str(error)) if "errno" in str(error) else error from None


def read_dataset(path: Path, env_id: str, action_kind: str) -> Dataset:
    """Read and check an .h5 file of our format. Raises InputError saying which array and row is wrong."""
    if not path.is_file():
        raise InputError(f"{path} is a folder, not an .h5 file" if path.is_dir() else f"no dataset file {path}")
    names = ("observations", "actions", "rewards", "terminals")
    try:
        with h5py.File(path, "r") as file:
            missing = [k for k in names if getattr(file.get(k), "shape", None) is None]
            missing += [f"attribute {k}" for k in ATTRIBUTES if k not in file.attrs]
            if missing:
                raise InputError(f"{path} is not a dataset of this project: it lacks {', '.join(missing)}")
            facts = {k: v.item() if isinstance(v, np.generic) else v for k, v in file.attrs.items()}
            for k in ATTRIBUTES[:3]:
                if not isinstance(facts[k], str):
                    raise InputError(f"{path}: the attribute {k} must be a string")
            for k in ATTRIBUTES[3:]:
                if not isinstance(facts[k], (int, float)) or not np.isfinite(facts[k]):
                    raise InputError(f"{path}: the attribute {k} must be a finite number")
            if facts["random_score"] == facts["expert_score"]:
                raise InputError(f"{path}: random_score equals expert_score, so that no score can be normalised")
            if facts["action_kind"] != action_kind:
                script = SCRIPT_OF_KIND.get(facts["action_kind"])
                hint = f"; use {script}" if script else ""
                raise InputError(f"{path} holds {facts['action_kind']} actions, not {action_kind} ones{hint}")
            if facts["env_id"] != env_id:
                raise InputError(f"{path} is data of {facts['env_id']}, not of {env_id}")
            arrays = {k: np.asarray(file[k]) for k in names}
    except InputError:
        raise
    except Exception as error:  # h5py raises many kinds for damaged files; all mean the same to the user
        reason = " ".join(str(error).split())
        raise InputError(f"cannot read {path} as HDF5 (truncated, damaged or another format): {reason}") from None
    check_arrays(path, arrays, env_id)
    return Dataset(
        torch.from_numpy(arrays["observations"].astype(np.float32, copy=False)),
        torch.from_numpy(arrays["actions"].astype(np.int64)),
        torch.from_numpy(arrays["rewards"].astype(np.float32, copy=False)),
        facts,
    )


def check_arrays(path: Path, arrays: dict[str, np.ndarray], env_id: str) -> None:
    """Raise InputError unless shapes agree with one another and with the task, and every value is possible."""
    observations, actions = arrays["observations"], arrays["actions"]
    for name, kinds, what in (
        ("observations", "f", "floats"),
        ("actions", "iu", "integers"),
        ("rewards", "f", "floats"),
        ("terminals", "biu", "booleans"),
    ):
        if arrays[name].dtype.kind not in kinds:
            raise InputError(f"{path}: {name} must be {what}, not {arrays[name].dtype}")
    if observations.ndim != 4 or 0 in observations.shape or observations.shape[1] < 3:
        raise InputError(
            f"{path}: observations must be [episodes, steps + 1, agents, numbers], got {observations.shape}"
        )
    episodes, horizon, num, obs_dim = np.subtract(observations.shape, (0, 1, 0, 0)).tolist()
    try:
        env = make_env(env_id, 1, num)
    except InputError as error:  # the task cannot have this many agents
        raise InputError(f"{path}: {error}") from None
    if obs_dim != env.obs_dim:
        raise InputError(f"{path}: {env_id} with {num} agents has {env.obs_dim} observation numbers, not {obs_dim}")
    for name, shape in (
        ("actions", (episodes, horizon, num)),
        ("rewards", (episodes, horizon, num)),
        ("terminals", (episodes, horizon)),
    ):
        if arrays[name].shape != shape:
            raise InputError(f"{path}: {name} must have shape {shape} like the observations, got {arrays[name].shape}")
    with np.errstate(over="ignore"):  # a double may be finite and too large for a float32
        finite = {k: np.isfinite(arrays[k].astype(np.float32, copy=False)) for k in ("observations", "rewards")}
    wrong = [(name, ~mask, "is not finite") for name, mask in finite.items()]
    wrong.append(("actions", (actions < 0) | (actions >= NUM_ACTIONS), f"is not in 0..{NUM_ACTIONS - 1}"))
    wrong.append(("terminals", arrays["terminals"].astype(bool), "is True, but these tasks never end early"))
    for name, mask, what in wrong:
        if mask.any():
            episode, step, *rest = np.argwhere(mask)[0].tolist()
            raise InputError(f"{path}: {name}[{', '.join(map(str, [episode, step, *rest]))}] {what}")
