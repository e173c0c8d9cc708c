"""Private random streams: one generator per purpose, never the global one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Generator, Tensor


class Seeds(NamedTuple):
    """The three integers that decide one replica's training."""

    weights: int
    shuffle: int
    noise: int


class Streams(NamedTuple):
    """Generators of R replicas: `shuffle` on the CPU, `noise` on the device."""

    shuffle: list[Generator]
    noise: list[Generator]


def generator(seed: int, device: torch.device | str = "cpu") -> Generator:
    """A generator on `device` that starts at `seed`."""
    return Generator(device=device).manual_seed(seed)


def weight_generators(seeds: Sequence[Seeds]) -> list[Generator]:
    """One generator per replica for the initial weights.

    They live on the CPU, so that a seed starts equally on every device.
    """
    return [generator(seed.weights) for seed in seeds]


def streams(seeds: Sequence[Seeds], device: torch.device | str) -> Streams:
    """The generators that training draws from, one per replica and purpose."""
    return Streams(
        shuffle=[generator(seed.shuffle) for seed in seeds],
        noise=[generator(seed.noise, device) for seed in seeds],
    )


def permutations(generators: Sequence[Generator], counts: Sequence[int]) -> Tensor:
    """One permutation of each replica's rows, ``(R, n)``, as short integers.

    A replica of fewer than n rows, the most of any, has numbers beyond them at the end.
    """
    n = max(counts)
    dtype = torch.int32 if n < 2**31 else torch.int64
    order = torch.arange(n, dtype=dtype).repeat(len(generators), 1)
    for row, count, g in zip(order, counts, generators, strict=True):
        torch.randperm(count, generator=g, out=row[:count])
    return order


def standard_normal(
    generators: Sequence[Generator],
    *shape: int,
    dtype: torch.dtype = torch.float32,
    counts: Sequence[int] | None = None,
) -> Tensor:
    """Independent standard normal draws, shape ``(R, *shape)``.

    With `counts`, that many rows of each replica are drawn and the others are zero.
    """
    if counts is None:
        counts = [shape[0]] * len(generators)
    draws = [
        torch.randn(count, *shape[1:], generator=g, device=g.device, dtype=dtype)
        for count, g in zip(counts, generators, strict=True)
    ]
    if len(set(counts)) == 1:
        return torch.stack(draws)
    return torch.stack([torch.cat([d, d.new_zeros(shape)[len(d) :]]) for d in draws])


def shared_noise(seed: int, n_draws: int, n_latents: int, like: Tensor) -> Tensor:
    """Antithetic standard normal draws for scoring, shape ``(n_draws, d)``.

    Drawn in double precision on the CPU, so that they are the same numbers
    whatever the dtype and the device of `like`.
    """
    half = torch.randn(
        (n_draws + 1) // 2, n_latents, generator=generator(seed), dtype=torch.float64
    )
    return torch.cat([half, -half])[:n_draws].to(like)
