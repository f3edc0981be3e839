"""Films of teams on the particle worlds, as GIFs: what enjoy.py makes of a run folder."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from envs.pettingzoo import parallel_env
from utils.files import atomic

SIDE, CAPTION = 240, 44  # pixels of a filmed world, and of the two lines of text above it
COLOURS = 32
PAUSE_MS, STEP_MS = 800, 90


@torch.no_grad()
def film(worlds, policy, seed: int, episodes: int) -> list[tuple[np.ndarray, str]]:
    """A team's frames [H, W, 3], each with what is to be written above it: episode, step and return so far.

    worlds: a Worlds of the task, for its number of agents and its prey. policy: observations [1, 1, N, O] ->
    actions [1, 1, N] or [1, 1, N, A]. Starts are those of seeds seed, seed + 1, ... of envs/pettingzoo.py.
    """
    shape = (worlds.env_id, worlds.action_kind, worlds.num_learners)
    env = parallel_env(*shape, render_mode="rgb_array", max_cycles=worlds.horizon)
    learners, frames = env.possible_agents[: worlds.num_learners], []
    for episode in range(episodes):
        obs, _ = env.reset(seed=seed + episode)
        step, played = 0, 0.0
        while True:
            frames.append((env.render(), f"episode {episode + 1}, step {step}, return {round(played)}"))
            if not env.agents:
                break
            team = torch.from_numpy(np.stack([obs[name] for name in learners])).to(worlds.device)
            actions = policy(team[None, None])[0, 0].tolist()
            if worlds.prey:
                prey_obs = torch.from_numpy(obs[env.possible_agents[-1]]).to(worlds.device)
                actions += worlds.prey(prey_obs[None]).tolist()
            obs, rewards, *_ = env.step(dict(zip(env.possible_agents, actions, strict=True)))
            step, played = step + 1, played + np.mean([rewards[name] for name in learners])
    return frames


def compose(films: list[list], titles: list[str]) -> list[Image.Image]:
    """Films of equal length side by side, each below its title and what its frames say."""
    large, small = ImageFont.load_default(size=16), ImageFont.load_default(size=13)
    pictures = []
    for moment in zip(*films, strict=True):
        sheet = Image.new("RGB", (SIDE * len(films), SIDE + CAPTION), "white")
        draw = ImageDraw.Draw(sheet)
        for place, ((frame, text), title) in enumerate(zip(moment, titles, strict=True)):
            left = place * SIDE
            small_frame = Image.fromarray(frame).resize((SIDE, SIDE), Image.Resampling.LANCZOS)
            sheet.paste(small_frame, (left, CAPTION))
            draw.text((left + SIDE / 2, 13), title, "black", large, anchor="mm")
            draw.text((left + SIDE / 2, 34), text, "#555555", small, anchor="mm")
        pictures.append(sheet)
    return pictures


def save_gif(path: Path, pictures: list[Image.Image], length: int) -> None:
    """Write pictures as a GIF of one palette; the last of each episode of `length` pictures stays longer."""
    palette = pictures[len(pictures) // 2].quantize(COLOURS, Image.Quantize.MAXCOVERAGE)
    frames = [picture.quantize(palette=palette, dither=Image.Dither.NONE) for picture in pictures]
    durations = [STEP_MS] * len(frames)
    durations[length - 1 :: length] = [PAUSE_MS] * (len(frames) // length)
    style = dict(append_images=frames[1:], duration=durations, loop=0, optimize=True)
    with atomic(path) as partial_path:
        frames[0].save(partial_path, save_all=True, **style)
