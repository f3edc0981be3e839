"""One whole round of both training scripts, against separate networks one transition after another.

What is drawn is taken from the run: the functions that draw are tested in test_scripts_equations.py.
"""

import pytest
import torch
from common import close, gradients, load, rejects, separate_network
from mutants_scripts import ROUND
from torch.utils._pytree import tree_map

from data.datasets import load_dataset

SPIED = "per_seed sample_policy partial_replacement penalty_candidates".split()
SETTING = "--num-seeds 2 --batch-size 16 --learning-rate 0.03 --cql-alpha 0.3 --eval-every 9 --name round"


class Spy:
    """Notes what a round's functions are given and return, and the gradients before they are clipped."""

    def __init__(self, module, patch):
        self.calls, self.gradients = {name: [] for name in SPIED}, []
        for name in SPIED:
            patch.setattr(module, name, self.noting(name, getattr(module, name)))
        clip, params = module.clip_gradients, []

        def noting_clip(of_one):
            self.gradients.append([p.grad.clone() for p in of_one])
            params.append(of_one)
            self.critic = [p.detach().clone() for p in params[0]]  # in the end as the actors find it
            clip(of_one)

        patch.setattr(module, "clip_gradients", noting_clip)

    def noting(self, name, original):
        copy = lambda x: x.detach().clone() if isinstance(x, torch.Tensor) else x  # noqa: E731

        def noting(*args):
            result = original(*args)
            self.calls[name].append((tree_map(copy, args), result))
            return result

        return noting

    def index(self):
        """The transitions drawn, [S, B]."""
        return next(result for (draw, *_), result in self.calls["per_seed"] if draw is torch.randint)


def separate(params, s):
    """The stacked networks of seed s, each by itself."""
    return [separate_network(params, s, m) for m in range(params[0].shape[1])]


def values(networks, states, joint):
    """Q [networks, rows] of joint actions [rows, N, A]."""
    return torch.stack([network(torch.cat([states, joint.flatten(1)], 1))[:, 0] for network in networks])


def same(actual, expected):
    close(actual.double(), expected.double(), 1e-5)


def reference(script, args, dataset, saved, spy, s):
    """The critics and the actors of seed s, with the gradients that the round must have."""
    module, doubles = script.module, lambda x: x[s].double()
    continuous = script.kind == "continuous"
    data, _ = module.prepare(dataset, torch.device("cpu"))
    index = spy.index()[s]
    assert index.shape == (16,) and 0 <= index.min() and index.max() < len(data[0])
    s1, o1, a1, reward, s2, o2, a2 = (x[index].double() for x in data)
    critics, targets, actors = (separate(saved[name], s) for name in ("critic", "target_critic", "actor"))
    batch, num = a1.shape[:2]

    with torch.no_grad():  # equations (1) to (4)
        (actor, obs, *_), sampled = spy.calls["sample_policy"][0]
        (logged, policy, order, sizes), _ = spy.calls["partial_replacement"][0]
        assert all(map(torch.equal, actor, saved["target_actor"])) and torch.equal(policy, sampled)
        assert any(torch.equal(order, draw) for _, draw in spy.calls["per_seed"])
        assert sizes.tolist() == {"icql-qs": [1], "joint": [num]}.get(args["backup"], list(range(1, num + 1)))
        same(obs[s], o2)
        same(logged[s], a2)
        lowest, weights = [], []
        for j, k in enumerate(sizes.tolist()):
            joint = a2.clone()
            for b in range(batch):
                chosen = order[s, b, j].argsort()[:k]
                joint[b, chosen] = sampled[s, b, j, chosen].double()
            lowest.append(values(targets, s2, joint).amin(0))
            weights.append(1 / values(critics, s2, joint).std(0, correction=0))
        if args["backup"] != "spacql":
            weights = [torch.ones(batch).double()] * len(sizes)
        y = reward + args["gamma"] * sum(w * q for w, q in zip(weights, lowest, strict=True)) / sum(weights)

    (_, actions, *policies, _), (candidates, log_weights) = spy.calls["penalty_candidates"][0]  # equation (5)
    same(actions[s], a1)
    if continuous:
        places = (o1, o2) if args["env_id"] == "HalfCheetah-2x3" else ()
        for policy, obs in zip(policies[0], places, strict=True):
            same(policy[s], torch.stack([actors[i](obs[:, i]).tanh() for i in range(num)], dim=1))
    q, penalty = values(critics, s1, a1), 0.0
    some, count = log_weights.shape[2:]
    assert some == (args["penalty_agents"] if args["penalty"] == "cfcql" else 1)
    for m in range(some):
        rows = [values(critics, s1, doubles(candidates)[:, m, c]) for c in range(count)]
        weighted = torch.stack(rows, -1) + doubles(log_weights)[:, m]  # [E, B, C]
        penalty = penalty + (weighted.exp().sum(-1).log() - q) / some
    ((q - y) ** 2 + args["cql_alpha"] * penalty).mean(1).sum().backward()

    others, critics_then = a1, separate(spy.critic, s)  # equation (6), with the critics after their step
    clone_weight = args["clone_weight"] * dataset.facts["predictability"] ** 2
    if args["actor_others"] == "policy" and continuous:
        others = torch.stack([actors[i](o1[:, i]).tanh().detach() for i in range(num)], dim=1)
    elif args["actor_others"] == "policy":
        (actor, obs, *_), others = spy.calls["sample_policy"][1]
        assert all(map(torch.equal, actor, saved["actor"]))
        same(obs[s], o1)
        others = others[s, :, 0].double()
    for i, network in enumerate(actors):
        outputs = network(o1[:, i])

        def value(own, i=i):
            joint = torch.stack([own if j == i else others[:, j] for j in range(num)], dim=1)
            return values(critics_then, s1, joint).mean(0)

        if continuous:
            action = outputs.tanh()
            small = module.ACTION_L2 * action.square().mean() + args["output_l2"] * outputs.square().mean()
            loss = small + clone_weight * (action - a1[:, i]).square().mean() - value(action).mean()
        else:
            log_pi, every_action = outputs.log_softmax(-1), torch.eye(5).double()
            each = torch.stack([value(a.expand(batch, -1)) for a in every_action], -1).detach()
            entropy, imitation = -(log_pi.exp() * log_pi).sum(-1), (log_pi * a1[:, i]).sum(-1)
            bonus = args["entropy_coef"] * entropy + clone_weight * imitation
            loss = -((log_pi.exp() * each).sum(-1) + bonus).mean()
        loss.backward()
    return dict(critic=critics, actor=actors)


def check_round(script, data_dir, flags):
    """After three rounds the next one has the reference's gradients, its steps are Adam's and Polyak's."""
    module = script.module
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "CRITIC_UPDATES", 1)
        script.train(data_dir, f"{SETTING} {flags} --rounds 3")
        saved, spy = load("runs/round"), Spy(module, patch)
        module.main("--resume runs/round --rounds 4".split())
        after, args = load("runs/round"), saved["args"]
    source = [args[k] for k in "env_id dataset dataset_size data_seed data_dir".split()]
    dataset = load_dataset(*source, script.kind)
    assert len(spy.gradients) == 2 and len(spy.calls["partial_replacement"]) == 1
    assert not torch.equal(*spy.index()), "each seed draws its own transitions"
    for s in range(2):
        networks = reference(script, args, dataset, saved, spy, s)
        for name, actual in zip(networks, spy.gradients, strict=True):
            for m, network in enumerate(networks[name]):
                for mine, theirs in zip(actual, gradients(network), strict=True):
                    assert (mine[s, m] - theirs).norm() < 1e-4 * theirs.norm() + 1e-6, name
    tau = 0.005 if args["env_id"] == "HalfCheetah-2x3" else 0.01
    for name, grads in zip(("critic", "actor"), spy.gradients, strict=True):
        params = [p.requires_grad_() for p in saved[name]]
        adam = torch.optim.Adam(params, args["learning_rate"])
        adam.load_state_dict(saved[f"{name}_adam"] | dict(param_groups=adam.state_dict()["param_groups"]))
        norms = sum(grad.square().sum((2, 3)) for grad in grads).sqrt()[..., None, None]
        for p, grad in zip(params, grads, strict=True):
            p.grad = grad * (0.5 / norms).clamp(max=1)
        adam.step()
        targets = zip(saved[f"target_{name}"], after[f"target_{name}"], strict=True)
        for p, new, (slow, slower) in zip(params, after[name], targets, strict=True):
            close(new, p.detach(), 1e-5)
            close(slower, slow + tau * (new - slow), 1e-6)


ROUNDS = [
    "--clone-weight 2 --penalty-agents 2",
    "--penalty macql --backup uniform",
    "--backup joint --actor-others policy --env-id simple_tag --dataset expert",
    "--backup icql-qs --env-id {0.world} {0.world_flags}",
]


@pytest.mark.parametrize("flags", ROUNDS)
def test_a_round_is_the_one_of_separate_networks(flags, script, run, data_dir, monkeypatch):
    """In the first the batch goes through the critics in four to eight parts."""
    if flags == ROUNDS[0]:
        monkeypatch.setattr(script.module, "CACHE_NUMBERS", 1000)
    check_round(script, data_dir, flags.format(script))


@pytest.mark.parametrize("mutant", [(part, name) for part in ROUND for name in ROUND[part]], ids=": ".join)
def test_a_mistake_in_a_round_is_noticed(mutant, script, run, data_dir):
    part, name = mutant
    rejects(check_round, script.edited(*ROUND[part][name]), data_dir, "")
