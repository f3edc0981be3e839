"""Behaviour policies: multi-agent PPO on the batched worlds, and the rollouts the datasets are made of.

    python -m data.behaviour --env-id simple_tag        # retrains what data/policies/ ships, in minutes

Each learner has its own softmax actor on its own observation; one central value function sees the team's observations
and predicts each member's own return (MAPPO, Yu et al. 2022). In simple_tag and simple_world a prey is first trained in
self-play against such a team and frozen; it acts greedily, so it is a deterministic part of the environment. The
predators that make the datasets are then trained from scratch against it. Because PPO is on-policy, rolling out the
saved iterates again is a fresh sample of its replay buffer.

Array letters: N agents of a team, W worlds, T steps, O observation numbers, A actions.
"""

import json
import math
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from tqdm import tqdm

from data.errors import InputError, check_choice
from data.files import atomic, parse, run_script
from data.worlds import ENV_IDS, NUM_ACTIONS, Worlds

POLICY_DIR = Path(__file__).parent / "policies"
HIDDEN = 64
MEDIUM_SHARE = 0.4  # the medium policy is the iterate nearest to this share of the way from random to expert
SCORE_EPISODES = 20_000  # episodes behind the shipped random and expert scores


@dataclass(frozen=True)
class Args:
    """Settings of one training run; the defaults made the shipped policies."""

    env_id: str = "simple_spread"
    """simple_spread, simple_tag or simple_world"""
    seed: int = 1
    """fixes networks, worlds and sampling"""
    iterations: int = 500
    """PPO iterations of the policies behind the datasets"""
    selfplay_iterations: int = 300
    """PPO iterations of the self-play that makes the prey (tag, world)"""
    num_worlds: int = 256
    """worlds stepped together; an iteration is one episode in each"""
    learning_rate: float = 1e-3
    """Adam's, decayed linearly to zero"""
    epochs: int = 4
    """passes over an iteration's data"""
    minibatches: int = 4
    """gradient steps per pass"""
    gamma: float = 0.95
    """discount"""
    gae_lambda: float = 0.95
    """decay of the generalised advantage estimate"""
    clip: float = 0.2
    """PPO's limit on the probability ratio"""
    entropy_coef: float = 0.03
    """entropy bonus, decayed linearly to zero"""
    reward_scale: float = 0.1
    """rewards are multiplied by this for learning"""
    out: Path = POLICY_DIR
    """folder of the policy files"""


def init_mlp(count: int, sizes: tuple[int, ...], generator: torch.Generator) -> list[torch.Tensor]:
    """`count` stacked networks with nn.Linear's initialisation: weights [count, in, out], biases [count, 1, out]."""
    params = []
    for fan_in, fan_out in zip(sizes[:-1], sizes[1:], strict=True):
        for shape in ((count, fan_in, fan_out), (count, 1, fan_out)):
            params.append((torch.rand(shape, generator=generator) * 2 - 1) / fan_in**0.5)
    return params


def mlp(params: list[torch.Tensor], x: torch.Tensor) -> torch.Tensor:
    """Stacked networks with ReLU hidden layers: x [count, rows, in] -> [count, rows, out]."""
    for layer in range(0, len(params), 2):
        x = torch.baddbmm(params[layer + 1], x if layer == 0 else x.relu(), params[layer])
    return x


def sample(logits: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Actions [...] drawn from softmax(logits [..., A]), by the Gumbel trick."""
    uniform = torch.rand(logits.shape, generator=generator, device=logits.device).clamp_(1e-20, 1 - 1e-7)
    return (logits - (-uniform.log()).log()).argmax(-1)


class Team:
    """The actors [N] of the bodies in `bodies`, their central value function, and Adam over both."""

    def __init__(self, worlds: Worlds, bodies: range, args: Args, generator: torch.Generator):
        self.bodies = bodies
        obs_dim = worlds.observe(bodies[0]).shape[-1]
        self.actor = init_mlp(len(bodies), (obs_dim, HIDDEN, HIDDEN, NUM_ACTIONS), generator)
        self.actor[-2].mul_(0.01)  # start near uniform play
        self.critic = init_mlp(1, (len(bodies) * obs_dim, 2 * HIDDEN, 2 * HIDDEN, len(bodies)), generator)
        for p in self.actor + self.critic:
            p.requires_grad_(True)
        self.optimizer = torch.optim.Adam(self.actor + self.critic, lr=args.learning_rate, eps=1e-5)

    def observe(self, worlds: Worlds) -> torch.Tensor:
        """The team's observations [N, W, O]."""
        return torch.stack([worlds.observe(i) for i in self.bodies])

    def value(self, obs: torch.Tensor) -> torch.Tensor:
        """Central value of obs [N, rows, O] for each agent -> [N, rows]."""
        return mlp(self.critic, obs.transpose(0, 1).flatten(1).unsqueeze(0))[0].T

    def update(self, obs, actions, log_probs, rewards, args: Args, remaining: float, generator) -> None:
        """One PPO iteration on obs [T + 1, N, W, O], actions and log_probs [T, N, W] and rewards [T, N, W].

        remaining: the share of training still ahead, 1 to 0, which scales learning rate and entropy bonus.
        """
        steps, (_, num, width, _) = len(rewards), obs.shape
        with torch.no_grad():
            values = self.value(obs.transpose(0, 1).flatten(1, 2)).view(num, steps + 1, width).transpose(0, 1)
            advantage, advantages = torch.zeros(num, width), torch.empty_like(rewards)
            for t in reversed(range(steps)):  # the last step bootstraps through the time limit
                delta = rewards[t] + args.gamma * values[t + 1] - values[t]
                advantage = advantages[t] = delta + args.gamma * args.gae_lambda * advantage
            returns = advantages + values[:-1]
            advantages = (advantages - advantages.mean()) / (advantages.std() + 1e-8)
        obs, actions, log_probs, returns, advantages = (  # [N, T * W, ...]
            x.transpose(0, 1).flatten(1, 2) for x in (obs[:-1], actions, log_probs, returns, advantages)
        )
        self.optimizer.param_groups[0]["lr"] = args.learning_rate * remaining
        for _ in range(args.epochs):
            for rows in torch.randperm(steps * width, generator=generator).chunk(args.minibatches):
                log_pi = mlp(self.actor, obs[:, rows]).log_softmax(-1)  # [N, rows, A]
                ratio = (log_pi.gather(-1, actions[:, rows, None]).squeeze(-1) - log_probs[:, rows]).exp()
                clipped = ratio.clamp(1 - args.clip, 1 + args.clip)
                gain = torch.minimum(ratio * advantages[:, rows], clipped * advantages[:, rows])
                entropy = -(log_pi.exp() * log_pi).sum(-1)
                loss = F.mse_loss(self.value(obs[:, rows]), returns[:, rows]) * 0.5
                loss = loss - (gain + args.entropy_coef * remaining * entropy).mean(1).sum()
                self.optimizer.zero_grad()
                loss.backward()
                for params in (
                    self.actor,
                    self.critic,
                ):  # apart, so that value errors do not silence the actors
                    torch.nn.utils.clip_grad_norm_(params, 0.5)
                self.optimizer.step()


@torch.no_grad()
def collect(worlds: Worlds, teams: list[Team], generator) -> tuple[list, torch.Tensor]:
    """One episode in every world, all bodies played by `teams` in order (or the last one by worlds.prey).

    Returns per team (obs [T+1, N, W, O], actions [T, N, W], log_probs [T, N, W]) and the rewards [T, W, P].
    """
    worlds.reset()
    logs, rewards = [([], [], []) for _ in teams], []
    for _ in range(worlds.horizon):
        played = []
        for team, (obs, actions, log_probs) in zip(teams, logs, strict=True):
            obs.append(team.observe(worlds))
            log_pi = mlp(team.actor, obs[-1]).log_softmax(-1)
            actions.append(sample(log_pi, generator))
            log_probs.append(log_pi.gather(-1, actions[-1].unsqueeze(-1)).squeeze(-1))
            played.extend(actions[-1])
        if len(played) < worlds.num_bodies:
            played.append(worlds.prey(worlds.observe(worlds.num_bodies - 1)))
        rewards.append(worlds.advance(torch.stack(played, dim=1)))
    for team, log in zip(teams, logs, strict=True):
        log[0].append(team.observe(worlds))
    return [tuple(torch.stack(x) for x in log) for log in logs], torch.stack(rewards)


def train(worlds: Worlds, teams: list[Team], iterations: int, args: Args, generator, title: str) -> list:
    """Train all teams together; returns the first team's actors before each iteration and after the last, with
    the mean return of each: [(return, parameters)]. The last return is NaN: nothing has been played by it yet."""
    iterates = []
    bar = tqdm(range(iterations), desc=title, file=sys.stderr, mininterval=1.0)
    for i in bar:
        frozen = [p.detach().clone() for p in teams[0].actor]
        batches, rewards = collect(worlds, teams, generator)
        iterates.append((float(rewards[..., : len(teams[0].bodies)].mean(-1).sum(0).mean()), frozen))
        for team, (obs, actions, log_probs) in zip(teams, batches, strict=True):
            own = rewards[..., list(team.bodies)].transpose(1, 2) * args.reward_scale  # [T, N, W]
            team.update(obs, actions, log_probs, own, args, 1 - i / iterations, generator)
        bar.set_postfix(score=f"{iterates[-1][0]:.1f}")
    return iterates + [(float("nan"), [p.detach().clone() for p in teams[0].actor])]


def greedy(params: list[torch.Tensor]):
    """A deterministic policy of one agent for Worlds(prey=...): obs [W, O] -> most likely action [W]."""
    return lambda obs: mlp(params, obs.unsqueeze(0))[0].argmax(-1)


@torch.no_grad()
def rollout(worlds: Worlds, actor: list[torch.Tensor] | None, generator) -> tuple:
    """One episode in every world: actions sampled from stacked actors `actor`, or uniform where it is None.

    Returns obs [W, T + 1, N, O], actions [W, T, N] (int64) and rewards [W, T, N].
    """
    observations, actions, rewards = [worlds.reset()], [], []
    for _ in range(worlds.horizon):
        if actor is None:
            shape = (worlds.num_worlds, worlds.num_learners)
            actions.append(torch.randint(NUM_ACTIONS, shape, generator=generator, device=worlds.device))
        else:
            actions.append(sample(mlp(actor, observations[-1].transpose(0, 1)).transpose(0, 1), generator))
        obs, reward = worlds.step(actions[-1])
        observations.append(obs)
        rewards.append(reward)
    return torch.stack(observations, dim=1), torch.stack(actions, dim=1), torch.stack(rewards, dim=1)


def score(worlds: Worlds, actor: list[torch.Tensor] | None, seed: int) -> float:
    """Mean undiscounted episode return of the team (mean over its agents), one episode per world."""
    rewards = rollout(worlds, actor, torch.Generator().manual_seed(seed))[2]
    return float(rewards.double().mean(-1).sum(-1).mean())


def half(params: list[torch.Tensor]) -> list[torch.Tensor]:
    """What a half-precision file keeps of the parameters; scores are measured on exactly this."""
    return [p.half().float() for p in params]


def train_behaviour(args: Args) -> dict[str, np.ndarray]:
    """Train prey (tag, world) and learners; returns the arrays of a policy file (see load_policies)."""
    generator = torch.Generator().manual_seed(args.seed)
    prey = None
    if args.env_id != "simple_spread":
        worlds = Worlds(args.env_id, args.num_worlds, seed=args.seed + 1)
        teams = [Team(worlds, range(3), args, generator), Team(worlds, range(3, 4), args, generator)]
        train(worlds, teams, args.selfplay_iterations, args, generator, f"{args.env_id}: prey by self-play")
        prey = half([p.detach() for p in teams[1].actor])
    worlds = Worlds(args.env_id, args.num_worlds, prey=prey and greedy(prey), seed=args.seed + 2)
    team = Team(worlds, range(worlds.num_learners), args, generator)
    iterates = train(worlds, [team], args.iterations, args, generator, f"{args.env_id}: behaviour")

    judge = Worlds(args.env_id, SCORE_EPISODES, prey=prey and greedy(prey), seed=args.seed + 3)
    random_score = score(judge, None, args.seed + 4)
    expert_score = score(judge, half(iterates[-1][1]), args.seed + 4)
    target = random_score + MEDIUM_SHARE * (expert_score - random_score)
    # A return of 256 episodes is noisy: among the few iterates that look nearest, one is chosen on many episodes.
    nearest = sorted(range(len(iterates) - 1), key=lambda i: abs(iterates[i][0] - target))[:5]
    judged = {i: score(judge, half(iterates[i][1]), args.seed + 4) for i in nearest}
    medium = min(judged, key=lambda i: abs(judged[i] - target))
    kept = [params for _, params in iterates[: medium + 1]] + [iterates[-1][1]]

    facts = dict(
        env_id=args.env_id,
        action_kind="discrete",
        random_score=random_score,
        medium_score=judged[medium],
        expert_score=expert_score,
        medium_iterate=medium,
        training={k: v for k, v in asdict(args).items() if k != "out"},
        torch=torch.__version__,
        training_returns=[round(r, 2) for r, _ in iterates[:-1]],
    )
    arrays = {f"actor{j}": torch.stack(layer).half().numpy() for j, layer in enumerate(zip(*kept, strict=True))}
    arrays |= {f"prey{j}": p.half().numpy() for j, p in enumerate(prey or [])}
    return arrays | {"facts": np.array(json.dumps(facts))}


@dataclass(frozen=True)
class Policies:
    """A policy file: `iterates` are stacked actors, 0 .. medium, then the expert; prey is None in simple_spread."""

    iterates: list[list[torch.Tensor]]
    prey: list[torch.Tensor] | None
    facts: dict


def policy_file(env_id: str, folder: Path = POLICY_DIR) -> Path:
    """Where the policies of a task are. Raises InputError, with the command that makes them, where there are none."""
    check_choice("env-id", env_id, ENV_IDS)
    path = Path(folder) / f"{env_id}-discrete.npz"
    if not path.is_file():
        raise InputError(f"no policy file {path}; make it with: python -m data.behaviour --env-id {env_id}")
    return path


def load_policies(env_id: str, device="cpu", folder: Path = POLICY_DIR) -> Policies:
    """Read the shipped policies of a task. Raises InputError where there are none, or the file is not theirs."""
    path = policy_file(env_id, folder)
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {k: torch.from_numpy(file[k].astype(np.float32)) for k in file.files if k != "facts"}
            facts = json.loads(str(file["facts"]))
        actor = [arrays[f"actor{j}"].to(device) for j in range(6)]  # three layers' [iterates, N, in, out] and biases
        prey = None if env_id == "simple_spread" else [arrays[f"prey{j}"].to(device) for j in range(6)]
        if facts["env_id"] != env_id:
            raise ValueError(f"it holds policies of {facts['env_id']}")
        if any(len(layer) != facts["medium_iterate"] + 2 for layer in actor):
            raise ValueError("the number of iterates is not medium_iterate + 2")
        if not all(math.isfinite(facts[k]) for k in ("random_score", "expert_score")):
            raise ValueError("its scores are not finite")
        if not all(array.isfinite().all() for array in arrays.values()):
            raise ValueError("a parameter is not finite")
    except Exception as error:  # numpy, zipfile and zlib raise many kinds for damaged files; all mean the same here
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise InputError(f"cannot read policy file {path} (damaged or foreign): {reason}") from None
    iterates = [[layer[i] for layer in actor] for i in range(len(actor[0]))]
    return Policies(iterates, prey, facts)


def main() -> None:
    args = parse(Args, description=__doc__)
    check_choice("env-id", args.env_id, ENV_IDS)
    for name, value in asdict(args).items():
        if type(value) is int and name != "seed" and value < 1:
            raise InputError(f"--{name.replace('_', '-')} must be at least 1, not {value}")
    start = time.time()
    path = args.out / f"{args.env_id}-discrete.npz"
    with atomic(path) as partial:  # around the training too: a folder that cannot be made is found out before it
        arrays = train_behaviour(args)
        np.savez_compressed(partial, **arrays)
    facts = json.loads(str(arrays["facts"]))
    print(
        f"{path}: random {facts['random_score']:.1f}, medium {facts['medium_score']:.1f} (iterate "
        f"{facts['medium_iterate']}), expert {facts['expert_score']:.1f}, {path.stat().st_size / 1e6:.1f} MB, "
        f"{time.time() - start:.0f} s",
        file=sys.stderr,
    )


if __name__ == "__main__":
    run_script("data.behaviour", main)
