"""SPaCQL with discrete actions on the particle worlds and a small game, in one file.

Reference: Jin and Montana, "Partial Action Replacement: Tackling Distribution Shift in Offline MARL", AAAI 2026
(arXiv 2511.07629). Networks and most settings are those of CFCQL (Shao et al. 2023), which the paper keeps.

    python spacql.py --env-id simple_spread --dataset medium

The method, and the function that computes each equation (numbers as in the README):
    (1)  a'^(k): k random agents of the logged next joint action a' act by policy    partial_replacement
    (2)  T^(k) Q(s, a) = E[r + gamma Q(s', a'^(k))],  T^SP = sum_k w_k T^(k)         spacql_target
    (3)  u_k(s') = std_j Q_j(s', a'^(k)),  w_k = u_k^-1 / sum_m u_m^-1               uncertainty, replacement_weights
    (4)  Y = r + gamma sum_k w_k min_j Qtarget_j(s', a'^(k))                         spacql_target
    (5)  (Q - Y)^2 + alpha (sum_i lambda_i logsumexp_a Q(s, a, a_-i) - Q(s, a))      critic_loss, cql_penalty
    (6)  agent i ascends Q(s, pi_i(o_i), a_-i), the others as logged                 actor_loss

Array letters: S seeds trained side by side, E critics (ensemble members), B batch, K replacement sizes, N agents,
A actions, O observation numbers of an agent, D = N * O state numbers, H hidden units, U updates in a round, M agents in
the penalty, R joint actions per state. A joint action is a row of N * A zeros and ones. Networks are stacked tensors:
critics [S, E, in, out], actors [S, N, in, out]. Python loops over seeds only to draw random numbers.

Deviations and readings of our own (the paper leaves room, or the original is for continuous actions):
  * softmax actors with an entropy bonus (they saturate without it; the targets carry none), greedy when scored; the
    expectation over a_i ~ pi_i in (6) is exact, and so is the log-sum-exp over the A actions in (5); lambda_i = 1/N;
  * the penalty's mean over agents is estimated from one random agent per transition (--penalty-agents): the same
    expected gradient, before clipping, for a third of the work. macql's log-sum-exp is over N * A uniform draws;
  * one reward for the team, the mean over agents, minus its mean over the dataset: without terminal states that
    shifts the fixed point by a constant, which changes no policy, weight or penalty, and Q gets there sooner;
  * actors ascend the mean of the ensemble's online members, once per round, on the round's last transitions;
  * inputs are standardised once by the dataset's mean and deviation instead of by batch-norm at every call;
  * learning rates and the default size are ours (TASKS, DEFAULT_SIZES); --paper-size has CFCQL's. The last step of an
    episode has no logged next action and is not sampled at all;
  * off by default and ours: --clone-weight (cloning, as far as the logged actions can be predicted), --actor-others
    policy (in (6)), --uncertainty and --init-gain (other u_k), --k-samples (fewer sizes per target).
"""

import json
import sys
import time
from dataclasses import asdict, dataclass, replace
from functools import partial

import torch
from tqdm import tqdm

from data.datasets import describe, evaluate, load_dataset, make_env, normalise
from envs.particles import NUM_ACTIONS
from experiments.estimators import KINDS, estimator
from utils import runs
from utils.errors import InputError
from utils.files import run_script, say
from utils.stacked import cache_parts, clip_each, draw_sizes, init_networks, per_seed

# Values by task. The paper_* ones and CQL_ALPHA, alpha in (5), are CFCQL's; the rest are ours (README, Results).
TASKS = {
    "simple_spread": dict(learning_rate=0.01, entropy_coef=0.5, paper_learning_rate=0.01, paper_rounds=2000),
    "simple_tag": dict(learning_rate=0.003, entropy_coef=0.1, paper_learning_rate=0.001, paper_rounds=2000),
    "simple_world": dict(learning_rate=0.003, entropy_coef=0.1, paper_learning_rate=0.001, paper_rounds=5000),
    "two_doors": dict(learning_rate=0.01, entropy_coef=0.02, paper_learning_rate=0.01, paper_rounds=2000),  # all ours
}
CQL_ALPHA = {
    "simple_spread": {"random": 0.5, "medium-replay": 1.0, "medium": 5.0, "expert": 2.5},
    "simple_tag": {"random": 0.5, "medium-replay": 0.5, "medium": 0.6, "expert": 2.0},
    "simple_world": {"random": 0.5, "medium-replay": 0.5, "medium": 0.32, "expert": 0.3},
    "two_doors": {"random": 0.05, "mix": 0.5},  # ours
}
DEFAULT_SIZES = dict(rounds=800, batch_size=256, penalty_agents=1)  # minutes on two cores
CHOICES = dict(backup=("spacql", "icql-qs", "joint", "uniform"), penalty=("cfcql", "macql", "none"), uncertainty=KINDS)
CHOICES |= dict(actor_loss=("spacql", "bc", "td3bc"), actor_others=("logged", "policy"), env_id=tuple(TASKS))


@dataclass(frozen=True)
class Args:
    """Train SPaCQL (or one of its special cases) offline. Symbols in brackets are the paper's."""

    env_id: str = "simple_spread"
    """simple_spread, simple_tag, simple_world or two_doors, a game of coordination (envs/two_doors.py)"""
    dataset: str = "medium"
    """random, medium-replay, medium, expert, mix:teams=3,unit=step,share=0.5,noise=0.1, or the path of an .h5 file"""
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
    entropy_coef: float | None = None
    """entropy bonus of the softmax actors (ours); default by task from TASKS"""
    seed: int = 0
    """first seed of networks and sampling"""
    num_seeds: int = 1
    """[S] seeds seed, seed + 1, ... trained at once in one process"""
    rounds: int | None = None
    """rounds of critic_updates critic steps, one actor step and one target step; default 800"""
    critic_updates: int = 5
    """critic steps per round"""
    batch_size: int | None = None
    """[B] transitions per step; default 256"""
    paper_size: bool = False
    """the paper's full size: batch 1024, 2000 or 5000 rounds, its learning rate, the penalty over all agents"""
    learning_rate: float | None = None
    """Adam's, critics and actors; default by task from TASKS"""
    gamma: float = 0.95
    """discount"""
    tau: float = 0.01
    """Polyak step of the target networks, once per round"""
    hidden: int = 64
    """[H] units of both hidden layers"""
    max_grad_norm: float = 0.5
    """each network's gradient is clipped to this norm"""
    eval_every: int = 20
    """rounds between evaluations, which also save the checkpoint"""
    eval_episodes: int = 200
    """greedy episodes per seed and evaluation"""
    final_episodes: int = 1000
    """greedy episodes per seed behind the reported scores"""
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
    """also record greedy episodes of the first seed as a GIF"""


# ------------------------------------------------------------------------------- the paper's equations


def partial_replacement(logged, policy, order, sizes):
    """Equation (1): a'^(k), the logged next joint action with k agents' actions replaced, for every k in sizes.

    logged [S, B, N] and policy [S, B, K, N] are action indices; order [S, B, K, N] holds i.i.d. uniform numbers, and
    the k agents with the smallest ones are replaced, so every set of k agents is equally likely. sizes are the k,
    [K] or [S, B, K]. Returns [S, B, K, N].
    """
    rank = order.argsort(-1).argsort(-1)  # [S, B, K, N]: how many agents come before, exact for ties too
    return torch.where(rank < sizes.unsqueeze(-1), policy, logged.unsqueeze(2))


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


def cql_penalty(q_candidates, q_data):
    """The penalty in (5), sum_i lambda_i logsumexp_a Q(s, a_i = a, a_-i) - Q(s, a) with lambda_i = 1/N.

    q_candidates [S, E, B, N, A] (for macql [S, E, B, 1, M]: the team as one agent), q_data [S, E, B] -> [S, E, B].
    """
    return q_candidates.logsumexp(-1).mean(-1) - q_data


def critic_loss(q_data, target, penalty, alpha):
    """Equation (5) of every member, [S, E]: q_data and penalty [S, E, B], target [S, B]."""
    return ((q_data - target.unsqueeze(1)) ** 2 + alpha * penalty).mean(-1)


def actor_loss(kind, logits, q_candidates, logged, clone_weight, entropy_coef):
    """Equation (6) for every agent, [S, N]: minus E_{a ~ pi_i}[Q(s, a, a_-i)] and an entropy bonus.

    logits [S, B, N, A] of the actors; q_candidates [S, B, N, A], agent i's alternatives with the others as logged;
    logged [S, B, N]. bc only imitates, minus log pi_i(logged); clone_weight adds that; td3bc scales Q for it.
    """
    log_pi = logits.log_softmax(-1)
    q_policy, negentropy = ((log_pi.exp() * x).sum(-1) for x in (q_candidates, log_pi))  # [S, B, N] each
    imitation = -log_pi.gather(-1, logged.unsqueeze(-1)).squeeze(-1).mean(1)  # [S, N]
    spacql = (entropy_coef * negentropy - q_policy).mean(1) + clone_weight * imitation
    scaled = q_policy / q_policy.detach().abs().mean(1, keepdim=True)
    return dict(spacql=spacql, bc=imitation, td3bc=imitation - 2.5 * scaled.mean(1))[kind]


# -------------------------------------------------------------------------------- networks and actions


def actor_logits(actor, obs):
    """Logits [S, B, N, A] of the stacked actors on observations [S, B, N, O]: each agent sees only its own."""
    w1, b1, w2, b2, w3, b3 = actor
    x = (obs.transpose(1, 2) @ w1 + b1).relu()  # [S, N, B, H]
    x = (x @ w2 + b2).relu()
    return (x @ w3 + b3).transpose(1, 2)


def critic_values(critic, state, joint):
    """Q of every member, [S, E, B, R], for R joint actions in each of B states.

    state [S, B, D]; joint [S, B, R, N * A] zeros and ones. The first layer's state part is computed once for all R.
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


def one_hot(actions):
    """Joint actions [..., N] of indices as rows of zeros and ones, [..., N * A]."""
    return torch.eye(NUM_ACTIONS, device=actions.device)[actions].flatten(-2)


def counterfactuals(actions, agents):
    """Single-agent changes of the joint actions [S, B, N]: rows (i, a), where agent i plays a and the others act as
    given, for the agents [S, B, M] and all A actions, as zeros and ones [S, B, M * A, N * A]."""
    num, device = actions.shape[-1], actions.device
    played = one_hot(actions).unflatten(-1, (1, 1, num, NUM_ACTIONS))
    changes = torch.eye(num, dtype=torch.bool, device=device)[agents]  # [S, B, M, N]: who changes
    to = torch.eye(NUM_ACTIONS, device=device).view(NUM_ACTIONS, 1, NUM_ACTIONS)  # to what, [A, 1, A]
    return torch.where(changes[..., None, :, None], to, played).flatten(-4, -3).flatten(-2)


def candidates(penalty, actions, agents, generators):
    """The penalty's joint actions for actions [S, B, N], as zeros and ones [S, B, R, N * A]: for cfcql the R = M * A
    changes of the agents [S, B, M]; for macql R = N * A joint actions, uniformly drawn; for none R = 0."""
    if penalty == "cfcql":
        return counterfactuals(actions, agents)
    shape = (actions.shape[1], actions.shape[2] * NUM_ACTIONS if penalty == "macql" else 0, actions.shape[2])
    return one_hot(per_seed(torch.randint, generators, NUM_ACTIONS, shape))


def sample_actions(logits, uniform):
    """Actions [S, B, K, N] from softmax(logits [S, B, N, A]) by inverting its distribution at uniform [S, B, K, N]."""
    steps = logits.softmax(-1).cumsum(-1)[..., :-1]  # [S, B, N, A - 1]
    return (uniform.unsqueeze(-1) >= steps.unsqueeze(2)).sum(-1)


def backup_sizes(backup, num_agents):
    """The replacement sizes k that a backup uses: 1, n, or all of 1..n."""
    return {"icql-qs": [1], "joint": [num_agents]}.get(backup, list(range(1, num_agents + 1)))


def backup_weights(backup, u, temperature):
    """Weights [S, B, K] of the sizes in use: by their uncertainty u [S, B, K] for spacql, else equal."""
    return replacement_weights(u, temperature) if backup == "spacql" else torch.full_like(u, 1 / u.shape[-1])


# --------------------------------------------------------------------------- data, scores, diagnostics


def to_device(dataset, device):
    """The dataset on the device, as rows: states [E (T + 1), D] standardised, actions [E T, N], team rewards [E T]
    centred. Also the scale (mean, deviation), [N, O] each, of the observations; what is constant gets deviation 1."""
    std, mean = torch.std_mean(dataset.observations, dim=(0, 1), correction=0)
    mean, std = mean.to(device), torch.where(std < 1e-6, 1.0, std).to(device)
    return dict(
        state=((dataset.observations.to(device) - mean) / std).flatten(2).flatten(0, 1),
        actions=dataset.actions.to(device).flatten(0, 1),
        rewards=(dataset.rewards - dataset.rewards.mean()).mean(-1).to(device).flatten(),
        horizon=dataset.actions.shape[1],
    ), (mean, std)


def sample_transitions(data, index):
    """Rows (s, a, r, s', a') of the transitions `index` [S, ...]; an episode has horizon - 1 of them, see the top."""
    horizon, state, actions = data["horizon"], data["state"], data["actions"]
    episode, step = index // (horizon - 1), index % (horizon - 1)
    row, action_row = episode * (horizon + 1) + step, episode * horizon + step
    return state[row], actions[action_row], data["rewards"][action_row], state[row + 1], actions[action_row + 1]


def greedy_actions(actor, obs, scale):
    """The most likely actions [S, B, N] on observations [S, B, N, O] as the environment gives them."""
    return actor_logits(actor, (obs.to(scale[0].device) - scale[0]) / scale[1]).argmax(-1)


@torch.no_grad()
def diagnose(nets, data, estimate, index, noise, backup, temperature):
    """What to watch on fixed transitions: w_k, u_k [S, N]; k_eff, entropy, Q on data and on uniform actions [S]."""
    state, actions, _, next_state, next_actions = sample_transitions(data, index)
    num, used = actions.shape[-1], [k - 1 for k in backup_sizes(backup, actions.shape[-1])]
    sizes = torch.arange(1, num + 1, device=state.device)
    policy = sample_actions(actor_logits(nets["target_actor"], next_state.unflatten(-1, (num, -1))), noise[..., 0])
    joint = one_hot(partial_replacement(next_actions, policy, noise[..., 1], sizes))
    u = estimate(nets["critic"], next_state, joint, next_actions)
    weights = torch.zeros_like(u)  # [S, B, N], zero at sizes that are not in use
    weights[..., used] = backup_weights(backup, u[..., used], temperature)
    uniform = (noise[:, :, 0, :, 0] * NUM_ACTIONS).long()
    q_both = critic_values(nets["critic"], state, one_hot(torch.stack([actions, uniform], dim=2))).mean((1, 2))
    logits = actor_logits(nets["actor"], state.unflatten(-1, (num, -1)))
    entropy = torch.distributions.Categorical(logits=logits).entropy().mean((1, 2))
    report = dict(weights=weights.mean(1), u=u.mean(1), k_eff=(weights * sizes).sum(-1).mean(1))
    return report | dict(q_data=q_both[:, 0], q_ood=q_both[:, 1], entropy=entropy)


# ------------------------------------------------------------------------------- settings and training


def fill_in(args: Args, quality: str, num_agents: int):
    """The arguments with every None that has a default by task, quality or size replaced by it."""
    task = TASKS[args.env_id] | dict(cql_alpha=CQL_ALPHA[args.env_id].get(quality))
    paper = {name.removeprefix("paper_"): value for name, value in task.items() if name.startswith("paper_")}
    task |= paper | dict(batch_size=1024, penalty_agents=num_agents) if args.paper_size else DEFAULT_SIZES
    args = replace(args, **{k: v for k, v in task.items() if getattr(args, k, 0) is None})
    if args.cql_alpha is None:
        raise InputError(f"no default alpha for data of quality '{quality}': give --cql-alpha")
    return replace(args, penalty_agents=min(args.penalty_agents, num_agents))


def main(argv=None):
    """Train (or resume, or only evaluate) as the arguments say; prints the summary as JSON and returns it."""
    start = time.time()
    args, folder, saved = runs.open_run(Args, argv, __doc__, CHOICES)
    device = runs.pick_device(args.device)
    if args.eval_only:
        actor, scale = ([p.to(device) for p in saved[key]] for key in ("actor", "scale"))
        facts, history = saved["facts"], saved["history"]
    else:
        args, actor, scale, facts, history = train(args, folder, saved, device)
    env = make_env(args.env_id, args.num_seeds * args.final_episodes, facts["num_agents"], device)
    policy = partial(greedy_actions, actor, scale=scale)
    returns = evaluate(policy, env, args.num_seeds, args.eval_seed + 1)
    summary = runs.summarise(args, normalise(returns.mean(1), facts), history)
    summary |= dict(wall_s=round(time.time() - start, 1), device=str(device))
    if not args.eval_only:
        runs.save_results(folder, asdict(args), summary, returns, history)
    if args.video:
        runs.record_gif(folder / "greedy.gif", policy, env, args.eval_seed)
    print(json.dumps(summary), flush=True)
    return summary


def train(args, folder, saved, device):
    """The algorithm. Returns the filled-in arguments, actors, scale of inputs, facts of the data, and history."""
    dataset = load_dataset(args.env_id, args.dataset, args.dataset_size, args.data_seed, args.data_dir)
    (num, obs_dim), hidden = dataset.observations.shape[2:], (args.hidden, args.hidden)
    facts = {k: dataset.facts[k] for k in ("quality", "random_score", "expert_score")} | dict(num_agents=num)
    num_transitions = dataset.actions[:, 1:, 0].numel()  # all but the last step of each episode
    args = fill_in(args, facts["quality"], num)
    data, scale = to_device(dataset, device)
    clone_weight = args.clone_weight * dataset.facts["predictability"] ** args.clone_power

    # A seed draws from its own generator only: trained together or alone, it ends the same, to rounding.
    generators = [torch.Generator(device).manual_seed(args.seed + i) for i in range(args.num_seeds)]
    critic = init_networks(generators, args.num_critics, (num * (obs_dim + NUM_ACTIONS), *hidden, 1), args.init_gain)
    actor = init_networks(generators, num, (obs_dim, *hidden, NUM_ACTIONS))
    target_critic, target_actor, best_actor = ([p.clone() for p in params] for params in (critic, actor, actor))
    nets = dict(critic=critic, actor=actor, target_critic=target_critic, target_actor=target_actor, best=best_actor)
    make_adam = partial(torch.optim.Adam, lr=args.learning_rate, fused=True)
    adams = {name: make_adam([p.requires_grad_() for p in nets[name]]) for name in ("critic", "actor")}
    first_round, history = runs.restore(saved, nets, adams, generators) if saved else (0, {})
    say(f"{args.env_id} {args.dataset}: {describe(dataset)}")

    env = make_env(args.env_id, args.num_seeds * args.eval_episodes, num, device)
    sizes = torch.tensor(backup_sizes(args.backup, num), device=device)  # [K]
    num_sizes = min(args.k_samples or len(sizes), len(sizes))  # K in the loop
    estimate = estimator(args, data, uncertainty, critic_values)
    everyone = torch.arange(num, device=device).expand(args.num_seeds, args.batch_size, -1)  # [S, B, N]
    probe = [torch.Generator(device).manual_seed(args.eval_seed)]  # transitions to diagnose, the same for all seeds
    probe_index = per_seed(torch.randint, probe, num_transitions, (1024,)).expand(args.num_seeds, -1)
    probe_noise = per_seed(torch.rand, probe, (1024, num, num, 2)).expand(args.num_seeds, -1, -1, -1, -1)
    writer = runs.start_log(folder, asdict(args), first_round, args.track)
    bar = tqdm(range(first_round, args.rounds), initial=first_round, total=args.rounds, file=sys.stderr, unit="round")
    for round_number in bar:
        # ---- sample: this round's transitions and random numbers
        shape = (args.critic_updates, args.batch_size)  # [U, B]
        index = per_seed(torch.randint, generators, num_transitions, shape)  # [S, U, B]
        noise = per_seed(torch.rand, generators, (*shape, num_sizes + 1, num, 2))  # [S, U, B, K + 1, N, 2]
        batches = sample_transitions(data, index)  # [S, U, B, ...] each
        for update in range(args.critic_updates):
            state, actions, rewards, next_state, next_actions = (x[:, update] for x in batches)
            # ---- target: equations (1) to (4)
            with torch.no_grad():
                next_logits = actor_logits(target_actor, next_state.unflatten(-1, (num, -1)))
                policy = sample_actions(next_logits, noise[:, update, :, 1:, :, 0])
                used = draw_sizes(sizes, num_sizes, args.batch_size, generators)
                joint = one_hot(partial_replacement(next_actions, policy, noise[:, update, :, 1:, :, 1], used))
                q_target = critic_values(target_critic, next_state, joint)  # [S, E, B, K]
                u = estimate(critic, next_state, joint, next_actions) if args.backup == "spacql" else q_target[:, 0]
                weights = backup_weights(args.backup, u, args.weight_temperature)
                target = spacql_target(rewards, q_target, weights, args.gamma)

            # ---- penalty: the joint actions that equation (5) holds against the data
            agents = noise[:, update, :, 0, :, 1].argsort(-1)[..., : args.penalty_agents]  # [S, B, M]
            others = candidates(args.penalty, actions, agents, generators)  # [S, B, R, N * A]

            # ---- critics: equation (5); row 0 is the data, the others are the penalty's
            q = critic_values(critic, state, torch.cat([one_hot(actions).unsqueeze(2), others], dim=2))
            groups = args.penalty_agents if args.penalty == "cfcql" else 1
            q_data, q_candidates = q[..., 0], q[..., 1:].unflatten(-1, (groups, -1))
            penalty = 0.0 if args.penalty == "none" else cql_penalty(q_candidates, q_data)
            loss = critic_loss(q_data, target, penalty, args.cql_alpha)  # [S, E]
            adams["critic"].zero_grad()
            loss.sum().backward()
            clip_each(critic, args.max_grad_norm)
            adams["critic"].step()

        # ---- actors: equation (6), on the round's last transitions
        logits = actor_logits(actor, state.unflatten(-1, (num, -1)))
        with torch.no_grad():
            drawn = sample_actions(logits, noise[:, update, :, :1, :, 0])[:, :, 0]  # [S, B, N]
            played = actions if args.actor_others == "logged" else drawn
            alternatives = counterfactuals(played, everyone)  # [S, B, N * A, N * A]
            q = critic_values(critic, state, alternatives).mean(1).unflatten(-1, (num, -1))  # [S, B, N, A]
        adams["actor"].zero_grad()
        actor_loss(args.actor_loss, logits, q, actions, clone_weight, args.entropy_coef).sum().backward()
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
        returns = evaluate(partial(greedy_actions, actor, scale=scale), env, args.num_seeds, args.eval_seed)
        scores = normalise(returns.mean(1), facts)  # [S]
        best = scores > torch.tensor(history["scores"] if history else [[float("-inf")]], device=device).amax(0)
        for kept, param in zip(best_actor, actor, strict=True):
            kept[best] = param.detach()[best]
        report = diagnose(nets, data, estimate, probe_index, probe_noise, args.backup, args.weight_temperature)
        report |= dict(scores=scores, critic_loss=loss.detach().mean(1))
        runs.log_report(writer, history, round_number + 1, report)
        bar.set_postfix(score=f"{float(scores.mean()):.1f}", k_eff=f"{float(report['k_eff'].mean()):.2f}")
        facts_of_run = dict(args=json.dumps(asdict(args)), scale=list(scale), facts=facts, history=history)
        runs.save_checkpoint(folder, round_number + 1, nets, adams, generators, facts_of_run)
    writer.close()
    runs.warn_if_collapsed(args.backup, facts["quality"], history)
    return args, actor, scale, facts, history


if __name__ == "__main__":
    run_script("spacql.py", main)
