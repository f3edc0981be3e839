"""The policies behind the datasets: densities, training, and files that are read or refused."""

import json
import os
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from common import SEEDS, Trap, generator, one_line, rejects, repeatable
from hypothesis import given
from mutants_data import TABLE
from scipy.special import rel_entr

from data import behaviour, datasets, mixes
from data.behaviour import default_args, mixture, noisier
from data.datasets import find_prey, load_dataset, normalise
from data.export import write_prey
from data.omar import PUBLISHED_CARDS, PUBLISHED_SCORES, Card, load_prey
from envs import make_env, shipped
from envs.half_cheetah import HalfCheetah
from envs.particles import ENV_IDS, WITH_PREY, Worlds
from envs.shipped import CONTINUOUS_ENV_IDS, POLICY, POLICY_DIR, Gaussian, greedy, init_mlp, load_policies

ALL = [(env_id, "discrete") for env_id in ENV_IDS] + [(env_id, "continuous") for env_id in CONTINUOUS_ENV_IDS]


@pytest.mark.parametrize("kind", POLICY)
def test_density_and_entropy_are_those_of_torchs_distributions(kind):
    """That samples are distributed so is tested on datasets (test_data.py)."""
    policy, actor = POLICY[kind], init_mlp(2, (6, 64, 64, 3), generator(0))
    actor[4] *= 2  # means away from zero
    actor += [torch.linspace(-1, 0, 3).expand(2, 1, -1)] * (kind == "continuous")
    obs = hidden = torch.randn(2, 50, 6, generator=generator(1))
    for layer in (0, 2):
        hidden = (hidden @ actor[layer] + actor[layer + 1]).relu()
    outputs, actions = hidden @ actor[4] + actor[5], policy.sample(actor, obs, generator(2))
    log_prob, entropy = policy.evaluate(actor, obs, actions)
    if kind == "discrete":
        expected, mode = torch.distributions.Categorical(logits=outputs), outputs.argmax(-1)
        torch.testing.assert_close(log_prob, expected.log_prob(actions))
        torch.testing.assert_close(entropy, expected.entropy())
    else:
        expected, mode = torch.distributions.Normal(outputs.tanh(), actor[6].exp()), outputs.tanh()
        torch.testing.assert_close(log_prob, expected.log_prob(actions).sum(-1))
        torch.testing.assert_close(entropy, (expected.entropy() - outputs**2).sum(-1))
        assert actions.abs().max() > 1, "unclipped here"
    torch.testing.assert_close(greedy([p[:1] for p in actor], kind)(obs[0]), mode[0])


# ------------------------------------------------------------------------------------------------ training


def make(out, env_id, kind, *flags):
    """Run `python -m data.behaviour` here, judging on few episodes, with short ones of HalfCheetah."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(HalfCheetah, "horizon", 25)
        flags = ("--env-id", env_id, "--action-kind", kind, "--score-episodes", 20, "--out", out, *flags)
        behaviour.main([*map(str, flags)])


@pytest.mark.parametrize(
    ("env_id", "kind"),
    [("simple_spread", "discrete"), ("simple_tag", "continuous"), ("HalfCheetah-2x3", "continuous")],
)
def test_training_writes_a_file_that_loads_and_is_deterministic(env_id, kind, tmp_path):
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        flags = ("--seed", seed, "--iterations", 3, "--num-worlds", 8, "--selfplay-iterations", 2)
        make(tmp_path / name, env_id, kind, *flags, "--value-iterations", 1, "--kept-iterates", 2)
        assert os.listdir(tmp_path / name) == [f"{env_id}-{kind}.npz"]
    first, again, other = (load_policies(env_id, folder=tmp_path / name, action_kind=kind) for name in "abc")
    assert all(map(torch.equal, first.iterates[-1], again.iterates[-1])) and first.facts == again.facts
    assert not any(map(torch.equal, first.iterates[-1], other.iterates[-1]))
    assert not any(map(torch.equal, first.iterates[0], first.iterates[-1])), "all parameters moved"
    facts = first.facts
    assert len(first.iterates) == len(facts["kept_iterations"]) <= 3
    assert facts["kept_iterations"][-1] == round(3 * facts["training"]["expert_at"])
    assert [sum(weights) for weights in facts["weights"].values()] == pytest.approx([1, 1], abs=1e-3)
    assert (facts["env_id"], facts["action_kind"]) == (env_id, kind)
    assert (first.prey is None) == (env_id not in WITH_PREY)
    assert facts["training"]["learning_rate"] == default_args(env_id, kind).learning_rate
    low, high = PUBLISHED_SCORES[env_id]
    if kind == "continuous":
        assert (facts["random_score"], facts["expert_score"]) == (low, high)
    else:  # those of uniform play, and of the half-precision networks in the file
        judge = make_env(env_id, 20, seed=4)
        assert behaviour.play(judge, None, 5).mean() == pytest.approx(facts["random_score"], abs=1e-4)
        score = normalise(float(behaviour.play(judge, first.iterates[-1], 5).mean()), facts)
        assert score == pytest.approx(100 * (PUBLISHED_CARDS[env_id]["expert"].mean - low) / (high - low))


def test_standard_scores_are_folded_into_the_saved_actors():
    worlds = HalfCheetah(4)
    worlds.horizon = 50
    team = behaviour.Team(worlds, range(2), default_args("HalfCheetah-2x3", "continuous"), torch.Generator())
    assert team.obs_std.max() > 5 * team.obs_std.min(), "the raw numbers are of different sizes"
    for action in torch.rand(20, 4, 2, 3, generator=generator(0)) * 2 - 1:
        worlds.step(action)
    obs, raw = team.observe(worlds), torch.stack([worlds.observe(0), worlds.observe(1)])
    assert 0.3 < obs.std() < 3
    with torch.no_grad():
        torch.testing.assert_close(Gaussian.greedy(team.snapshot(), raw), Gaussian.greedy(team.actor, obs))


def test_values_learn_first_and_move_no_actor():
    args = default_args("simple_spread", "continuous")
    args = replace(args, num_worlds=16, value_iterations=3, iterations=1)
    worlds, draws = Worlds("simple_spread", 16, "continuous"), generator(1)
    team = behaviour.Team(worlds, range(3), args, draws)
    before = [p.detach().clone() for p in team.actor], [p.detach().clone() for p in team.critic]
    (_, start), (_, end) = behaviour.train(worlds, [team], 1, args, draws, "test")
    assert all(map(torch.equal, before[0], start)) and not any(map(torch.equal, before[0], end))
    assert not any(map(torch.equal, before[1], team.critic))


@pytest.mark.parametrize("kind", POLICY)
def test_ppo_raises_the_return(kind, monkeypatch):
    """Against a prey of hardly any self-play; seeds 1 and 2 gain 11 to 56."""
    judged = []
    measure = lambda *given: judged.extend(given) or ({}, [given[0][-1][1]])  # noqa: E731
    monkeypatch.setattr(behaviour, "levels", measure)
    args = replace(default_args("simple_tag", kind), iterations=30, num_worlds=40, selfplay_iterations=2)
    behaviour.train_behaviour(replace(args, value_iterations=3, learning_rate=3e-3, score_episodes=300))
    iterates, judge, _ = judged
    gained = behaviour.play(judge, iterates[-1][1], 5).mean() - behaviour.play(judge, None, 5).mean()
    returns = [returned for returned, _ in iterates[:-1]]
    assert gained > 10 < np.mean(returns[-5:]) - np.mean(returns[:5]) and len(returns) == 30


@pytest.mark.parametrize(("env_id", "kind"), ALL)
def test_shipped_policies_are_good_enough(env_id, kind):
    """That their data are like the paper's is tested on datasets (test_data.py)."""
    policies, path = load_policies(env_id, action_kind=kind), shipped.policy_file(env_id, action_kind=kind)
    facts = policies.facts
    gain = facts["expert_score"] - facts["random_score"]
    assert gain > dict(simple_spread=300, simple_tag=60, simple_world=25).get(env_id, 2500)
    assert len(policies.iterates) == len(facts["kept_iterations"]) <= 101 and path.stat().st_size < 3.5e6
    obs = make_env(env_id, 20, seed=1, action_kind=kind).reset().transpose(0, 1)
    assert shipped.mlp(policies.iterates[0][:6], obs).abs().max() < 0.3, "the first plays almost uniformly"


def check_mixture(make, seed):
    """All episodes together have the mean and deviation of the card, and no other weights that give it are
    nearer to equal ones."""
    rng = np.random.default_rng(seed)
    mean = np.sort(rng.normal(0, 50, rng.integers(3, 80)))
    deviation, other = rng.uniform(5, 60, len(mean)), rng.dirichlet(np.ones(len(mean)))

    def all_episodes(weights):
        return weights @ mean, np.sqrt(weights @ (deviation**2 + (mean - weights @ mean) ** 2))

    def apart(weights):  # relative entropy to equal weights
        return np.sum(rel_entr(weights, 1 / len(weights)))

    card = Card(*all_episodes(other), 0)
    weights = make(mean, deviation, card)
    assert weights.min() >= 0 and weights.sum() == pytest.approx(1)
    assert all_episodes(weights) == pytest.approx(card[:2], abs=0.5)
    assert apart(weights) <= apart(other) + 1e-6


@repeatable
@given(seed=SEEDS)
def test_a_mixture_has_the_published_mean_and_deviation(seed):
    check_mixture(mixture, seed)


def test_the_check_of_mixtures_can_fail():
    for wrong in TABLE["mixture"].values():
        rejects(check_mixture, wrong, 0)


def test_where_no_mixture_fits_the_nearest_iterate_plays():
    mean = np.array([10.0, 20.0, 30.0])
    for card, nearest in ((Card(90, 5, 0), 2), (Card(0, 5, 0), 0)):
        assert mixture(mean, np.full(3, 5.0), card)[nearest] > 0.99


def test_noise_brings_the_expert_to_the_published_returns():
    """Where one deviation of the actions gives mean and deviation of the returns, it is found; up to chance,
    with 1000 returns of a deviation below 100."""
    expert = load_policies("simple_spread", action_kind="continuous").iterates[-1]
    worlds = Worlds("simple_spread", 1000, "continuous")
    for deviation in (0.7, 1.2):
        returns = behaviour.play(worlds, [*expert[:-1], torch.full_like(expert[-1], deviation).log()], 1)
        noisy = noisier(worlds, expert, Card(float(returns.mean()), float(returns.std()), 0), 357.0, 2)
        found = behaviour.play(worlds, noisy, 3)
        assert abs(found.mean() - returns.mean()) < 15 and abs(found.std() / returns.std() - 1) < 0.15
        assert noisy[-1].shape == expert[-1].shape and all(map(torch.equal, noisy[:-1], expert[:-1]))


def test_policies_are_trained_against_another_prey_and_read(tmp_path, monkeypatch):
    """Which is what random data can be simulated against without them."""
    prey, out = tmp_path / "pretrained_adv_model.pt", tmp_path / "own"
    write_prey(prey, init_mlp(1, (14, 64, 64, 2), generator(5)))
    monkeypatch.setattr(mixes, "UPDATES", 2)
    flags = ("--iterations", 2, "--num-worlds", 4, "--value-iterations", 0)
    for env_id, file, words in (
        ("simple_tag", tmp_path / "none.pt", "--prey is for simple_tag and simple_world, and a file: "),
        ("simple_world", prey, "size mismatch"),
        ("simple_spread", prey, "--prey is for simple_tag and simple_world"),
    ):
        call = lambda env_id=env_id, file=file: make(out, env_id, "continuous", "--prey", file)  # noqa: E731
        assert words in one_line(call) and not list(out.glob("*"))
    make(out, "simple_tag", "continuous", "--prey", prey, *flags)
    own = load_policies("simple_tag", folder=out, action_kind="continuous")
    assert all(map(torch.equal, own.prey, load_prey(prey, "simple_tag")))

    def simulate(dataset, **given):
        folder = tmp_path / "datasets"
        return load_dataset("simple_tag", dataset, 500, 0, folder, "continuous", **given)

    given = {}, dict(prey=str(prey)), dict(policies=str(out))
    usual, against, by = (simulate("random", **each) for each in given)
    assert len(list((tmp_path / "datasets").iterdir())) == 3
    assert against.facts["hash"] == by.facts["hash"] != usual.facts["hash"]
    assert simulate("medium", **given[2]).facts["hash"] != simulate("medium").facts["hash"]
    words = "python -m data.behaviour --env-id simple_tag --action-kind continuous"
    words += f" --prey {prey} --out FOLDER, then --policies"
    assert words in one_line(lambda: simulate("medium", **given[1]))
    for dataset in ("random", "own.h5"):
        assert "not both" in one_line(lambda dataset=dataset: simulate(dataset, **given[1], **given[2]))
    asked = SimpleNamespace(env_id="simple_tag", dataset="medium", prey=None, policies=str(out))
    obs = torch.randn(9, 14, generator=generator(1))
    assert torch.equal(find_prey(asked)(obs), greedy(own.prey, "continuous")(obs))


def test_failed_training_leaves_no_file(tmp_path, monkeypatch):
    def half_written(partial, **_):
        Path(partial).write_text("half")
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(behaviour, "train_behaviour", lambda args: {"facts": np.array("{}")})
        patch.setattr(np, "savez_compressed", half_written)
        assert "No space left" in one_line(lambda: make(tmp_path / "out", "simple_tag", "discrete"))
    assert list((tmp_path / "out").iterdir()) == []
    monkeypatch.setattr(behaviour, "train_behaviour", lambda args: pytest.fail("trained in vain"))
    (tmp_path / "file").write_text("")
    forces, here = ["--action-kind", "continuous"], os.path.relpath(POLICY_DIR)
    for out, flags, words in (
        ("file/out", [], "cannot write"),
        ("new", ["--iterations", 0], "--iterations must be at least 1"),
        ("new", ["--value-iterations", -1], "--value-iterations must be at least 0"),
        ("new", ["--score-episodes", 1], "--score-episodes must be at least 2"),
        ("new", ["--expert-at", 1.5], "--expert-at 1.5 is out of range"),
        ("new", ["--prey", "file"], "--prey is for --action-kind continuous, and --out FOLDER"),
        (POLICY_DIR, forces + ["--prey", "file"], "--prey is for --action-kind continuous, and --out FOLDER"),
        (here, forces + ["--prey", "file"], "--prey is for --action-kind continuous, and --out FOLDER"),
    ):
        place = out if out == here else tmp_path / out
        call = lambda out=place, flags=flags: make(out, "simple_tag", "discrete", *flags)  # noqa: E731
        assert words in one_line(call)
    assert not (tmp_path / "new").exists()


# --------------------------------------------------------------------------------------------------- files


def facts(**changes):
    """An edit of a policy file's arrays: other facts."""
    return lambda arrays: arrays.update(facts=json.dumps(json.loads(str(arrays["facts"])) | changes))


def trap(name):
    """An edit of a policy file's arrays: an object that makes the folder ./executed when it is unpickled."""
    return lambda arrays: arrays.update({name: np.array([Trap("executed")], dtype=object)})


BAD_POLICIES = [
    (lambda a: a.pop("actor6"), "actor6"),
    (lambda a: a.pop("prey5"), "prey5"),
    (lambda a: a.pop("facts"), "facts"),
    (facts(random_score=float("nan")), "scores are not finite"),
    (facts(env_id="simple_world"), "policies of simple_world"),
    (facts(action_kind="discrete"), "discrete policies"),
    (lambda a: a.update(actor0=a["actor0"][:-1]), "how often each iterate plays"),
    (facts(weights=dict(medium=[-1] + [1] * 68)), "how often each iterate plays"),
    (lambda a: a["actor2"].__setitem__((0, 0, 0, 0), np.nan), "parameter is not finite"),
    (trap("facts"), "allow_pickle=False"),
    (trap("actor0"), "allow_pickle=False"),
]


@pytest.mark.parametrize(("change", "words"), BAD_POLICIES)
def test_bad_policy_file_is_refused(change, words, tmp_path, monkeypatch):
    """A changed copy of a shipped one: change gets the dict of its arrays."""
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "simple_tag-continuous.npz"
    with np.load(POLICY_DIR / path.name) as file:
        arrays = dict(file)
    change(arrays)
    np.savez(path, **arrays)
    message = one_line(lambda: load_policies("simple_tag", folder=tmp_path, action_kind="continuous"))
    assert words in message and str(path) in message and not Path("executed").exists()


def test_missing_policies_and_unknown_tasks_name_the_way_out(tmp_path, monkeypatch):
    folder, world = tmp_path / "datasets", ("simple_world", "continuous")
    monkeypatch.setattr(datasets, "POLICY_DIR", tmp_path)
    command = "python -m data.behaviour --env-id simple_world --action-kind continuous"
    for call, words in (
        (lambda: load_policies(world[0], folder=tmp_path, action_kind=world[1]), command),
        (lambda: datasets.load_dataset(world[0], "random", 100, 0, folder, world[1]), command),
    ):
        assert words in one_line(call)
    assert not folder.exists()
