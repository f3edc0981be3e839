"""SPaCQL with discrete actions on the particle worlds and a small game, in one file.

    python spacql.py --env-id simple_spread --dataset medium

Jin and Montana, "Partial Action Replacement: Tackling Distribution Shift in Offline MARL", AAAI 2026,
arXiv 2511.07629. Networks and most settings are CFCQL's (Shao et al. 2023), which the paper keeps.

The equations and their functions (docs/method.md walks through them):
    (1) partial_replacement   a'^(k): k random agents of the logged a' act by policy
    (2) spacql_target         T^(k) Q(s, a) = E[r + gamma Q(s', a'^(k))],  T^SP = sum_k w_k T^(k)
    (3) replacement_weights   u_k = std_j Q_j(s', a'^(k)),  w_k = u_k^-1 / sum_m u_m^-1
    (4) spacql_target         Y = r + gamma sum_k w_k min_j Qtarget_j(s', a'^(k))
    (5) critic_loss           (Q - Y)^2 + alpha (sum_i lambda_i logsumexp_a Q(s, a, a_-i) - Q(s, a))
    (6) actor_loss            agent i ascends Q(s, pi_i(o_i), a_-i), the others as logged

Array letters: S seeds side by side, E critics, B batch, K replacement sizes, N agents, A numbers of an
action (one-hot), O of an observation, D of the state, H hidden units, M agents in the penalty, C candidates
of each, R joint actions per state. Networks are stacked tensors.

Deviations, and readings of our own:
  * softmax actors with an entropy bonus, greedy when scored; (5) and (6) are exact over the A actions;
  * lambda_i = 1/N; that mean is estimated from one random agent a transition (--penalty-agents);
  * one reward, the agents' mean, centred over the data: nothing is terminal, so Q only shifts;
  * actors ascend the critics' mean, once a round, on its last batch;
  * states, not actions, are standardised once, by the data: no batch-norm;
  * the last step of an episode has no logged next action and is not sampled.
"""

import itertools
import math
import sys
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Literal

import torch
from tqdm import tqdm

from data.datasets import describe, load_dataset, normalise
from envs import make_env
from utils import runs
from utils.errors import InputError
from utils.files import run_script, say

SCRIPT = "spacql.py"
NUM_ACTIONS = 5  # stay, -x, +x, -y, +y
DEFAULTS = dict(rounds=800, batch_size=256, penalty_agents=1)
TASKS = {
    "simple_spread": dict(learning_rate=0.01, entropy_coef=0.5),
    "simple_tag": dict(learning_rate=0.003, entropy_coef=0.1),
    "simple_world": dict(learning_rate=0.003, entropy_coef=0.1),
    "two_doors": dict(learning_rate=0.01, entropy_coef=0.02),
}
PAPER_SIZE = {  # CFCQL's
    "simple_spread": dict(rounds=2000, batch_size=1024, learning_rate=0.01),
    "simple_tag": dict(rounds=2000, batch_size=1024, learning_rate=0.001),
    "simple_world": dict(rounds=5000, batch_size=1024, learning_rate=0.001),
    "two_doors": {},
}
CQL_ALPHA = {  # CFCQL's, but for two_doors, and for tag's and world's medium and expert
    "simple_spread": {"random": 0.5, "medium-replay": 1.0, "medium": 5.0, "expert": 2.5},
    "simple_tag": {"random": 0.5, "medium-replay": 0.5, "medium": 8.1, "expert": 8.1},
    "simple_world": {"random": 0.5, "medium-replay": 0.5, "medium": 2.7, "expert": 2.7},
    "two_doors": {"random": 0.05, "mix": 0.5},
}
CRITIC_UPDATES = 5  # per round
MAX_GRAD_NORM = 0.5  # of each network
TAU = 0.01  # Polyak step of the targets
EVAL_SEED = 12345  # of the worlds that score teams
FINAL_FACTOR = 5  # times --eval-episodes are behind the reported scores
CACHE_NUMBERS = 2**19  # activations that fit a core's caches


@dataclass(frozen=True)
class Args:
    """Letters in brackets are those above."""

    env_id: Literal["simple_spread", "simple_tag", "simple_world", "two_doors"] = "simple_spread"
    """task"""
    dataset: str = "medium"
    """random, medium-replay, medium, expert, mix:share=0.5,noise=0.1, or an .h5 file"""
    backup: Literal["spacql", "icql-qs", "joint", "uniform"] = "spacql"
    """TD target: w_k by uncertainty, k = 1, k = n, or w_k = 1/n"""
    penalty: Literal["cfcql", "macql"] = "cfcql"
    """on the actions of an agent, the others as logged, or on joint actions"""
    actor_others: Literal["logged", "policy"] = "logged"
    """the others in (6): as logged (the paper) or by policy (ours)"""
    clone_weight: float = 0.0
    """of cloning in (6), times the data's squared predictability (ours)"""
    num_critics: int = 10
    """[E] ensemble members; 2 with --backup joint is CFCQL"""
    penalty_agents: int | None = None
    """[M] agents that cfcql draws per transition; default 1"""
    cql_alpha: float | None = None
    """[alpha] weight of the penalty; default by task and quality"""
    entropy_coef: float | None = None
    """entropy bonus of the actors (ours); default by task"""
    seed: int = 0
    """first seed"""
    num_seeds: int = 1
    """[S] seeds trained at once: seed, seed + 1, ..."""
    rounds: int | None = None
    """of 5 critic, one actor and one target step; default 800"""
    batch_size: int | None = None
    """[B] transitions per step; default 256"""
    paper_size: bool = False
    """the paper's batch, rounds, learning rate, and all agents in the penalty"""
    learning_rate: float | None = None
    """of Adam; default by task"""
    gamma: float = 0.95
    """discount"""
    hidden: int = 64
    """[H] units of both hidden layers"""
    eval_every: int = 20
    """rounds between evaluations and checkpoints"""
    eval_episodes: int = 200
    """per seed and evaluation, in the end five times"""
    dataset_size: int | None = None
    """transitions to simulate; default the paper's"""
    data_seed: int = 0
    """seed of the simulated dataset"""
    data_dir: str = "datasets"
    """of simulated data"""
    out: str = "runs"
    """where run folders go"""
    name: str | None = None
    """of the run folder; default by settings"""
    device: str = "auto"
    """auto (a GPU if there is one), cpu, cuda, cuda:1, ..."""
    track: bool = False
    """log to Weights & Biases too"""
    resume: str | None = None
    """a run folder to go on with; only --rounds may grow"""


# ------ the paper's equations


def partial_replacement(logged, policy, order, sizes):
    """Equation (1): a'^(k) for all sizes k [K], actions [S, B, K, N, A], from logged [S, B, N, A] and policy
    [S, B, K, N, A]. order [S, B, K, N] holds uniform numbers: the k agents with the smallest act by policy.
    """
    rank = order.argsort(-1).argsort(-1)  # [S, B, K, N]: how many agents come before, exact for ties too
    replaced = rank < sizes.unsqueeze(-1)
    return torch.where(replaced.unsqueeze(-1), policy, logged.unsqueeze(2))


def uncertainty(q_online):
    """Equation (3), u_k: deviation of the members' Q_j(s', a'^(k)); [S, E, B, K] -> [S, B, K]."""
    return q_online.std(dim=1, correction=0)


def replacement_weights(u):
    """Equation (3), w_k ~ 1 / u_k on the simplex over K (last axis of u); finite where u_k is 0."""
    return torch.softmax(-u.clamp(min=1e-20).log(), dim=-1)


def spacql_target(rewards, q_target, weights, gamma):
    """Equations (2) and (4): rewards [S, B], q_target [S, E, B, K], weights [S, B, K] -> Y [S, B]."""
    return rewards + gamma * (weights * q_target.amin(dim=1)).sum(-1)


def cql_penalty(q_candidates, log_weights, q_data):
    """The penalty in (5): q_candidates [S, E, B, M, C], their log_weights [S, B, M, C], q_data [S, E, B] ->
    [S, E, B]."""
    return (q_candidates + log_weights.unsqueeze(1)).logsumexp(-1).mean(-1) - q_data


def critic_loss(q_data, target, penalty, alpha):
    """Equation (5) of every member, [S, E]: q_data and penalty [S, E, B], target [S, B]."""
    return ((q_data - target.unsqueeze(1)) ** 2 + alpha * penalty).mean(-1)


def actor_loss(logits, q_candidates, logged, clone_weight, entropy_coef):
    """Equation (6) of every agent, [S, N], with entropy bonus and cloning: logits, q_candidates (Q of all an
    agent's actions) and logged actions are [S, B, N, A]."""
    log_pi = logits.log_softmax(-1)
    q_policy = (log_pi.exp() * q_candidates).sum(-1)  # [S, B, N]
    entropy = -(log_pi.exp() * log_pi).sum(-1)
    imitation = (log_pi * logged).sum(-1)
    return -(q_policy + entropy_coef * entropy + clone_weight * imitation).mean(1)


# ------ networks and actions


def per_seed(draw, generators, *args):
    """Random numbers [S, ...], each seed's from its own generator; draw is torch.rand, for example."""
    return torch.stack([draw(*args, generator=g, device=g.device) for g in generators])


def init_networks(generators, count, sizes):
    """Stacked networks [W, b, W, b, ...], initialised as nn.Linear is: [S, count, in or 1, out] each."""
    params = []
    for fan_in, fan_out in itertools.pairwise(sizes):
        for shape in ((count, fan_in, fan_out), (count, 1, fan_out)):
            params.append((2 * per_seed(torch.rand, generators, shape) - 1) / fan_in**0.5)
    return params


def clip_gradients(params):
    """Clip each network's gradient by itself: norms run over all axes but the first two, [S, E or N]."""
    norm = sum(p.grad.square().sum((-2, -1), keepdim=True) for p in params).sqrt()
    for p in params:
        p.grad.mul_((MAX_GRAD_NORM / (norm + 1e-6)).clamp(max=1.0))


def actor_outputs(actor, obs):
    """Logits [S, B, N, A] of the actors [S, N, in, out] on their own observations [S, B, N, O]."""
    w1, b1, w2, b2, w3, b3 = actor
    x = (obs.transpose(1, 2) @ w1 + b1).relu()  # [S, N, B, H]
    x = (x @ w2 + b2).relu()
    return (x @ w3 + b3).transpose(1, 2)


def critic_values(critic, state, joint):
    """Q [S, E, B, R] of R joint actions [S, B, R, N, A] in each state [S, B, D]; on a CPU in parts whose
    activations fit a core's caches."""
    w1, b1, w2, b2, w3, b3 = critic
    (batch, rows), dim = joint.shape[1:3], state.shape[-1]
    activations = w1.shape[1] * batch * rows * w1.shape[3]
    parts = 1 if joint.is_cuda else math.ceil(activations / CACHE_NUMBERS)
    values = []
    for s, a in zip(state.chunk(parts, 1), joint.flatten(3).chunk(parts, 1), strict=True):
        from_state = s.unsqueeze(1) @ w1[:, :, :dim] + b1  # [S, E, B, H], once for all R
        from_actions = a.flatten(1, 2).unsqueeze(1) @ w1[:, :, dim:]  # [S, E, B * R, H]
        x = (from_actions.unflatten(2, (-1, rows)) + from_state.unsqueeze(3)).relu_()
        x = (x.flatten(2, 3) @ w2 + b2).relu_()
        q = (x * w3.mT).sum(-1) + b3.squeeze(-1)  # a matrix product with one column is slow
        values.append(q.unflatten(2, (-1, rows)))
    return torch.cat(values, dim=2)


def one_hot(actions):
    """Action indices [...] as one-hot vectors [..., A]."""
    return torch.eye(NUM_ACTIONS, device=actions.device)[actions]


def sample_policy(actor, obs, count, generators):
    """`count` samples of each policy at observations [S, B, N, O], one-hot [S, B, count, N, A]."""
    cumulative = actor_outputs(actor, obs).softmax(-1).cumsum(-1).unsqueeze(2)  # [S, B, 1, N, A]
    uniform = per_seed(torch.rand, generators, (obs.shape[1], count, obs.shape[2], 1))
    return one_hot((uniform >= cumulative[..., :-1]).sum(-1))


def counterfactuals(actions, agents, to):
    """Joint actions [S, B, M, C, N, A]: one of `agents` [S, B, M] plays one of `to` [S, B, M, C, A], the
    others as in actions [S, B, N, A]. What agents and `to` lack in front is the same for all."""
    acts = torch.eye(actions.shape[2], dtype=torch.bool, device=actions.device)[agents]  # [S, B, M, N]
    return torch.where(acts[..., None, :, None], to.unsqueeze(-2), actions[:, :, None, None])


def penalty_candidates(args, actions, generators):
    """What (5) holds against the data: joint actions [S, B, M, C, N, A] and their log-weights [S, B, M, C].

    cfcql: all actions of random agents, the others as in actions [S, B, N, A]; macql: N * A uniform joint
    actions, the team as one agent (M = 1).
    """
    batch, num_agents, dim = actions.shape[1:]
    if args.penalty == "cfcql":
        order = per_seed(torch.rand, generators, (batch, num_agents)).argsort(-1)
        agents = order[..., : args.penalty_agents]
        joint = counterfactuals(actions, agents, torch.eye(dim, device=actions.device))
    else:
        shape = (batch, 1, num_agents * dim, num_agents)
        joint = one_hot(per_seed(torch.randint, generators, dim, shape))
    return joint, torch.zeros_like(joint[..., 0, 0])


# ------ data and scores


def standardise(x):
    """x [episodes, T + 1, ...] minus its mean over its deviation (1 where constant), and these two."""
    std, mean = torch.std_mean(x, dim=(0, 1), correction=0)
    std = torch.where(std < 1e-6, 1.0, std)
    return (x - mean) / std, [mean, std]


def prepare(dataset, device):
    """All transitions (s, o, a, r, s', o', a'), [rows, ...] each, and the scale of observations. States are
    all observations side by side, standardised as these are; rewards are centred."""
    obs, scale = standardise(dataset.observations.to(device))
    state = obs.flatten(2)
    rewards = (dataset.rewards - dataset.rewards.mean()).mean(-1).to(device)
    actions = one_hot(dataset.actions.to(device))
    now = state[:, :-2], obs[:, :-2], actions[:, :-1], rewards[:, :-1]
    later = state[:, 1:-1], obs[:, 1:-1], actions[:, 1:]  # the last step has no next action
    return [x.flatten(0, 1) for x in now + later], scale


def play(actor, obs, scale):
    """Greedy actions [S, B, N] on the environment's own observations [S, B, N, O]."""
    mean, std = scale
    return actor_outputs(actor, (obs.to(mean.device) - mean) / std).argmax(-1)


@torch.no_grad()
def evaluate(policy, env, num_seeds, seed):
    """Undiscounted returns [S, episodes], mean over agents; every seed's team has the same starts. policy
    takes observations [S, B, N, O] as the environment gives them."""
    obs, returns = env.reset(seed=seed, copies=num_seeds), 0.0
    for _ in range(env.horizon):
        obs, rewards = env.step(policy(obs.unflatten(0, (num_seeds, -1))).flatten(0, 1))
        returns = returns + rewards.mean(-1)
    return returns.view(num_seeds, -1)


def fill_in(args, quality, num_agents):
    """The arguments, with the task's defaults filled in."""
    defaults = DEFAULTS | TASKS[args.env_id] | dict(cql_alpha=CQL_ALPHA[args.env_id].get(quality))
    if args.paper_size:
        defaults |= PAPER_SIZE[args.env_id] | dict(penalty_agents=num_agents)
    args = replace(args, **{k: value for k, value in defaults.items() if getattr(args, k) is None})
    if args.cql_alpha is None:
        raise InputError(f"no default alpha for data of quality '{quality}': give --cql-alpha")
    return replace(args, penalty_agents=min(args.penalty_agents, num_agents))


# ------ training


def main(argv=None):
    """Train; prints the summary as JSON and returns it."""
    args, saved = runs.open_run(Args, argv, __doc__, SCRIPT)
    device = runs.pick_device(args.device)
    dataset = load_dataset(args.env_id, args.dataset, args.dataset_size, args.data_seed, args.data_dir)
    num_agents, obs_dim = dataset.observations.shape[2:]
    args = fill_in(args, dataset.facts["quality"], num_agents)
    data, scale = prepare(dataset, device)
    state_dim, action_dim = data[0].shape[-1], data[2].shape[-1]
    clone_weight = args.clone_weight * dataset.facts["predictability"] ** 2

    # A seed draws from its own generator: trained together or alone, it ends the same, to rounding.
    generators = [torch.Generator(device).manual_seed(args.seed + i) for i in range(args.num_seeds)]
    critic_sizes = (state_dim + num_agents * action_dim, args.hidden, args.hidden, 1)
    critic = init_networks(generators, args.num_critics, critic_sizes)
    actor = init_networks(generators, num_agents, (obs_dim, args.hidden, args.hidden, action_dim))
    target_critic, target_actor = [p.clone() for p in critic], [p.clone() for p in actor]
    adam = partial(torch.optim.Adam, lr=args.learning_rate, fused=True)
    critic_adam = adam([p.requires_grad_() for p in critic])
    actor_adam = adam([p.requires_grad_() for p in actor])
    networks = dict(critic=critic, actor=actor, target_critic=target_critic, target_actor=target_actor)
    optimizers = dict(critic_adam=critic_adam, actor_adam=actor_adam)
    first_round, history = runs.restore(saved, networks, optimizers, generators, scale, dataset.facts)

    folder = runs.claim_folder(args)
    say(f"{folder}: {describe(dataset)}")
    log = runs.start_log(folder, args, first_round)
    policy = partial(play, actor, scale=scale)
    make_worlds = partial(make_env, args.env_id, num_agents=num_agents, device=device)
    worlds = make_worlds(args.num_seeds * args.eval_episodes)
    sizes = {"icql-qs": [1], "joint": [num_agents]}.get(args.backup, range(1, num_agents + 1))
    sizes = torch.tensor(list(sizes), device=device)  # [K]
    watched = []  # w_k of the updates since the last evaluation, [S, K]
    everyone, every_action = torch.arange(num_agents, device=device), torch.eye(action_dim, device=device)
    rounds = range(first_round, args.rounds + 1)
    bar = tqdm(rounds, initial=first_round - 1, total=args.rounds, file=sys.stderr, unit="round")
    for round_number in bar:
        for _ in range(CRITIC_UPDATES):
            # ---- sample
            index = per_seed(torch.randint, generators, len(data[0]), (args.batch_size,))  # [S, B]
            state, obs, actions, rewards, next_state, next_obs, next_actions = (x[index] for x in data)

            # ---- target: equations (1) to (4)
            with torch.no_grad():
                sampled = sample_policy(target_actor, next_obs, len(sizes), generators)  # [S, B, K, N, A]
                order = per_seed(torch.rand, generators, sampled.shape[1:4])  # [S, B, K, N]
                replaced = partial_replacement(next_actions, sampled, order, sizes)  # [S, B, K, N, A]
                q_target = critic_values(target_critic, next_state, replaced)  # [S, E, B, K]
                u = uncertainty(critic_values(critic, next_state, replaced))  # [S, B, K]
                weights = torch.full_like(u, 1 / len(sizes))
                if args.backup == "spacql":
                    weights = replacement_weights(u)
                watched.append(weights.mean(1))
                target = spacql_target(rewards, q_target, weights, args.gamma)  # [S, B]

            # ---- critic: equation (5); of the joint actions the first is the data's
            candidates, log_weights = penalty_candidates(args, actions, generators)
            joint = torch.cat([actions.unsqueeze(2), candidates.flatten(2, 3)], dim=2)
            q = critic_values(critic, state, joint)  # [S, E, B, 1 + M * C]
            q_data, q_candidates = q[..., 0], q[..., 1:].unflatten(-1, log_weights.shape[2:])
            penalty = cql_penalty(q_candidates, log_weights, q_data)
            critics_loss = critic_loss(q_data, target, penalty, args.cql_alpha)  # [S, E]
            critic_adam.zero_grad()
            critics_loss.sum().backward()
            clip_gradients(critic)
            critic_adam.step()

        # ---- actor: equation (6), on the round's last batch
        outputs = actor_outputs(actor, obs)  # [S, B, N, A]
        with torch.no_grad():
            others = actions
            if args.actor_others == "policy":
                others = sample_policy(actor, obs, 1, generators).squeeze(2)  # [S, B, N, A]
            joint = counterfactuals(others, everyone, every_action).flatten(2, 3)  # [S, B, N * A, N, A]
            q_policy = critic_values(critic, state, joint).mean(1).view_as(outputs)
        actors_loss = actor_loss(outputs, q_policy, actions, clone_weight, args.entropy_coef)  # [S, N]
        actor_adam.zero_grad()
        actors_loss.sum().backward()
        clip_gradients(actor)
        actor_adam.step()

        # ---- Polyak: the targets follow
        with torch.no_grad():
            torch._foreach_lerp_(target_critic + target_actor, critic + actor, TAU)

        # ---- now and then: score, log, save; the host waits only here
        if round_number % args.eval_every == 0 or round_number == args.rounds:
            if not all(p.isfinite().all() for p in critic + actor):
                raise InputError(f"training diverged by round {round_number}: try a smaller --learning-rate")
            returns = evaluate(policy, worlds, args.num_seeds, EVAL_SEED)
            report = dict(scores=normalise(returns.mean(1), dataset.facts))  # [S]
            report |= dict(weights=torch.stack(watched).mean(0), u=u.mean(1))  # [S, K]
            report |= dict(q_data=q_data.mean((1, 2)), q_penalised=q_candidates.mean((1, 2, 3, 4)))
            report |= dict(critic_loss=critics_loss.mean(1), actor_loss=actors_loss.mean(1))
            watched.clear()
            runs.log_report(log, history, round_number, report, sizes, bar)
            rest = dict(script=SCRIPT, args=asdict(args), round=round_number, scale=scale, history=history)
            runs.save_checkpoint(folder, networks, optimizers, generators, rest | dict(facts=dataset.facts))

    # ---- the reported scores, in fresh worlds
    worlds = make_worlds(FINAL_FACTOR * args.num_seeds * args.eval_episodes)
    returns = evaluate(policy, worlds, args.num_seeds, EVAL_SEED + 1)
    scores = normalise(returns.mean(1), dataset.facts)
    return runs.save_results(log, args, returns, scores, history, dataset.facts)


if __name__ == "__main__":
    run_script(SCRIPT, main)
