"""Run folders, checkpoints and plots: what a training script needs around the method, and nothing of the method."""

import json
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from PIL import Image
from torch.utils.tensorboard import SummaryWriter

from data.behaviour import greedy, load_policies
from data.errors import InputError
from data.files import atomic


def pick_device(name: str) -> torch.device:
    """The device of that name; auto is a GPU if there is one. Raises InputError where it cannot be used."""
    try:
        device = torch.device(("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"--device {name} cannot be used: {str(error).splitlines()[0]}") from None
    return device


def numbered(out: str, name: str) -> list[Path]:
    """The folders out/name, out/name-2, out/name-3, ... that exist, and the first free one at the end."""
    folders = [Path(out) / name]
    while folders[-1].exists():
        folders.append(Path(out) / f"{name}-{len(folders) + 1}")
    return folders


def new_run(out: str, name: str) -> Path:
    """The folder for a new run, numbered where the name is taken; start_log makes it."""
    return numbered(out, name)[-1]


def newest_run(out: str, name: str) -> Path:
    """The highest-numbered run folder of that name that holds a checkpoint."""
    found = [folder for folder in numbered(out, name) if (folder / "checkpoint.pt").is_file()]
    if not found:
        raise InputError(f"no run with a checkpoint in {Path(out) / name}")
    return found[-1]


def save_checkpoint(path: Path, contents: dict) -> None:
    """Write tensors, numbers, strings, lists and dicts so that load_checkpoint reads them back."""
    with atomic(path) as partial:
        torch.save(contents, partial)


def load_checkpoint(path: str | Path, args_class) -> tuple:
    """Read a checkpoint file (or checkpoint.pt in a folder) without executing anything in it.

    Returns (its folder, contents, its arguments as an args_class). Raises InputError for missing, damaged or foreign
    files.
    """
    path = Path(path)
    path = path / "checkpoint.pt" if path.is_dir() else path
    if not path.is_file():
        raise InputError(f"no checkpoint {path}")
    try:
        saved = torch.load(path, map_location="cpu", weights_only=True)
        return path.parent, saved, args_class(**json.loads(saved["args"]))
    except Exception as error:  # torch raises many kinds for damaged or foreign files; all mean the same to the user
        reason = f"{type(error).__name__}: {str(error).splitlines()[0][:120] if str(error) else 'no reason given'}"
        raise InputError(f"cannot load checkpoint {path} (damaged or foreign): {reason}") from None


def restore(networks: dict, saved: dict) -> None:
    """Copy saved parameters into {name: list of tensors} in place. Raises InputError where shapes differ."""
    for name, params in networks.items():
        shapes, saved_shapes = ([tuple(p.shape) for p in group] for group in (params, saved.get(name, [])))
        if shapes != saved_shapes:
            raise InputError(f"the checkpoint's {name} has shapes {saved_shapes}, these settings need {shapes}")
        for param, value in zip(params, saved[name], strict=True):
            param.data.copy_(value)


def start_log(folder: Path, args: dict, first_round: int, track: bool) -> SummaryWriter:
    """Write the arguments and open TensorBoard's log; on resume, what is newer than the checkpoint is dropped."""
    if track:
        try:
            import wandb
        except ImportError:
            raise InputError("--track needs the wandb package: pip install wandb") from None
        wandb.init(project="spacql", name=folder.name, config=args, sync_tensorboard=True)
    with atomic(folder / "args.json") as partial:
        partial.write_text(json.dumps(args, indent=2))
    return SummaryWriter(folder, purge_step=first_round)


def log_report(writer: SummaryWriter, history: dict, round_number: int, report: dict) -> None:
    """Add a report {name: [S] or [S, K]} to the history, and its means over seeds to TensorBoard."""
    history.setdefault("round", []).append(round_number)
    for name, values in report.items():
        history.setdefault(name, []).append(values.tolist())
        mean = values.mean(0)
        for k, value in enumerate(mean.flatten().tolist(), start=1):
            writer.add_scalar(f"{name}/{k}" if mean.ndim else f"train/{name}", value, round_number)
    writer.flush()


def save_results(folder: Path, args: dict, summary: dict, returns: np.ndarray, history: dict) -> None:
    """Write returns.npz (final returns [S, episodes], arguments, summary, history) and the plot progress.png."""
    texts = {k: np.array(json.dumps(v)) for k, v in dict(args=args, summary=summary).items()}
    curves = {f"history_{k}": np.asarray(v) for k, v in history.items()}
    with atomic(folder / "returns.npz") as partial:
        np.savez_compressed(partial, returns=returns, **texts, **curves)
    plot_history(folder / "progress.png", history, folder.name)


def plot_history(path: Path, history: dict, title: str) -> None:
    """Picture of score, weights w_k and k_eff over training; faint lines are single seeds."""
    fig = Figure(figsize=(12, 3.4), layout="constrained")  # no pyplot: nothing global, no display wanted
    axes = fig.subplots(1, 3)
    rounds, weights = history["round"], np.asarray(history["weights"]).mean(1)  # [points], [points, K]
    for ax, key, label in ((axes[0], "scores", "normalised score"), (axes[2], "k_eff", "$k_{eff}$")):
        values = np.asarray(history[key])  # [points, S]
        ax.plot(rounds, values, lw=0.7, alpha=0.4, color="C0")
        ax.plot(rounds, values.mean(1), lw=2, color="C0")
        ax.set(xlabel="round", title=label)
    axes[1].plot(rounds, weights, lw=2, label=[f"k = {k + 1}" for k in range(weights.shape[1])])
    axes[1].set(xlabel="round", title="weights $w_k$")
    axes[1].legend()
    fig.suptitle(title)
    with atomic(path) as partial:
        fig.savefig(partial, dpi=120)


def record_gif(path: Path, policy, env_id: str, num_agents: int, seed: int, episodes: int = 4) -> None:
    """Film episodes of a team in the `mpe2` worlds. policy: observations [N, O] -> actions [N]."""
    from data.parallel_envs import parallel_env  # here, since it loads a drawing library that training does not need

    env = parallel_env(env_id, num_agents=num_agents, render_mode="rgb_array")
    names, frames = env.possible_agents, []
    prey = greedy(load_policies(env_id).prey) if len(names) > num_agents else None
    for episode in range(episodes):
        obs, _ = env.reset(seed=seed + episode)
        frames.append(env.render())
        while env.agents:
            actions = policy(torch.from_numpy(np.stack([obs[name] for name in names[:num_agents]]))).tolist()
            if prey:
                actions += prey(torch.from_numpy(obs[names[-1]])[None]).tolist()
            obs, *_ = env.step(dict(zip(names, actions, strict=True)))
            frames.append(env.render())
    pictures = [Image.fromarray(frame) for frame in frames]
    with atomic(path) as partial:
        pictures[0].save(partial, save_all=True, append_images=pictures[1:], duration=100, loop=0)
