"""SPaCQL with continuous actions: particle worlds with 2-D forces, and HalfCheetah 2x3, in one file.

Reference: Jin and Montana, "Partial Action Replacement: Tackling Distribution Shift in Offline MARL", AAAI 2026
(arXiv 2511.07629). Networks and most settings are those of CFCQL (Shao et al. 2023), which the paper keeps.

    python spacql_continuous.py --env-id simple_spread --dataset medium

The method is that of spacql.py, its sister; actions, actors, the penalty's candidates and environments differ:
    (1)  a'^(k): k random agents of the logged next joint action a' act by policy    partial_replacement
    (2)  T^(k) Q(s, a) = E[r + gamma Q(s', a'^(k))],  T^SP = sum_k w_k T^(k)         spacql_target
    (3)  u_k(s') = std_j Q_j(s', a'^(k)),  w_k = u_k^-1 / sum_m u_m^-1               uncertainty, replacement_weights
    (4)  Y = r + gamma sum_k w_k min_j Qtarget_j(s', a'^(k))                         spacql_target
    (5)  (Q - Y)^2 + alpha (sum_i lambda_i log int_a exp Q(s, a, a_-i) - Q(s, a))    critic_loss, cql_penalty
    (6)  agent i ascends Q(s, pi_i(o_i), a_-i), the others as logged                 actor_loss

Array letters: S seeds side by side, E critics (ensemble members), B batch, K replacement sizes, N agents, A numbers of
an action, O observation numbers of an agent, D state numbers, H hidden units, U updates in a round, M agents in the
penalty, C candidates of each, R joint actions (N * A numbers) a state. Critics [S, E, in, out], actors [S, N, in, out].

Deviations and readings of our own, beside those of spacql.py on rewards, penalty_agents, rounds and the last step:
  * the log-integral in (5) is a log-mean over C uniform candidates of an agent, on HalfCheetah also C around the policy
    at s and C around that at s', over their density before clipping (CFCQL's: no estimate of it there); lambda_i = 1/N;
  * actors are deterministic, kept from saturating by L2 on their outputs (--output-l2), and climb the members' mean;
  * inputs are standardised once, by the dataset; on spread the critics' action inputs are also centred at every call,
    half of CFCQL's batch-norm: an actor's mean action then gets no gradient, and u_k no sign of it (README);
  * scores of spread and HalfCheetah are in the published unit (same tasks); tag and world have our own prey and unit;
  * off by default and ours: --clone-weight, --actor-others policy, --uncertainty, --init-gain, --k-samples.
"""

import json
import math
import sys
import time
from dataclasses import asdict, dataclass, replace
from functools import partial

import torch
from tqdm import tqdm

from data.behaviour import CONTINUOUS_ENV_IDS
from data.datasets import describe, evaluate, find_prey, load_dataset, make_env, normalise
from experiments.estimators import KINDS, estimator
from utils import runs
from utils.errors import InputError
from utils.files import run_script, say
from utils.stacked import cache_parts, clip_each, draw_sizes, init_networks, per_seed

# Values by task. CFCQL's: gamma, tau, hidden, the paper_* ones, CQL_ALPHA (alpha in (5)); ours: the rest (README).
PARTICLES = dict(gamma=0.95, tau=0.01, hidden=64, batch_size=256, output_l2=0.1, action_norm="none")
PARTICLES |= dict(rounds=800, eval_every=20, eval_episodes=200, final_episodes=1000, paper_batch_size=1024)
CHEETAH = dict(gamma=0.99, tau=0.005, hidden=256, batch_size=256, output_l2=0.1, action_norm="none")
CHEETAH |= dict(rounds=2000, eval_every=200, eval_episodes=4, final_episodes=20, paper_batch_size=256)
TASKS = {
    "simple_spread": PARTICLES | dict(learning_rate=0.01, paper_rounds=2000, action_norm="centre"),
    "simple_tag": PARTICLES | dict(learning_rate=0.003, paper_learning_rate=0.001, paper_rounds=2000),
    "simple_world": PARTICLES | dict(learning_rate=0.003, paper_learning_rate=0.001, paper_rounds=5000),
    "HalfCheetah-2x3": CHEETAH | dict(learning_rate=0.0003, paper_rounds=100_000),
}
CQL_ALPHA = {
    "simple_spread": {"random": 0.5, "medium-replay": 1.0, "medium": 5.0, "expert": 2.5},
    "simple_tag": {"random": 0.5, "medium-replay": 0.5, "medium": 0.6, "expert": 2.0},
    "simple_world": {"random": 0.5, "medium-replay": 0.5, "medium": 0.32, "expert": 0.3},
    "HalfCheetah-2x3": {"random": 0.1, "medium-replay": 0.4, "medium": 1.0, "expert": 1.7},
}
TARGET_NOISE, CANDIDATE_NOISE = 0.05, 0.2  # standard deviations, CFCQL's
CHOICES = dict(backup=("spacql", "icql-qs", "joint", "uniform"), penalty=("cfcql", "macql", "none"), uncertainty=KINDS)
CHOICES |= dict(actor_loss=("spacql", "bc", "td3bc"), actor_others=("logged", "policy"), env_id=CONTINUOUS_ENV_IDS)
CHOICES |= dict(action_norm=("centre", "none", "call"))


@dataclass(frozen=True)
class Args:
    """Train SPaCQL (or one of its special cases) offline. Symbols in brackets are the paper's."""

    env_id: str = "simple_spread"
    """simple_spread, simple_tag, simple_world or HalfCheetah-2x3"""
    dataset: str = "medium"
    """random, medium-replay, medium, expert, or the path of an .h5 file of this project or of an OMAR folder"""
    prey: str | None = None
    """with an OMAR folder of tag or world: its pretrained_adv_model.pt, if it is not beside or above the folder"""
    backup: str = "spacql"
    """TD target: spacql (w_k by uncertainty), icql-qs (k = 1), joint (k = n), uniform (w_k = 1/n)"""
    penalty: str = "cfcql"
    """conservative penalty: cfcql (per agent, others as logged), macql (joint actions), none"""
    actor_loss: str = "spacql"
    """spacql (equation 6), bc (behaviour cloning; the critics have no say), td3bc (both)"""
    actor_others: str = "logged"
    """whom an agent improves against in equation (6): the others as logged (the paper), or policy (ours)"""
    clone_weight: float = 0.0
    """weight of behaviour cloning added to equation (6), ours, times the data's predictability to --clone-power"""
    clone_power: float = 2.0
    """power of the predictability of the logged actions, 0 for random data to 1; with power 0 the weight is as given"""
    num_critics: int = 10
    """[E] ensemble members; 2 with --backup joint is CFCQL"""
    k_samples: int | None = None
    """[m] sizes drawn per transition to estimate the target from, of the n that --backup uses; default all"""
    penalty_agents: int | None = None
    """[M] agents drawn per transition for the cfcql penalty, an estimate of its mean over agents; default 1"""
    cql_alpha: float | None = None
    """[alpha] weight of the penalty; default by task and quality from CQL_ALPHA"""
    weight_temperature: float = 1.0
    """[beta] w_k ~ u_k^-beta; 1 is the paper's rule, 0 is uniform"""
    uncertainty: str = "std"
    """[u_k] std over the members (the paper), range, relative, likelihood, neighbour (experiments/estimators.py)"""
    init_gain: float = 1.0
    """factor on the critics' first weights of the last layer: above 1 members start further apart (ours)"""
    candidates: int = 10
    """[C] candidate actions per agent in the penalty, from each of the distributions they are drawn from"""
    action_norm: str | None = None
    """of the critics' action inputs: centre, call (as CFCQL's batch-norm) or none; default by task from TASKS"""
    action_l2: float = 0.001
    """weight of the squared actions in equation (6), CFCQL's"""
    output_l2: float | None = None
    """weight of the actors' squared outputs before the tanh in equation (6), ours; default by task from TASKS"""
    seed: int = 0
    """first seed of networks and sampling"""
    num_seeds: int = 1
    """[S] seeds seed, seed + 1, ... trained at once in one process"""
    rounds: int | None = None
    """rounds of critic_updates critic steps, one actor step and one target step; default by task from TASKS"""
    critic_updates: int = 5
    """critic steps per round"""
    batch_size: int | None = None
    """[B] transitions per step; default 256"""
    paper_size: bool = False
    """CFCQL's full size: its batch, rounds and learning rate, the penalty over all agents"""
    learning_rate: float | None = None
    """Adam's, critics and actors; default by task from TASKS"""
    actor_learning_rate: float | None = None
    """another one for the actors"""
    gamma: float | None = None
    """discount; default 0.95, HalfCheetah 0.99"""
    tau: float | None = None
    """Polyak step of the target networks, once per round; default 0.01, HalfCheetah 0.005"""
    hidden: int | None = None
    """[H] units of both hidden layers; default 64, HalfCheetah 256"""
    max_grad_norm: float = 0.5
    """each network's gradient is clipped to this norm"""
    eval_every: int | None = None
    """rounds between evaluations, which also save the checkpoint; default 20, HalfCheetah 200"""
    eval_episodes: int | None = None
    """episodes per seed and evaluation; default 200, HalfCheetah 4"""
    final_episodes: int | None = None
    """episodes per seed behind the reported scores; default 1000, HalfCheetah 20"""
    eval_seed: int = 12345
    """fixes the worlds of all evaluations"""
    dataset_size: int = 1_000_000
    """transitions to simulate for a named dataset"""
    data_seed: int = 0
    """seed of the simulated dataset, which all training seeds share"""
    data_dir: str = "datasets"
    """where simulated datasets are kept"""
    out: str = "runs"
    """where run folders go"""
    name: str | None = None
    """run folder under --out; default from task, dataset, method and seeds, numbered if it exists"""
    device: str = "auto"
    """auto (a GPU if there is one), cpu, cuda, cuda:1, ..."""
    track: bool = False
    """send the TensorBoard log to Weights & Biases too (needs the wandb package)"""
    checkpoint: str | None = None
    """a checkpoint.pt, or the run folder that holds it, for --resume and --eval-only"""
    resume: bool = False
    """continue --checkpoint, or the newest run of the same name, with its settings (flags given here win)"""
    eval_only: bool = False
    """score --checkpoint and stop"""
    video: bool = False
    """also record episodes of the first seed as a GIF"""


# ------------------------------------------------------------------------------- the paper's equations


def partial_replacement(logged, policy, order, sizes):
    """Equation (1): a'^(k), the logged next joint action with k agents' actions replaced, for every k in sizes.

    logged [S, B, N, A] and policy [S, B, K, N, A] are actions; order [S, B, K, N] holds i.i.d. uniform numbers, and
    the k agents with the smallest ones are replaced, so every set of k agents is equally likely. sizes are the k,
    [K] or [S, B, K]. Returns [S, B, K, N, A].
    """
    rank = order.argsort(-1).argsort(-1)  # [S, B, K, N]: how many agents come before, exact for ties too
    return torch.where((rank < sizes.unsqueeze(-1)).unsqueeze(-1), policy, logged.unsqueeze(2))


def uncertainty(q_online):
    """Equation (3), u_k: standard deviation over the online members of Q_j(s', a'^(k)); [S, E, B, K] -> [S, B, K]."""
    return q_online.std(dim=1, correction=0)


def replacement_weights(u, temperature=1.0):
    """Equation (3), w_k ~ u_k^-temperature on the simplex over K (last axis of u); finite where u_k is 0."""
    return torch.softmax(-temperature * u.clamp(min=1e-20).log(), dim=-1)


def spacql_target(rewards, q_target, weights, gamma):
    """Equations (2) and (4): Y = r + gamma sum_k w_k min_j Qtarget_j(s', a'^(k)).

    rewards [S, B], q_target [S, E, B, K], weights [S, B, K] -> [S, B]. No terminal states: episodes only time out.
    """
    return rewards + gamma * (weights * q_target.amin(dim=1)).sum(-1)


def cql_penalty(q_candidates, log_density, q_data):
    """The penalty in (5), sum_i lambda_i log E_a[exp Q(s, a_i = a, a_-i) / density(a)] - Q(s, a), lambda_i = 1/N.

    q_candidates [S, E, B, M, C] of the agents drawn (macql: M = 1, the team as one), log_density [S, B, M, C] of each
    candidate under what drew it, q_data [S, E, B] -> [S, E, B].
    """
    log_mean = (q_candidates - log_density.unsqueeze(1)).logsumexp(-1) - math.log(log_density.shape[-1])
    return log_mean.mean(-1) - q_data


def critic_loss(q_data, target, penalty, alpha):
    """Equation (5) of every member, [S, E]: q_data and penalty [S, E, B], target [S, B]."""
    return ((q_data - target.unsqueeze(1)) ** 2 + alpha * penalty).mean(-1)


def actor_loss(kind, outputs, q_policy, logged, clone_weight, action_l2, output_l2):
    """Equation (6) for every agent, [S, N]: minus Q(s, pi_i(o_i), a_-i), plus L2 terms on pi_i and its outputs.

    outputs [S, B, N, A], whose tanh is pi; q_policy [S, B, N]; logged [S, B, N, A]. bc only imitates,
    by squared distance; clone_weight adds that; td3bc scales Q for it.
    """
    policy, imitation = outputs.tanh(), (outputs.tanh() - logged).square().mean((1, 3))  # [S, B, N, A], [S, N]
    small = action_l2 * policy.square().mean((1, 3)) + output_l2 * outputs.square().mean((1, 3))
    scaled = q_policy / q_policy.detach().abs().mean(1, keepdim=True)
    spacql = small - q_policy.mean(1) + clone_weight * imitation
    return dict(spacql=spacql, bc=imitation, td3bc=imitation - 2.5 * scaled.mean(1))[kind]


# -------------------------------------------------------------------------------- networks and actions


def actor_outputs(actor, obs):
    """Outputs [S, B, N, A] of the stacked actors on their own observations [S, B, N, O]; their tanh is the action."""
    w1, b1, w2, b2, w3, b3 = actor
    x = (obs.transpose(1, 2) @ w1 + b1).relu()  # [S, N, B, H]
    x = (x @ w2 + b2).relu()
    return (x @ w3 + b3).transpose(1, 2)


def critic_values(critic, state, joint):
    """Q of every member, [S, E, B, R], for R joint actions in each of B states.

    state [S, B, D]; joint [S, B, R, N * A]. The first layer's state part is computed once for all R.
    """
    w1, b1, w2, b2, w3, b3 = (p.flatten(0, 1) for p in critic)  # [S * E, in, out]
    (num_seeds, members), rows, dim = critic[0].shape[:2], joint.shape[2], state.shape[-1]
    values = []
    for s, a in cache_parts(members * joint[..., 0].numel() * w2.shape[-1], state, joint):
        s, a = (x.repeat_interleave(members, dim=0) for x in (s, a.flatten(1, 2)))  # [S * E, ...]
        from_state = torch.baddbmm(b1, s, w1[:, :dim]).unsqueeze(2)  # [S * E, B, 1, H]
        x = (a @ w1[:, dim:]).unflatten(1, (-1, rows)) + from_state
        x = torch.baddbmm(b2, x.flatten(1, 2).relu_(), w2).relu_()  # [S * E, B * R, H]
        q = (x * w3.mT).sum(-1) + b3.squeeze(-1)  # a matrix product with one column is slow
        values.append(q.view(num_seeds, members, -1, rows))
    return torch.cat(values, dim=2)


def batch_norm(joint, kind="call"):
    """Action inputs of the critics, [S, B, G, C, N * A], minus their mean (centre, call) and over their deviation
    (call, as in CFCQL's code) in the batch, each group G (a size, a place in M) by itself; [S, B, G * C, N * A]."""
    joint = joint if kind == "none" else joint - joint.mean((1, 3), keepdim=True)
    scale = (joint.square().mean((1, 3), keepdim=True) + 1e-5).sqrt() if kind == "call" else 1.0
    return (joint / scale).flatten(2, 3)


def counterfactuals(actions, agents, to):
    """Single-agent changes of the joint actions [S, B, N, A]: in row (i, c) agent i plays its action c of
    `to` [S, B, M, C, A] and the others act as given, for the agents [S, B, M]; [S, B, M, C, N * A]."""
    changes = torch.eye(actions.shape[2], dtype=torch.bool, device=actions.device)[agents]  # [S, B, M, N]: who changes
    played = actions[:, :, None, None]  # [S, B, 1, 1, N, A]
    return torch.where(changes[:, :, :, None, :, None], to.unsqueeze(-2), played).flatten(-2)


def propose(agents, generators, count, dim, policies):
    """The penalty's candidate actions for the agents [S, B, M] and the log-density of each under what drew it.

    policies: the actors' actions at s and s', [S, B, N, A] each, or None. Returns actions [S, B, M, C, A] and densities
    [S, B, M, C] in one order: `count` uniform ones, then as many around the policy at s, and at s'.
    """
    actions = 2 * per_seed(torch.rand, generators, (*agents.shape[1:], count, dim)) - 1
    log_density = torch.full_like(actions[..., 0], -dim * math.log(2))
    if policies is None:
        return actions, log_density
    means = torch.stack(policies, dim=3).take_along_dim(agents[..., None, None], dim=2).repeat_interleave(count, dim=3)
    noise = per_seed(torch.randn, generators, means.shape[1:])
    gauss = -noise.square().sum(-1) / 2 - dim * math.log(CANDIDATE_NOISE * math.sqrt(2 * math.pi))
    near = (means + CANDIDATE_NOISE * noise).clamp(-1, 1)
    return torch.cat([actions, near], dim=3), torch.cat([log_density, gauss], dim=3)


def candidates(penalty, actions, agents, proposals, log_density):
    """The penalty's joint actions [S, B, M, C, N * A] and log-densities [S, B, M, C]: the changes of the logged ones by
    the agents' proposals for cfcql (for none M = 0), the proposals of all agents together for macql (M = 1)."""
    if penalty == "macql":
        return proposals.transpose(2, 3).flatten(-2).unsqueeze(2), log_density.sum(2, keepdim=True)
    return counterfactuals(actions, agents, proposals), log_density


def backup_sizes(backup, num_agents):
    """The replacement sizes k that a backup uses: 1, n, or all of 1..n."""
    return {"icql-qs": [1], "joint": [num_agents]}.get(backup, list(range(1, num_agents + 1)))


def backup_weights(backup, u, temperature):
    """Weights [S, B, K] of the sizes in use: by their uncertainty u [S, B, K] for spacql, else equal."""
    return replacement_weights(u, temperature) if backup == "spacql" else torch.full_like(u, 1 / u.shape[-1])


# --------------------------------------------------------------------------- data, scores, diagnostics


def to_device(dataset, device):
    """The dataset on the device, as rows: obs [E (T + 1), N, O] and state [E (T + 1), D] standardised, actions
    [E T, N, A], team rewards [E T] centred; and the observations' scale (mean, deviation), [N, O] each. The state is
    the simulator's where there is one, else the observations side by side."""
    obs, scale = standardise(dataset.observations.to(device))
    state = obs.flatten(2) if dataset.states is None else standardise(dataset.states.to(device))[0]
    return dict(
        obs=obs.flatten(0, 1),
        state=state.flatten(0, 1),
        actions=dataset.actions.to(device).flatten(0, 1),
        rewards=(dataset.rewards - dataset.rewards.mean()).mean(-1).to(device).flatten(),
        horizon=dataset.actions.shape[1],
    ), scale


def standardise(x):
    """x [E, T + 1, ...] minus its mean, over its deviation (1 where it is constant), and these two."""
    std, mean = torch.std_mean(x, dim=(0, 1), correction=0)
    std = torch.where(std < 1e-6, 1.0, std)
    return (x - mean) / std, (mean, std)


def sample_transitions(data, index):
    """Rows (s, o, a, r, s', o', a') of the transitions `index` [S, ...]; the last step of an episode is none."""
    horizon, state, obs, actions = (data[name] for name in ("horizon", "state", "obs", "actions"))
    episode, step = index // (horizon - 1), index % (horizon - 1)
    row, action_row = episode * (horizon + 1) + step, episode * horizon + step
    now, later = (state[row], obs[row], actions[action_row]), (state[row + 1], obs[row + 1], actions[action_row + 1])
    return *now, data["rewards"][action_row], *later


def policy_actions(actor, obs, scale):
    """The actors' actions [S, B, N, A] on observations [S, B, N, O] as the environment gives them."""
    return actor_outputs(actor, (obs.to(scale[0].device) - scale[0]) / scale[1]).tanh()


@torch.no_grad()
def diagnose(nets, data, norm, estimate, index, noise, backup, temperature):
    """What to watch on fixed transitions: w_k, u_k [S, N]; k_eff, saturation, Q on data and on uniform actions [S]."""
    state, obs, actions, _, next_state, next_obs, next_actions = sample_transitions(data, index)
    num, used = actions.shape[2], [k - 1 for k in backup_sizes(backup, actions.shape[2])]
    sizes = torch.arange(1, num + 1, device=state.device)
    policy = actor_outputs(nets["target_actor"], next_obs).tanh().unsqueeze(2)  # [S, B, 1, N, A]
    joint = partial_replacement(next_actions, policy, noise[..., :num], sizes).flatten(-2)
    u = estimate(nets["critic"], next_state, joint, next_actions)
    weights = torch.zeros_like(u)  # [S, B, N], zero at sizes that are not in use
    weights[..., used] = backup_weights(backup, u[..., used], temperature)
    both = torch.stack([actions, 2 * noise[..., num:] - 1], dim=2).flatten(-2).unsqueeze(3)  # logged; uniform
    q_both = critic_values(nets["critic"], state, norm(both)).mean((1, 2))
    saturated = (actor_outputs(nets["actor"], obs).abs() > 2.65).float().mean((1, 2, 3))  # beyond 0.99 of 1
    report = dict(weights=weights.mean(1), u=u.mean(1), k_eff=(weights * sizes).sum(-1).mean(1))
    return report | dict(q_data=q_both[:, 0], q_ood=q_both[:, 1], saturated=saturated)


# ------------------------------------------------------------------------------- settings and training


def fill_in(args: Args, quality: str, num_agents: int):
    """The arguments with every None that has a default by task, quality or size replaced by it."""
    task = TASKS[args.env_id] | dict(cql_alpha=CQL_ALPHA[args.env_id].get(quality))
    paper = {name.removeprefix("paper_"): value for name, value in task.items() if name.startswith("paper_")}
    task |= paper | dict(penalty_agents=num_agents) if args.paper_size else dict(penalty_agents=1)
    args = replace(args, **{k: v for k, v in task.items() if getattr(args, k, 0) is None})
    if args.cql_alpha is None:
        raise InputError(f"no default alpha for data of quality '{quality}': give --cql-alpha")
    return replace(args, penalty_agents=min(args.penalty_agents, num_agents))


def main(argv=None):
    """Train (or resume, or only evaluate) as the arguments say; prints the summary as JSON and returns it."""
    start = time.time()
    args, folder, saved = runs.open_run(Args, argv, __doc__, CHOICES)
    device = runs.pick_device(args.device)
    prey = find_prey(args.env_id, args.dataset, args.prey, device)
    make_worlds = partial(make_env, args.env_id, device=device, action_kind="continuous", prey=prey)
    if args.eval_only:
        actor, scale = ([p.to(device) for p in saved[key]] for key in ("actor", "scale"))
        facts, history = saved["facts"], saved["history"]
    else:
        args, actor, scale, facts, history = train(args, folder, saved, device, make_worlds)
    env = make_worlds(args.num_seeds * args.final_episodes, facts["num_agents"])
    policy = partial(policy_actions, actor, scale=scale)
    returns = evaluate(policy, env, args.num_seeds, args.eval_seed + 1)
    summary = runs.summarise(args, normalise(returns.mean(1), facts), history)
    summary |= dict(wall_s=round(time.time() - start, 1), device=str(device))
    if not args.eval_only:
        runs.save_results(folder, asdict(args), summary, returns, history)
    if args.video:
        runs.record_gif(folder / "greedy.gif", policy, env, args.eval_seed)
    print(json.dumps(summary), flush=True)
    return summary


def train(args, folder, saved, device, make_worlds):
    """The algorithm. Returns the filled-in arguments, actors, scale of inputs, facts of the data, and history."""
    dataset = load_dataset(args.env_id, args.dataset, args.dataset_size, args.data_seed, args.data_dir, "continuous")
    (num, obs_dim), action_dim = dataset.observations.shape[2:], dataset.actions.shape[-1]
    facts = {k: dataset.facts[k] for k in ("quality", "random_score", "expert_score")} | dict(num_agents=num)
    num_transitions = dataset.actions[:, 1:, 0, 0].numel()  # all but the last step of each episode
    args = fill_in(args, facts["quality"], num)
    data, scale = to_device(dataset, device)
    clone_weight = args.clone_weight * dataset.facts["predictability"] ** args.clone_power

    # A seed draws from its own generator only: trained together or alone, it ends the same, to rounding.
    generators = [torch.Generator(device).manual_seed(args.seed + i) for i in range(args.num_seeds)]
    in_dim = data["state"].shape[-1] + num * action_dim
    critic = init_networks(generators, args.num_critics, (in_dim, args.hidden, args.hidden, 1), args.init_gain)
    actor = init_networks(generators, num, (obs_dim, args.hidden, args.hidden, action_dim))
    target_critic, target_actor, best_actor = ([p.clone() for p in params] for params in (critic, actor, actor))
    nets = dict(critic=critic, actor=actor, target_critic=target_critic, target_actor=target_actor, best=best_actor)
    rates = dict(critic=args.learning_rate, actor=args.actor_learning_rate or args.learning_rate)
    adams = {k: torch.optim.Adam([p.requires_grad_() for p in nets[k]], lr, fused=True) for k, lr in rates.items()}
    first_round, history = runs.restore(saved, nets, adams, generators) if saved else (0, {})
    say(f"{args.env_id} {args.dataset}: {describe(dataset)}")

    env = make_worlds(args.num_seeds * args.eval_episodes, num)
    near_policies = args.env_id == "HalfCheetah-2x3"  # CFCQL draws candidates around them there only
    norm = partial(batch_norm, kind=args.action_norm)
    sizes = torch.tensor(backup_sizes(args.backup, num), device=device)  # [K]
    num_sizes = min(args.k_samples or len(sizes), len(sizes))  # K in the loop
    estimate = estimator(args, data, uncertainty, critic_values, norm)
    everyone = torch.arange(num, device=device).expand(args.num_seeds, args.batch_size, -1)  # [S, B, N]
    probe = [torch.Generator(device).manual_seed(args.eval_seed)]  # transitions to diagnose, the same for all seeds
    probe_index = per_seed(torch.randint, probe, num_transitions, (1024,)).expand(args.num_seeds, -1)
    probe_noise = per_seed(torch.rand, probe, (1024, num, num + action_dim)).expand(args.num_seeds, -1, -1, -1)
    writer = runs.start_log(folder, asdict(args), first_round, args.track)
    bar = tqdm(range(first_round, args.rounds), initial=first_round, total=args.rounds, file=sys.stderr, unit="round")
    for round_number in bar:
        # ---- sample: this round's transitions and random numbers
        shape = (args.critic_updates, args.batch_size)  # [U, B]
        index = per_seed(torch.randint, generators, num_transitions, shape)  # [S, U, B]
        order = per_seed(torch.rand, generators, (*shape, num_sizes + 1, num))  # [S, U, B, K + 1, N]
        jitter = TARGET_NOISE * per_seed(torch.randn, generators, (*shape, num_sizes, num, action_dim))
        batches = sample_transitions(data, index)  # [S, U, B, ...] each
        for update in range(args.critic_updates):
            state, obs, actions, rewards, next_state, next_obs, next_actions = (x[:, update] for x in batches)
            # ---- target: equations (1) to (4)
            with torch.no_grad():
                policy = (actor_outputs(target_actor, next_obs).tanh().unsqueeze(2) + jitter[:, update]).clamp(-1, 1)
                used = draw_sizes(sizes, num_sizes, args.batch_size, generators)
                joint = partial_replacement(next_actions, policy, order[:, update, :, 1:], used).flatten(-2)
                q_target = critic_values(target_critic, next_state, norm(joint.unsqueeze(3)))  # [S, E, B, K]
                u = estimate(critic, next_state, joint, next_actions) if args.backup == "spacql" else q_target[:, 0]
                weights = backup_weights(args.backup, u, args.weight_temperature)
                target = spacql_target(rewards, q_target, weights, args.gamma)

            # ---- penalty: the joint actions that equation (5) holds against the data
            drawn = order[:, update, :, 0].argsort(-1)[..., : args.penalty_agents]  # [S, B, M]
            agents = dict(cfcql=drawn, macql=everyone, none=drawn[..., :0])[args.penalty]
            with torch.no_grad():
                both = [actor_outputs(actor, o).tanh() for o in (obs, next_obs)] if near_policies else None
                proposals = propose(agents, generators, args.candidates, action_dim, both)
                others, log_density = candidates(args.penalty, actions, agents, *proposals)

            # ---- critics: equation (5); row 0 is the data, the other M * C are the penalty's candidates
            rows = [norm(actions.flatten(-2)[:, :, None, None]), norm(others)]
            q = critic_values(critic, state, torch.cat(rows, dim=2))  # [S, E, B, 1 + M * C]
            q_data, q_candidates = q[..., 0], q[..., 1:].unflatten(-1, log_density.shape[2:])
            penalty = 0.0 if args.penalty == "none" else cql_penalty(q_candidates, log_density, q_data)
            loss = critic_loss(q_data, target, penalty, args.cql_alpha)  # [S, E]
            adams["critic"].zero_grad()
            loss.sum().backward()
            clip_each(critic, args.max_grad_norm)
            adams["critic"].step()

        # ---- actors: equation (6), on the round's last transitions
        outputs = actor_outputs(actor, obs)  # [S, B, N, A]
        played = actions if args.actor_others == "logged" else outputs.detach().tanh()
        alternatives = norm(counterfactuals(played, everyone, outputs.tanh().unsqueeze(3)))  # [S, B, N, N * A]
        q = critic_values([p.detach() for p in critic], state, alternatives).mean(1)  # [S, B, N]
        adams["actor"].zero_grad()
        weights = (clone_weight, args.action_l2, args.output_l2)
        actor_loss(args.actor_loss, outputs, q, actions, *weights).sum().backward()
        clip_each(actor, args.max_grad_norm)
        adams["actor"].step()

        # ---- Polyak: the targets follow
        with torch.no_grad():
            torch._foreach_lerp_(target_critic + target_actor, critic + actor, args.tau)

        # ---- now and then: score, diagnose, log, save (the only host syncs)
        if (round_number + 1) % args.eval_every and round_number + 1 < args.rounds:
            continue
        if not all(p.isfinite().all() for p in critic + actor):
            raise InputError(f"training diverged by round {round_number + 1}: try a smaller --learning-rate")
        returns = evaluate(partial(policy_actions, actor, scale=scale), env, args.num_seeds, args.eval_seed)
        scores = normalise(returns.mean(1), facts)  # [S]
        best = scores > torch.tensor(history["scores"] if history else [[float("-inf")]], device=device).amax(0)
        for kept, param in zip(best_actor, actor, strict=True):
            kept[best] = param.detach()[best]
        report = diagnose(nets, data, norm, estimate, probe_index, probe_noise, args.backup, args.weight_temperature)
        report |= dict(scores=scores, critic_loss=loss.detach().mean(1))
        runs.log_report(writer, history, round_number + 1, report)
        bar.set_postfix(score=f"{float(scores.mean()):.1f}", k_eff=f"{float(report['k_eff'].mean()):.2f}")
        facts_of_run = dict(args=json.dumps(asdict(args)), scale=list(scale), facts=facts, history=history)
        runs.save_checkpoint(folder, round_number + 1, nets, adams, generators, facts_of_run)
    writer.close()
    runs.warn_if_collapsed(args.backup, facts["quality"], history)
    return args, actor, scale, facts, history


if __name__ == "__main__":
    run_script("spacql_continuous.py", main)
