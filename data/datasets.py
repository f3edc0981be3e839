"""Datasets: `load_dataset(...)` finds, simulates, checks and caches them.

A dataset is one HDF5 file. E episodes of T steps, N learning agents, O observation numbers, A action numbers:

    observations  [E, T + 1, N, O]  float32   the last one is where the episode was cut (no next_observations copy)
    actions       [E, T, N]         int       0..4; continuous ones are float32 [E, T, N, A] in [-1, 1]
    rewards       [E, T, N]         float32
    states        [E, T + 1, D]     float32   the simulator's state, HalfCheetah only: elsewhere the observations are it
    terminals     [E, T]            bool      all False: these tasks only stop by their time limit
    timeouts      [E, T]            bool      True at the last step of an episode
    attributes    format, env_id, quality, action_kind, random_score, expert_score, seed, behaviour (JSON), versions,
                  dataset (what was asked for), dependence and dependence_error (data/mixes.py)

Files are simulated from the shipped behaviour policies, deterministically from a seed, and written to a temporary name
that is renamed when complete. Only the learners' rows are stored; the prey belongs to the environment. How much the
agents' actions depend on one another is measured once, when a file is simulated; of other data, when they are loaded.
Mixes of teams are made by data/mixes.py; folders of arrays as the paper's data come in are read by data/omar.py.
"""

import contextlib
import hashlib
import json
import math
import os
import sys
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from types import ModuleType

import h5py
import numpy as np
import torch
from tqdm import tqdm

from data import mixes, omar
from data.mixes import MixedTeams, is_mix, load_teams, measure_dependence, parse_mix, teams_file
from envs import ENV_IDS_OF_KIND, cheetah_physics, half_cheetah, make_env, particles, shipped, two_doors
from envs.particles import ENV_IDS, NUM_ACTIONS, WITH_PREY
from envs.shipped import POLICY_DIR, action_dim, load_policies, policy_file, rollout
from utils.errors import InputError, check_choice
from utils.files import atomic

QUALITIES = omar.QUALITIES
HDF5_SUFFIXES = (".h5", ".hdf5")
FORMAT = "spacql-dataset-1"
HORIZONS = {env_id: shape.horizon for env_id, shape in omar.SHAPES.items()} | {
    two_doors.ENV_ID: two_doors.HORIZON
}
SCRIPT_OF_KIND = {"discrete": "spacql.py", "continuous": "spacql_continuous.py"}
ATTRIBUTES = ("env_id", "quality", "action_kind", "random_score", "expert_score")
MEASURED = ("dependence", "dependence_error", "predictability")  # attributes that a file may lack
# In nats, above which a warning is due. The qualities measure up to 0.005 (medium-replay: iterates in turn), mixes of
# teams with share=0.5 and unit=step 0.03 to 0.14. By Pinsker's inequality up to 0.02 the distribution of actions is on
# average within a total variation of 0.1 of one where an agent acts independently.
STRONG_DEPENDENCE = 0.02


@dataclass(frozen=True)
class Simulation:
    """How the datasets of a task are simulated; `omar.has_states` says which hold the simulator's states."""

    modules: tuple[ModuleType, ...]  # whose source decides what the data are
    packages: tuple[str, ...]  # whose versions do so, too
    chunk: int  # episodes simulated at once, by one policy


SIMULATIONS = {
    **dict.fromkeys(ENV_IDS, Simulation((particles, shipped, mixes), (), chunk=2000)),
    two_doors.ENV_ID: Simulation((two_doors, shipped, mixes), (), chunk=2000),
    half_cheetah.ENV_ID: Simulation((half_cheetah, cheetah_physics, shipped, mixes), ("mujoco",), chunk=50),
}
RECORDED = ("torch", "numpy", "h5py")  # packages whose versions every file notes, beside those above


@dataclass(frozen=True)
class Dataset:
    """Episodes in memory (shapes in the module docstring; discrete actions as int64) and the file's attributes."""

    observations: torch.Tensor
    actions: torch.Tensor
    rewards: torch.Tensor
    facts: dict
    states: torch.Tensor | None = None

    @property
    def mean_return(self) -> float:
        """Mean undiscounted episode return, mean over agents (in tag and world all predators get the same)."""
        return float(self.rewards.double().mean(-1).sum(-1).mean())


def describe(dataset: Dataset) -> str:
    """What a script says of its data: one line, and a warning where the paper's bounds suffer (a "high kappa")."""
    facts = dataset.facts
    said = f"mean score of the data {normalise(dataset.mean_return, facts):.1f}, dependence of the agents' actions "
    if np.isinf(facts["dependence_error"]):
        return said + "not known (too few episodes)"
    said += f"{facts['dependence']:.3f} ± {facts['dependence_error']:.3f} nats"
    if facts["dependence"] > STRONG_DEPENDENCE:
        said += "\nwarning: the agents' actions depend on one another, given the state: the paper's bounds for partial"
        said += " replacement gain a term in that"
    return said


def normalise(score, facts: dict):
    """100 * (score - random) / (expert - random), by the scores of the dataset's own environment."""
    return 100 * (score - facts["random_score"]) / (facts["expert_score"] - facts["random_score"])


def find_prey(env_id, dataset: str, prey: str | None = None, device="cpu"):
    """The prey that an OMAR folder was logged with, for `make_env`: from the file `prey`, or from the one beside or
    above the folder `dataset`. None, which means the shipped one, for other data, and where the task has no prey."""
    source = Path(dataset)
    if env_id not in WITH_PREY or dataset in QUALITIES or source.suffix in HDF5_SUFFIXES or source.is_file():
        if prey:
            raise InputError(f"--prey is for OMAR folders of {' and '.join(WITH_PREY)}")
        return None
    # Also when a checkpoint is scored whose data have gone: another prey would be no answer.
    if not prey and not source.is_dir():
        if os.sep not in dataset:
            check_choice("dataset", dataset, QUALITIES)
        raise InputError(f"no dataset {dataset}, and so no prey")
    return omar.load_prey(omar.find_prey_file(env_id, source, prey), env_id, device)


def load_dataset(
    env_id: str,
    dataset: str,
    size: int = 1_000_000,
    seed: int = 0,
    folder: str | Path = "datasets",
    action_kind: str = "discrete",
) -> Dataset:
    """The dataset of a task.

    dataset: one of QUALITIES or a mix of teams (simulated into `folder` once: `size` transitions from `seed`), the path
    of an .h5 file, or, of continuous actions, the path of an OMAR folder. Raises InputError, in one line, for whatever
    is wrong with any of them.
    """
    check_choice("env-id", env_id, ENV_IDS_OF_KIND[action_kind])
    name = simulated_name(env_id, dataset)
    if name is None:
        if Path(dataset).is_dir() and action_kind == "continuous":
            arrays, facts = omar.read_folder(Path(dataset), env_id)
            found = Dataset(**{k: torch.from_numpy(v) for k, v in arrays.items()}, facts=facts)
        elif Path(dataset).suffix in HDF5_SUFFIXES or Path(dataset).exists() or os.sep in dataset:
            found = read_dataset(Path(dataset), env_id, action_kind)
        else:
            check_choice("dataset", dataset, QUALITIES)
        return (
            found
            if set(MEASURED) <= set(found.facts)
            else replace(found, facts=found.facts | dependence_of(found))
        )
    if is_mix(dataset) and action_kind == "continuous":
        raise InputError("mixes of teams are of discrete actions: use spacql.py")
    if size < (horizon := HORIZONS[env_id]):
        raise InputError(f"dataset size {size} is less than one episode of {horizon} transitions")
    if seed < 0:
        raise InputError(f"dataset seed {seed} is negative")
    # Other policies, or other code or packages that simulate: another file name.
    simulation = SIMULATIONS[env_id]
    sources = [*(Path(module.__file__) for module in simulation.modules), Path(__file__)]
    if env_id != two_doors.ENV_ID:
        sources.append(policy_file(env_id, POLICY_DIR, action_kind))
        sources += [teams_file(env_id, POLICY_DIR)] if is_mix(dataset) else []
    parts = [source.read_bytes() for source in sources] + [
        version(name).encode() for name in simulation.packages
    ]
    digest = hashlib.sha256(b"".join(parts)).hexdigest()[:8]
    path = Path(folder) / f"{env_id}-{action_kind}-{name}-{size}-seed{seed}-{digest}.h5"
    if not path.exists():
        simulate(path, env_id, dataset, size, seed, action_kind)
    return read_dataset(path, env_id, action_kind)


def simulated_name(env_id: str, dataset: str) -> str | None:
    """The name of a quality or mix that the task has, the same for all spellings of a mix; None for a path.

    Raises InputError for those that it does not have.
    """
    if is_mix(dataset):
        return parse_mix(dataset, env_id).name
    if env_id == two_doors.ENV_ID and dataset in QUALITIES[1:]:
        raise InputError(
            f"{env_id} has no {dataset} data: choose random or mix:teams=2,unit=step,share=0.5,noise=0.1"
        )
    return dataset if dataset in QUALITIES else None


def dependence_of(dataset: Dataset) -> dict:
    """The facts that tell how much the agents' actions depend on one another."""
    return dict(zip(MEASURED, measure_dependence(dataset), strict=True))


def plan(quality: str, episodes: int, medium: int, chunk: int) -> list[tuple[int | None, int]]:
    """Who plays how many episodes, at most `chunk` at once: [(iterate, or None for random and mix; episodes)].

    medium-replay shares its episodes evenly over the iterates 0 .. medium, in the order of training.
    """
    if quality == "medium-replay":
        players = [e * (medium + 1) // episodes for e in range(episodes)]
        shares = [(i, players.count(i)) for i in range(medium + 1)]
    else:
        shares = [({"random": None, "mix": None, "medium": medium, "expert": -1}[quality], episodes)]
    return [
        (player, min(chunk, count - start)) for player, count in shares for start in range(0, count, chunk)
    ]


def simulate(path: Path, env_id: str, dataset: str, size: int, seed: int, action_kind: str) -> None:
    """Write the dataset `path`: `size` transitions (whole episodes) of a quality or mix, the same for the same seed."""
    quality, name = "mix" if is_mix(dataset) else dataset, simulated_name(env_id, dataset)
    episodes = size // HORIZONS[env_id]
    if env_id == two_doors.ENV_ID:
        iterates, known, medium, scores = [], {}, 0, (two_doors.random_score(), two_doors.optimal_score())
    else:
        policies = load_policies(env_id, action_kind=action_kind)
        iterates, medium = policies.iterates, policies.facts["medium_iterate"]
        known = {k: v for k, v in policies.facts.items() if k != "training_returns"}
        scores = policies.facts["random_score"], policies.facts["expert_score"]
    if quality == "mix":
        mix, (teams, facts_of_teams) = parse_mix(dataset, env_id), load_teams(env_id)
        known = dict(teams=facts_of_teams[: mix.teams])
    if (
        action_kind == "continuous" and env_id not in WITH_PREY
    ):  # the paper's world: scores in the paper's unit
        scores = omar.PUBLISHED_SCORES[env_id]
    chunks = plan(quality, episodes, medium, SIMULATIONS[env_id].chunk)
    attributes = dict(
        env_id=env_id,
        quality=quality,
        action_kind=action_kind,
        random_score=scores[0],
        expert_score=scores[1],
        seed=seed,
        dataset=name,
        behaviour=json.dumps(known),
        versions=json.dumps(
            {package: version(package) for package in (*RECORDED, *SIMULATIONS[env_id].packages)}
        ),
    )
    with (
        atomic_hdf5(path, attributes) as file,
        tqdm(total=episodes, desc=f"simulating {env_id} {name}", unit="episode", file=sys.stderr) as bar,
    ):
        start = 0
        for chunk, (player, count) in enumerate(chunks):
            chunk_seed = int(np.random.SeedSequence([seed, chunk]).generate_state(1)[0])
            env = make_env(env_id, count, seed=chunk_seed, action_kind=action_kind)
            actor = None if player is None else iterates[player]
            actor = MixedTeams(mix, teams) if quality == "mix" else actor
            arrays = rollout(env, actor, torch.Generator().manual_seed(chunk_seed + 1))
            episode_ends = np.arange(env.horizon) == env.horizon - 1
            arrays["timeouts"] = torch.from_numpy(episode_ends).expand(count, -1)
            arrays["terminals"] = torch.zeros_like(arrays["timeouts"])
            for key, array in arrays.items():
                array = array.numpy()
                array = (
                    array.astype(np.int8) if array.dtype == np.int64 else array
                )  # one byte holds a discrete action
                if chunk == 0:
                    file.create_dataset(key, (episodes, *array.shape[1:]), array.dtype)
                file[key][start : start + count] = array
            start += count
            bar.update(count)
        every = math.ceil(episodes / mixes.MEASURED_EPISODES)  # all that is looked at
        looked_at = (file[key][::every] for key in ("observations", "actions", "rewards"))
        attributes |= dependence_of(Dataset(*map(tensor, looked_at), facts={}))


@contextlib.contextmanager
def atomic_hdf5(path: Path, attributes: dict):
    """An HDF5 file to fill, which gets these attributes; it appears under `path` only when complete."""
    with atomic(path) as partial:
        try:
            with h5py.File(partial, "w") as file:
                yield file
                file.attrs.update(attributes, format=FORMAT)
        except RuntimeError as error:  # HDF5 says so when a disk is full as it closes
            raise OSError(str(error)) if "errno" in str(error) else error from None


def read_dataset(path: Path, env_id: str, action_kind: str) -> Dataset:
    """Read and check an .h5 file of our format. Raises InputError saying which array and row is wrong."""
    if not path.is_file():
        raise InputError(
            f"{path} is a folder, not an .h5 file" if path.is_dir() else f"no dataset file {path}"
        )
    names = ["observations", "actions", "rewards", "terminals"] + ["states"] * omar.has_states(env_id)
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
            for k in set(MEASURED) & set(facts):
                if not isinstance(facts[k], (int, float)) or not facts[k] >= 0:
                    raise InputError(f"{path}: the attribute {k} must be a number that is not negative")
            if facts["random_score"] == facts["expert_score"]:
                raise InputError(
                    f"{path}: random_score equals expert_score, so that no score can be normalised"
                )
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
        raise InputError(
            f"cannot read {path} as HDF5 (truncated, damaged or another format): {reason}"
        ) from None
    check_arrays(path, arrays, env_id, action_kind)
    arrays.pop("terminals")
    return Dataset(**{k: tensor(v) for k, v in arrays.items()}, facts=facts)


def tensor(array: np.ndarray) -> torch.Tensor:
    """An array of a file as a tensor: integers as int64, floats as float32."""
    return torch.from_numpy(array.astype(np.int64 if array.dtype.kind in "iu" else np.float32, copy=False))


def check_arrays(path: Path, arrays: dict[str, np.ndarray], env_id: str, action_kind: str) -> None:
    """Raise InputError unless shapes agree with one another and with the task, and every value is possible."""
    observations, actions, forces = arrays["observations"], arrays["actions"], action_kind == "continuous"
    kinds = dict(
        observations=("f", "floats"),
        actions=("f", "floats") if forces else ("iu", "integers"),
        rewards=("f", "floats"),
        terminals=("biu", "booleans"),
        states=("f", "floats"),
    )
    for name, array in arrays.items():
        if array.dtype.kind not in kinds[name][0]:
            raise InputError(f"{path}: {name} must be {kinds[name][1]}, not {array.dtype}")
    if observations.ndim != 4 or 0 in observations.shape or observations.shape[1] < 3:
        raise InputError(
            f"{path}: observations must be [episodes, steps + 1, agents, numbers], got {observations.shape}"
        )
    episodes, horizon, num, obs_dim = np.subtract(observations.shape, (0, 1, 0, 0)).tolist()
    try:
        env = make_env(env_id, 1, num, action_kind=action_kind)
    except InputError as error:  # the task cannot have this many agents
        raise InputError(f"{path}: {error}") from None
    if obs_dim != env.obs_dim:
        raise InputError(
            f"{path}: {env_id} with {num} agents has {env.obs_dim} observation numbers, not {obs_dim}"
        )
    shapes = dict(
        actions=(episodes, horizon, num) + ((action_dim(env),) if forces else ()),
        rewards=(episodes, horizon, num),
        terminals=(episodes, horizon),
        states=(episodes, horizon + 1, getattr(env, "state_dim", 0)),
    )
    for name, shape in shapes.items():
        if name in arrays and arrays[name].shape != shape:
            raise InputError(
                f"{path}: {name} must have shape {shape} like the observations, got {arrays[name].shape}"
            )
    with np.errstate(over="ignore"):  # a double may be finite and too large for a float32
        wrong = [
            (name, ~np.isfinite(array.astype(np.float32, copy=False)), "is not finite")
            for name, array in arrays.items()
            if array.dtype.kind == "f"
        ]
    if forces:
        wrong.append(("actions", np.abs(actions) > 1, "is not in [-1, 1]"))
    else:
        wrong.append(("actions", (actions < 0) | (actions >= NUM_ACTIONS), f"is not in 0..{NUM_ACTIONS - 1}"))
    wrong.append(("terminals", arrays["terminals"].astype(bool), "is True, but these tasks never end early"))
    for name, mask, what in wrong:
        if mask.any():
            episode, step, *rest = np.argwhere(mask)[0].tolist()
            raise InputError(f"{path}: {name}[{', '.join(map(str, [episode, step, *rest]))}] {what}")


@torch.no_grad()
def evaluate(policy, env, num_seeds: int, seed: int) -> torch.Tensor:
    """Undiscounted returns [S, episodes] of teams, mean over agents; every seed's team from the same starts.

    policy: observations [S, B, N, O] as the environment gives them -> actions [S, B, N, ...].
    """
    obs, returns = env.reset(seed=seed, copies=num_seeds), 0.0
    for _ in range(env.horizon):  # episodes only end by their time limit: nothing to mask
        obs, rewards = env.step(policy(obs.unflatten(0, (num_seeds, -1))).flatten(0, 1))
        returns = returns + rewards.mean(-1)
    return returns.view(num_seeds, -1)
