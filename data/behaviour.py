"""Behaviour policies: multi-agent PPO on the batched worlds, and the rollouts the datasets are made of.

    python -m data.behaviour --env-id simple_tag        # retrains what envs/policies/ ships, in minutes
    python -m data.behaviour --env-id HalfCheetah-2x3 --action-kind continuous

Each learner has its own actor on its own observation, a softmax for discrete actions (`Softmax`) and a Gaussian for
forces and torques (`Gaussian`); one central value function sees the team's observations, in HalfCheetah the simulator's
state, and predicts each member's own return (MAPPO, Yu et al. 2022). In simple_tag and simple_world a prey is first
trained in self-play against such a team and frozen; it acts greedily, so it is a deterministic part of the environment.
The predators that make the datasets are then trained from scratch against it. Because PPO is on-policy, rolling out the
saved iterates again is a fresh sample of its replay buffer.

Array letters: N agents of a team, W worlds, T steps, O observation numbers, A discrete actions or numbers of an action,
S numbers that the value function sees.
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

from envs.half_cheetah import HalfCheetah
from envs.particles import ACTION_KINDS, ENV_IDS, HORIZON, NUM_ACTIONS, WITH_PREY, Worlds
from utils.errors import InputError, check_choice
from utils.files import atomic, parse, run_script

POLICY_DIR = Path(__file__).parent.parent / "envs" / "policies"
HIDDEN = 64
MEDIUM_SHARE = 0.4  # the medium policy is the iterate nearest to this share of the way from random to expert
SCORE_EPISODES = 20_000  # behind the shipped random and expert scores; fewer, of as many steps in all, in HalfCheetah
INITIAL_STD = 0.6  # of Gaussian actors, near that of uniform actions
CONTINUOUS_ENV_IDS = (*ENV_IDS, "HalfCheetah-2x3")


@dataclass(frozen=True)
class Args:
    """Settings of one training run; the defaults, here and in SETTINGS, made the shipped policies."""

    env_id: str = "simple_spread"
    """simple_spread, simple_tag, simple_world or, with continuous actions, HalfCheetah-2x3"""
    action_kind: str = "discrete"
    """discrete, or continuous: forces in the particle worlds, torques in HalfCheetah"""
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
    value_iterations: int = 0
    """iterations before these in which only the value function learns, so that its first errors move no actor"""
    kept_iterates: int = 100
    """at most so many of the iterates up to the medium one are kept, evenly spaced"""
    out: Path = POLICY_DIR
    """folder of the policy files"""


# Where a task's settings differ from the defaults above.
FORCES = dict(value_iterations=12, kept_iterates=80)
SETTINGS = {
    ("simple_spread", "continuous"): FORCES,
    ("simple_tag", "continuous"): FORCES,
    ("simple_world", "continuous"): FORCES,
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
    ),
}


def default_args(env_id: str, action_kind: str = "discrete") -> Args:
    """The settings of a task. Raises InputError where the task or the kind of actions is unknown."""
    check_task(env_id, action_kind)
    return Args(env_id, action_kind, **SETTINGS.get((env_id, action_kind), {}))


def check_task(env_id: str, action_kind: str) -> None:
    """Raise InputError unless there are behaviour policies of this task and kind of actions."""
    check_choice("action kind", action_kind, ACTION_KINDS)
    check_choice("env-id", env_id, ENV_IDS if action_kind == "discrete" else CONTINUOUS_ENV_IDS)


def init_mlp(count: int, sizes: tuple[int, ...], generator: torch.Generator) -> list[torch.Tensor]:
    """`count` stacked networks with nn.Linear's initialisation: weights [count, in, out], biases [count, 1, out]."""
    params = []
    for fan_in, fan_out in zip(sizes[:-1], sizes[1:], strict=True):
        for shape in ((count, fan_in, fan_out), (count, 1, fan_out)):
            params.append((torch.rand(shape, generator=generator, device=generator.device) * 2 - 1) / fan_in**0.5)
    return params


def mlp(params: list[torch.Tensor], x: torch.Tensor) -> torch.Tensor:
    """Stacked networks with ReLU hidden layers: x [count, rows, in] -> [count, rows, out]."""
    for layer in range(0, len(params), 2):
        x = torch.baddbmm(params[layer + 1], x if layer == 0 else x.relu(), params[layer])
    return x


def action_dim(worlds) -> int:
    """Outputs of an actor: logits of the discrete actions, or the numbers of a force or of an agent's torques."""
    if worlds.action_kind == "discrete":
        return NUM_ACTIONS
    return worlds.action_dim if isinstance(worlds, HalfCheetah) else 2


class Softmax:
    """Discrete policies. An actor is the six tensors of its networks, whose outputs are the logits."""

    @staticmethod
    def init(count: int, obs_dim: int, num_actions: int, generator) -> list[torch.Tensor]:
        """`count` stacked actors that start near uniform play."""
        actor = init_mlp(count, (obs_dim, HIDDEN, HIDDEN, num_actions), generator)
        actor[-2].mul_(0.01)
        return actor

    @staticmethod
    def sample(logits: torch.Tensor, generator) -> torch.Tensor:
        """Actions [...] drawn from softmax(logits [..., A]), by the Gumbel trick."""
        uniform = torch.rand(logits.shape, generator=generator, device=logits.device).clamp_(1e-20, 1 - 1e-7)
        return (logits - (-uniform.log()).log()).argmax(-1)

    @classmethod
    def explore(cls, actor, obs, generator) -> tuple[torch.Tensor, torch.Tensor]:
        """Sampled actions [N, W] on obs [N, W, O], and their log-probabilities [N, W]."""
        log_pi = mlp(actor, obs).log_softmax(-1)
        actions = cls.sample(log_pi, generator)
        return actions, log_pi.gather(-1, actions.unsqueeze(-1)).squeeze(-1)

    @staticmethod
    def evaluate(actor, obs, actions) -> tuple[torch.Tensor, torch.Tensor]:
        """Log-probabilities of actions [N, rows] on obs [N, rows, O], and the entropies; both [N, rows]."""
        log_pi = mlp(actor, obs).log_softmax(-1)  # [N, rows, A]
        return log_pi.gather(-1, actions.unsqueeze(-1)).squeeze(-1), -(log_pi.exp() * log_pi).sum(-1)

    @classmethod
    def act(cls, actor, obs, generator) -> torch.Tensor:
        """Sampled actions [W, N] for the world on its observations [W, N, O]."""
        return cls.sample(mlp(actor, obs.transpose(0, 1)).transpose(0, 1), generator)

    @staticmethod
    def greedy(actor, obs) -> torch.Tensor:
        """The most likely actions [N, W] on obs [N, W, O]."""
        return mlp(actor, obs).argmax(-1)

    @staticmethod
    def uniform(worlds, generator) -> torch.Tensor:
        """Uniform actions [W, N]."""
        shape = (worlds.num_worlds, worlds.num_learners)
        return torch.randint(NUM_ACTIONS, shape, generator=generator, device=worlds.device)

    @staticmethod
    def playable(actions: torch.Tensor) -> torch.Tensor:
        """What the world gets of sampled actions."""
        return actions


class Gaussian:
    """Continuous policies, with the functions of Softmax. An actor is the six tensors of its networks, the tanh of
    whose outputs is the mean, and log_std [N, 1, A], the same in every state.

    PPO learns on the samples as drawn; the world gets them, and the datasets log them, clipped to [-1, 1]. The entropy
    bonus also keeps the outputs small: a saturated tanh has no gradient and would not come back.
    """

    @staticmethod
    def init(count: int, obs_dim: int, action_dim: int, generator) -> list[torch.Tensor]:
        actor = init_mlp(count, (obs_dim, HIDDEN, HIDDEN, action_dim), generator)
        actor[-2].mul_(0.01)
        return actor + [torch.full((count, 1, action_dim), math.log(INITIAL_STD))]

    @staticmethod
    def log_prob(mean, log_std, actions) -> torch.Tensor:
        """Log-density [...] of actions [..., A]."""
        return (-0.5 * ((actions - mean) / log_std.exp()) ** 2 - log_std - 0.5 * math.log(2 * math.pi)).sum(-1)

    @classmethod
    def explore(cls, actor, obs, generator) -> tuple[torch.Tensor, torch.Tensor]:
        mean, log_std = cls.greedy(actor, obs), actor[6]
        noise = torch.randn(mean.shape, generator=generator, device=mean.device)
        actions = mean + log_std.exp() * noise
        return actions, cls.log_prob(mean, log_std, actions)

    @classmethod
    def evaluate(cls, actor, obs, actions) -> tuple[torch.Tensor, torch.Tensor]:
        outputs, log_std = mlp(actor[:6], obs), actor[6]
        entropy = log_std + 0.5 * math.log(2 * math.pi * math.e) - outputs**2
        return cls.log_prob(outputs.tanh(), log_std, actions), entropy.sum(-1)

    @classmethod
    def act(cls, actor, obs, generator) -> torch.Tensor:
        return cls.playable(cls.explore(actor, obs.transpose(0, 1), generator)[0].transpose(0, 1))

    @staticmethod
    def greedy(actor, obs) -> torch.Tensor:
        return mlp(actor[:6], obs).tanh()

    @staticmethod
    def uniform(worlds, generator) -> torch.Tensor:
        shape = (worlds.num_worlds, worlds.num_learners, action_dim(worlds))
        return torch.rand(shape, generator=generator, device=worlds.device) * 2 - 1

    @staticmethod
    def playable(actions: torch.Tensor) -> torch.Tensor:
        return actions.clamp(-1, 1)


POLICY = {"discrete": Softmax, "continuous": Gaussian}


class Team:
    """The actors [N] of the bodies in `bodies`, their central value function, and Adam over both."""

    def __init__(self, worlds, bodies: range, args: Args, generator: torch.Generator):
        self.bodies, self.policy = bodies, POLICY[args.action_kind]
        obs_dim = worlds.observe(bodies[0]).shape[-1]
        self.obs_mean, self.obs_std = torch.zeros(len(bodies), 1, obs_dim), torch.ones(len(bodies), 1, obs_dim)
        if isinstance(worlds, HalfCheetah):  # its velocities are tens of times its angles: learn on standard scores
            log = rollout(worlds, None, generator)
            obs, states = log["observations"].flatten(0, 1), log["states"].flatten(0, 1)  # [W * (T + 1), ...]
            self.obs_mean, self.obs_std = obs.mean(0).unsqueeze(1), obs.std(0).unsqueeze(1)
            self.state_mean, self.state_std = states.mean(0), states.std(0)
        self.actor = self.policy.init(len(bodies), obs_dim, action_dim(worlds), generator)
        view_dim = self.view(worlds, self.observe(worlds)).shape[-1]
        self.critic = init_mlp(1, (view_dim, 2 * HIDDEN, 2 * HIDDEN, len(bodies)), generator)
        for p in self.actor + self.critic:
            p.requires_grad_(True)
        self.optimizer = torch.optim.Adam(self.actor + self.critic, lr=args.learning_rate, eps=1e-5)

    def observe(self, worlds) -> torch.Tensor:
        """The team's observations [N, W, O] as its actors take them."""
        return (torch.stack([worlds.observe(i) for i in self.bodies]) - self.obs_mean) / self.obs_std

    def view(self, worlds, obs: torch.Tensor) -> torch.Tensor:
        """What the value function sees [W, S]: the simulator's state in HalfCheetah, else the team's obs [N, W, O]."""
        if isinstance(worlds, HalfCheetah):
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

    def update(self, obs, views, actions, log_probs, rewards, args: Args, remaining: float, generator) -> None:
        """One PPO iteration on obs [T, N, W, O], views [T + 1, W, S], actions [T, N, W] or [T, N, W, A], log_probs
        and rewards [T, N, W].

        remaining: the share of training still ahead, 1 to 0, which scales learning rate and entropy bonus; above 1 only
        the value function learns.
        """
        steps, num, width = rewards.shape
        with torch.no_grad():
            values = self.value(views.flatten(0, 1)).view(num, steps + 1, width).transpose(0, 1)
            advantage, advantages = torch.zeros(num, width), torch.empty_like(rewards)
            for t in reversed(range(steps)):  # the last step bootstraps through the time limit
                delta = rewards[t] + args.gamma * values[t + 1] - values[t]
                advantage = advantages[t] = delta + args.gamma * args.gae_lambda * advantage
            returns = advantages + values[:-1]
            advantages = (advantages - advantages.mean()) / (advantages.std() + 1e-8)
        obs, actions, log_probs, returns, advantages = (  # [N, T * W, ...]
            x.transpose(0, 1).flatten(1, 2) for x in (obs, actions, log_probs, returns, advantages)
        )
        views = views[:-1].flatten(0, 1)  # [T * W, S]
        self.optimizer.param_groups[0]["lr"] = args.learning_rate * min(remaining, 1)
        for _ in range(args.epochs):
            for rows in torch.randperm(steps * width, generator=generator).chunk(args.minibatches):
                loss = F.mse_loss(self.value(views[rows]), returns[:, rows]) * 0.5
                if remaining <= 1:
                    log_pi, entropy = self.policy.evaluate(self.actor, obs[:, rows], actions[:, rows])
                    ratio = (log_pi - log_probs[:, rows]).exp()  # [N, rows]
                    clipped = ratio.clamp(1 - args.clip, 1 + args.clip)
                    gain = torch.minimum(ratio * advantages[:, rows], clipped * advantages[:, rows])
                    loss = loss - (gain + args.entropy_coef * remaining * entropy).mean(1).sum()
                self.optimizer.zero_grad()
                loss.backward()
                for params in (self.actor, self.critic):  # apart, so that value errors do not silence the actors
                    torch.nn.utils.clip_grad_norm_(params, 0.5)
                self.optimizer.step()


@torch.no_grad()
def collect(worlds, teams: list[Team], generator) -> tuple[list, torch.Tensor]:
    """One episode in every world, all bodies played by `teams` in order (or the last one by worlds.prey).

    Returns per team (obs [T, N, W, O], views [T + 1, W, S], actions [T, N, W] or [T, N, W, A], log_probs [T, N, W])
    and the rewards [T, W, P].
    """
    worlds.reset()
    logs, rewards = [([], [], [], []) for _ in teams], []
    for _ in range(worlds.horizon):
        played = []
        for team, log in zip(teams, logs, strict=True):
            obs = team.observe(worlds)
            actions, log_probs = team.policy.explore(team.actor, obs, generator)
            for column, x in zip(log, (obs, team.view(worlds, obs), actions, log_probs), strict=True):
                column.append(x)
            played.extend(team.policy.playable(actions))
        if len(played) < worlds.num_bodies:
            played.append(worlds.prey(worlds.observe(worlds.num_bodies - 1)))
        rewards.append(worlds.advance(torch.stack(played, dim=1)))
    for team, (_, views, _, _) in zip(teams, logs, strict=True):
        views.append(team.view(worlds, team.observe(worlds)))
    return [tuple(torch.stack(x) for x in log) for log in logs], torch.stack(rewards)


def train(worlds, teams: list[Team], iterations: int, args: Args, generator, title: str) -> list:
    """Train all teams together; returns the first team's actors before each iteration and after the last, with
    the mean return of each: [(return, parameters)]. The last return is NaN: nothing has been played by it yet."""
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


def greedy(params: list[torch.Tensor], action_kind: str = "discrete"):
    """A deterministic policy of one agent for Worlds(prey=...): obs [W, O] -> most likely action [W] or mean [W, A]."""
    return lambda obs: POLICY[action_kind].greedy(params, obs.unsqueeze(0))[0]


@torch.no_grad()
def rollout(worlds, actor, generator) -> dict[str, torch.Tensor]:
    """One episode in every world: actions sampled from stacked actors `actor`, or uniform where it is None, or those of
    a function of observations [W, N, O] and the generator.

    Returns observations [W, T + 1, N, O], actions [W, T, N] (int64) or [W, T, N, A] (in [-1, 1]), rewards [W, T, N],
    and in HalfCheetah the simulator's states [W, T + 1, S].
    """
    policy = POLICY[worlds.action_kind]
    log = dict(observations=[worlds.reset()], actions=[], rewards=[])
    if isinstance(worlds, HalfCheetah):
        log["states"] = [worlds.state()]
    for _ in range(worlds.horizon):
        obs = log["observations"][-1]
        if callable(actor):
            actions = actor(obs, generator)
        else:
            actions = policy.uniform(worlds, generator) if actor is None else policy.act(actor, obs, generator)
        obs, rewards = worlds.step(actions)
        for name, x in (("observations", obs), ("actions", actions), ("rewards", rewards)):
            log[name].append(x)
        if "states" in log:
            log["states"].append(worlds.state())
    return {name: torch.stack(steps, dim=1) for name, steps in log.items()}


def score(worlds, actor: list[torch.Tensor] | None, seed: int) -> float:
    """Mean undiscounted episode return of the team (mean over its agents), one episode per world."""
    rewards = rollout(worlds, actor, torch.Generator().manual_seed(seed))["rewards"]
    return float(rewards.double().mean(-1).sum(-1).mean())


def half(params: list[torch.Tensor]) -> list[torch.Tensor]:
    """What a half-precision file keeps of the parameters; scores are measured on exactly this."""
    return [p.half().float() for p in params]


def train_behaviour(args: Args) -> dict[str, np.ndarray]:
    """Train prey (tag, world) and learners; returns the arrays of a policy file (see load_policies)."""
    generator = torch.Generator().manual_seed(args.seed)

    def make_worlds(num_worlds, seed, prey=None):
        if args.env_id not in ENV_IDS:
            return HalfCheetah(num_worlds, seed=seed)
        prey = prey and greedy(prey, args.action_kind)
        return Worlds(args.env_id, num_worlds, args.action_kind, prey=prey, seed=seed)

    prey = None
    if args.env_id in WITH_PREY:
        worlds = make_worlds(args.num_worlds, args.seed + 1)
        teams = [Team(worlds, range(3), args, generator), Team(worlds, range(3, 4), args, generator)]
        train(worlds, teams, args.selfplay_iterations, args, generator, f"{args.env_id}: prey by self-play")
        prey = half([p.detach() for p in teams[1].actor])
    worlds = make_worlds(args.num_worlds, args.seed + 2, prey)
    team = Team(worlds, range(worlds.num_learners), args, generator)
    iterates = train(worlds, [team], args.iterations, args, generator, f"{args.env_id}: behaviour")

    judge = make_worlds(max(1, SCORE_EPISODES * HORIZON // worlds.horizon), args.seed + 3, prey)
    random_score = score(judge, None, args.seed + 4)
    expert_score = score(judge, half(iterates[-1][1]), args.seed + 4)
    target = random_score + MEDIUM_SHARE * (expert_score - random_score)
    # A training return is that of few episodes, so noisy: among the iterates that look nearest, many episodes choose.
    nearest = sorted(range(len(iterates) - 1), key=lambda i: abs(iterates[i][0] - target))[:5]
    judged = {i: score(judge, half(iterates[i][1]), args.seed + 4) for i in nearest}
    medium = min(judged, key=lambda i: abs(judged[i] - target))
    kept = np.unique(np.linspace(0, medium, min(args.kept_iterates, medium + 1)).round().astype(int)).tolist()

    facts = dict(
        env_id=args.env_id,
        action_kind=args.action_kind,
        random_score=random_score,
        medium_score=judged[medium],
        expert_score=expert_score,
        medium_iterate=len(kept) - 1,
        kept_iterations=kept + [args.iterations],
        training={k: v for k, v in asdict(args).items() if k != "out"},
        torch=torch.__version__,
        training_returns=[round(r, 2) for r, _ in iterates[:-1]],
    )
    layers = zip(*(iterates[i][1] for i in facts["kept_iterations"]), strict=True)
    arrays = {f"actor{j}": torch.stack(layer).half().numpy() for j, layer in enumerate(layers)}
    arrays |= {f"prey{j}": p.half().numpy() for j, p in enumerate(prey or [])}
    return arrays | {"facts": np.array(json.dumps(facts))}


@dataclass(frozen=True)
class Policies:
    """A policy file: `iterates` are stacked actors, 0 .. medium, then the expert; prey is None where there is none.

    facts["medium_iterate"] is a place in `iterates`, facts["kept_iterations"] the iterations of training they are of.
    """

    iterates: list[list[torch.Tensor]]
    prey: list[torch.Tensor] | None
    facts: dict


def policy_file(env_id: str, folder: Path = POLICY_DIR, action_kind: str = "discrete") -> Path:
    """Where the policies of a task are. Raises InputError, with the command that makes them, where there are none."""
    check_task(env_id, action_kind)
    path = Path(folder) / f"{env_id}-{action_kind}.npz"
    if not path.is_file():
        command = f"python -m data.behaviour --env-id {env_id} --action-kind {action_kind}"
        raise InputError(f"no policy file {path}; make it with: {command}")
    return path


def load_policies(env_id: str, device="cpu", folder: Path = POLICY_DIR, action_kind: str = "discrete") -> Policies:
    """Read the shipped policies of a task. Raises InputError where there are none, or the file is not theirs."""
    path = policy_file(env_id, folder, action_kind)
    tensors = 6 if action_kind == "discrete" else 7  # three layers' weights and biases, log_std
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {k: torch.from_numpy(file[k].astype(np.float32)) for k in file.files if k != "facts"}
            facts = json.loads(str(file["facts"]))
        actor = [arrays[f"actor{j}"].to(device) for j in range(tensors)]  # [iterates, N, ...]
        prey = [arrays[f"prey{j}"].to(device) for j in range(tensors)] if env_id in WITH_PREY else None
        if (facts["env_id"], facts["action_kind"]) != (env_id, action_kind):
            raise ValueError(f"it holds {facts['action_kind']} policies of {facts['env_id']}")
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
    task = parse(Args, description=__doc__)
    args = parse(Args, default=default_args(task.env_id, task.action_kind))
    for name, value in asdict(args).items():
        least = 0 if name == "value_iterations" else 1
        if type(value) is int and name != "seed" and value < least:
            raise InputError(f"--{name.replace('_', '-')} must be at least {least}, not {value}")
    start = time.time()
    path = args.out / f"{args.env_id}-{args.action_kind}.npz"
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
