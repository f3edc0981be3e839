"""Datasets: `load_dataset(...)` finds, simulates, checks and caches them.

A dataset is one HDF5 file. E episodes of T steps, N learning agents, O observation numbers, A action numbers:

    observations  [E, T + 1, N, O]  float32   the last one is where the episode was cut
    actions       [E, T, N]         int       0..4; continuous ones are float32 [E, T, N, A] in [-1, 1]
    rewards       [E, T, N]         float32
    states        [E, T + 1, D]     float32   the simulator's state, HalfCheetah only
    terminals     [E, T]            bool      all False: these tasks only stop by their time limit
    timeouts      [E, T]            bool      True at the last step of an episode
    attributes    env_id, quality, action_kind, random_score, expert_score, seed, behaviour (JSON),
                  prey (a hash), versions, dataset (what was asked for), dependence, dependence_error and
                  predictability

Elsewhere than in HalfCheetah the observations side by side are the state. Files are simulated from the
shipped policies or others, deterministically from a seed. Only the learners' rows are stored; the prey
belongs to the world. How much the agents' actions depend on one another (data/mixes.py) is measured once,
when a file is simulated; of other data, when they are loaded. Mixes of teams are made by data/mixes.py;
folders and vaults, which the paper's data come in, are read by data/omar.py and data/vaults.py.
"""

import hashlib
import json
import math
import os
import re
import sys
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path

import h5py
import numpy as np
import torch
from tqdm import tqdm

import envs
from data import mixes, omar, vaults
from data.mixes import measure_dependence, parse_mix
from envs import ENV_IDS_OF_KIND, half_cheetah, make_env, two_doors
from envs.particles import DT, ENV_IDS, HORIZON, NUM_ACTIONS, WITH_PREY
from envs.shipped import POLICY_DIR, greedy, load_policies, policy_file, rollout
from utils.errors import InputError, check_choice
from utils.files import atomic, interrupts_at_the_end, reading

QUALITIES = omar.QUALITIES
HDF5_SUFFIXES = (".h5", ".hdf5")
PREY_LEVELS = 3  # how many folders above the data the prey's file is looked for
HORIZONS = dict.fromkeys((*ENV_IDS, two_doors.ENV_ID), HORIZON) | {half_cheetah.ENV_ID: half_cheetah.HORIZON}
PACKAGES = ("torch", "numpy", "h5py", "mujoco")  # whose versions every file notes
SCRIPT_OF_KIND = {"discrete": "spacql.py", "continuous": "spacql_continuous.py"}
SAME_PLACE = 1e-4  # how far an agent may be from where its velocity takes it; ours are within 1e-6
CHUNK_STEPS = 50_000  # transitions simulated at once, by one policy
TEXTS = ("env_id", "quality", "action_kind")  # attributes that a file must have
SCORES = ("random_score", "expert_score")  # these too
MEASURED = ("dependence", "dependence_error", "predictability")  # attributes that a file may lack
NOTED = ("seed", "dataset", "behaviour", "prey", "versions")  # those that only simulated files have
LARGEST = 1e6  # observation or reward that is taken for one of a world
# In nats, above which a warning is due. By Pinsker's inequality up to 0.02 the distribution of actions is on
# average within a total variation of 0.1 of one where an agent acts independently.
STRONG_DEPENDENCE = 0.02


@dataclass(frozen=True)
class Dataset:
    """Episodes in memory (shapes as above, discrete actions as int64) and the file's attributes."""

    observations: torch.Tensor
    actions: torch.Tensor
    rewards: torch.Tensor
    facts: dict
    states: torch.Tensor | None = None

    @property
    def mean_return(self) -> float:
        """Mean undiscounted episode return, mean over agents."""
        return float(self.rewards.double().mean(-1).sum(-1).mean())


def normalise(score, facts: dict):
    """100 * (score - random) / (expert - random), by the scores of the dataset's own environment."""
    return 100 * (score - facts["random_score"]) / (facts["expert_score"] - facts["random_score"])


def describe(dataset: Dataset) -> str:
    """What a script says of its data: a line, and a warning where the paper's bounds suffer."""
    facts = dataset.facts
    said = f"data {facts['hash']}, mean score {facts['data_score']:.1f}, dependence of the agents' actions "
    if math.isinf(facts["dependence_error"]):
        return said + "not known (too few episodes)"
    said += f"{facts['dependence']:.3f} ± {facts['dependence_error']:.3f} nats"
    if facts["dependence"] > STRONG_DEPENDENCE:
        said += "\nwarning: the agents' actions depend on one another, given the state: the paper's bounds"
        said += " for partial replacement gain a term in that"
    return said


def load_dataset(
    env_id: str,
    dataset: str,
    size: int | None = None,
    seed: int = 0,
    folder: str | Path = "datasets",
    action_kind: str = "discrete",
    prey: str | None = None,
    policies: str | None = None,
) -> Dataset:
    """The dataset of a task. Its facts are the file's attributes, and data_score, the normalised mean return.

    dataset: one of QUALITIES or a mix of teams (simulated into `folder` once: `size` transitions, by default
    as many as the paper's have, or 1,000,000, from `seed`), the path of an .h5 file, or, of continuous
    actions, of an OMAR folder or a vault. prey: the file of another prey than the shipped one; policies: the
    folder of other behaviour policies. Raises InputError, in one line, for whatever is wrong with any.
    """
    check_choice("env-id", env_id, ENV_IDS_OF_KIND[action_kind])
    if prey and env_id not in WITH_PREY:
        raise InputError(f"--prey is for {' and '.join(WITH_PREY)}")
    if prey and policies:
        raise InputError("--policies have a prey of their own: give them or --prey, not both")
    if prey and not Path(prey).is_file():
        raise InputError(f"--prey: no file {prey}")
    prey_network(env_id, action_kind, prey, policies)  # raises before anything is simulated
    name, path = simulated_name(env_id, dataset), Path(dataset)
    if name is not None:
        if size is None:
            card = omar.PUBLISHED_CARDS.get(env_id, {}).get(dataset)
            size = card.transitions if card else 1_000_000
        path = simulated_file(env_id, dataset, name, size, seed, Path(folder), action_kind, prey, policies)
        try:
            found = read_dataset(path, env_id, action_kind)
        except InputError as error:
            raise InputError(f"{error}; if it is damaged, delete it to simulate it anew") from None
    elif path.is_dir() or vaults.is_vault(path):
        if action_kind == "discrete":
            raise InputError(f"{path} is a folder or vault: use {SCRIPT_OF_KIND['continuous']}")
        read_folder = vaults.read_vault if vaults.is_vault(path) else omar.read_folder
        arrays, facts = read_folder(path, env_id)
        found = Dataset(**{k: torch.from_numpy(v) for k, v in arrays.items()}, facts=facts)
    elif path.suffix in HDF5_SUFFIXES or path.exists() or os.sep in dataset:
        found = read_dataset(path, env_id, action_kind)
    else:
        check_choice("dataset", dataset, QUALITIES)  # raises: it is none of them
    check_physics(dataset, found, env_id)
    check_prey(dataset, found.facts, prey, policies)
    facts = found.facts | dict(hash=fingerprint([found.observations, found.actions, found.rewards]))
    if not set(MEASURED) <= set(facts):
        facts = facts | measure_dependence(found)
    return replace(found, facts=facts | dict(data_score=normalise(found.mean_return, facts)))


def fingerprint(tensors) -> str:
    """Eight digits by which two people can tell whether they have the same numbers."""
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(np.ascontiguousarray(tensor.numpy()))
    return digest.hexdigest()[:8]


def check_physics(name: str, dataset: Dataset, env_id: str) -> None:
    """Raise InputError unless agents move as in these particle worlds: by dt times their *new* velocity.

    In PettingZoo's own worlds, which have the same names and shapes, they move by the old one.
    """
    if env_id not in ENV_IDS:
        return
    now, after = dataset.observations[:, :-2], dataset.observations[:, 1:-1]  # vaults lack the last ones
    velocity, place = after[..., :2], after[..., 2:4]
    apart = (place - now[..., 2:4] - DT * velocity).abs() / place.abs().clamp(min=1)  # [E, T, N, 2]
    if apart.max() > SAME_PLACE:
        episode, step, agent, _ = np.unravel_index(int(apart.argmax()), apart.shape)
        where = f"episode {episode}, step {step}, agent {agent}"
        raise InputError(
            f"{name} is not data of {env_id} as the paper has it: positions there move by the new velocity,"
            f" not so in {where}. PettingZoo's own world of that name has other physics and rewards"
        )


def simulated_name(env_id: str, dataset: str) -> str | None:
    """The name of a quality or mix that the task has, the same for all spellings of a mix; None for a path.

    Raises InputError for those that it does not have.
    """
    if mix := parse_mix(dataset, env_id):
        return mix.name
    if env_id == two_doors.ENV_ID and dataset in QUALITIES[1:]:
        raise InputError(f"{env_id} has no {dataset} data: choose random or mix:share=0.5,noise=0.1")
    return dataset if dataset in QUALITIES else None


def prey_network(env_id: str, action_kind: str, prey: str | None, policies: str | None):
    """The prey's layers, from the file `prey`, the folder `policies`, or as shipped; None for no prey."""
    if env_id not in WITH_PREY:
        return None
    if prey:
        return omar.load_prey(Path(prey), env_id)
    return load_policies(env_id, folder=Path(policies or POLICY_DIR), action_kind=action_kind).prey


def check_prey(name: str, facts: dict, prey: str | None, policies: str | None) -> None:
    """Raise InputError where a file says that it was logged against another prey than is to be played."""
    if facts["env_id"] in WITH_PREY and "prey" in facts:
        played = fingerprint(prey_network(facts["env_id"], facts["action_kind"], prey, policies))
        if played != facts["prey"]:
            hints = dict(discrete=", the shipped one", continuous=": name it with --prey or --policies")
            known = f"prey {facts['prey']}, not {played}{hints[facts['action_kind']]}"
            raise InputError(f"{name} was logged against {known}")


def find_prey(args, device="cpu"):
    """The prey of continuous actions that data were logged with, for `make_env`: from the file args.prey, the
    folder args.policies, or, of an args.dataset that is a folder, from the nearest PREY_FILE in it or up to
    PREY_LEVELS above. None, which means the shipped one, for other data, and where args.env_id has no prey.
    Raises InputError where there is none."""
    env_id, prey, folder, file = args.env_id, args.prey, Path(os.path.abspath(args.dataset)), omar.PREY_FILE
    if env_id not in WITH_PREY:
        return None
    if not (prey or args.policies):
        if args.dataset in QUALITIES or folder.suffix in HDF5_SUFFIXES or folder.is_file():
            return None
        if not folder.is_dir():  # of a finished run: another prey would be no answer
            raise InputError(f"no dataset {args.dataset}, and so no prey")
        places = [place / file for place in (folder, *folder.parents[:PREY_LEVELS])]
        prey = next(filter(Path.is_file, places), None)
        if prey is None:
            where = f"in {folder} or up to {PREY_LEVELS} folders above it (of OMAR's download, in {env_id}/)"
            raise InputError(f"no {file}, the prey of {env_id}, {where}; name it with --prey PATH")
    layers = prey_network(env_id, "continuous", prey, args.policies)
    return greedy([p.to(device) for p in layers], "continuous")


# ------------------------------------------------------------------------------------------- simulation


def simulated_file(
    env_id, dataset, name, size, seed, folder: Path, action_kind, prey=None, policies=None
) -> Path:
    """The file of a simulated dataset, which is made where it is missing. Other policies, another prey, or
    other code that simulates, have another file."""
    if size < HORIZONS[env_id]:
        raise InputError(f"dataset size {size} is less than one episode of {HORIZONS[env_id]} transitions")
    if seed < 0:
        raise InputError(f"dataset seed {seed} is negative")
    if prey and dataset != "random":
        train = f"python -m data.behaviour --env-id {env_id} --action-kind continuous --prey {prey}"
        known = f"the shipped policies of {dataset} data know another prey"
        raise InputError(f"{known}: {train} --out FOLDER, then --policies FOLDER")
    sources = [*sorted(Path(envs.__file__).parent.glob("*.py")), Path(mixes.__file__), Path(__file__)]
    if env_id != two_doors.ENV_ID:
        sources.append(policy_file(env_id, Path(policies or POLICY_DIR), action_kind))
        sources += [Path(prey)] if prey else []
    physics = version("mujoco") if env_id == half_cheetah.ENV_ID else ""
    code = b"".join(source.read_bytes() for source in sources) + physics.encode()
    digest = hashlib.sha256(code).hexdigest()[:8]
    path = folder / f"{env_id}-{action_kind}-{name}-{size}-seed{seed}-{digest}.h5"
    if not path.exists():
        with atomic(path) as partial:  # around all of it: first it is seen whether the folder can be made
            write_dataset(partial, simulate(env_id, dataset, size, seed, action_kind, prey, policies))
    return path


def plan(dataset: str, episodes: int, weights: dict, chunk: int) -> list[tuple[int | None, int]]:
    """Who plays how many episodes, at most `chunk` at once: [(iterate, None for random and mix; episodes)].

    weights: {quality: how often each iterate plays}; medium-replay is in the order of training.
    """
    shares = [(-1 if dataset == "expert" else None, episodes)]
    if dataset in weights:
        ends = np.cumsum(weights[dataset])
        ends = (episodes * ends / ends[-1]).round().astype(int)
        shares = list(enumerate(np.diff(ends, prepend=0).tolist()))
    return [(player, min(chunk, count - i)) for player, count in shares for i in range(0, count, chunk)]


def simulate(
    env_id: str, dataset: str, size: int, seed: int, action_kind: str, prey=None, policies=None
) -> Dataset:
    """`size` transitions (whole episodes) of a quality or mix, the same for the same seed."""
    horizon, players, hunted, prey_hash = HORIZONS[env_id], None, None, "none"
    episodes, known, scores = size // horizon, {}, (two_doors.random_score(), two_doors.optimal_score())
    if env_id != two_doors.ENV_ID:
        players = load_policies(env_id, folder=Path(policies or POLICY_DIR), action_kind=action_kind)
        layers = prey_network(env_id, action_kind, prey, policies)
        hunted = layers and greedy(layers, action_kind)
        prey_hash = fingerprint(layers) if layers else "none"
        scores = players.facts["random_score"], players.facts["expert_score"]
        known = {} if prey else players.facts  # of those who play
    mix = parse_mix(dataset, env_id)
    facts = dict(env_id=env_id, quality="mix" if mix else dataset, action_kind=action_kind)
    facts |= dict(random_score=scores[0], expert_score=scores[1], seed=seed, prey=prey_hash)
    facts |= dict(dataset=simulated_name(env_id, dataset), behaviour=json.dumps(known))
    facts |= dict(versions=json.dumps({package: version(package) for package in PACKAGES}))
    arrays, start = {}, 0
    chunks = plan(dataset, episodes, known.get("weights", {}), CHUNK_STEPS // horizon)
    title = f"simulating {env_id} {facts['dataset']}"
    with tqdm(total=episodes, desc=title, unit="episode", file=sys.stderr) as bar:
        for chunk, (player, count) in enumerate(chunks):
            chunk_seed = int(np.random.SeedSequence([seed, chunk]).generate_state(1)[0])
            env = make_env(env_id, count, seed=chunk_seed, action_kind=action_kind, prey=hunted)
            actor = mix if player is None else players.iterates[player]
            for key, part in rollout(env, actor, torch.Generator().manual_seed(chunk_seed + 1)).items():
                whole = arrays.setdefault(key, part.new_empty((episodes, *part.shape[1:])))
                whole[start : start + count] = part
            start += count
            bar.update(count)
    found = Dataset(**arrays, facts=facts)
    return replace(found, facts=facts | measure_dependence(found))


# ------------------------------------------------------------------------------------------------ files


def write_dataset(path: Path, dataset: Dataset) -> None:
    """Write a dataset as an .h5 file of our format."""
    ends = np.zeros(dataset.rewards.shape[:2], bool)
    ends[:, -1] = True
    arrays = dict(observations=dataset.observations, rewards=dataset.rewards)
    arrays |= {} if dataset.states is None else dict(states=dataset.states)
    narrow = np.float32 if dataset.actions.is_floating_point() else np.int8  # a byte holds a discrete action
    arrays |= dict(actions=dataset.actions.numpy().astype(narrow))
    arrays |= dict(terminals=np.zeros_like(ends), timeouts=ends)
    try:
        with interrupts_at_the_end(), h5py.File(path, "w") as file:
            file.update(arrays)
            file.attrs.update(dataset.facts)
    except (OSError, RuntimeError) as error:  # HDF5 raises either where a disk is full
        number = re.search(r"errno = (\d+)", str(error))
        raise OSError(int(number[1]), os.strerror(int(number[1]))) if number else error from None


def read_dataset(path: Path, env_id: str, action_kind: str) -> Dataset:
    """Read and check an .h5 file of our format. Raises InputError saying which array and row is wrong."""
    if not path.is_file():
        raise InputError(
            f"{path} is a folder, not an .h5 file" if path.is_dir() else f"no dataset file {path}"
        )
    names = ["observations", "actions", "rewards", "terminals"] + ["states"] * omar.has_states(env_id)
    with reading(path, "HDF5"), interrupts_at_the_end(), h5py.File(path, "r") as file:
        missing = [k for k in names if getattr(file.get(k), "shape", None) is None]
        facts = read_facts(file)
        missing += [f"attribute {k}" for k in TEXTS + SCORES if k not in facts]
        if missing:
            raise InputError(f"{path} is not a dataset of this project: it lacks {', '.join(missing)}")
        check_facts(path, facts, env_id, action_kind)
        names += ["timeouts"] * ("timeouts" in file)
        check_shapes(path, {k: file[k] for k in names}, env_id, action_kind)
        arrays = {k: np.asarray(file[k]) for k in names}
    check_values(path, arrays, action_kind)
    if action_kind == "continuous":
        arrays["actions"] = arrays["actions"].clip(-1, 1)
    kinds = dict(actions=np.int64) if action_kind == "discrete" else {}
    names = arrays.keys() - {"terminals", "timeouts"}
    tensors = {k: torch.from_numpy(arrays[k].astype(kinds.get(k, np.float32), copy=False)) for k in names}
    return Dataset(**tensors, facts=facts)


def read_facts(file: h5py.File) -> dict:
    """The known attributes that are single values; HDF5 need not read any other."""
    facts = {}
    for name in TEXTS + SCORES + MEASURED + NOTED:
        if name in file.attrs and file.attrs.get_id(name).shape == ():
            value = file.attrs[name]
            facts[name] = value.item() if isinstance(value, np.generic) else value
    return facts


def check_facts(path: Path, facts: dict, env_id: str, action_kind: str) -> None:
    """Raise InputError unless the attributes are of the right kind, and of the task and kind of actions."""
    number = {k: isinstance(v, (int, float)) for k, v in facts.items()}
    wrong = [(k, "a string") for k in TEXTS if not isinstance(facts[k], str)]
    wrong += [(k, "a finite number") for k in SCORES if not number[k] or not math.isfinite(facts[k])]
    measured = [k for k in MEASURED if k in facts]
    wrong += [(k, "a number that is not negative") for k in measured if not number[k] or not facts[k] >= 0]
    for k, what in wrong:
        raise InputError(f"{path}: the attribute {k} must be {what}")
    if facts["random_score"] >= facts["expert_score"]:
        both = f"random_score {facts['random_score']} is not below expert_score {facts['expert_score']}"
        raise InputError(f"{path}: {both}, so that no score can be normalised")
    kind = facts["action_kind"]
    if kind != action_kind:
        hint = f"; use {SCRIPT_OF_KIND[kind]}" if kind in SCRIPT_OF_KIND else ""
        raise InputError(f"{path} holds {kind} actions, not {action_kind} ones{hint}")
    if facts["env_id"] != env_id:
        raise InputError(f"{path} is data of {facts['env_id']}, not of {env_id}")


def check_shapes(path: Path, arrays: dict, env_id: str, action_kind: str) -> None:
    """Raise InputError unless types and shapes agree with one another and with the task.

    arrays: anything with dtype and shape, such as the datasets of an open file.
    """
    shape = arrays["observations"].shape
    if len(shape) != 4 or 0 in shape or shape[1] < 3:
        raise InputError(f"{path}: observations must be [episodes, steps + 1, agents, numbers], got {shape}")
    episodes, horizon, num, obs_dim = shape[0], shape[1] - 1, *shape[2:]
    try:
        env = make_env(env_id, 1, num, action_kind=action_kind)
    except InputError as error:  # the task cannot have this many agents
        raise InputError(f"{path}: {error}") from None
    if obs_dim != env.obs_dim:
        own = f"{env_id} with {num} agents has {env.obs_dim} observation numbers"
        raise InputError(f"{path}: {own}, not {obs_dim}")
    forces, steps = action_kind == "continuous", (episodes, horizon)
    expected = dict(  # the kinds of dtype, their name, the shape
        observations=("f", "floats", shape),
        actions=("f", "floats", (*steps, num, env.action_dim))
        if forces
        else ("iu", "integers", (*steps, num)),
        rewards=("fiu", "numbers", (*steps, num)),
        terminals=("biu", "booleans", steps),
        timeouts=("biu", "booleans", steps),
        states=("f", "floats", (episodes, horizon + 1, getattr(env, "state_dim", 0))),
    )
    for name, array in arrays.items():
        kinds, words, shape = expected[name]
        if array.dtype.kind not in kinds:
            raise InputError(f"{path}: {name} must be {words}, not {array.dtype}")
        if array.shape != shape:
            raise InputError(f"{path}: {name} must have shape {shape}, got {array.shape}")


def check_values(path: Path, arrays: dict[str, np.ndarray], action_kind: str) -> None:
    """Raise InputError, with the place, unless every value is possible."""
    actions, wrong = arrays["actions"], []
    with np.errstate(over="ignore"):  # a double may be finite and too large for a float32
        for name, array in arrays.items():
            if array.dtype.kind == "f":
                wrong.append((name, ~np.isfinite(array.astype(np.float32, copy=False)), "is not finite"))
                wrong.append((name, np.abs(array) > LARGEST, "is larger than anything in such a world"))
    if action_kind == "continuous":
        wrong.append(("actions", np.abs(actions) > 1 + omar.ACTION_TOLERANCE, "is not in [-1, 1]"))
    else:
        wrong.append(("actions", (actions < 0) | (actions >= NUM_ACTIONS), f"is not in 0..{NUM_ACTIONS - 1}"))
    early = "is True inside an episode: {}, and targets would bootstrap through it".format
    whys = dict(terminals="these worlds have no terminal states", timeouts="it was cut there, or glued")
    for name, why in whys.items():
        if name in arrays:  # at the last step either is the time limit
            wrong.append((name, arrays[name][:, :-1].astype(bool), early(why)))
    for name, mask, what in wrong:
        if mask.any():
            place = ", ".join(map(str, np.argwhere(mask)[0].tolist()))
            raise InputError(f"{path}: {name}[{place}] {what}")
