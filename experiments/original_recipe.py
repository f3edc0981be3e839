"""The recipe of the official CFCQL code, which the paper's numbers rest on, with a flag for every deviation.

    python -m experiments.original_recipe --env-id simple_tag --dataset random --prey pretrained_adv_model.pt

The equations, networks and data are spacql_continuous.py's, which this file is to be read beside; the index
of equations and the letters of shapes stand there. Here is what the official code does otherwise, and the
flag that takes it back. Particle worlds with forces only.

    --norm-states, --norm-actions   batch-norm on every network's whole input, by each call's own mean and
                                    deviation while training; when played by running means, which are those
                                    of the data
    --no-affine                     its learned scale and shift, shared by the critics
    --no-small-last-layer           the actors' last layer starts within +-0.003
    --no-first-critic               actors ascend the first critic (ours: the critics' mean)
    --no-first-batch                on the round's first batch, before the other four critic updates
    --no-terminal                   the last step of an episode is terminal (ours: it is not sampled)
    --target-noise 0                normal noise on the target's actions (ours too)
    --no-clip-together              one norm clips the gradients of a seed's critics
    --action-l2 0, --output-l2 0.1  L2 on actions alone (ours: on the outputs before the tanh too)
    --no-exact-k1                   k = 1 is the mean over the agents, taken before the minimum over members
                                    (ours: one random agent)
    --no-one-call                   what it asks about one agent after another is one call for all agents:
                                    batch-norm's statistics there are two thirds the data's
    --no-agents-mean                (6) averages Q over agents, so that L2 weighs N times as much
    --centred-rewards               rewards are agent 0's, as they are (ours: the mean, centred)

Not taken over: transitions are drawn with replacement, which two of a million seldom meet; the penalty's
candidates of all agents are one call.
"""

import sys
from dataclasses import asdict, dataclass
from functools import partial
from typing import Literal

import torch
from tqdm import tqdm

import spacql_continuous as ours
from data.datasets import describe, find_prey, load_dataset, normalise
from envs import make_env
from utils import runs
from utils.errors import InputError
from utils.files import run_script, say

SCRIPT = "experiments/original_recipe.py"
EPS = 1e-5  # torch's, in batch-norm
MOMENTUM = 0.1  # torch's, of running means
CALLS = ("target", "fit", "actor")  # kinds of calls of the critics
SMALL = 0.003  # bound of the actors' last layer at the start


@dataclass(frozen=True)
class Args(ours.Args):
    """Symbols in brackets are the paper's."""

    env_id: Literal["simple_spread", "simple_tag", "simple_world"] = "simple_tag"
    """task"""
    dataset: str = "random"
    """random, medium-replay, medium, expert, .h5 file, OMAR folder or vault"""
    backup: Literal["spacql", "icql-qs", "joint", "uniform"] = "joint"
    """TD target: w_k by uncertainty, k = 1, k = n, or w_k = 1/n"""
    num_critics: int = 2
    """[E] ensemble members"""
    paper_size: bool = True
    """the paper's batch, rounds, learning rate, and all agents in the penalty"""
    eval_every: int = 100
    """rounds between evaluations and checkpoints"""
    eval_episodes: int = 1000
    """per seed and evaluation, five times as many in the end"""
    output_l2: float = 0.0
    """weight of the actors' squared outputs in (6)"""

    norm_states: Literal["call", "data", "running"] = "call"
    """states and observations by the call's statistics, the data's, or running means of all calls"""
    norm_actions: Literal["call", "data", "running", "one-pass", "none"] = "call"
    """the critics' actions; one-pass: by data and target together (CrossQ); none: as they are"""
    norm_calls: Literal["all", "target", "fit", "actor", "not-target"] = "all"
    """where --norm-actions holds; elsewhere actions are normalised by the data's statistics"""
    affine: bool = True
    """learned scale and shift of normalised inputs"""
    small_last_layer: bool = True
    """start the actors' last layer within +-0.003"""
    first_critic: bool = True
    """actors ascend the first critic, else the mean"""
    first_batch: bool = True
    """actors learn after the round's first critic update, else after the last"""
    terminal: bool = True
    """an episode's last step is terminal, else not sampled"""
    target_noise: float = 0.05
    """deviation of the noise on the target's actions"""
    clip_together: bool = True
    """clip the gradient of all critics by one norm, else each by its own"""
    action_l2: float = 0.001
    """weight of the squared actions in (6)"""
    exact_k1: bool = True
    """icql-qs is the mean over agents, else one random agent per transition"""
    one_call: bool = True
    """normalise all agents' queries of (6) and of exact k = 1 together, else each agent's by itself"""
    agents_mean: bool = True
    """(6) takes the mean of Q over the agents and the sum of L2, else the sums of both"""
    centred_rewards: bool = False
    """rewards are the agents' mean, centred, else agent 0's"""


# ------ batch-norm


def moments(x, dims, how="call", data=None, running=None):
    """Mean and variance by which inputs x [S, B, ...] are normalised: their own over `dims`, the data's, or
    the running ones [S, 1, ...], which are updated here."""
    if how == "none":
        return 0.0, 1.0
    if how == "data":
        return data
    var, mean = torch.var_mean(x, dims, correction=0, keepdim=True)
    if how == "running":
        for old, new in zip(running, (mean, var), strict=True):
            old.lerp_(new.detach().mean(2, keepdim=True), MOMENTUM)  # over the R calls of x [S, B, R, ...]
        return running
    return mean, var


def batch_norm(x, mean_var, scale, shift):
    """x normalised by a mean and a variance, then scaled and shifted, all of shapes that broadcast."""
    mean, var = mean_var
    return (x - mean) / (var + EPS) ** 0.5 * scale + shift


def init_batch_norm(num_seeds, count, size, device):
    """Learned scale 1 and shift 0, [S, count, 1, size] each."""
    shape = num_seeds, count, 1, size
    return [torch.ones(shape, device=device), torch.zeros(shape, device=device)]


def clip_together(params):
    """Clip each seed's gradient by one norm over all its critics and their batch-norm."""
    norm = sum(p.grad.square().flatten(1).sum(1) for p in params).sqrt()  # [S]
    for p in params:
        p.grad.mul_((ours.MAX_GRAD_NORM / (norm + 1e-6)).clamp(max=1.0).view(-1, 1, 1, 1))


# ------ data


def prepare(args, dataset, device):
    """Transitions (s, o, a, r, s', o', a', done), [rows, ...] each. The last step of an episode has the next
    episode's first action as its a', as in the official code, which takes no part in a terminal step."""
    obs, actions = dataset.observations.to(device), dataset.actions.to(device)
    rewards = dataset.rewards[..., 0].to(device)
    if args.centred_rewards:
        rewards = (dataset.rewards - dataset.rewards.mean()).mean(-1).to(device)
    next_actions = actions.flatten(0, 1).roll(-1, 0).view(actions.shape)
    done = torch.zeros_like(rewards)
    done[:, -1] = 1
    state = obs.flatten(2)
    columns = state[:, :-1], obs[:, :-1], actions, rewards, state[:, 1:], obs[:, 1:], next_actions, done
    steps = slice(None) if args.terminal else slice(-1)
    return [x[:, steps].flatten(0, 1) for x in columns]


# ------ training


def main(argv=None):
    """Train; prints the summary as JSON and returns it."""
    args, saved = runs.open_run(Args, argv, __doc__, SCRIPT)
    device = runs.pick_device(args.device)
    prey = find_prey(args, device)
    simulated = args.dataset_size, args.data_seed, args.data_dir, ours.KIND, args.prey, args.policies
    dataset = load_dataset(args.env_id, args.dataset, *simulated)
    num_agents, obs_dim = dataset.observations.shape[2:]
    args = ours.fill_in(args, dataset.facts["quality"], num_agents)
    if args.clone_weight or args.actor_others != "logged":
        raise InputError("the original recipe has no --clone-weight and no --actor-others")
    data, seen = prepare(args, dataset, device), dataset.observations
    state_dim, action_dim = data[0].shape[-1], data[2].shape[-1]
    # The data's mean and variance: of states [1, 1, D], observations [1, 1, N, O], actions [1, 1, N * A].
    of_states, of_obs = (moments(x.to(device), (0, 1)) for x in (seen.flatten(2), seen))
    of_actions = moments(dataset.actions.flatten(2).to(device), (0, 1))

    generators = [torch.Generator(device).manual_seed(args.seed + i) for i in range(args.num_seeds)]
    width = state_dim + num_agents * action_dim
    critic = ours.init_networks(generators, args.num_critics, (width, args.hidden, args.hidden, 1))
    actor = ours.init_networks(generators, num_agents, (obs_dim, args.hidden, args.hidden, action_dim))
    if args.small_last_layer:
        for p in actor[-2:]:
            p.mul_(SMALL * args.hidden**0.5)  # they lie within 1 / sqrt(H)
    critic += init_batch_norm(args.num_seeds, 1, width, device)
    actor += init_batch_norm(args.num_seeds, num_agents, obs_dim, device)
    running = [*init_batch_norm(args.num_seeds, 1, width, device)[::-1]]  # mean 0, variance 1
    target_critic, target_actor = [p.clone() for p in critic], [p.clone() for p in actor]
    learned_critic, learned_actor = (p if args.affine else p[:6] for p in (critic, actor))
    adam = partial(torch.optim.Adam, lr=args.learning_rate, fused=True)
    critic_adam = adam([p.requires_grad_() for p in learned_critic])
    actor_adam = adam([p.requires_grad_() for p in learned_actor])
    networks = dict(critic=critic, actor=actor, target_critic=target_critic, target_actor=target_actor)
    networks |= dict(running=running)
    optimizers = dict(critic_adam=critic_adam, actor_adam=actor_adam)
    first_round, history = runs.restore(saved, networks, optimizers, generators, list(of_obs))

    def outputs_of(actor, obs, how=args.norm_states):
        """Outputs [S, B, N, A] at observations [S, B, N, O]."""
        mean_var = moments(obs, 1, "data" if how == "running" else how, of_obs)
        scale, shift = (p.transpose(1, 2) for p in actor[6:])  # [S, 1, N, O]
        return ours.actor_outputs(actor[:6], batch_norm(obs, mean_var, scale, shift))

    def q_values(critic, state, joint, how, over=1, pooled=None):
        """Q [S, E, B, R] of joint actions [S, B, R, N, A] in states [S, B, D]. Statistics are taken over axis
        1, so that each of R is a call of its own, or over (1, 2). pooled: those of one-pass."""
        state, joint = state.unsqueeze(2), joint.flatten(3)  # [S, B, 1, D], [S, B, R, N * A]
        of_call = moments(state, 1, args.norm_states, of_states, [p[..., :state_dim] for p in running])
        state = batch_norm(state, of_call, *(p[..., :state_dim] for p in critic[6:])).squeeze(2)
        data, how = (pooled, "data") if how == "one-pass" else (of_actions, how)
        of_call = moments(joint, over, how, data, [p[..., state_dim:] for p in running])
        joint = batch_norm(joint, of_call, *(p[..., state_dim:] for p in critic[6:]))
        return ours.critic_values(critic[:6], state, joint)

    def how_in(call):
        """How actions are normalised in calls of this kind."""
        kinds = {"all": CALLS, "not-target": CALLS[1:]}.get(args.norm_calls, [args.norm_calls])
        return args.norm_actions if call in kinds else "data"

    folder = runs.claim_folder(args)
    say(f"{folder}: {describe(dataset)}")
    log = runs.start_log(folder, args, first_round)
    world = dict(num_agents=num_agents, device=device, action_kind=ours.KIND, prey=prey)
    worlds = make_env(args.env_id, args.num_seeds * args.eval_episodes, **world)
    sizes = {"icql-qs": [1], "joint": [num_agents]}.get(args.backup, range(1, num_agents + 1))
    sizes = torch.tensor(list(sizes), device=device)  # [K]
    watched = []  # w_k of the updates since the last evaluation, [S, K]
    everyone = torch.arange(num_agents, device=device)

    def policy(obs):
        return outputs_of(actor, obs.to(device), "data").tanh()

    rounds = range(first_round, args.rounds + 1)
    bar = tqdm(rounds, initial=first_round - 1, total=args.rounds, file=sys.stderr, unit="round")
    for round_number in bar:
        for step in range(ours.CRITIC_UPDATES):
            # ---- sample
            index = ours.per_seed(torch.randint, generators, len(data[0]), (args.batch_size,))  # [S, B]
            state, obs, actions, rewards, next_state, next_obs, next_actions, done = (x[index] for x in data)

            # ---- target: equations (1) to (4)
            with torch.no_grad():
                exact = args.backup == "icql-qs" and args.exact_k1
                mean = outputs_of(target_actor, next_obs).tanh().unsqueeze(2)  # [S, B, 1, N, A]
                shape = (args.batch_size, 1 if exact else len(sizes), num_agents, action_dim)
                noise = ours.per_seed(torch.randn, generators, shape)
                sampled = (mean + args.target_noise * noise).clamp(-1, 1)  # [S, B, K, N, A]
                if exact:
                    each = sampled.squeeze(2).unsqueeze(3)  # [S, B, N, 1, A]
                    replaced = ours.counterfactuals(next_actions, everyone, each).squeeze(3)
                else:
                    order = ours.per_seed(torch.rand, generators, shape[:-1])  # [S, B, K, N]
                    replaced = ours.partial_replacement(next_actions, sampled, order, sizes)
                both = torch.cat([actions.unsqueeze(2), replaced], dim=2).flatten(3)
                pooled = moments(both, (1, 2))
                over = (1, 2) if exact and args.one_call else 1
                q_target = q_values(target_critic, next_state, replaced, how_in("target"), over, pooled)
                if exact:
                    q_target = q_target.mean(-1, keepdim=True)  # [S, E, B, K = 1]
                weights = torch.full_like(q_target[:, 0], 1 / len(sizes))  # [S, B, K]
                u = torch.zeros_like(weights)
                if args.backup == "spacql":
                    q_online = q_values(critic, next_state, replaced, how_in("target"), over, pooled)
                    u = ours.uncertainty(q_online)
                    weights = ours.replacement_weights(u)
                gamma = args.gamma * (1 - done).unsqueeze(-1)
                target = ours.spacql_target(rewards, q_target * gamma.unsqueeze(1), weights, 1.0)  # [S, B]
                watched.append(weights.mean(1))

            # ---- critic: equation (5)
            candidates, log_weights = ours.penalty_candidates(args, actions, [], generators)
            q = q_values(critic, state, actions.unsqueeze(2), how_in("fit"), 1, pooled)
            q_data = q.squeeze(-1)  # [S, E, B]
            q = q_values(critic, state, candidates.flatten(2, 3), how_in("fit"), (1, 2), pooled)
            q_candidates = q.unflatten(-1, log_weights.shape[2:])  # [S, E, B, M, C]
            penalty = ours.cql_penalty(q_candidates, log_weights, q_data)
            critics_loss = ours.critic_loss(q_data, target, penalty, args.cql_alpha)  # [S, E]
            critic_adam.zero_grad()
            critics_loss.sum().backward()
            if args.clip_together:
                clip_together(learned_critic)
            else:
                ours.clip_gradients(critic[:6])
            critic_adam.step()

            # ---- actor: equation (6)
            if step == (0 if args.first_batch else ours.CRITIC_UPDATES - 1):
                outputs = outputs_of(actor, obs)
                played = outputs.tanh().unsqueeze(3)  # [S, B, N, 1, A]
                joint = ours.counterfactuals(actions, everyone, played).squeeze(3)  # [S, B, N, N, A]
                frozen = [p.detach() for p in critic]
                over = (1, 2) if args.one_call else 1
                q_policy = q_values(frozen, state, joint, how_in("actor"), over, pooled)  # [S, E, B, N]
                q_policy = q_policy[:, 0] if args.first_critic else q_policy.mean(1)
                small = args.action_l2 * played.square() + args.output_l2 * outputs.unsqueeze(3).square()
                q_policy = q_policy / (num_agents if args.agents_mean else 1)
                actors_loss = (small.mean((3, 4)) - q_policy).mean(1)  # [S, N]
                actor_adam.zero_grad()
                actors_loss.sum().backward()
                ours.clip_gradients(learned_actor)
                actor_adam.step()

        # ---- Polyak: the targets follow
        with torch.no_grad():
            torch._foreach_lerp_(target_critic + target_actor, critic + actor, ours.TAU[args.env_id])

        # ---- now and then: score, log, save; the host waits only here
        if round_number % args.eval_every == 0 or round_number == args.rounds:
            if not all(p.isfinite().all() for p in critic + actor):
                raise InputError(f"training diverged by round {round_number}: try a smaller --learning-rate")
            returns = ours.evaluate(policy, worlds, args.num_seeds, ours.EVAL_SEED)
            report = dict(scores=normalise(returns.mean(1), dataset.facts))  # [S]
            report |= dict(weights=torch.stack(watched).mean(0), u=u.mean(1))  # [S, K]
            report |= dict(q_data=q_data.mean((1, 2)), critic_loss=critics_loss.mean(1))
            with (
                torch.no_grad()
            ):  # the target policies' own joint actions, and what the targets think of them
                report |= dict(policy_mean=mean.mean(1).abs().mean((1, 2, 3)))
                report |= dict(policy_std=mean.std(1).mean((1, 2, 3)))
                fixed = "none" if args.norm_actions == "none" else "data"
                for name, how in (("q_by_call", "call"), ("q_by_data", fixed)):
                    report[name] = q_values(target_critic, next_state, mean, how).mean((1, 2, 3))
            watched.clear()
            runs.log_report(log, history, round_number, report, sizes, bar)
            rest = dict(script=SCRIPT, args=asdict(args), round=round_number, scale=list(of_obs))
            rest |= dict(history=history, facts=dataset.facts)
            runs.save_checkpoint(folder, networks, optimizers, generators, rest)

    # ---- the reported scores, in fresh worlds
    worlds = make_env(args.env_id, ours.FINAL_FACTOR * args.num_seeds * args.eval_episodes, **world)
    returns = ours.evaluate(policy, worlds, args.num_seeds, ours.EVAL_SEED + 1)
    scores = normalise(returns.mean(1), dataset.facts)
    return runs.save_results(log, args, returns, scores, history, dataset.facts)


if __name__ == "__main__":
    run_script(SCRIPT, main)
