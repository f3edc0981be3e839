"""Behaviour policies by multi-agent PPO on the batched worlds: who plays when datasets are simulated.

    python -m data.behaviour --env-id simple_tag        # retrains what envs/policies/ ships, in minutes
    python -m data.behaviour --env-id HalfCheetah-2x3 --action-kind continuous

Each learner has its own actor (envs/shipped.py); one central value function sees the team's observations, in
HalfCheetah the simulator's state, and predicts each member's own return (MAPPO, Yu et al. 2022). In
simple_tag and simple_world a prey is first trained in self-play against such a team and frozen. The predators
that make the datasets are then trained from scratch against it. The iterates of training play what is logged,
so often that the data are like the paper's.

Array letters: N agents of a team, P bodies of a world, W worlds, T steps, O observation numbers, A discrete
actions or numbers of an action, S numbers that the value function sees.
"""

import json
import math
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from scipy.optimize import minimize, minimize_scalar
from scipy.special import logsumexp, softmax
from tqdm import tqdm

from data.omar import PUBLISHED_CARDS, PUBLISHED_SCORES, Card, load_prey
from envs.half_cheetah import HalfCheetah
from envs.particles import ENV_IDS, WITH_PREY, Worlds
from envs.shipped import CONTINUOUS_ENV_IDS, POLICY, POLICY_DIR, greedy, init_mlp, mlp, rollout
from utils.errors import InputError, check_choice, check_numbers
from utils.files import atomic, parse, run_script, say

HIDDEN = 64  # units of both hidden layers of the actors, half those of the value function
INITIAL_STD = 0.6  # of Gaussian actors, near that of uniform actions
GAE_LAMBDA, CLIP = 0.95, 0.2  # decay of the generalised advantage estimate; limit on the probability ratio
MEDIUM_SHARES = (0.6, 1.4)  # of the way from random to medium: between them are the iterates of medium data


@dataclass(frozen=True)
class Args:
    """Settings of one training run; the defaults, here and in SETTINGS, made the shipped policies."""

    # the task; HalfCheetah-2x3 has continuous actions only
    env_id: Literal["simple_spread", "simple_tag", "simple_world", "HalfCheetah-2x3"] = "simple_spread"
    action_kind: Literal["discrete", "continuous"] = "discrete"  # continuous: forces and torques
    seed: int = 1  # fixes networks, worlds and sampling
    iterations: int = 500  # PPO iterations of the policies behind the datasets
    selfplay_iterations: int = 300  # PPO iterations of the self-play that makes the prey (tag, world)
    num_worlds: int = 256  # worlds stepped together; an iteration is one episode in each
    learning_rate: float = 1e-3  # Adam's, decayed linearly to zero
    prey_learning_rate: float = 1e-3  # the prey's in self-play; a slow one meets better predators
    epochs: int = 4  # passes over an iteration's data
    minibatches: int = 4  # gradient steps per pass
    gamma: float = 0.95  # discount
    entropy_coef: float = 0.03  # entropy bonus, decayed linearly to zero
    reward_scale: float = 0.1  # rewards are multiplied by this for learning
    value_iterations: int = 0  # before these, of the value function alone: its first errors move no actor
    kept_iterates: int = 100  # at most so many of the iterates up to medium ones are kept, evenly spaced
    score_episodes: int = 4000  # behind each return that is measured after training
    quiet: float = 1.0  # times the deviation of the actions in training, that in the data (continuous ones)
    expert_at: float = 1.0  # share of training after which the expert is taken
    prey: Path | None = None  # OMAR's pretrained_adv_model.pt (with --out); default: a prey by self-play
    out: Path = POLICY_DIR  # folder of the policy files


FORCES = dict(value_iterations=12, kept_iterates=80)
WEAK_PREY = dict(prey_learning_rate=3e-4)  # stopped early: as the paper's against uniform and trained play
SETTINGS = {  # where a task's differ from the defaults above
    ("simple_spread", "continuous"): FORCES,
    ("simple_tag", "continuous"): FORCES | WEAK_PREY | dict(selfplay_iterations=44, iterations=200),
    ("simple_world", "continuous"): FORCES | WEAK_PREY | dict(selfplay_iterations=88, iterations=200),
    ("HalfCheetah-2x3", "continuous"): dict(
        iterations=300,
        value_iterations=2,
        num_worlds=32,
        learning_rate=5e-4,
        epochs=5,
        minibatches=16,
        gamma=0.99,
        entropy_coef=0.0,
        reward_scale=0.02,
        kept_iterates=80,
        score_episodes=100,
        quiet=0.4,  # else many fall over, which the paper's do not
        expert_at=0.4,
    ),
}


def default_args(env_id: str, action_kind: str = "discrete") -> Args:
    """The settings of a task. Raises InputError where it has no such actions."""
    check_choice("env-id", env_id, ENV_IDS if action_kind == "discrete" else CONTINUOUS_ENV_IDS)
    return Args(env_id, action_kind, **SETTINGS.get((env_id, action_kind), {}))


class Team:
    """The actors [N] of the bodies in `bodies`, their central value function, and Adam over both."""

    def __init__(self, worlds, bodies: range, args: Args, generator: torch.Generator):
        self.bodies, self.policy = bodies, POLICY[args.action_kind]
        self.learning_rate = args.learning_rate
        obs_dim = worlds.observe(bodies[0]).shape[-1]
        self.obs_mean = torch.zeros(len(bodies), 1, obs_dim)
        self.obs_std = torch.ones_like(self.obs_mean)
        if hasattr(worlds, "state"):  # HalfCheetah's velocities are tens of times its angles: standard scores
            log = rollout(worlds, None, generator)
            obs, states = log["observations"].flatten(0, 1), log["states"].flatten(0, 1)  # [W * (T + 1), ...]
            self.obs_mean, self.obs_std = obs.mean(0).unsqueeze(1), obs.std(0).unsqueeze(1)
            self.state_mean, self.state_std = states.mean(0), states.std(0)
        self.actor = init_mlp(len(bodies), (obs_dim, HIDDEN, HIDDEN, worlds.action_dim), generator)
        self.actor[-2].mul_(0.01)  # near uniform play
        if args.action_kind == "continuous":
            self.actor.append(torch.full((len(bodies), 1, worlds.action_dim), math.log(INITIAL_STD)))
        view_dim = self.view(worlds, self.observe(worlds)).shape[-1]
        self.critic = init_mlp(1, (view_dim, 2 * HIDDEN, 2 * HIDDEN, len(bodies)), generator)
        for p in self.actor + self.critic:
            p.requires_grad_(True)
        self.optimizer = torch.optim.Adam(self.actor + self.critic, eps=1e-5)

    def observe(self, worlds) -> torch.Tensor:
        """The team's observations [N, W, O] as its actors take them."""
        return (torch.stack([worlds.observe(i) for i in self.bodies]) - self.obs_mean) / self.obs_std

    def view(self, worlds, obs: torch.Tensor) -> torch.Tensor:
        """What the value function sees [W, S]: HalfCheetah's state, else the team's obs [N, W, O]."""
        if hasattr(worlds, "state"):
            return (worlds.state() - self.state_mean) / self.state_std
        return obs.transpose(0, 1).flatten(1)

    def value(self, views: torch.Tensor) -> torch.Tensor:
        """Each agent's value [N, rows] of views [rows, S]."""
        return mlp(self.critic, views.unsqueeze(0))[0].T

    @torch.no_grad()
    def snapshot(self) -> list[torch.Tensor]:
        """A copy of the actors that takes observations as the worlds give them."""
        weight, bias, *rest = (p.detach().clone() for p in self.actor)
        weight = weight / self.obs_std.transpose(1, 2)  # [N, O, H]
        return [weight, bias - self.obs_mean @ weight, *rest]

    def update(self, obs, views, actions, log_probs, rewards, args: Args, remaining, generator) -> None:
        """One PPO iteration on obs [T, N, W, O], views [T + 1, W, S], actions [T, N, W] or [T, N, W, A],
        log_probs and rewards [T, N, W].

        remaining: the share of training still ahead, 1 to 0, which scales learning rate and entropy bonus;
        above 1 only the value function learns.
        """
        steps, num, width = rewards.shape
        with torch.no_grad():
            values = self.value(views.flatten(0, 1)).view(num, steps + 1, width).transpose(0, 1)
            advantage, advantages = torch.zeros(num, width), torch.empty_like(rewards)
            for t in reversed(range(steps)):  # the last step bootstraps through the time limit
                delta = rewards[t] + args.gamma * values[t + 1] - values[t]
                advantage = advantages[t] = delta + args.gamma * GAE_LAMBDA * advantage
            returns = advantages + values[:-1]
            advantages = (advantages - advantages.mean()) / (advantages.std() + 1e-8)
        obs, actions, log_probs, returns, advantages = (  # [N, T * W, ...]
            x.transpose(0, 1).flatten(1, 2) for x in (obs, actions, log_probs, returns, advantages)
        )
        views = views[:-1].flatten(0, 1)  # [T * W, S]
        self.optimizer.param_groups[0]["lr"] = self.learning_rate * min(remaining, 1)
        for _ in range(args.epochs):
            for rows in torch.randperm(steps * width, generator=generator).chunk(args.minibatches):
                loss = F.mse_loss(self.value(views[rows]), returns[:, rows]) * 0.5
                if remaining <= 1:
                    log_pi, entropy = self.policy.evaluate(self.actor, obs[:, rows], actions[:, rows])
                    ratio = (log_pi - log_probs[:, rows]).exp()  # [N, rows]
                    clipped = ratio.clamp(1 - CLIP, 1 + CLIP)
                    gain = torch.minimum(ratio * advantages[:, rows], clipped * advantages[:, rows])
                    loss = loss - (gain + args.entropy_coef * remaining * entropy).mean(1).sum()
                self.optimizer.zero_grad()
                loss.backward()
                for params in (self.actor, self.critic):  # apart: value errors do not silence the actors
                    torch.nn.utils.clip_grad_norm_(params, 0.5)
                self.optimizer.step()


@torch.no_grad()
def collect(worlds, teams: list[Team], generator) -> tuple[list, torch.Tensor]:
    """One episode in every world, all bodies played by `teams` in order (or the last one by worlds.prey).

    Returns per team (obs [T, N, W, O], views [T + 1, W, S], actions [T, N, W] or [T, N, W, A],
    log_probs [T, N, W]) and the rewards [T, W, P].
    """
    worlds.reset()
    logs, rewards = [([], [], [], []) for _ in teams], []
    for _ in range(worlds.horizon):
        played = []
        for team, log in zip(teams, logs, strict=True):
            obs = team.observe(worlds)
            actions = team.policy.sample(team.actor, obs, generator)
            log_probs, _ = team.policy.evaluate(team.actor, obs, actions)
            for column, x in zip(log, (obs, team.view(worlds, obs), actions, log_probs), strict=True):
                column.append(x)
            played.extend(actions.clamp(-1, 1) if actions.is_floating_point() else actions)
        if len(played) < worlds.num_bodies:
            played.append(worlds.prey(worlds.observe(worlds.num_bodies - 1)))
        rewards.append(worlds.advance(torch.stack(played, dim=1)))
    for team, (_, views, _, _) in zip(teams, logs, strict=True):
        views.append(team.view(worlds, team.observe(worlds)))
    return [tuple(torch.stack(x) for x in log) for log in logs], torch.stack(rewards)


def train(worlds, teams: list[Team], iterations: int, args: Args, generator, title: str) -> list:
    """Train all teams together; returns the first team's actors before each iteration and after the last, as
    [(mean return, parameters)]. The last return is NaN: that team has played nothing yet."""
    iterates = []
    bar = tqdm(range(-args.value_iterations, iterations), desc=title, file=sys.stderr, mininterval=1.0)
    for i in bar:
        frozen = teams[0].snapshot()
        batches, rewards = collect(worlds, teams, generator)
        played = float(rewards[..., : len(teams[0].bodies)].mean(-1).sum(0).mean())
        if i >= 0:
            iterates.append((played, frozen))
        for team, batch in zip(teams, batches, strict=True):
            own = rewards[..., list(team.bodies)].transpose(1, 2) * args.reward_scale  # [T, N, W]
            team.update(*batch, own, args, 1 - i / iterations, generator)
        bar.set_postfix(score=f"{played:.1f}")
    return iterates + [(float("nan"), teams[0].snapshot())]


def play(worlds, actor: list[torch.Tensor] | None, seed: int) -> torch.Tensor:
    """Undiscounted episode returns [W] of the team, mean over its agents; the same for the same seed."""
    worlds.reset(seed=seed)
    rewards = rollout(worlds, actor, torch.Generator().manual_seed(seed))["rewards"]
    return rewards.double().mean(-1).sum(-1)


def half(params: list[torch.Tensor]) -> list[torch.Tensor]:
    """What a half-precision file keeps of the parameters; scores are measured on exactly this."""
    return [p.half().float() for p in params]


# ------------------------------------------------------------------------- data like the paper's


def mixture(mean: np.ndarray, deviation: np.ndarray, card: Card) -> np.ndarray:
    """How often each iterate plays, [iterates], so that all episodes have the card's mean and, where it has
    one, its deviation.

    mean, deviation: of each iterate's returns. Of the weights that do, these are the nearest to equal ones:
    proportional to exp(a mean + b ((mean - card's)^2 + deviation^2)), with the a and b that fit. Where none
    do, a small penalty of a and b settles for what is near.
    """
    moments, wanted = mean[None], np.array([card.mean])
    if card.deviation is not None:
        moments = np.stack([mean, (mean - card.mean) ** 2 + deviation**2])
        wanted = np.array([card.mean, card.deviation**2])
    apart = (moments - wanted[:, None]) / np.maximum(moments.std(1, keepdims=True), 1e-9)
    fit = minimize(lambda x: logsumexp(x @ apart) + 1e-4 * (x @ x), np.zeros(len(wanted)))
    return softmax(fit.x @ apart)


def with_deviation(actor: list[torch.Tensor], log_std: torch.Tensor) -> list[torch.Tensor]:
    """The Gaussian actor with another deviation of its actions."""
    return [*actor[:-1], log_std.expand_as(actor[-1])]


def noisier(worlds, actor: list[torch.Tensor], card: Card, span: float, seed: int) -> list[torch.Tensor]:
    """The Gaussian actor with the one deviation of all its actions that brings mean and deviation of its
    returns nearest to the card's: 3% of `span`, and 25% of the deviation, count as equally far."""

    def far(log_std):
        noisy = half(with_deviation(actor, torch.tensor(log_std)))
        returns = torch.cat([play(worlds, noisy, seed + i) for i in range(5)])  # falls are rare
        mean, deviation = float(returns.mean()), float(returns.std())
        return ((mean - card.mean) / (0.03 * span)) ** 2 + (math.log(deviation / card.deviation) / 0.25) ** 2

    bounds = math.log(0.03), math.log(1.5)
    found = minimize_scalar(far, bounds=bounds, method="bounded", options=dict(xatol=0.02))
    return with_deviation(actor, torch.tensor(found.x, dtype=torch.float32))


def levels(iterates, worlds, args: Args) -> tuple[dict, list[list[torch.Tensor]]]:
    """What makes data like the paper's: facts, and the actors that play, the expert last.

    The facts: the two scores that count as 0 and 100, what the last iterate reaches, which of training the
    actors are, and `weights`, how often each but the expert plays in medium-replay and medium data. Of forces
    and torques the scores are the published ones; of discrete actions the expert of ours gets the published
    expert's score.
    """
    cards, (low, high), seed = PUBLISHED_CARDS[args.env_id], PUBLISHED_SCORES[args.env_id], args.seed + 4
    number = round(args.expert_at * args.iterations)
    expert, random_score, expert_score = iterates[number][1], low, high
    if args.action_kind == "continuous":
        expert = noisier(worlds, expert, cards["expert"], high - low, seed)
    else:
        random_score = float(play(worlds, None, seed).mean())
        cards = {quality: card._replace(deviation=None) for quality, card in cards.items()}  # moves vary more
        gained = float(play(worlds, half(expert), seed).mean()) - random_score
        expert_score = random_score + gained * (high - low) / (cards["expert"].mean - low)
    if expert_score <= random_score:
        say("warning: the trained team is no better than random play: its data will be refused")
    unit = (expert_score - random_score) / (high - low)  # of our returns, in the published ones
    least, most = (low + share * (cards["medium"].mean - low) for share in MEDIUM_SHARES)
    actors, moments = [], []
    for _, actor in iterates[:-1]:
        if args.quiet != 1 and args.action_kind == "continuous":
            actor = with_deviation(actor, actor[-1] + math.log(args.quiet))
        actors.append(actor)
        returns = play(worlds, half(actor), seed)
        moments.append((low + (float(returns.mean()) - random_score) / unit, float(returns.std()) / unit))
        if moments[-1][0] > most:
            break
    kept = np.linspace(0, len(actors) - 1, min(args.kept_iterates, len(actors))).round().astype(int)
    mean, deviation = np.array(moments)[kept].T
    near = np.flatnonzero((mean > least) & (mean < most))
    near = near if len(near) else np.abs(mean - cards["medium"].mean).argmin(keepdims=True)
    medium = np.zeros(len(kept))
    medium[near] = mixture(mean[near], deviation[near], cards["medium"])
    weights = {"medium-replay": mixture(mean, deviation, cards["medium-replay"]), "medium": medium}
    for quality, x in weights.items():
        say(f"{quality}: mean return {x @ mean:.1f} in the paper's unit, its own is {cards[quality].mean}")
    facts = dict(
        random_score=random_score,
        expert_score=expert_score,
        trained_return=float(play(worlds, half(iterates[-1][1]), seed).mean()),
        kept_iterations=[*kept.tolist(), number],
        weights={quality: x.round(5).tolist() for quality, x in weights.items()},
    )
    return facts, [*(actors[i] for i in kept), expert]


def train_behaviour(args: Args) -> dict[str, np.ndarray]:
    """Train prey (tag, world) and learners; returns the arrays of a policy file (see load_policies)."""
    generator = torch.Generator().manual_seed(args.seed)

    def make_worlds(num_worlds, seed, prey=None):
        if args.env_id not in ENV_IDS:
            return HalfCheetah(num_worlds, seed=seed)
        prey = prey and greedy(prey, args.action_kind)
        return Worlds(args.env_id, num_worlds, args.action_kind, prey=prey, seed=seed)

    prey = load_prey(args.prey, args.env_id) if args.prey else None
    if args.env_id in WITH_PREY and prey is None:
        worlds = make_worlds(args.num_worlds, args.seed + 1)
        teams = [Team(worlds, range(3), args, generator), Team(worlds, range(3, 4), args, generator)]
        teams[1].learning_rate = args.prey_learning_rate
        train(worlds, teams, args.selfplay_iterations, args, generator, f"{args.env_id}: prey by self-play")
        prey = half([p.detach() for p in teams[1].actor])
    worlds = make_worlds(args.num_worlds, args.seed + 2, prey)
    team = Team(worlds, range(worlds.num_learners), args, generator)
    iterates = train(worlds, [team], args.iterations, args, generator, f"{args.env_id}: behaviour")

    facts, actors = levels(iterates, make_worlds(args.score_episodes, args.seed + 3, prey), args)
    training = {k: v for k, v in asdict(args).items() if k not in ("out", "prey")}
    facts = dict(env_id=args.env_id, action_kind=args.action_kind, **facts)
    facts |= dict(training=training, torch=torch.__version__)
    layers = map(torch.stack, zip(*actors, strict=True))
    arrays = {f"actor{j}": layer.half().numpy() for j, layer in enumerate(layers)}
    arrays |= {f"prey{j}": p.numpy() for j, p in enumerate(prey or [])}
    return arrays | {"facts": np.array(json.dumps(facts))}


def main(argv=None) -> None:
    task = parse(Args, argv, description=__doc__)
    args = parse(Args, argv, default=default_args(task.env_id, task.action_kind))
    least = dict(seed=0, value_iterations=0, score_episodes=2, entropy_coef=0)
    check_numbers(vars(args), least, dict(gamma=1, expert_at=1))
    if args.prey and (args.action_kind == "discrete" or args.out.resolve() == POLICY_DIR.resolve()):
        raise InputError("--prey is for --action-kind continuous, and --out FOLDER, not the shipped one")
    if args.prey and not (args.env_id in WITH_PREY and args.prey.is_file()):
        raise InputError(f"--prey is for {' and '.join(WITH_PREY)}, and a file: {args.prey}")
    start = time.time()
    path = args.out / f"{args.env_id}-{args.action_kind}.npz"
    with atomic(path) as partial:  # around the training too: first it is seen whether the folder can be made
        arrays = train_behaviour(args)
        np.savez_compressed(partial, **arrays)
    facts = json.loads(str(arrays["facts"]))
    scores = "{random_score:.1f} is 0, {expert_score:.1f} is 100, it reaches {trained_return:.1f}"
    say(f"{path}: {scores.format(**facts)}, {path.stat().st_size / 1e6:.1f} MB, {time.time() - start:.0f} s")


if __name__ == "__main__":
    run_script("data.behaviour", main)
