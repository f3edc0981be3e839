"""Run folders, checkpoints and plots: what a training script needs around the method, and nothing of the method."""

import json
import math
import os
import warnings
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from PIL import Image
from torch.utils.tensorboard import SummaryWriter

from data.datasets import simulated_name
from envs.particles import ENV_IDS
from utils.errors import InputError, check_choice
from utils.files import atomic, parse, say

NETWORKS = ("critic", "actor", "target_critic", "target_actor", "best")
CHECKPOINT_KEYS = ("args", "round", "generators", "scale", "facts", "history", *NETWORKS)
SEEDS = ("seed", "data_seed", "eval_seed")
POSITIVE = ("learning_rate", "actor_learning_rate", "init_gain", "gamma", "tau", "max_grad_norm")
NOT_NEGATIVE = (
    "cql_alpha",
    "clone_weight",
    "clone_power",
    "weight_temperature",
    "entropy_coef",
    "action_l2",
    "output_l2",
)
SHARES = ("gamma", "tau")


def pick_device(name: str) -> torch.device:
    """The device of that name; auto is a GPU if there is one. Raises InputError where it cannot be used."""
    try:
        device = torch.device(("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name)
        torch.zeros(1, device=device).item()  # the device named meta makes tensors but cannot read them
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"--device {name} cannot be used: {str(error).splitlines()[0]}") from None
    return device


def numbered(out: str, name: str) -> list[Path]:
    """The folders out/name, out/name-2, out/name-3, ... that exist, and the first free one at the end."""
    folders = [Path(out) / name]
    while folders[-1].exists():
        folders.append(Path(out) / f"{name}-{len(folders) + 1}")
    return folders


def newest_run(out: str, name: str) -> Path:
    """The highest-numbered run folder of that name that holds a checkpoint."""
    found = [folder for folder in numbered(out, name) if (folder / "checkpoint.pt").is_file()]
    if not found:
        raise InputError(f"no run with a checkpoint in {Path(out) / name}")
    return found[-1]


def check_numbers(args: dict) -> None:
    """Raise InputError for numbers that cannot be meant: counts below 1, rates outside their range, no numbers."""
    for name, value in args.items():
        flag, real = f"--{name.replace('_', '-')}", type(value) in (int, float)
        if real and not math.isfinite(value):
            raise InputError(f"{flag} must be a finite number, not {value}")
        if type(value) is int and (value < 0 if name in SEEDS else value < 1):
            raise InputError(f"{flag} must be at least {0 if name in SEEDS else 1}, not {value}")
        if type(value) is int and value >= 2**62:  # sums of two still fit into 64 bits
            raise InputError(f"{flag} {value} is too large")
        if real and (
            (name in POSITIVE and value <= 0) or (name in NOT_NEGATIVE and value < 0) or (name in SHARES and value > 1)
        ):
            raise InputError(f"{flag} {value} is out of range")


def check_args(args, choices: dict[str, tuple]) -> None:
    """Raise InputError, in one line, for values that cannot be meant: choices {field: its values}, and numbers."""
    for name, values in choices.items():
        if getattr(args, name) is not None:
            check_choice(name.replace("_", "-"), getattr(args, name), values)
    check_numbers(vars(args))
    if args.video and args.env_id not in ENV_IDS:
        raise InputError(f"--video films {', '.join(ENV_IDS)} only")
    if args.track:
        try:
            import wandb  # noqa: F401  (only asks whether it is there)
        except ImportError:
            raise InputError("--track needs the wandb package: pip install wandb") from None


def default_name(args) -> str:
    """The name of a run's folder: task, dataset, method and seeds."""
    source, data = Path(args.dataset), simulated_name(args.env_id, args.dataset)
    if data is None:
        data = "-".join(source.absolute().parts[-2:]) if source.is_dir() else source.stem  # medium-seed_0_data
    method = f"{args.backup}-{args.penalty}-{args.num_critics}critics"
    if getattr(args, "actor_loss", "spacql") != "spacql":
        method += f"-{args.actor_loss}"
    return f"{args.env_id}__{data}__{method}__seed{args.seed}x{args.num_seeds}"


def open_run(args_class, argv, description: str, choices: dict[str, tuple]) -> tuple:
    """Read the command line; returns the arguments, the run's folder, and the checkpoint (None for a new run).

    With resume or eval_only the arguments are the checkpoint's own, except where flags say otherwise.
    """
    args = parse(args_class, argv, description=description)
    check_args(args, choices)
    if args.resume or args.eval_only:
        path = args.checkpoint or newest_run(args.out, args.name or default_name(args))
        folder, saved, settings = load_checkpoint(path, args_class)
        args = parse(args_class, argv, default=settings)
        check_args(args, choices)
        named = simulated_name(settings.env_id, args.dataset)  # a file may have moved, a mix has many spellings
        same_data = named is None or named == simulated_name(settings.env_id, settings.dataset)
        for key in ("env_id", "paper_size") + (() if same_data else ("dataset",)):
            if getattr(args, key) != getattr(settings, key):  # other defaults would be meant than the run was made with
                raise InputError(f"the checkpoint has {key} {getattr(settings, key)}, not {getattr(args, key)}")
        if args.resume and args.rounds and args.rounds < saved["round"]:
            raise InputError(f"the checkpoint has done {saved['round']} rounds already, more than {args.rounds}")
        if args.eval_only and len(saved["actor"][0]) != args.num_seeds:
            raise InputError(f"the checkpoint holds {len(saved['actor'][0])} seeds, not {args.num_seeds}")
        return replace(args, checkpoint=None, resume=False), folder, saved  # what is saved are settings alone
    if args.checkpoint:
        raise InputError("--checkpoint needs --resume or --eval-only")
    folder = numbered(args.out, args.name or default_name(args))[-1]  # start_log makes it
    parent = next(parent for parent in folder.absolute().parents if parent.exists())
    if not (parent.is_dir() and os.access(parent, os.W_OK)):  # say so before any work is done
        raise InputError(f"cannot write {folder}: {parent} is not a folder that can be written to")
    return args, folder, None


def save_checkpoint(
    folder: Path, round_number: int, networks: dict, optimizers: dict, generators: list, rest: dict
) -> None:
    """Write folder/checkpoint.pt: all that continues a run bit by bit, and `rest`."""
    contents = {name: [p.detach() for p in params] for name, params in networks.items()}
    contents |= {f"{name}_optimizer": optimizer.state_dict() for name, optimizer in optimizers.items()}
    contents |= dict(round=round_number, generators=[g.get_state() for g in generators], **rest)
    with atomic(folder / "checkpoint.pt") as partial:
        try:
            torch.save(contents, partial)
        except RuntimeError as error:  # what torch makes of a full disk
            raise OSError(str(error)) from None


def check_contents(saved: dict) -> None:
    """Raise KeyError or TypeError unless a checkpoint holds what the scripts read from it."""
    if missing := [key for key in CHECKPOINT_KEYS if key not in saved]:
        raise KeyError(f"it lacks {', '.join(missing)}")
    for key in (*NETWORKS, "scale", "generators"):
        if not (isinstance(saved[key], list) and saved[key] and all(map(torch.is_tensor, saved[key]))):
            raise TypeError(f"its {key} is not a list of tensors")
    for key, names, kind in (
        ("facts", ("num_agents", "random_score", "expert_score"), (int, float)),
        ("history", ("round", "scores", "weights", "k_eff"), list),
    ):
        if not all(isinstance(saved[key].get(name), kind) and saved[key][name] != [] for name in names):
            raise TypeError(f"its {key} is incomplete")
    if type(saved["round"]) is not int:
        raise TypeError("its round is not a number")


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
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns of pickles that it goes on to refuse
            saved = torch.load(path, map_location="cpu", weights_only=True)
        check_contents(saved)
        settings = args_class(**json.loads(saved["args"]))
        for field in fields(settings):
            value = getattr(settings, field.name)
            if not isinstance(float(value) if field.type is float else value, field.type):
                raise TypeError(f"its argument {field.name} is {value!r}")
        return path.parent, saved, settings
    except Exception as error:  # torch raises many kinds for damaged or foreign files; all mean the same to the user
        reason = f"{type(error).__name__}: {str(error).splitlines()[0][:120] if str(error) else 'no reason given'}"
        raise InputError(f"cannot load checkpoint {path} (damaged or foreign): {reason}") from None


def restore(saved: dict, networks: dict, optimizers: dict, generators: list) -> tuple:
    """Copy a checkpoint's state into networks {name: list of tensors}, optimizers {name: optimizer} and generators.

    Returns the number of rounds done and their history. Raises InputError where shapes or numbers of seeds differ.
    """
    for name, params in networks.items():
        shapes, saved_shapes = ([tuple(p.shape) for p in group] for group in (params, saved[name]))
        if shapes != saved_shapes:
            raise InputError(f"the checkpoint's {name} has shapes {saved_shapes}, these settings need {shapes}")
        for param, value in zip(params, saved[name], strict=True):
            param.data.copy_(value)
    for name, optimizer in optimizers.items():
        rate = optimizer.param_groups[0]["lr"]
        optimizer.load_state_dict(saved[f"{name}_optimizer"])
        optimizer.param_groups[0]["lr"] = rate  # a flag given now wins over the checkpoint
    try:
        for generator, state in zip(generators, saved["generators"], strict=True):
            generator.set_state(state)
    except RuntimeError:  # each kind of device has its own random numbers
        device = generators[0].device
        raise InputError(f"the checkpoint was not made on {device}, where this run is to continue") from None
    return saved["round"], saved["history"]


def start_log(folder: Path, args: dict, first_round: int, track: bool) -> SummaryWriter:
    """Write the arguments and open TensorBoard's log; on resume, what is newer than the checkpoint is dropped."""
    if track:
        import wandb

        wandb.init(project="spacql", name=folder.name, config=args, sync_tensorboard=True)
    with atomic(folder / "args.json") as partial:
        partial.write_text(json.dumps(args, indent=2))
    return SummaryWriter(folder, purge_step=first_round + 1)


def log_report(writer: SummaryWriter, history: dict, round_number: int, report: dict) -> None:
    """Add a report {name: [S] or [S, K]} to the history, and its means over seeds to TensorBoard."""
    history.setdefault("round", []).append(round_number)
    for name, values in report.items():
        history.setdefault(name, []).append(values.tolist())
        mean = values.mean(0)
        for k, value in enumerate(mean.flatten().tolist(), start=1):
            writer.add_scalar(f"{name}/{k}" if mean.ndim else f"train/{name}", value, round_number)
    writer.flush()


def warn_if_collapsed(backup: str, quality: str, history: dict) -> None:
    """Say so where SPaCQL's weights ended on k = 1 on expert data: a failure signature that the paper names."""
    if backup == "spacql" and quality == "expert" and np.asarray(history["weights"][-1])[:, 0].mean() > 0.9:
        say("warning: w has collapsed on k = 1 on expert data: SPaCQL has become ICQL-QS here")


def summarise(args, scores: torch.Tensor, history: dict) -> dict:
    """What a script prints: last scores [S] (normalised), the best evaluation's, and the weights w_k in the end."""
    return dict(
        env_id=args.env_id,
        dataset=args.dataset,
        backup=args.backup,
        seeds=list(range(args.seed, args.seed + args.num_seeds)),
        scores=[round(score, 2) for score in scores.tolist()],
        score_mean=round(float(scores.mean()), 2),
        score_std=round(float(scores.std(correction=0)), 2),
        best_mean=round(float(np.max(history["scores"], axis=0).mean()), 2),
        k_eff=round(float(np.mean(history["k_eff"][-1])), 4),
        weights=np.mean(history["weights"][-1], axis=0).round(4).tolist(),
    )


def save_results(folder: Path, args: dict, summary: dict, returns: torch.Tensor, history: dict) -> None:
    """Write returns.npz (final returns [S, episodes], arguments, summary, history) and the plot progress.png."""
    texts = {k: np.array(json.dumps(v)) for k, v in dict(args=args, summary=summary).items()}
    curves = {f"history_{k}": np.asarray(v) for k, v in history.items()}
    with atomic(folder / "returns.npz") as partial:
        np.savez_compressed(partial, returns=returns.cpu().numpy(), **texts, **curves)
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


def record_gif(path: Path, policy, worlds, seed: int, episodes: int = 4) -> None:
    """Film episodes of a team in the `mpe2` form of `worlds`, with the same kind of action and the same prey.

    policy: observations [1, 1, N, O] -> actions [1, 1, N, ...] or, of several seeds' teams, [S, 1, N, ...], of which
    the first is filmed.
    """
    from envs.pettingzoo import parallel_env  # here, since it loads a drawing library that training does not need

    env = parallel_env(worlds.env_id, worlds.action_kind, worlds.num_learners, render_mode="rgb_array")
    names, frames = env.possible_agents, []
    for episode in range(episodes):
        obs, _ = env.reset(seed=seed + episode)
        frames.append(env.render())
        while env.agents:
            team = np.stack([obs[name] for name in names[: worlds.num_learners]])[None, None]
            actions = policy(torch.from_numpy(team))[0, 0].tolist()
            if worlds.prey:
                seen = torch.from_numpy(obs[names[-1]])[None].to(worlds.device)
                actions += worlds.prey(seen).tolist()
            obs, *_ = env.step(dict(zip(names, actions, strict=True)))
            frames.append(env.render())
    pictures = [Image.fromarray(frame) for frame in frames]
    with atomic(path) as partial:
        pictures[0].save(partial, save_all=True, append_images=pictures[1:], duration=100, loop=0)
