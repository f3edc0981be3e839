"""SPaCQL with continuous actions: particle worlds with 2-D forces, and HalfCheetah 2x3, in one file.

    python spacql_continuous.py --env-id simple_spread --dataset medium

Jin and Montana, "Partial Action Replacement: Tackling Distribution Shift in Offline MARL", AAAI 2026,
arXiv 2511.07629. Networks and most settings are CFCQL's (Shao et al. 2023), which the paper keeps.

The equations and their functions (docs/method.md walks through them):
    (1) partial_replacement   a'^(k): k random agents of the logged a' act by policy
    (2) spacql_target         T^(k) Q(s, a) = E[r + gamma Q(s', a'^(k))],  T^SP = sum_k w_k T^(k)
    (3) replacement_weights   u_k = std_j Q_j(s', a'^(k)),  w_k = u_k^-1 / sum_m u_m^-1
    (4) spacql_target         Y = r + gamma sum_k w_k min_j Qtarget_j(s', a'^(k))
    (5) critic_loss           (Q - Y)^2 + alpha (sum_i lambda_i log int_a exp Q(s, a, a_-i) - Q(s, a))
    (6) actor_loss            agent i ascends Q(s, pi_i(o_i), a_-i), the others as logged

Array letters: S seeds side by side, E critics, B batch, K replacement sizes, N agents, A numbers of an
action, O of an observation, D of the state, H hidden units, M agents in the penalty, C candidates
of each, R joint actions per state. Networks are stacked tensors.

Deviations, and readings of our own:
  * the log-integral in (5) is a log-mean over 10 uniform actions of an agent, on HalfCheetah also 10 around
    the policy's at s and at s', over their density before clipping (CFCQL's);
  * deterministic actors, with L2 on their outputs (--output-l2);
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

from data.datasets import describe, find_prey, load_dataset, normalise
from envs import make_env
from utils import runs
from utils.errors import InputError
from utils.files import run_script, say

SCRIPT, KIND = "spacql_continuous.py", "continuous"
DEFAULTS = dict(batch_size=256, penalty_agents=1, output_l2=0.1)
PARTICLES = dict(rounds=800, gamma=0.95, hidden=64, eval_every=20, eval_episodes=200)
CHEETAH = dict(rounds=2000, gamma=0.99, hidden=256, eval_every=200, eval_episodes=4)
TASKS = {
    "simple_spread": PARTICLES | dict(learning_rate=0.01),
    "simple_tag": PARTICLES | dict(learning_rate=0.003),
    "simple_world": PARTICLES | dict(learning_rate=0.003),
    "HalfCheetah-2x3": CHEETAH | dict(learning_rate=0.0003),
}
PAPER_SIZE = {  # CFCQL's
    "simple_spread": dict(rounds=2000, batch_size=1024, learning_rate=0.01),
    "simple_tag": dict(rounds=2000, batch_size=1024, learning_rate=0.001),
    "simple_world": dict(rounds=5000, batch_size=1024, learning_rate=0.001),
    "HalfCheetah-2x3": dict(rounds=100_000),
}
CQL_ALPHA = {  # CFCQL's, but for each 2.7
    "simple_spread": {"random": 0.5, "medium-replay": 1.0, "medium": 5.0, "expert": 2.5},
    "simple_tag": {"random": 0.5, "medium-replay": 0.5, "medium": 2.7, "expert": 2.7},
    "simple_world": {"random": 0.5, "medium-replay": 0.5, "medium": 2.7, "expert": 2.7},
    "HalfCheetah-2x3": {"random": 0.1, "medium-replay": 0.4, "medium": 1.0, "expert": 1.7},
}
CRITIC_UPDATES = 5  # per round
MAX_GRAD_NORM = 0.5  # of each network
TAU = dict.fromkeys(TASKS, 0.01) | {"HalfCheetah-2x3": 0.005}  # Polyak step of the targets
TARGET_NOISE, CANDIDATE_NOISE = 0.05, 0.2  # standard deviations
CANDIDATES = 10  # per agent and distribution
ACTION_L2 = 0.001  # of the squared actions in (6)
EVAL_SEED = 12345  # of the worlds that score teams
FINAL_FACTOR = 5  # times --eval-episodes are behind the reported scores
CACHE_NUMBERS = 2**19  # activations that fit a core's caches


@dataclass(frozen=True)
class Args:
    """Letters in brackets are those above."""

    env_id: Literal["simple_spread", "simple_tag", "simple_world", "HalfCheetah-2x3"] = "simple_spread"
    """task"""
    dataset: str = "medium"
    """random, medium-replay, medium, expert, .h5 file, OMAR folder or vault"""
    prey: str | None = None
    """OMAR's prey file, if not beside or above such a folder"""
    policies: str | None = None
    """folder of policies and prey, not the shipped ones"""
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
    output_l2: float | None = None
    """of the actors' squared outputs in (6) (ours); default 0.1"""
    seed: int = 0
    """first seed"""
    num_seeds: int = 1
    """[S] seeds trained at once: seed, seed + 1, ..."""
    rounds: int | None = None
    """of 5 critic, one actor and one target step; default 800, HalfCheetah 2000"""
    batch_size: int | None = None
    """[B] transitions per step; default 256"""
    paper_size: bool = False
    """the paper's batch, rounds, learning rate, and all agents in the penalty"""
    learning_rate: float | None = None
    """of Adam; default by task"""
    gamma: float | None = None
    """discount; default 0.95, HalfCheetah 0.99"""
    hidden: int | None = None
    """[H] units of both hidden layers; default 64, HalfCheetah 256"""
    eval_every: int | None = None
    """rounds between evaluations and checkpoints; default 20, HalfCheetah 200"""
    eval_episodes: int | None = None
    """per seed and evaluation, in the end five times; default 200, HalfCheetah 4"""
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


def actor_loss(outputs, q_policy, logged, clone_weight, output_l2):
    """Equation (6) of every agent, [S, N], with cloning and L2 terms: outputs [S, B, N, A], whose tanh is the
    policy, q_policy [S, B, N] and logged actions [S, B, N, A]."""
    policy = outputs.tanh()
    imitation = (policy - logged).square().mean(-1)  # [S, B, N]
    small = ACTION_L2 * policy.square().mean(-1) + output_l2 * outputs.square().mean(-1)
    return (small + clone_weight * imitation - q_policy).mean(1)


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
    """Outputs [S, B, N, A], before the tanh, of the actors on their own observations [S, B, N, O]."""
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


def sample_policy(actor, obs, count, generators):
    """`count` noisy actions of each policy at observations [S, B, N, O], [S, B, count, N, A]."""
    policy = actor_outputs(actor, obs).tanh().unsqueeze(2)  # [S, B, 1, N, A]
    noise = per_seed(torch.randn, generators, (obs.shape[1], count, *policy.shape[3:]))
    return (policy + TARGET_NOISE * noise).clamp(-1, 1)


def counterfactuals(actions, agents, to):
    """Joint actions [S, B, M, C, N, A]: one of `agents` [S, B, M] plays one of `to` [S, B, M, C, A], the
    others as in actions [S, B, N, A]. What agents and `to` lack in front is the same for all."""
    acts = torch.eye(actions.shape[2], dtype=torch.bool, device=actions.device)[agents]  # [S, B, M, N]
    return torch.where(acts[..., None, :, None], to.unsqueeze(-2), actions[:, :, None, None])


def penalty_candidates(args, actions, near, generators):
    """What (5) holds against the data: joint actions [S, B, M, C, N, A] and their log-weights [S, B, M, C].

    cfcql: actions of random agents, the others as in actions [S, B, N, A]; macql: joint actions, the team as
    one agent (M = 1). near: actions [S, B, N, A] around which some candidates are.
    """
    batch, num_agents, dim = actions.shape[1:]
    order = per_seed(torch.rand, generators, (batch, num_agents)).argsort(-1)
    agents = order[..., : args.penalty_agents]
    if args.penalty == "macql":
        agents = torch.arange(num_agents, device=order.device).expand_as(order)
    shape = (*agents.shape[1:], CANDIDATES, dim)
    to = [2 * per_seed(torch.rand, generators, shape) - 1]  # [S, B, M, C, A]
    log_density = [torch.full_like(to[0][..., 0], -dim * math.log(2))]
    for policy in near:
        mean = policy.take_along_dim(agents.unsqueeze(-1), dim=2).unsqueeze(3)  # [S, B, M, 1, A]
        noise = per_seed(torch.randn, generators, shape)
        to.append((mean + CANDIDATE_NOISE * noise).clamp(-1, 1))
        log_z = dim * math.log(CANDIDATE_NOISE * math.sqrt(2 * math.pi))
        log_density.append(-noise.square().sum(-1) / 2 - log_z)
    to, log_density = torch.cat(to, dim=3), torch.cat(log_density, dim=3)
    if args.penalty == "cfcql":
        joint = counterfactuals(actions, agents, to)
    else:
        joint = to.transpose(2, 3).unsqueeze(2)
        log_density = log_density.sum(2, keepdim=True)
    return joint, -log_density - math.log(log_density.shape[-1])


# ------ data and scores


def standardise(x):
    """x [episodes, T + 1, ...] minus its mean over its deviation (1 where constant), and these two."""
    std, mean = torch.std_mean(x, dim=(0, 1), correction=0)
    std = torch.where(std < 1e-6, 1.0, std)
    return (x - mean) / std, [mean, std]


def prepare(dataset, device):
    """All transitions (s, o, a, r, s', o', a'), [rows, ...] each, and the scale of observations. States (the
    simulator's, else all observations) are standardised as these are, rewards centred."""
    obs, scale = standardise(dataset.observations.to(device))
    state = obs.flatten(2)
    if dataset.states is not None:
        state, _ = standardise(dataset.states.to(device))
    rewards = (dataset.rewards - dataset.rewards.mean()).mean(-1).to(device)
    actions = dataset.actions.to(device)
    now = state[:, :-2], obs[:, :-2], actions[:, :-1], rewards[:, :-1]
    later = state[:, 1:-1], obs[:, 1:-1], actions[:, 1:]  # the last step has no next action
    return [x.flatten(0, 1) for x in now + later], scale


def play(actor, obs, scale):
    """Actions [S, B, N, A] on the environment's own observations [S, B, N, O]."""
    mean, std = scale
    return actor_outputs(actor, (obs.to(mean.device) - mean) / std).tanh()


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
    simulated = args.dataset_size, args.data_seed, args.data_dir, KIND, args.prey, args.policies
    dataset = load_dataset(args.env_id, args.dataset, *simulated)
    prey = find_prey(args, device)
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
    world = dict(num_agents=num_agents, device=device, action_kind=KIND, prey=prey)
    make_worlds = partial(make_env, args.env_id, **world)
    worlds = make_worlds(args.num_seeds * args.eval_episodes)
    sizes = {"icql-qs": [1], "joint": [num_agents]}.get(args.backup, range(1, num_agents + 1))
    sizes = torch.tensor(list(sizes), device=device)  # [K]
    watched = []  # w_k of the updates since the last evaluation, [S, K]
    everyone = torch.arange(num_agents, device=device)
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
            near = []
            if args.env_id == "HalfCheetah-2x3":  # as CFCQL does
                near = [actor_outputs(actor, o).detach().tanh() for o in (obs, next_obs)]
            candidates, log_weights = penalty_candidates(args, actions, near, generators)
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
        played = outputs.tanh().unsqueeze(3)  # [S, B, N, 1, A]
        others = actions
        if args.actor_others == "policy":
            others = outputs.detach().tanh()
        joint = counterfactuals(others, everyone, played).squeeze(3)  # [S, B, N, N, A]
        frozen = [p.detach() for p in critic]
        q_policy = critic_values(frozen, state, joint).mean(1)  # [S, B, N]
        actors_loss = actor_loss(outputs, q_policy, actions, clone_weight, args.output_l2)  # [S, N]
        actor_adam.zero_grad()
        actors_loss.sum().backward()
        clip_gradients(actor)
        actor_adam.step()

        # ---- Polyak: the targets follow
        with torch.no_grad():
            torch._foreach_lerp_(target_critic + target_actor, critic + actor, TAU[args.env_id])

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
