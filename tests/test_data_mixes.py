"""Mixtures of teams, and the dependence of logged actions.

Draws of teams, noise and marginals are compared with the probabilities that the dial promises; measured
dependence with exact values.
"""

import json
import math
import os
import warnings
from dataclasses import replace
from types import SimpleNamespace

import h5py
import numpy as np
import pytest
import torch
from common import SEEDS, SIGMAS, Trap, attribute, generator, mistakes_in, one_line, rejects, repeatable
from damage import edit_npz
from hypothesis import example, given
from hypothesis import strategies as st
from mutants_data import TABLE

import data.datasets as datasets
from data import behaviour, mixes
from data.datasets import Dataset, describe, load_dataset, normalise
from data.mixes import Mix, MixedTeams, draw_teams, load_teams, measure_dependence, parse_mix
from envs import two_doors
from envs.particles import HORIZON, NUM_ACTIONS, Worlds
from envs.shipped import POLICY_DIR, load_policies, mlp, rollout
from utils.errors import InputError

GAME = two_doors.ENV_ID
FULL = "mix:teams=3,unit=step,share=0.5,noise=0.1"
SHARES = st.floats(0, 1)
MIXES = st.builds(Mix, st.integers(1, 4), st.sampled_from(mixes.UNITS), SHARES, SHARES)
mistakes = mistakes_in(TABLE)


@pytest.fixture
def hardly_measured(monkeypatch):
    """Where dependence is not the question."""
    monkeypatch.setattr(mixes, "UPDATES", 2)


def near(happened, probability):
    """A share of booleans is what this probability gives, up to chance."""
    spread = SIGMAS * math.sqrt(happened.numel() * probability * (1 - probability)) + 1e-9
    assert abs(int(happened.sum()) - happened.numel() * probability) <= spread


# ------------------------------------------------------------------------------------------ what a mix is
# called


@repeatable
@given(mix=MIXES, order=st.permutations(["teams", "unit", "share", "noise"]))
def test_every_mix_has_a_text_in_any_order(mix, order):
    text = "mix:" + ",".join(f"{key}={getattr(mix, key)}" for key in order)
    assert parse_mix(text, "simple_spread") == mix
    assert all(letter.isalnum() or letter in "-+." for letter in mix.name)


@repeatable
@given(first=MIXES, second=MIXES)
@example(Mix(2, "step", 0.1, 0.2), Mix(2, "step", 0.2, 0.1))
@example(Mix(2, "step", 1 / 3, 0.0), Mix(2, "step", 0.3333333333333333, 0.0))
@example(Mix(2, "step", 0.333, 0.0), Mix(2, "step", 0.33300001, 0.0))
def test_names_are_as_different_as_mixes(first, second):
    assert (first.name == second.name) == (first == second)


def test_what_is_not_said_has_a_default():
    default = Mix(3, "step", 0.5, 0.1)
    for text in ("mix", "mix:", FULL):
        assert parse_mix(text, "simple_spread") == default
    assert parse_mix("mix", GAME) == replace(default, teams=2)
    assert parse_mix("mix:share=.25", "simple_spread") == replace(default, share=0.25)
    assert parse_mix("mix:share=-0,noise=1e-3", "simple_spread").name == "mix-teams3-step-share0.0-noise0.001"


BAD_MIXES = {
    "mix:teams=0": "teams must be 1 to 4 for simple_spread, not '0'",
    "mix:teams=٣": "teams must be 1 to 4 for simple_spread, not '٣'",
    "mix:unit=steps": "unit must be episode or step, not 'steps'",
    "mix:unit=a\nb": r"unit must be episode or step, not 'a\nb'",
    "mix:share=1.01": "share must be a number from 0 to 1, not '1.01'",
    "mix:share=nan": "share must be a number from 0 to 1, not 'nan'",
    "mix:share=1_0": "share must be a number from 0 to 1, not '1_0'",
    "mix:share=1e999": "share must be a number from 0 to 1, not '1e999'",
    "mix:noise=２": "noise must be a number from 0 to 1, not '２'",
    "mix:shre=1": "expected KEY=VALUE,... with keys teams, unit, share, noise, not 'shre=1'",
    "mix:share": "expected KEY=VALUE,... with keys teams, unit, share, noise, not 'share'",
    "mix:share=1,": "expected KEY=VALUE,... with keys teams, unit, share, noise, not 'share=1,'",
    "mix:share=1,noise=0,share=1": "share is given twice",
}


@pytest.mark.parametrize("text", BAD_MIXES)
def test_bad_mix_is_refused_in_one_line(text, tmp_path):
    message = one_line(lambda: load_dataset("simple_spread", text, folder=tmp_path))
    assert message == f"--dataset mix: {BAD_MIXES[text]}" and list(tmp_path.iterdir()) == []


@repeatable
@given(text=st.text(max_size=30))
def test_any_text_is_a_mix_or_refused(text):
    try:
        mix = parse_mix(f"mix:{text}", "simple_spread")
    except InputError as error:
        assert str(error).isprintable()
    else:
        assert 1 <= mix.teams <= 4 and 0 <= mix.share <= 1 and 0 <= mix.noise <= 1


@pytest.mark.parametrize(
    ("env_id", "kind", "text", "words"),
    [
        ("simple_tag", "discrete", "mix", "simple_tag has no teams to mix; simple_spread and two_doors have"),
        ("HalfCheetah-2x3", "continuous", "mix", "HalfCheetah-2x3 has no teams to mix"),
        ("simple_spread", "continuous", "mix", "mixes of teams are of discrete actions: use spacql.py"),
        (GAME, "discrete", "mix:teams=3", "teams must be 1 to 2 for two_doors, not '3'"),
        (GAME, "discrete", "medium", "two_doors has no medium data: choose random or mix:teams=2"),
        (GAME, "continuous", "random", "unknown env-id 'two_doors'"),
        (GAME, "discrete", "mxi", "unknown dataset 'mxi'"),
    ],
)
def test_what_a_task_does_not_have_is_told(env_id, kind, text, words, tmp_path):
    assert words in one_line(lambda: load_dataset(env_id, text, 100, 0, tmp_path, kind))
    assert list(tmp_path.iterdir()) == []


# ------------------------------------------------------------------------------------------------ who acts as
# whom


@repeatable
@given(seed=SEEDS, teams=st.integers(2, 4), share=st.sampled_from([0.0, 0.3, 0.5, 1.0]))
def test_agents_share_a_team_as_often_as_the_dial_says(seed, teams, share):
    drawn = draw_teams(Mix(teams, "step", share, 0.0), (4000, 3), generator(seed))
    assert drawn.shape == (4000, 3)
    for i, j in ((0, 1), (1, 2), (2, 0)):
        for team in range(teams):
            near(drawn[:, i] == team, 1 / teams)
        near(drawn[:, i] == drawn[:, j], share + (1 - share) / teams)
    near((drawn == drawn[:, :1]).all(1), share + (1 - share) / teams**2)


def play(mix, count=2000, steps=4, num=3, seed=0):
    """Actions [count, steps, num] of a mix whose team m always plays action m."""
    fixed = [lambda obs, _, m=m: torch.full(obs.shape[:2], m) for m in range(mix.teams)]
    team, obs, draws = MixedTeams(mix, fixed), torch.zeros(count, num, 1), generator(seed)
    return torch.stack([team(obs, draws) for _ in range(steps)], dim=1)


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_a_team_is_drawn_per_episode_or_per_step(share):
    kept, anew = (play(Mix(4, unit, share, 0.0)) for unit in ("episode", "step"))
    assert (kept == kept[:, :1]).all(), "who acts as whom is kept for an episode"
    near(anew[:, 0, 0] == anew[:, 1, 0], 0.25)
    for actions in (kept, anew):
        near(actions[:, 2, 0] == actions[:, 2, 1], share + (1 - share) / 4)
    assert not torch.equal(play(Mix(4, "step", share, 0.0), seed=1), anew)
    assert torch.equal(play(Mix(4, "step", share, 0.0)), anew), "the same seed, the same draws"


@pytest.mark.parametrize("noise", [0.0, 0.2, 1.0])
def test_noise_is_a_uniform_action_of_one_agent(noise):
    """All play action 0 but for noise, which leaves it with 1 / 5."""
    actions = play(Mix(1, "episode", 1.0, noise))
    wild, away = actions != 0, noise * (1 - 1 / NUM_ACTIONS)
    near(wild, away)
    near(wild[..., 0] & wild[..., 1], away**2)
    near(wild[:, 0] & wild[:, 1], away**2)
    for action in range(1, NUM_ACTIONS):
        near(actions == action, noise / NUM_ACTIONS)


def exact_dependence(joint) -> float:
    """Mean over agents and rows of I(a_i ; a_-i), by the joint distributions [rows, A, A, A]."""
    values = []
    for i in (1, 2, 3):
        others = joint.sum(i, keepdim=True)
        own = joint.sum([j for j in (1, 2, 3) if j != i], keepdim=True)
        values.append(torch.special.xlogy(joint, joint / (own * others)).nansum((1, 2, 3)))
    return float(torch.stack(values).mean())


def joint_of(mix, members):
    """What agents do, [rows, A, A, A], where team m's agent i plays by members[m, i, rows, A], with a team
    drawn at each step."""
    members = (1 - mix.noise) * members[: mix.teams].double() + mix.noise / NUM_ACTIONS
    together = torch.einsum("mra,mrb,mrc->rabc", *members.unbind(1)) / mix.teams
    return mix.share * together + (1 - mix.share) * torch.einsum("ra,rb,rc->rabc", *members.mean(0))


def policies_of_teams(obs):
    """The shipped teams' action probabilities [M, N, rows, A] on observations [rows, N, O]."""
    with np.load(POLICY_DIR / "simple_spread-discrete-teams.npz") as file:
        layers = [torch.from_numpy(file[f"actor{j}"].astype(np.float32)) for j in range(6)]
    actors = [load_policies("simple_spread").iterates[-1], *([x[m] for x in layers] for m in range(3))]
    return torch.stack([mlp(actor, obs.transpose(0, 1)).softmax(-1) for actor in actors])


@pytest.mark.parametrize("share", [0.0, 0.4, 1.0])
def test_mixed_teams_act_as_the_dial_says_in_given_states(share):
    """Joint and own actions in one state, often repeated: the agents' own distributions are the same at every
    dial."""
    mix = Mix(3, "step", share, 0.1)
    obs = Worlds("simple_spread", 1, seed=5).reset()
    actions = MixedTeams(mix, load_teams("simple_spread")[0])(obs.expand(20_000, -1, -1), generator(3))
    joint = joint_of(mix, policies_of_teams(obs))[0]
    codes = (actions * torch.tensor([25, 5, 1])).sum(1)
    for code, probability in enumerate(joint.flatten().tolist()):
        near(codes == code, probability)
    own = joint_of(replace(mix, share=0.0), policies_of_teams(obs))[0]
    for axes in ([1, 2], [0, 2], [0, 1]):
        torch.testing.assert_close(joint.sum(axes), own.sum(axes))


def test_teams_have_conventions_of_their_own():
    """The first three cover the landmarks differently, and all four are as good as the shipped expert."""
    teams, known = load_teams("simple_spread")
    expert = load_policies("simple_spread").facts
    assert (
        known[0]["training"]["seed"] == 1
        and len({team["training"]["seed"] for team in known}) == len(teams) == 4
    )
    ends = []
    for team, facts in zip(teams, known, strict=True):
        log = rollout(Worlds("simple_spread", 300, seed=7), team, generator(1))
        score = normalise(float(log["rewards"].mean(-1).sum(1).mean()), expert)
        assert abs(score - 100) < 4 and abs(normalise(facts["expert_score"], expert) - 100) < 2
        ends.append(log["observations"][:, -1, :, 4:10].unflatten(-1, (3, 2)).norm(dim=-1).argmin(-1))
    for i, j in ((0, 1), (0, 2), (1, 2)):
        assert (ends[i] == ends[j]).all(1).float().mean() < 0.1


# ----------------------------------------------------------------------------------------------- files of
# teams

TEAMS = "simple_spread-discrete-teams.npz"


def facts_of_teams(**changes):
    """An edit of the file's facts."""
    return lambda arrays: arrays.update(
        facts=np.array(json.dumps(json.loads(str(arrays["facts"])) | changes))
    )


BAD_TEAMS = [
    (lambda a: a.pop("actor3"), "actor3"),
    (facts_of_teams(env_id="simple_tag"), "policies of simple_tag"),
    (lambda a: a.update({k: v[:2] for k, v in a.items() if k != "facts"}), "other shapes"),
    (facts_of_teams(teams=[]), "other shapes"),
    (lambda a: a.update(actor5=np.zeros((3, 3, 1, 6), "f2")), "other shapes"),
    (lambda a: a["actor0"].__setitem__((0, 0, 0, 0), np.nan), "parameter is not finite"),
]


@pytest.mark.parametrize(("change", "words"), BAD_TEAMS)
def test_bad_file_of_teams_is_refused(change, words, tmp_path):
    edit_npz(POLICY_DIR / TEAMS, tmp_path / TEAMS, lambda arrays: None)
    assert len(load_teams("simple_spread", tmp_path)[0]) == 4
    edit_npz(POLICY_DIR / TEAMS, tmp_path / TEAMS, change)
    message = one_line(lambda: load_teams("simple_spread", tmp_path))
    assert words in message and str(tmp_path / TEAMS) in message


def test_pickled_cut_and_missing_teams_are_refused(tmp_path, monkeypatch):
    trap = np.array([Trap(tmp_path / "executed")], dtype=object)
    edit_npz(POLICY_DIR / TEAMS, tmp_path / TEAMS, lambda arrays: arrays.update(actor0=trap))
    assert "allow_pickle=False" in one_line(lambda: load_teams("simple_spread", tmp_path))
    (tmp_path / TEAMS).write_bytes((POLICY_DIR / TEAMS).read_bytes()[:5000])
    assert "as the teams of simple_spread" in one_line(lambda: load_teams("simple_spread", tmp_path))
    assert not (tmp_path / "executed").exists()
    (tmp_path / TEAMS).unlink()
    (tmp_path / "simple_spread-discrete.npz").write_bytes(
        (POLICY_DIR / "simple_spread-discrete.npz").read_bytes()
    )
    monkeypatch.setattr(datasets, "POLICY_DIR", tmp_path)
    for call in (
        lambda: load_teams("simple_spread", tmp_path),
        lambda: load_dataset("simple_spread", "mix", 100, 0, tmp_path / "datasets"),
    ):
        assert "make it with: python -m data.mixes" in one_line(call)
    assert not (tmp_path / "datasets").exists()


def test_training_writes_teams_that_load(tmp_path, monkeypatch):
    monkeypatch.setattr(behaviour, "SCORE_EPISODES", 50)
    small = lambda env_id: behaviour.Args(env_id, iterations=2, num_worlds=8)  # noqa: E731
    monkeypatch.setattr(mixes, "default_args", small)
    for name in "ab":
        mixes.main(["--seeds", "5", "6", "7", "--out", str(tmp_path / name)])
        assert os.listdir(tmp_path / name) == [TEAMS]
    obs = Worlds("simple_spread", 30).reset()
    (first, known), (again, _) = (load_teams("simple_spread", tmp_path / name) for name in "ab")
    assert [team["training"]["seed"] for team in known] == [1, 5, 6, 7]
    played = [[team(obs, generator(0)) for team in teams] for teams in (first, again)]
    assert all(map(torch.equal, *played)) and len({actions.numpy().tobytes() for actions in played[0]}) == 4
    assert "--seeds" in one_line(lambda: mixes.main(["--seeds", "1", "2", "--out", str(tmp_path)]))


# ------------------------------------------------------------------------------------------------- dependence


def coin(share, count=400, steps=25, num=3, seed=0):
    """Agents toss a coin each, or, with this share, one together; nobody's state tells anything."""
    draws = generator(seed)
    together = torch.rand((count, steps, 1), generator=draws) < share
    one, own = (torch.randint(2, (count, steps, n), generator=draws) for n in (1, num))
    observations = torch.randn((count, steps + 1, num, 4), generator=draws)
    return SimpleNamespace(observations=observations, actions=torch.where(together, one, own))


def exact_coin(share):
    """I(a_i ; a_-i) of three agents' coin: the sum over the 8 outcomes."""
    outcomes = torch.tensor([1.0, 0, 0, 0, 0, 0, 0, 1.0]).double().view(1, 2, 2, 2) / 2
    return exact_dependence(share * outcomes + (1 - share) / 8)


def agrees(measured, exact):
    """An estimate of an exact value: within its error, and a tenth for what a model of finite data misses."""
    value, error = measured["dependence"], measured["dependence_error"]
    assert 0 <= value and 0 <= error < 0.03
    assert abs(value - exact) <= SIGMAS * error + 0.1 * exact


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_measured_dependence_of_a_shared_coin(share):
    measured = measure_dependence(coin(share))
    agrees(measured, exact_coin(share))
    assert exact_coin(1.0) == pytest.approx(math.log(2)) and exact_coin(0.0) == pytest.approx(0)
    assert (measured["dependence"] > 0.1) == (share > 0)


def test_exact_dependence_of_two_agents_has_the_binary_entropy():
    """With a third agent that tosses its own coin: log 2 - H((1 + c) / 2) for two of three agents."""
    c, half = 0.4, torch.tensor([0.5, 0.5]).double()
    pair = torch.tensor([[1 + c, 1 - c], [1 - c, 1 + c]]).double() / 4
    p = (1 + c) / 2
    expected = math.log(2) + p * math.log(p) + (1 - p) * math.log(1 - p)
    assert exact_dependence(torch.einsum("ab,c->abc", pair, half)[None]) == pytest.approx(2 / 3 * expected)


@mistakes("dependence")
def test_the_check_of_dependence_can_fail(wrong, monkeypatch):
    data = coin(1.0)
    wrong(monkeypatch, data)
    rejects(agrees, measure_dependence(data), exact_coin(1.0))


def test_what_the_state_tells_is_no_dependence():
    """All agents' actions are the same function of the state; without the state they would be fully
    dependent. Of fewer episodes more would be left to learn, and pass for dependence."""
    data = coin(0.0, count=800)
    data.actions = (data.observations[:, :-1, :1, 0] > 0).long().expand(-1, -1, 3)
    measured = measure_dependence(data)
    assert measured["dependence"] < 0.05 and measured["dependence_error"] < 0.02
    data.observations = torch.zeros_like(data.observations)
    agrees(measure_dependence(data), math.log(2))


def test_dependence_that_differs_by_state_is_averaged():
    """The coin is shared where agent 2 sees a positive number."""
    shared, own = coin(1.0), coin(0.0, seed=1)
    shared.actions = torch.where(shared.observations[:, :-1, 2:, 0] > 0, shared.actions, own.actions)
    assert 0.75 < measure_dependence(shared)["dependence"] / (0.5 * math.log(2)) < 1.05


@pytest.mark.parametrize("width", [2, 3])
def test_dependence_of_continuous_actions(width):
    """A shared sign of all numbers; the sizes are independent, and below a third a sign does not show. Slices
    of larger arrays are measured without a warning of a library."""
    data = coin(1.0, count=400)
    sizes = torch.rand((*data.actions.shape, 2 * width), generator=generator(2))
    data.actions = (sizes * (2 * data.actions.unsqueeze(-1) - 1))[..., ::2]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        value = measure_dependence(data)["dependence"]
    hidden = 3.0**-width  # no number shows the sign
    expected = (1 - hidden) * (1 - hidden**2) * math.log(2)  # own sign and one of the others' are to be seen
    assert 0.85 < value / expected < 1.1
    data.actions = torch.stack([data.actions[:, :, i].roll(i, 0) for i in range(3)], 2)  # of other episodes
    assert measure_dependence(data)["dependence"] < 0.02


@pytest.mark.parametrize("chosen", [1, 2, 5])
def test_predictability_is_what_the_state_leaves_open(chosen):
    """Each agent's action is one of `chosen` ones, uniformly, in every state: 1 - log(chosen) / log(5)."""
    data = coin(0.0)
    data.actions = torch.randint(chosen, data.actions.shape, generator=generator(3))
    expected = 1 - math.log(chosen) / math.log(NUM_ACTIONS)
    assert measure_dependence(data)["predictability"] == pytest.approx(expected, abs=0.02)


def test_predictability_counts_what_the_state_tells():
    data = coin(0.0)
    data.actions = (data.observations[:, :-1, :, 0] > 0).long()
    assert measure_dependence(data)["predictability"] > 0.9
    data.observations = data.observations.roll(1, 0)  # of another episode
    expected = 1 - math.log(2) / math.log(NUM_ACTIONS)
    assert measure_dependence(data)["predictability"] == pytest.approx(expected, abs=0.03)


def test_measuring_is_repeatable_and_leaves_the_data_alone():
    data = coin(0.5, count=100)
    copies = data.observations.clone(), data.actions.clone()
    first = measure_dependence(data)
    torch.rand(3)  # global random numbers must not matter
    assert measure_dependence(data) == first != measure_dependence(data, seed=1)
    assert torch.equal(data.observations, copies[0]) and torch.equal(data.actions, copies[1])


def test_large_data_are_thinned_out(monkeypatch):
    monkeypatch.setattr(mixes, "MEASURED_EPISODES", 50)
    monkeypatch.setattr(mixes, "MEASURED_ROWS", 400)
    data = coin(0.5, count=149)
    states, actions, _ = mixes.look_at(data)
    assert torch.equal(actions, data.actions[::3, ::4]) and states.shape == (50, 7, 12)
    torch.testing.assert_close(states.mean((0, 1)), torch.zeros(12), atol=1e-5, rtol=0)


@pytest.mark.parametrize("episodes", [1, 7, 8])
def test_few_episodes_tell_nothing(episodes):
    value, error, predictability = measure_dependence(coin(1.0, count=episodes)).values()
    assert value >= 0 and (error == math.inf) == (episodes < 8)
    assert 0 <= predictability <= 1 and (episodes >= 8 or value == predictability == 0)


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_measured_dependence_of_mixed_walkers_is_the_exact_one(share, tmp_path):
    """In every state of the game the exact value is that of two teams that play -x and +x, with noise."""
    dataset = load_dataset(GAME, f"mix:share={share}", 20_000, 0, tmp_path)
    members = torch.eye(NUM_ACTIONS)[[two_doors.LEFT, two_doors.RIGHT]][:, None, None].expand(-1, 3, 1, -1)
    agrees(dataset.facts, exact_dependence(joint_of(Mix(2, "step", share, 0.1), members)))


def test_the_dial_moves_the_dependence_of_expert_teams(tmp_path):
    """On spread the exact value, from the teams' own probabilities, is not reached, but is not exceeded
    either."""
    measured, exact = [], []
    for share in (0, 0.5, 1):
        dataset = load_dataset("simple_spread", f"mix:share={share}", 30_000, 0, tmp_path)
        measured.append(dataset.facts["dependence"])
        states = dataset.observations[:200, :-1].flatten(0, 1)
        exact.append(exact_dependence(joint_of(Mix(3, "step", share, 0.1), policies_of_teams(states))))
    assert exact[0] == pytest.approx(0, abs=1e-6) and 0.05 < exact[1] < 0.4 * exact[2]
    assert measured[0] < 0.01 and measured[0] <= measured[1] < exact[1]
    assert measured[1] + 0.02 < measured[2] < exact[2]


# ---------------------------------------------------------------------------------------------- files of
# mixes


@pytest.mark.usefixtures("hardly_measured")
def test_mix_is_cached_under_a_name_of_its_own(tmp_path, monkeypatch):
    loaded = load_dataset(GAME, "mix:share=0.5,unit=episode", 2500, 3, tmp_path)
    (path,) = tmp_path.iterdir()
    assert path.name.startswith("two_doors-discrete-mix-teams2-episode-share0.5-noise0.1-2500-seed3-")
    assert (
        loaded.facts["quality"] == "mix" and loaded.facts["dataset"] == "mix-teams2-episode-share0.5-noise0.1"
    )
    assert json.loads(loaded.facts["behaviour"]) == {"teams": [{"walks": "left"}, {"walks": "right"}]}
    with monkeypatch.context() as patch:
        patch.setattr(datasets, "simulate", lambda *_: pytest.fail("simulated again"))
        patch.setattr(datasets, "measure_dependence", lambda *_: pytest.fail("measured again"))
        again = load_dataset(GAME, "mix:unit=episode,noise=1e-1", 2500, 3, tmp_path)
        by_path = load_dataset(GAME, str(path))
    assert torch.equal(loaded.actions, again.actions) and loaded.facts == again.facts == by_path.facts
    load_dataset(GAME, "mix:share=0.6,unit=episode", 2500, 3, tmp_path)
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.usefixtures("hardly_measured")
def test_every_chunk_draws_its_teams_anew(tmp_path, monkeypatch):
    """Episodes of one team each, simulated in chunks of three."""
    monkeypatch.setattr(datasets, "CHUNK_STEPS", 3 * HORIZON)
    dataset = load_dataset(GAME, "mix:unit=episode,share=1,noise=0", 60 * HORIZON, 0, tmp_path)
    assert (dataset.actions == dataset.actions[:, :1, :1]).all()
    near(dataset.actions[:, 0, 0] == two_doors.LEFT, 0.5)
    assert len({tuple(chunk.tolist()) for chunk in dataset.actions[:, 0, 0].view(20, 3)}) > 4


def test_another_file_of_teams_is_another_file_of_data(tmp_path, monkeypatch):
    for name in ("simple_spread-discrete.npz", TEAMS):
        (tmp_path / name).write_bytes((POLICY_DIR / name).read_bytes() + b"more" * (name == TEAMS))
    names = []
    for policies in (POLICY_DIR, tmp_path):
        monkeypatch.setattr(datasets, "POLICY_DIR", policies)
        for dataset in ("mix", "expert"):
            load_dataset("simple_spread", dataset, 100, 0, tmp_path / f"{len(names)}")
            names += os.listdir(tmp_path / f"{len(names)}")
    assert names[0] != names[2] and names[1] == names[3]


def test_dependence_of_a_file_without_it_is_measured_at_load(tmp_path):
    """And is what would be in the file."""
    whole = load_dataset(GAME, "mix:share=1", 2500, 0, tmp_path)
    (path,) = tmp_path.iterdir()
    for edits in (
        [(name, None) for name in datasets.MEASURED],
        [("dependence", None), ("dependence_error", 7.0)],
    ):
        (tmp_path / "own.h5").write_bytes(path.read_bytes())
        with h5py.File(tmp_path / "own.h5", "r+") as file:
            for edit in edits:
                attribute(*edit)(file)
        before = (tmp_path / "own.h5").read_bytes()
        assert load_dataset(GAME, str(tmp_path / "own.h5")).facts == whole.facts
        assert (tmp_path / "own.h5").read_bytes() == before


def test_strong_dependence_is_warned_about():
    def told(dependence, error=0.001):
        facts = dict(data_score=50.0, dependence=dependence, dependence_error=error)
        return describe(Dataset(torch.empty(0), torch.empty(0), torch.empty(0), facts)).splitlines()

    line = "mean score of the data 50.0, dependence of the agents' actions "
    assert told(0.0) == [line + "0.000 ± 0.001 nats"]
    assert told(0.0, math.inf) == [line + "not known (too few episodes)"]
    first, second = told(datasets.STRONG_DEPENDENCE + 0.01)
    assert first.startswith(line) and second.startswith("warning: the agents' actions depend on one another")


@pytest.mark.usefixtures("hardly_measured")
def test_logged_rows_of_the_game_are_its_transitions(tmp_path):
    """Rewards are those of the observation after them, and cells move as the actions say, or to 0 in a
    gust."""
    for dataset in ("random", "mix:share=1"):
        data = load_dataset(GAME, dataset, 20_000, 0, tmp_path)
        cells = (2 * data.observations[..., 0]).long()  # [E, T + 1, N]
        moved = (cells[:, :-1] + torch.tensor([0, -1, 1, 0, 0])[data.actions]).clamp(-2, 2)
        blown = (cells[:, 1:] == 0).all(-1)
        assert ((cells[:, 1:] == moved).all(-1) | blown).all() and (cells[:, 0] == 0).all()
        paid = (cells[:, 1:] == 2).all(-1) | (cells[:, 1:] == -2).all(-1)
        assert torch.equal(paid.float().unsqueeze(-1).expand(-1, -1, 3), data.rewards)
        assert torch.equal(data.observations[..., 0, 1:], (cells[..., 1:] - cells[..., :1]) / 4)
    random = load_dataset(GAME, "random", 20_000, 0, tmp_path)
    for action in range(NUM_ACTIONS):
        near(random.actions == action, 1 / NUM_ACTIONS)
    assert random.facts["random_score"] == two_doors.random_score() and random.facts["quality"] == "random"
    assert abs(random.facts["data_score"]) < 1
