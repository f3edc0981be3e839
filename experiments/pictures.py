"""Draws the README's figure of the idea and films teams side by side, from the repository's top folder.

    python -m experiments.pictures --idea                              # results/idea.png
    python -m experiments.pictures --gifs                              # trains (a minute); results/simple_spread.gif
    python -m experiments.pictures --gifs --checkpoint runs/<name>     # films a team that is there

A GIF shows three teams from the same starts: one that plays uniformly, the medium behaviour policy that makes the
dataset of that name, and the team that spacql.py learnt. Nothing is chosen: the starts are those of seeds eval_seed,
eval_seed + 1, ..., the scores above the teams are means over 1000 other episodes, as spacql.py reports them.
"""

from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from PIL import Image, ImageDraw, ImageFont

import spacql
from data.behaviour import Softmax, load_policies
from data.datasets import evaluate, make_env, normalise
from envs.particles import ENV_IDS
from utils import runs
from utils.errors import InputError, check_choice
from utils.files import atomic, parse, run_script, say

HERE = Path(__file__).parent.parent / "results"
GREY, BLUE, ORANGE, GREEN = "#8c8c8c", "#0072b2", "#d55e00", "#009e73"  # of Okabe and Ito's palette
# The example of the figure: three agents with five actions each, alike; the policy prefers what is rare in the data.
BEHAVIOUR = np.array([0.60, 0.25, 0.10, 0.04, 0.01])
POLICY = np.array([0.05, 0.05, 0.15, 0.50, 0.25])
SPREADS = (1.0, 2.0, 4.0)  # u_1, u_2, u_3
SAMPLES = 120  # points per row
SIDE, CAPTION = 240, 44  # of a GIF: pixels of a world, and of the texts above it
COLOURS, APART = 32, 40  # most colours, and how far apart they are in red, green and blue together
EPISODES, PAUSE_MS, STEP_MS = 3, 800, 90


@dataclass(frozen=True)
class Args:
    """What to draw."""

    idea: bool = False
    """draw the figure of the idea"""
    gifs: bool = False
    """film a random, a medium and a learnt team"""
    env_id: str = "simple_spread"
    """with --gifs and without --checkpoint: the task, on whose medium data a team is trained first"""
    checkpoint: str | None = None
    """with --gifs: the run folder of spacql.py, or its checkpoint.pt, that holds the learnt team"""
    out: Path = HERE
    """folder for the pictures"""


def surprise(k: int, generator: np.random.Generator) -> np.ndarray:
    """-log10 mu(a) of SAMPLES joint actions, k agents by POLICY and the others by BEHAVIOUR."""
    draw = partial(generator.choice, len(BEHAVIOUR))
    actions = [draw(SAMPLES, p=POLICY if i < k else BEHAVIOUR) for i in range(len(SPREADS))]
    return -np.log10(BEHAVIOUR[np.array(actions)]).sum(0)


def mean_surprise(k: int) -> float:
    """Its expectation."""
    return -k * (POLICY @ np.log10(BEHAVIOUR)) - (len(SPREADS) - k) * (BEHAVIOUR @ np.log10(BEHAVIOUR))


def draw_idea(path: Path) -> None:
    """Rows: the logged next joint action and the three sizes k. Columns: who is replaced, how rare the joint action is
    in the data, how far ten critics disagree, and the weight in the target."""
    generator = np.random.default_rng(0)
    fig = Figure(figsize=(9.6, 4.3), layout="constrained")
    fig.get_layout_engine().set(wspace=0.04)
    who, rare, spread, weight = fig.subplots(1, 4, sharey=True, width_ratios=(1.25, 1.1, 1.1, 0.9))
    colours = (GREY, BLUE, GREEN, ORANGE)
    for k, replaced in enumerate(([], [1], [0, 2], [0, 1, 2])):
        for agent in range(3):
            policy = agent in replaced
            style = dict(marker="s", color=colours[k]) if policy else dict(marker="o", color="white", mec=GREY, mew=1.6)
            who.plot(agent, k, ms=21, **style)
            text = rf"$\pi_{agent + 1}$" if policy else f"$a'_{agent + 1}$"
            who.annotate(text, (agent, k), ha="center", va="center", color="white" if policy else "black", fontsize=11)
        x = surprise(k, generator)
        rare.plot(x, k + generator.uniform(-0.22, 0.22, SAMPLES), ".", color=colours[k], ms=4, alpha=0.45, mew=0)
        rare.plot([mean_surprise(k)] * 2, [k - 0.33, k + 0.33], color="black", lw=1.6)
    quantiles = np.sort(generator.standard_normal(10))
    quantiles = (quantiles - quantiles.mean()) / quantiles.std()
    weights = spacql.replacement_weights(torch.tensor(SPREADS)).tolist()
    for k, (u, w) in enumerate(zip(SPREADS, weights, strict=True), start=1):
        spread.plot(u * quantiles, [k + 0.12] * 10, "|", color=colours[k], ms=16, mew=1.8)
        spread.annotate(f"$u_{k} = {u:.0f}$", (0, k - 0.26), ha="center", va="center", fontsize=10)
        weight.barh(k, w, height=0.5, color=colours[k])
        weight.annotate(f"$w_{k} = {w:.2f}$", (w + 0.02, k), va="center", fontsize=10)
    for ax in (spread, weight):
        ax.annotate("not used", (0.5, 0), xycoords=ax.get_yaxis_transform(), ha="center", va="center", color=GREY)
    who.set(title="Replace k of three agents", xlim=(-0.6, 2.6), xlabel="circle: logged, square: policy", xticks=[])
    rare.set(title="Rarer in the data", xlabel=r"probability $\mu(a'^{(k)})$ in the data", xlim=(0, 6.4))
    rare.set(xticks=range(0, 7, 2), xticklabels=["1", *(f"$10^{{-{x}}}$" for x in (2, 4, 6))])
    spread.set(title="Critics disagree more", xlabel="the ten critics' values", xlim=(-9, 9), xticks=[])
    weight.set(title="They count less", xlabel="weight in the target", xlim=(0, 1.02), xticks=[])
    who.set(ylim=(3.55, -0.6), yticks=range(4))
    who.set_yticklabels(["logged", *(f"$k = {k}$" for k in (1, 2, 3))], fontsize=12)
    for ax in (who, rare, spread, weight):
        ax.title.set_fontsize(11)
        ax.spines[:].set_visible(False)
        ax.tick_params(length=0, pad=2)
        for line in (0.5, 1.5, 2.5):
            ax.axhline(line, color="#dddddd", lw=0.8)
    fig.align_xlabels()
    fig.supxlabel(r"target $\;Y = r + \gamma\, \sum_k\, w_k\, \min_j\, \bar Q_j(s', a'^{(k)})$", fontsize=13)
    with atomic(path) as partial_path:
        fig.savefig(partial_path, dpi=190, facecolor="white")


def film(env_id: str, policy, seed: int, episodes: int) -> list[tuple[np.ndarray, float]]:
    """A team's frames, each with the return of the episode so far.

    policy: observations [1, 1, N, O] -> actions [1, 1, N].
    """
    from envs.pettingzoo import parallel_env  # here, since it loads a drawing library

    worlds, env = make_env(env_id, 1), parallel_env(env_id, render_mode="rgb_array")
    learners, frames = env.possible_agents[: worlds.num_learners], []
    for episode in range(episodes):
        obs, _ = env.reset(seed=seed + episode)
        played = 0.0
        frames.append((env.render(), played))
        while env.agents:
            team = torch.from_numpy(np.stack([obs[name] for name in learners]))[None, None]
            actions = policy(team)[0, 0].tolist()
            if worlds.prey:
                actions += worlds.prey(torch.from_numpy(obs[env.possible_agents[-1]])[None]).tolist()
            obs, rewards, *_ = env.step(dict(zip(env.possible_agents, actions, strict=True)))
            played += np.mean([rewards[name] for name in learners])
            frames.append((env.render(), played))
    return frames


def compose(films: list[list], captions: list[str]) -> list[Image.Image]:
    """The films side by side, each under its caption and the running return."""
    title, small = ImageFont.load_default(size=16), ImageFont.load_default(size=13)
    pictures = []
    for moment in zip(*films, strict=True):
        sheet = Image.new("RGB", (SIDE * len(films), SIDE + CAPTION), "white")
        draw = ImageDraw.Draw(sheet)
        for place, ((frame, played), caption) in enumerate(zip(moment, captions, strict=True)):
            sheet.paste(Image.fromarray(frame).resize((SIDE, SIDE), Image.Resampling.LANCZOS), (place * SIDE, CAPTION))
            centre = (place + 0.5) * SIDE
            draw.text((centre, 13), caption, "black", title, anchor="mm")
            draw.text((centre, 34), f"return {played:.0f}", "#555555", small, anchor="mm")
            if place:
                draw.line([(place * SIDE, 0), (place * SIDE, SIDE + CAPTION)], "#bbbbbb")
        pictures.append(sheet)
    return pictures


def palette_of(picture: Image.Image) -> Image.Image:
    """A palette of the picture's most frequent colours that differ visibly from one another, white first."""
    counts = sorted(picture.getcolors(SIDE * SIDE * 10), reverse=True)
    chosen = []
    for _, colour in counts:
        if all(np.abs(np.subtract(colour, other)).sum() >= APART for other in chosen) and len(chosen) < COLOURS:
            chosen.append(colour)
    palette = Image.new("P", (1, 1))
    palette.putpalette([channel for colour in chosen for channel in colour])
    return palette


def save_gif(path: Path, pictures: list[Image.Image], episodes: int) -> None:
    """Write pictures as a GIF of one palette; the last of each episode stays longer."""
    palette = palette_of(pictures[len(pictures) // 2])
    frames = [picture.quantize(palette=palette, dither=Image.Dither.NONE) for picture in pictures]
    length = len(frames) // episodes
    durations = [PAUSE_MS if (i + 1) % length == 0 else STEP_MS for i in range(len(frames))]
    with atomic(path) as partial_path:
        frames[0].save(partial_path, save_all=True, append_images=frames[1:], duration=durations, loop=0, optimize=True)


def teams(saved: dict, env_id: str) -> dict:
    """Policies, observations [S, B, N, O] -> actions [S, B, N], of the random, the medium and the learnt team."""
    policies = load_policies(env_id)
    medium = policies.iterates[policies.facts["medium_iterate"]]
    actor, scale, generator = saved["actor"], saved["scale"], torch.Generator().manual_seed(0)

    def learnt(obs):  # of several seeds the first
        return spacql.greedy_actions([p[:1] for p in actor], obs, scale)

    return {
        "random": lambda obs: torch.randint(spacql.NUM_ACTIONS, obs.shape[:-1], generator=generator),
        "medium": lambda obs: Softmax.act(medium, obs[0], generator).unsqueeze(0),
        "learnt": learnt,
    }


@torch.no_grad()
def film_teams(checkpoint: str | Path, out: Path) -> Path:
    """Film the three teams of a checkpoint's task; returns the GIF's path."""
    _, saved, settings = runs.load_checkpoint(checkpoint, spacql.Args)
    env_id, seed = settings.env_id, settings.eval_seed
    check_choice("env-id", env_id, ENV_IDS)
    env = make_env(env_id, settings.final_episodes)
    if saved["facts"]["num_agents"] != env.num_learners:
        raise InputError(f"the shipped teams are of {env.num_learners} agents, not {saved['facts']['num_agents']}")
    names = dict(random="random play", medium="medium behaviour", learnt=f"learnt from {settings.dataset} data")
    films, captions = [], []
    for name, policy in teams(saved, env_id).items():
        score = normalise(float(evaluate(policy, env, 1, seed + 1).mean()), saved["facts"])
        captions.append(f"{names[name]}: {score:.0f}")
        films.append(film(env_id, policy, seed, EPISODES))
        say(f"{env_id}, {captions[-1]}")
    path = out / f"{env_id}.gif"
    save_gif(path, compose(films, captions), EPISODES)
    return path


def main() -> None:
    args = parse(Args, description=__doc__)
    if not (args.idea or args.gifs):
        raise InputError("say what to draw: --idea, --gifs")
    drawn = []
    if args.idea:
        drawn.append(args.out / "idea.png")
        draw_idea(drawn[-1])
    if args.gifs:
        checkpoint = args.checkpoint
        if checkpoint is None:
            check_choice("env-id", args.env_id, ENV_IDS)
            name = f"{args.env_id}-for-pictures"
            spacql.main(["--env-id", args.env_id, "--dataset", "medium", "--name", name])
            checkpoint = runs.newest_run("runs", name)
        drawn.append(film_teams(checkpoint, args.out))
    for path in drawn:
        say(f"{path}: {path.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    run_script("experiments.pictures", main)
