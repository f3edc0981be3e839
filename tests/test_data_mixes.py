"""Mixtures of teams against the probabilities that the dial promises, and the dependence of logged actions
against exact values."""

import json
import math
from dataclasses import replace
from types import SimpleNamespace

import h5py
import pytest
import torch
from common import SIGMAS, generator, one_line, rejects, repeatable
from hypothesis import example, given
from hypothesis import strategies as st
from mutants_data import TABLE

import data.datasets as datasets
from data import mixes
from data.datasets import describe, load_dataset
from data.mixes import Mix, measure_dependence, parse_mix
from envs import two_doors
from envs.particles import HORIZON, NUM_ACTIONS
from utils.errors import InputError

GAME = two_doors.ENV_ID
MIXES = st.builds(Mix, st.floats(0, 1), st.floats(0, 1))


def near(happened, probability):
    """A share of booleans is what this probability gives, up to chance."""
    spread = SIGMAS * math.sqrt(happened.numel() * probability * (1 - probability)) + 1e-9
    assert abs(int(happened.sum()) - happened.numel() * probability) <= spread


# ------------------------------------------------------------------------------------ what a mix is called


@repeatable
@given(mix=MIXES, other=MIXES, order=st.permutations(["share", "noise"]))
@example(Mix(0.1, 0.2), Mix(0.2, 0.1), ["noise", "share"])
@example(Mix(0.333, 0.0), Mix(0.33300001, 0.0), ["share", "noise"])
def test_every_mix_has_a_text_in_any_order_and_one_name(mix, other, order):
    text = "mix:" + ",".join(f"{key}={getattr(mix, key)}" for key in order)
    assert parse_mix(text, GAME) == mix
    assert all(letter.isalnum() or letter in "-+." for letter in mix.name)
    assert (mix.name == other.name) == (mix == other)


def test_what_is_not_said_has_a_default():
    default = Mix(0.5, 0.1)
    for text in ("mix", "mix:", "mix:share=0.5,noise=0.1"):
        assert parse_mix(text, GAME) == default
    assert parse_mix("mix:share=.25", GAME) == replace(default, share=0.25)
    assert parse_mix("mix:share=-0,noise=1e-3", GAME).name == "mix-share0.0-noise0.001"


KEYS = "mix: expected KEY=VALUE,... with keys share, noise, each once at most, not "
REFUSED = [
    (GAME, "mix:share=a\nb", r"mix: share must be a number from 0 to 1, not 'a\nb'"),
    (GAME, "mix:share=nan", "mix: share must be a number from 0 to 1, not 'nan'"),
    (GAME, "mix:share=1_0", "mix: share must be a number from 0 to 1, not '1_0'"),
    (GAME, "mix:noise=２", "mix: noise must be a number from 0 to 1, not '２'"),
    (GAME, "mix:shre=1", KEYS + "'shre=1'"),
    (GAME, "mix:teams=2", KEYS + "'teams=2'"),
    (GAME, "mix:share=1,noise=0,share=1", KEYS + "'share=1,noise=0,share=1'"),
    ("simple_tag", "mix", "simple_tag has no teams to mix; two_doors has"),
    (GAME, "medium", "two_doors has no medium data: choose random or mix:share=0.5,noise=0.1"),
]


@pytest.mark.parametrize(("env_id", "text", "words"), REFUSED)
def test_bad_mix_is_refused_in_one_line(env_id, text, words, tmp_path):
    assert words in one_line(lambda: load_dataset(env_id, text, folder=tmp_path))
    assert list(tmp_path.iterdir()) == []


@repeatable
@given(text=st.text(max_size=30))
def test_any_text_is_a_mix_or_refused(text):
    try:
        mix = parse_mix(f"mix:{text}", GAME)
    except InputError as error:
        assert str(error).isprintable()
    else:
        assert 0 <= mix.share <= 1 and 0 <= mix.noise <= 1


# ----------------------------------------------------------------------------------------- who acts as whom


def play(share, teams, count=4000, steps=4, num=3):
    """Actions [count, steps, num] of a mix of so many teams; team m always plays action m."""
    fixed = [lambda obs, _, m=m: torch.full(obs.shape[:2], m) for m in range(teams)]
    mix, obs, draws = Mix(share, 0.0, fixed), torch.zeros(count, num, 1), generator(0)
    return torch.stack([mix(obs, draws) for _ in range(steps)], dim=1)


@pytest.mark.parametrize(("teams", "share"), [(1, 0.0), (2, 0.0), (3, 0.3), (4, 0.5), (2, 1.0)])
def test_agents_share_a_team_as_often_as_the_dial_says_at_each_step_anew(teams, share):
    played = play(share, teams)
    near(played[:, 0, 0] == played[:, 1, 0], 1 / teams)
    drawn = played[:, 2]
    for i, j in ((0, 1), (1, 2), (2, 0)):
        for team in range(teams):
            near(drawn[:, i] == team, 1 / teams)
        near(drawn[:, i] == drawn[:, j], share + (1 - share) / teams)
    near((drawn == drawn[:, :1]).all(1), share + (1 - share) / teams**2)


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
    members = (1 - mix.noise) * members.double() + mix.noise / NUM_ACTIONS
    together = torch.einsum("mra,mrb,mrc->rabc", *members.unbind(1)) / len(members)
    return mix.share * together + (1 - mix.share) * torch.einsum("ra,rb,rc->rabc", *members.mean(0))


def check_plays(actions, mix, members):
    """Joint actions [rows, 3] in one state are as often as the mix of members [M, N, 1, A] has them, and the
    agents' own are the same at every dial."""
    joint, own = (joint_of(dial, members)[0] for dial in (mix, replace(mix, share=0.0)))
    codes = (actions * torch.tensor([25, 5, 1])).sum(1)
    for code, probability in enumerate(joint.flatten().tolist()):
        near(codes == code, probability)
    for agent, axes in enumerate(([1, 2], [0, 2], [0, 1])):
        torch.testing.assert_close(joint.sum(axes), own.sum(axes))
        for action, probability in enumerate(own.sum(axes).tolist()):
            near(actions[:, agent] == action, probability)


@pytest.mark.parametrize("share", [0.0, 0.4, 1.0])
def test_mixed_teams_act_as_the_dial_says(share):
    """In either of two states, that agents see, by three teams whose members draw actions from distributions
    of their own."""
    members = torch.rand((3, 3, 2, NUM_ACTIONS), generator=generator(5)) ** 4
    members /= members.sum(-1, keepdim=True)  # [M, N, states, A]

    def team(own):
        seen = lambda obs: own[torch.arange(3), obs[..., 0].long()].flatten(0, 1)  # noqa: E731
        return lambda obs, draws: seen(obs).multinomial(1, generator=draws).view(-1, 3)

    state, mix = torch.arange(40_000) % 2, Mix(share, 0.1, [team(own) for own in members])
    actions = mix(state.view(-1, 1, 1).expand(-1, 3, 1), generator(3))
    for s in (0, 1):
        check_plays(actions[state == s], mix, members[:, :, s : s + 1])


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
    """It is repeatable, and leaves the data alone."""
    data = coin(share)
    copies, measured = (data.observations.clone(), data.actions.clone()), measure_dependence(data)
    torch.rand(3)  # global random numbers must not matter
    assert measure_dependence(data) == measured != measure_dependence(data, seed=1)
    assert torch.equal(data.observations, copies[0]) and torch.equal(data.actions, copies[1])
    agrees(measured, exact_coin(share))
    assert exact_coin(1.0) == pytest.approx(math.log(2)) and exact_coin(0.0) == pytest.approx(0)
    assert (measured["dependence"] > 0.1) == (share > 0)


@pytest.mark.parametrize("wrong", TABLE["dependence"].values(), ids=TABLE["dependence"])
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


@pytest.mark.filterwarnings("error")
def test_dependence_of_continuous_actions():
    """A shared sign of all numbers; the sizes are independent, and below a third a sign does not show. Slices
    of larger arrays are measured without a warning of a library."""
    data, width = coin(1.0), 3
    sizes = torch.rand((*data.actions.shape, 2 * width), generator=generator(2))
    data.actions = (sizes * (2 * data.actions.unsqueeze(-1) - 1))[..., ::2]
    value = measure_dependence(data)["dependence"]
    hidden = 3.0**-width  # no number shows the sign
    expected = (1 - hidden) * (1 - hidden**2) * math.log(2)  # own sign and one of the others' are to be seen
    assert 0.85 < value / expected < 1.1
    data.actions = torch.stack([data.actions[:, :, i].roll(i, 0) for i in range(3)], 2)  # of other episodes
    assert measure_dependence(data)["dependence"] < 0.02


def test_predictability_is_what_the_state_leaves_open():
    """Of uniform actions 1 - log(how many an agent chooses from) / log(5)."""
    data = coin(0.0)
    for chosen in (1, 5):
        data.actions = torch.randint(chosen, data.actions.shape, generator=generator(3))
        expected = 1 - math.log(chosen) / math.log(NUM_ACTIONS)
        assert measure_dependence(data)["predictability"] == pytest.approx(expected, abs=0.02)
    data.actions = (data.observations[:, :-1, :, 0] > 0).long()
    assert measure_dependence(data)["predictability"] > 0.9, "the state tells"
    data.observations = data.observations.roll(1, 0)  # of another episode
    expected = 1 - math.log(2) / math.log(NUM_ACTIONS)
    assert measure_dependence(data)["predictability"] == pytest.approx(expected, abs=0.03)


def test_large_data_are_thinned_out(monkeypatch):
    monkeypatch.setattr(mixes, "MEASURED_EPISODES", 50)
    monkeypatch.setattr(mixes, "MEASURED_ROWS", 400)
    data = coin(0.5, count=149)
    states, actions, _ = mixes.look_at(data)
    assert torch.equal(actions, data.actions[::3, ::4]) and states.shape == (50, 7, 12)
    torch.testing.assert_close(states.mean((0, 1)), torch.zeros(12), atol=1e-5, rtol=0)


def test_few_episodes_tell_nothing():
    nothing = dict(dependence=0.0, dependence_error=math.inf, predictability=0.0)
    assert measure_dependence(coin(1.0, count=1)) == measure_dependence(coin(1.0, count=7)) == nothing
    assert measure_dependence(coin(1.0, count=8))["dependence_error"] < math.inf


def test_the_dial_moves_the_dependence_of_walkers_and_nothing_else(tmp_path):
    """In every state of the game the exact value is that of two teams that play -x and +x, with noise."""
    measured = []
    members = torch.eye(NUM_ACTIONS)[[two_doors.LEFT, two_doors.RIGHT]][:, None, None].expand(-1, 3, 1, -1)
    for share in (0.0, 0.5, 1.0):
        dataset, mix = load_dataset(GAME, f"mix:share={share}", 20_000, 0, tmp_path), Mix(share, 0.1)
        check_plays(dataset.actions.flatten(0, 1), mix, members)
        agrees(dataset.facts, exact_dependence(joint_of(mix, members)))
        measured.append(dataset.facts["dependence"])
    assert measured[0] < 0.01 and measured[0] + 0.05 < measured[1] < 0.4 * measured[2]


# ------------------------------------------------------------------------------------------- files of mixes


def test_mix_is_cached_under_a_name_of_its_own(tmp_path, monkeypatch):
    monkeypatch.setattr(mixes, "UPDATES", 2)  # dependence is not the question
    spellings = ["mix:share=0.5", "mix:noise=1e-1"]
    first, again = (load_dataset(GAME, text, 2500, 3, tmp_path) for text in spellings)
    (path,) = tmp_path.iterdir()
    assert path.name.startswith("two_doors-discrete-mix-share0.5-noise0.1-2500-seed3-")
    path.unlink()
    anew, other = (load_dataset(GAME, spellings[0], 2500, seed, tmp_path) for seed in (3, 4))
    assert first.facts == again.facts == anew.facts and torch.equal(first.actions, anew.actions)
    assert not torch.equal(first.actions, other.actions)
    facts = first.facts
    assert (facts["quality"], facts["dataset"]) == ("mix", "mix-share0.5-noise0.1")
    assert json.loads(facts["behaviour"]) == {}
    scores = two_doors.random_score(), two_doors.optimal_score()
    assert (facts["random_score"], facts["expert_score"]) == scores
    load_dataset(GAME, "mix:share=0.6", 2500, 3, tmp_path)
    assert abs(load_dataset(GAME, "random", 2500, 3, tmp_path).facts["data_score"]) < 2
    assert len(list(tmp_path.iterdir())) == 4


def test_every_chunk_draws_its_teams_anew(tmp_path, monkeypatch):
    """Each step by one team, simulated in chunks of three episodes."""
    monkeypatch.setattr(mixes, "UPDATES", 2)
    monkeypatch.setattr(datasets, "CHUNK_STEPS", 3 * HORIZON)
    dataset = load_dataset(GAME, "mix:share=1,noise=0", 60 * HORIZON, 0, tmp_path)
    assert (dataset.actions == dataset.actions[:, :, :1]).all()
    near(dataset.actions[:, :, 0] == two_doors.LEFT, 0.5)
    assert len({tuple(chunk.tolist()) for chunk in dataset.actions[:, 0, 0].view(20, 3)}) > 4


def test_dependence_of_a_file_without_it_is_measured_at_load(tmp_path):
    """And is what would be in the file."""
    whole = load_dataset(GAME, "mix:share=1", 2500, 0, tmp_path)
    (path,) = tmp_path.iterdir()
    own = tmp_path / "own.h5"
    for missing in (datasets.MEASURED, ["dependence"]):
        own.write_bytes(path.read_bytes())
        with h5py.File(own, "r+") as file:
            for name in missing:
                del file.attrs[name]
        before = own.read_bytes()
        assert load_dataset(GAME, str(own)).facts == whole.facts and own.read_bytes() == before


def test_strong_dependence_is_warned_about():
    def told(dependence, error=0.001):
        facts = dict(data_score=50.0, dependence=dependence, dependence_error=error, hash="0123abcd")
        return describe(SimpleNamespace(facts=facts))

    assert "warning" in told(datasets.STRONG_DEPENDENCE + 0.01) and "warning" not in told(0.0)
    assert "not known" in told(0.0, math.inf) and told(0.0).startswith("data 0123abcd, mean score 50.0")
