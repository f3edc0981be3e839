"""The recipe behind the paper's numbers, the official CFCQL code's, with a flag for all that is not ours.

    python -m experiments.original_recipe --prey pretrained_adv_model.pt    # tag random, joint, two critics

To be read beside spacql_continuous.py, whose equations, networks, letters and flags it takes. Unlike the
official code transitions are drawn with replacement, and played actors use the data's moments.
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
EPS, MOMENTUM = 1e-5, 0.1  # torch's, of batch-norm


@dataclass(frozen=True)
class Args(ours.Args):
    """What differs from spacql_continuous.py."""

    env_id: Literal["simple_spread", "simple_tag", "simple_world"] = "simple_tag"
    """task"""
    dataset: str = "random"
    """as in spacql_continuous.py"""
    backup: Literal["spacql", "icql-qs", "joint", "uniform"] = "joint"
    """as in spacql_continuous.py"""
    num_critics: int = 2
    """[E] ensemble members"""
    paper_size: bool = True
    """the paper's batch, rounds, learning rate"""
    eval_every: int = 100
    """rounds between evaluations"""
    eval_episodes: int = 1000
    """per seed and evaluation"""
    output_l2: float = 0.0
    """weight of squared outputs in (6)"""
    action_l2: float = 0.001
    """weight of squared actions in (6)"""
    target_noise: float = 0.05
    """deviation of noise on the target's actions"""

    norm_states: Literal["call", "data", "running"] = "call"
    """batch-norm by the call's moments, the data's, or running ones (of observations: the data's)"""
    norm_actions: Literal["call", "data", "running", "one-pass", "none"] = "call"
    """of actions; one-pass: by data and target together (CrossQ)"""
    norm_in: tuple[Literal["target", "fit", "actor"], ...] = ("target", "fit", "actor")
    """calls of the critics where norm-actions holds; elsewhere the data's (states: norm-states in all)"""
    one_call: bool = True
    """the N agents' queries in (6) and for k = 1 are one call, else a call each"""
    affine: bool = True
    """learn scale and shift of batch-norm"""
    small_last_layer: bool = True
    """start the actors' last layer within 0.003"""
    first_critic: bool = True
    """actors ascend the first critic, else the mean"""
    first_batch: bool = True
    """actors learn after the round's first critic update, else after its last"""
    agents_mean: bool = True
    """divide Q in (6) by N, which makes L2 weigh N times as much"""
    terminal: bool = True
    """an episode's last step is terminal, else not sampled"""
    exact_k1: bool = True
    """k = 1 asks about every agent, else about a random one"""
    clip_together: bool = True
    """one norm for a seed's critics, else one each, not of shift and scale"""
    centred_rewards: bool = False
    """the agents' mean, centred, else agent 0's"""


# ------ batch-norm, data


def moments(x, dims, how="call", known=None, running=None):
    """Mean and variance for x [S, B, R, ...]: its own over `dims`, running ones, updated, or those known."""
    if how not in ("call", "running"):
        return known
    var, mean = torch.var_mean(x, dims, correction=0, keepdim=True)
    if how == "running":
        for old, new in zip(running, (mean, var), strict=True):
            old.lerp_(new.detach().mean(2, keepdim=True), MOMENTUM)
        return running
    return mean, var


def batch_norm(x, mean_var, shift, scale):
    """Normalised x, scaled and shifted; all broadcast."""
    mean, var = mean_var
    return (x - mean) / (var + EPS) ** 0.5 * scale + shift


def init_batch_norm(*shape, device):
    """Shift 0 and scale 1."""
    return torch.zeros(shape, device=device), torch.ones(shape, device=device)


def clip_together(params):
    """Clip by one norm over all axes but the seeds'."""
    norm = sum(p.grad.square().sum((1, 2, 3)) for p in params).sqrt()  # [S]
    for p in params:
        p.grad.mul_((ours.MAX_GRAD_NORM / (norm + 1e-6)).clamp(max=1.0).view(-1, 1, 1, 1))


def prepare(args, dataset, device):
    """Transitions (s, o, a, r, s', o', a', done), [rows, ...] each. As in the official code
    an episode's last a' is the next one's first action."""
    obs, actions = dataset.observations, dataset.actions
    rewards = dataset.rewards[..., 0]
    if args.centred_rewards:
        rewards = (dataset.rewards - dataset.rewards.mean()).mean(-1)
    done = torch.zeros_like(rewards)
    done[:, -1] = 1
    next_actions = actions.flatten(0, 1).roll(-1, 0).view(actions.shape)
    now = obs[:, :-1].flatten(2), obs[:, :-1], actions, rewards
    later = obs[:, 1:].flatten(2), obs[:, 1:], next_actions, done
    steps = slice(None if args.terminal else -1)
    return [x[:, steps].flatten(0, 1).to(device) for x in now + later]


# ------ training


def main(argv=None):
    """Train; prints the summary as JSON and returns it."""
    args, saved = runs.open_run(Args, argv, __doc__, SCRIPT)
    device = runs.pick_device(args.device)
    simulated = args.dataset_size, args.data_seed, args.data_dir, ours.KIND, args.prey, args.policies
    dataset = load_dataset(args.env_id, args.dataset, *simulated)
    prey = find_prey(args, device)
    num_agents, obs_dim = dataset.observations.shape[2:]
    args = ours.fill_in(args, dataset.facts["quality"], num_agents)
    if args.clone_weight or args.actor_others != "logged":
        raise InputError("the original recipe has no --clone-weight and no --actor-others")
    data = prepare(args, dataset, device)
    state_dim, action_dim = data[0].shape[-1], data[2].shape[-1]
    width = state_dim + num_agents * action_dim
    of_obs = moments(dataset.observations.to(device), (0, 1))  # [1, 1, N, O] each
    of_states = [x.flatten(2) for x in of_obs]
    known = moments(dataset.actions.flatten(2).to(device), (0, 1))  # [1, 1, N * A], or one-pass's
    known = (0.0, 1.0) if args.norm_actions == "none" else known

    generators = [torch.Generator(device).manual_seed(args.seed + i) for i in range(args.num_seeds)]
    critic = ours.init_networks(generators, args.num_critics, (width, args.hidden, args.hidden, 1))
    actor = ours.init_networks(generators, num_agents, (obs_dim, args.hidden, args.hidden, action_dim))
    if args.small_last_layer:
        for p in actor[-2:]:
            p.mul_(0.003 * args.hidden**0.5)  # from within 1 / sqrt(H)
    critic += init_batch_norm(args.num_seeds, 1, 1, width, device=device)
    actor += init_batch_norm(args.num_seeds, num_agents, 1, obs_dim, device=device)
    running = [*init_batch_norm(args.num_seeds, 1, 1, width, device=device)]
    target_critic, target_actor = [p.clone() for p in critic], [p.clone() for p in actor]
    learned_critic, learned_actor = (net if args.affine else net[:6] for net in (critic, actor))
    adam = partial(torch.optim.Adam, lr=args.learning_rate, fused=True)
    critic_adam = adam([p.requires_grad_() for p in learned_critic])
    actor_adam = adam([p.requires_grad_() for p in learned_actor])
    targets = dict(target_critic=target_critic, target_actor=target_actor, running=running)
    networks = dict(critic=critic, actor=actor) | targets
    optimizers = dict(critic_adam=critic_adam, actor_adam=actor_adam)
    first_round, history = runs.restore(saved, networks, optimizers, generators, [*of_obs], dataset.facts)

    calls = ("target", "fit", "actor")
    norm = {call: args.norm_actions if call in args.norm_in else "data" for call in calls}

    def outputs_of(actor, obs, how):
        """Outputs [S, B, N, A] at obs [S, B, N, O]."""
        mean_var = moments(obs, 1, "call" if how == "call" else "data", of_obs)
        learned = (p.transpose(1, 2) for p in actor[6:])  # [S, 1, N, O]
        return ours.actor_outputs(actor[:6], batch_norm(obs, mean_var, *learned))

    def q_values(critic, state, joint, how, over=1):
        """Q [S, E, B, R] of joint actions [S, B, R, N, A] in states [S, B, D]; each of R is
        a call, or they are one, if moments are taken `over` (1, 2)."""
        of_s, of_a = slice(state_dim), slice(state_dim, None)  # their parts of the input
        state, joint = state.unsqueeze(2), joint.flatten(3)  # [S, B, 1, D], [S, B, R, N * A]
        mean_var = moments(state, 1, args.norm_states, of_states, [p[..., of_s] for p in running])
        state = batch_norm(state, mean_var, *(p[..., of_s] for p in critic[6:])).squeeze(2)
        mean_var = moments(joint, over, how, known, [p[..., of_a] for p in running])
        joint = batch_norm(joint, mean_var, *(p[..., of_a] for p in critic[6:]))
        return ours.critic_values(critic[:6], state, joint)

    folder = runs.claim_folder(args)
    say(f"{folder}: {describe(dataset)}")
    log = runs.start_log(folder, args, first_round)
    world = dict(num_agents=num_agents, device=device, action_kind=ours.KIND, prey=prey)
    worlds = make_env(args.env_id, args.num_seeds * args.eval_episodes, **world)
    sizes = {"icql-qs": [1], "joint": [num_agents]}.get(args.backup, range(1, num_agents + 1))
    sizes = torch.tensor(list(sizes), device=device)  # [K]
    everyone = torch.arange(num_agents, device=device)
    together = (1, 2) if args.one_call else 1
    exact = args.backup == "icql-qs" and args.exact_k1
    alone = 1 - torch.eye(num_agents, device=device)  # [N, N]: the i-th query replaces agent i

    def policy(obs):
        return outputs_of(actor, obs.to(device), "data").tanh()

    rounds = range(first_round, args.rounds + 1)
    bar = tqdm(rounds, initial=first_round - 1, total=args.rounds, file=sys.stderr, unit="round")
    for round_number in bar:
        for step in range(ours.CRITIC_UPDATES):
            # ---- sample
            index = ours.per_seed(torch.randint, generators, len(data[0]), (args.batch_size,))
            state, obs, actions, rewards, next_state, next_obs, next_actions, done = (x[index] for x in data)

            # ---- target: equations (1) to (4)
            with torch.no_grad():
                by_policy = outputs_of(target_actor, next_obs, args.norm_states).tanh().unsqueeze(2)
                shape = args.batch_size, len(sizes), num_agents
                noise = ours.per_seed(torch.randn, generators, (*shape, action_dim))
                sampled = (by_policy + args.target_noise * noise).clamp(-1, 1)  # [S, B, K, N, A]
                order = alone if exact else ours.per_seed(torch.rand, generators, shape)
                replaced = ours.partial_replacement(next_actions, sampled, order, sizes)
                if args.norm_actions == "one-pass":
                    known = moments(torch.cat([actions.unsqueeze(2), replaced], 2).flatten(3), (1, 2))
                ask = partial(q_values, how=norm["target"], over=together if exact else 1)
                q_target, q_online = (ask(q, next_state, replaced) for q in (target_critic, critic))
                if exact:  # the mean over agents, before the minimum over members
                    q_target, q_online = (q.mean(-1, keepdim=True) for q in (q_target, q_online))
                u = ours.uncertainty(q_online)  # [S, B, K]
                weights = torch.full_like(u, 1 / len(sizes))
                if args.backup == "spacql":
                    weights = ours.replacement_weights(u)
                q_target = q_target * (1 - done)[:, None, :, None]
                target = ours.spacql_target(rewards, q_target, weights, args.gamma)  # [S, B]

            # ---- critic: equation (5)
            candidates, log_weights = ours.penalty_candidates(args, actions, [], generators)
            q_data = q_values(critic, state, actions.unsqueeze(2), norm["fit"]).squeeze(-1)  # [S, E, B]
            q = q_values(critic, state, candidates.flatten(2, 3), norm["fit"], (1, 2))
            penalty = ours.cql_penalty(q.unflatten(-1, log_weights.shape[2:]), log_weights, q_data)
            critics_loss = ours.critic_loss(q_data, target, penalty, args.cql_alpha)  # [S, E]
            critic_adam.zero_grad()
            critics_loss.sum().backward()
            clip_together(learned_critic) if args.clip_together else ours.clip_gradients(critic[:6])
            critic_adam.step()

            # ---- actor: equation (6)
            if step == (0 if args.first_batch else ours.CRITIC_UPDATES - 1):
                outputs = outputs_of(actor, obs, args.norm_states)
                played = outputs.tanh().unsqueeze(3)  # [S, B, N, 1, A]
                joint = ours.counterfactuals(actions, everyone, played).squeeze(3)
                q = q_values([p.detach() for p in critic], state, joint, norm["actor"], together)
                q = q[:, 0] if args.first_critic else q.mean(1)  # [S, B, N]
                small = args.action_l2 * played.square().mean((3, 4))  # [S, B, N]
                small = small + args.output_l2 * outputs.square().mean(-1)
                actors_loss = (small - q / (num_agents if args.agents_mean else 1)).mean(1)  # [S, N]
                actor_adam.zero_grad()
                actors_loss.sum().backward()
                ours.clip_gradients(learned_actor)
                actor_adam.step()

        # ---- Polyak: the targets follow
        with torch.no_grad():
            torch._foreach_lerp_(target_critic + target_actor, critic + actor, ours.TAU[args.env_id])

        # ---- now and then: score, log, save
        if round_number % args.eval_every == 0 or round_number == args.rounds:
            returns = ours.evaluate(policy, worlds, args.num_seeds, ours.EVAL_SEED)
            report = dict(scores=normalise(returns.mean(1), dataset.facts))  # [S]
            report |= dict(weights=weights.mean(1), u=u.mean(1), q_data=q_data.mean((1, 2)))
            # The target policies' joint actions, and what the targets think of them.
            report |= dict(policy_mean=by_policy.mean(1).abs().mean((1, 2, 3)))
            report |= dict(policy_std=by_policy.std(1).mean((1, 2, 3)))
            kept = [p.clone() for p in running]  # what is asked here does not move them
            for how in ("call", "data"):
                q = q_values(target_critic, next_state, by_policy, how).detach()
                report[f"q_by_{how}"] = q.mean((1, 2, 3))
            # How much of the critics' slope in logged actions is the same in all states.
            asked = actions.clone().requires_grad_()
            q = q_values(critic, state, asked.unsqueeze(2), "data")
            (slope,) = torch.autograd.grad(q.sum(), asked)  # [S, B, N, A]
            report |= dict(common_slope=(slope.mean(1).square() / slope.square().mean(1)).mean((1, 2)))
            torch._foreach_copy_(running, kept)
            runs.log_report(log, history, round_number, report, sizes, bar)
            rest = dict(script=SCRIPT, args=asdict(args), round=round_number, scale=[*of_obs])
            rest |= dict(history=history, facts=dataset.facts)
            runs.save_checkpoint(folder, networks, optimizers, generators, rest)

    # ---- the reported scores, in fresh worlds
    worlds = make_env(args.env_id, ours.FINAL_FACTOR * args.num_seeds * args.eval_episodes, **world)
    returns = ours.evaluate(policy, worlds, args.num_seeds, ours.EVAL_SEED + 1)
    scores = normalise(returns.mean(1), dataset.facts)
    return runs.save_results(log, args, returns, scores, history, dataset.facts)


if __name__ == "__main__":
    run_script(SCRIPT, main)
