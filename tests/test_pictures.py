"""The pictures of experiments/pictures.py: the example behind the figure, and what GIFs show."""

import sys

import numpy as np
import pytest
import torch
from PIL import Image

import spacql
from data.datasets import make_env
from experiments import pictures
from utils.errors import InputError

SCRIPT = spacql
SMALL = (
    "--dataset-size 5000 --hidden 16 --num-critics 3 --batch-size 32 --rounds 4 --eval-every 2"
    " --eval-episodes 8 --final-episodes 16 --device cpu"
).split()
NAME = "simple_spread__medium__spacql-cfcql-3critics__seed0x"
pytestmark = pytest.mark.usefixtures("elsewhere")


def main(monkeypatch, flags: str) -> None:
    monkeypatch.setattr(sys, "argv", ["pictures", *flags.split()])
    pictures.main()


def test_each_replaced_agent_costs_what_the_readme_says():
    rareness = [pictures.mean_surprise(k) for k in range(4)]
    assert [f"{10.0**-x:.1g}" for x in rareness] == ["0.04", "0.005", "0.0006", "7e-05"]
    np.testing.assert_allclose(10 ** np.diff(rareness), 8.52, atol=0.01)
    generator = np.random.default_rng(0)
    for k in range(4):
        sampled = np.concatenate([pictures.surprise(k, generator) for _ in range(50)])
        assert abs(sampled.mean() - rareness[k]) < 5 * sampled.std() / len(sampled) ** 0.5


def test_idea_is_drawn_the_same_every_time(tmp_path, monkeypatch):
    main(monkeypatch, f"--idea --out {tmp_path}")
    first = np.asarray(Image.open(tmp_path / "idea.png"))
    assert first.shape[1] > 1500 and (first[0, 0] == 255).all()  # wide enough for 900 points, on white
    pictures.draw_idea(tmp_path / "again.png")
    np.testing.assert_array_equal(first, np.asarray(Image.open(tmp_path / "again.png")))


@pytest.mark.parametrize("env_id", ["simple_spread", "simple_tag"])
def test_teams_are_filmed_from_the_same_starts(env_id):
    still, right = (pictures.film(env_id, lambda obs, a=a: torch.full(obs.shape[:-1], a), 7, 2) for a in (0, 2))
    length = make_env(env_id, 1).horizon + 1
    assert len(still) == len(right) == 2 * length
    for i in range(2 * length):
        same = (still[i][0] == right[i][0]).all()
        assert same if i % length == 0 else not same  # also of the second episode, whatever was played in the first
    assert [played for _, played in still[::length]] == [0, 0]


def test_gif_shows_every_moment_of_every_team(tmp_path):
    team = [(np.full((400, 400, 3), shade, np.uint8), float(shade)) for shade in (0, 60, 120, 180)]
    sheets = pictures.compose([team, team], ["one", "two"])
    pictures.save_gif(tmp_path / "a.gif", sheets, episodes=2)
    with Image.open(tmp_path / "a.gif") as gif:
        assert gif.size == (2 * pictures.SIDE, pictures.SIDE + pictures.CAPTION) and gif.n_frames == 4
        times = []
        for i in range(4):
            gif.seek(i)
            times.append(gif.info["duration"])
    assert times == [pictures.STEP_MS, pictures.PAUSE_MS] * 2


def test_learnt_team_is_scored_as_the_script_did(finished, tmp_path, monkeypatch, capfd):
    folder, summary = finished  # two seeds, of which the first is filmed
    monkeypatch.setattr(pictures, "EPISODES", 1)
    main(monkeypatch, f"--gifs --checkpoint {folder} --out {tmp_path}")
    said = capfd.readouterr().err
    assert f"learnt from medium data: {summary['scores'][0]:.0f}\n" in said
    assert "random play: " in said and "medium behaviour: " in said
    with Image.open(tmp_path / "simple_spread.gif") as gif:
        assert gif.size[0] == 3 * pictures.SIDE and gif.n_frames == 26


@pytest.mark.parametrize("flags, said", [("", "say what to draw"), ("--gifs --env-id spread", "simple_spread")])
def test_wrong_wishes_end_with_one_line(flags, said, monkeypatch):
    with pytest.raises(InputError, match=said):
        main(monkeypatch, flags)
