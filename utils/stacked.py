"""Networks of several seeds, members or agents as stacked tensors: what both scripts do with them."""

import math

import torch

from data.behaviour import init_mlp

PART_NUMBERS = 2**19  # numbers that a layer puts out for a part of the batch: 2 MB, near the size of a core's caches


def init_networks(generators, count, sizes, gain=1.0):
    """`count` networks per generator (seed), each initialised as nn.Linear layers are, the last layer's weights (not
    its biases) times `gain`.

    Returns [W, b, W, b, ...] with W [S, count, in, out] and b [S, count, 1, out].
    """
    params = [torch.stack(p) for p in zip(*(init_mlp(count, sizes, g) for g in generators), strict=True)]
    return [*params[:-2], gain * params[-2], params[-1]]


def per_seed(draw, generators, *args):
    """Random tensors stacked over seeds, each from its own generator, so that seeds do not notice each other."""
    return torch.stack([draw(*args, generator=g, device=g.device) for g in generators])


def draw_sizes(sizes, count, batch, generators):
    """`count` of the sizes [K] for each transition, [S, B, count], evenly spaced from a random start; or all, [K].
    Each has the same chance: with equal weights the target (4) over those drawn is unbiased. Weights by uncertainty are
    normalised over those drawn, hence biased, less so for more."""
    if count == len(sizes):
        return sizes
    start = per_seed(torch.rand, generators, (batch, 1))  # [S, B, 1]
    place = (torch.arange(count, device=sizes.device) + start) * len(sizes) / count
    return sizes[place.long().clamp(max=len(sizes) - 1)]  # rounding may reach K


def clip_each(params, limit):
    """Clip the gradient of every stacked network by itself: its norm runs over all axes but [S, E or N]."""
    norm = sum(p.grad.square().sum((-2, -1), keepdim=True) for p in params).sqrt()
    for p in params:
        p.grad.mul_((limit / (norm + 1e-6)).clamp(max=1.0))


def cache_parts(numbers, *tensors):
    """Tensors [S, B, ...] cut along B, so that what a layer puts out for a part fits a processor's cache.

    numbers: how many it puts out for the whole batch. Returns tuples of parts; on a GPU one, the whole batch. At the
    paper's size the critics' gradient takes two to three times as long in one part (results/benchmark.md, Ideas).
    """
    batch = tensors[0].shape[1]
    count = 1 if tensors[0].is_cuda else max(1, min(batch, math.ceil(numbers / PART_NUMBERS)))
    return zip(*(x.tensor_split(count, dim=1) for x in tensors), strict=True)
