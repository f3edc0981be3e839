"""Our datasets as folders in OMAR's format (data/omar.py), for the code of OMAR, CFCQL and their descendants.

    python -m data.export --env-id simple_spread --dataset medium --out exported

Array letters: H hidden units.
"""

import io
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from data.datasets import load_dataset
from data.omar import BATCH_NORM_EPS, FOLDER_NAMES, PREY_DIM, PREY_FILE, omar_network
from envs.shipped import load_policies
from utils.errors import InputError
from utils.files import atomic, parse, run_script, say


def write_prey(path: Path, prey: list[torch.Tensor]) -> None:
    """Write a prey, a ReLU-ReLU-tanh network [1, in, H], [1, 1, H], ..., [1, 1, 2], as OMAR's file.

    prey: its first six tensors are used (a continuous actor's standard deviation may follow).

    What OMAR's loader asks for is there: the prey's policy and, because it loads them too, a target policy
    and critics; the critics are zero. The predators' entries, which that loader and CFCQL's skip, are None
    rather than networks to be mistaken for trained ones.
    """
    dim, hidden = prey[0].shape[1:]
    sizes = [(dim + 2, hidden), (1, hidden), (hidden, hidden), (1, hidden), (hidden, 1), (1, 1)]
    policy, critic = state_dict(prey), state_dict([torch.zeros(1, *size) for size in sizes])
    entry = dict(policy=policy, target_policy=policy, critic=critic, target_critic=critic)
    dims = dict(num_in_pol=dim, num_out_pol=2, num_in_critic=dim + 2)
    init_dict = dict(discrete_action=False, hidden_dim=hidden, agent_init_params=[None, None, None, dims])
    file = io.BytesIO()  # not the path: torch stores a file's name inside it, and ours is temporary
    torch.save(dict(init_dict=init_dict, agent_params=[None, None, None, entry]), file)
    with atomic(path) as partial:
        partial.write_bytes(file.getvalue())


def state_dict(layers: list[torch.Tensor]) -> dict[str, torch.Tensor]:
    """The parameters of one of OMAR's networks from weights [1, in, out] and biases [1, 1, out] of three
    layers. Its batch normalisation does nothing: the stored variance plus eps is exactly 1."""
    network = omar_network(*layers[0].shape[1:], layers[4].shape[2])
    state = network.state_dict()
    state["in_fn.running_var"].fill_(1 - BATCH_NORM_EPS)
    for j in range(3):
        state[f"fc{j + 1}.weight"].copy_(layers[2 * j][0].T)
        state[f"fc{j + 1}.bias"].copy_(layers[2 * j + 1][0, 0])
    return state


def write_folder(folder: Path, dataset, prey: list[torch.Tensor] | None = None) -> None:
    """Write a Dataset of continuous actions as an OMAR folder, which appears only when complete, and beside
    the arrays the network that played the prey (`write_prey`).

    The format has no place for scores: `read_folder` normalises what is written here with the published ones,
    which belong to OMAR's prey, not to another. Raises InputError where `folder` holds something already or
    cannot be written, and for discrete actions.
    """
    folder = Path(folder)
    if not dataset.actions.is_floating_point():
        raise InputError("OMAR's format holds continuous actions only")
    if folder.is_file() or (folder.is_dir() and any(folder.iterdir())):
        raise InputError(f"{folder} exists already; nothing was written")
    with atomic(folder) as partial:
        partial.mkdir()
        for i in range(dataset.actions.shape[2]):
            per_agent = dict(
                obs=dataset.observations[:, :-1, i],
                acs=dataset.actions[:, :, i],
                rews=dataset.rewards[:, :, i],
                next_obs=dataset.observations[:, 1:, i],
                # Zero, because the tasks end by time limits, through which values bootstrap. Floats, because
                # learners compute 1 - dones, which torch refuses for booleans.
                dones=torch.zeros_like(dataset.rewards[:, :, i]),
            )
            if dataset.states is not None:
                per_agent |= dict(states=dataset.states[:, :-1], next_states=dataset.states[:, 1:])
            for name, values in per_agent.items():
                np.save(partial / f"{name}_{i}.npy", values.flatten(0, 1).float().cpu().numpy())
        if prey is not None:
            write_prey(partial / PREY_FILE, prey)


@dataclass(frozen=True)
class Args:
    """What is written, and where."""

    # the task
    env_id: Literal["simple_spread", "simple_tag", "simple_world", "HalfCheetah-2x3"] = "simple_spread"
    dataset: str = "random"  # random, medium-replay, medium or expert (simulated if need be), or an .h5 file
    out: Path = Path("exported")  # the folder <env>/<quality>/seed_<data seed>_data is made in here
    dataset_size: int | None = None  # transitions, when simulated; default the paper's
    data_seed: int = 0  # seed of the simulation
    data_dir: Path = Path("datasets")  # where simulated datasets are kept


def main(argv=None) -> None:
    args = parse(Args, argv, description=__doc__)
    size_and_seed = args.dataset_size, args.data_seed
    dataset = load_dataset(args.env_id, args.dataset, *size_and_seed, args.data_dir, "continuous")
    if "source" in dataset.facts:
        raise InputError(f"{args.dataset} is in OMAR's format already, or a vault")
    quality, seed = dataset.facts["quality"], dataset.facts.get("seed", args.data_seed)
    if not re.fullmatch(r"[\w-]+", quality) or not isinstance(seed, int):  # they become names of folders
        raise InputError(f"{args.dataset}: quality {quality!r} and seed {seed!r} cannot name a folder")
    prey = load_policies(args.env_id, action_kind="continuous").prey if args.env_id in PREY_DIM else None
    task = args.out / FOLDER_NAMES.get(args.env_id, args.env_id)
    folder = task / quality / f"seed_{seed}_data"
    write_folder(folder, dataset, prey)
    if prey is not None and (task / PREY_FILE).exists():
        say(f"{task / PREY_FILE} exists already and was kept; the prey of these data is in {folder}")
    elif prey is not None:  # here OMAR's own code looks for it
        write_prey(task / PREY_FILE, prey)
    print(f"{folder}: {len(dataset.rewards)} episodes of {dataset.rewards.shape[1]} steps")


if __name__ == "__main__":
    run_script("data.export", main)
