"""A linear move of the codes that the likelihood does not notice and the prior does.

With z -> A z, and with the networks turned along, log p(x|z) stays what it was, while
p(z|u), whose coordinates are independent given u, fits codes the better the less they
are correlated within each u. Gradients see that slope only across a change of both
networks, and often rest at a rotation of the sources; the best A has a closed form but
for a few Newton steps: it makes the covariances of the codes given u diagonal together
(Pham, Cardoso 2001, "Blind separation of instantaneous mixtures of nonstationary
sources", IEEE Transactions on Signal Processing 49).
"""

from __future__ import annotations

import torch
from torch import Tensor

NEWTON_STEPS = 50
# Pairs of coordinates whose variances do not depend on u may be turned at will.
DAMPING = 1e-3
TOLERANCE = 1e-8
RIDGE = 1e-8


def misfit(maps: Tensor, covariances: Tensor, share: Tensor) -> Tensor:
    """Sum of log-variances less the log-determinant, in nats per row.

    What independent coordinates given u cost more than correlated ones, up to a
    constant; covariances ``(C, d, d)`` with their share ``(C,)`` of the rows.
    """
    variances = (maps @ covariances @ maps.mT).diagonal(dim1=1, dim2=2)
    volume = torch.linalg.slogdet(maps).logabsdet
    return 0.5 * share @ torch.log(variances).sum(1) - volume


def jointly_diagonal(covariances: Tensor, share: Tensor) -> Tensor:
    """The map ``(d, d)`` under which covariances ``(C, d, d)`` are most diagonal.

    Newton steps on :func:`misfit` relative to the present map, with a Hessian that is
    exact where the covariances are diagonal. All coordinates end with one variance over
    all rows, the mean of those before.
    """
    pooled = torch.einsum("c,cij->ij", share, covariances)
    maps = torch.diag(pooled.diagonal().rsqrt())
    value = misfit(maps, covariances, share)
    for _ in range(NEWTON_STEPS):
        turned = maps @ covariances @ maps.mT
        variances = turned.diagonal(dim1=1, dim2=2)
        weights = share.unsqueeze(1) / variances
        gradient = torch.einsum("ci,cij->ij", weights, turned)
        ratio = weights.mT @ variances + DAMPING
        step = (gradient.mT - ratio.mT * gradient) / (ratio * ratio.mT - 1.0)
        step.fill_diagonal_(0.0)
        size, moved, found = 1.0, maps, value
        while found >= value and size > TOLERANCE:
            moved = maps + size * step @ maps
            found = misfit(moved, covariances, share)
            size *= 0.5
        if not value - found > TOLERANCE:
            break
        maps, value = moved, found
    variance = (maps @ pooled @ maps.mT).diagonal()
    return maps * torch.sqrt(pooled.trace() / (len(pooled) * variance)).unsqueeze(1)


def gain(maps: Tensor, covariances: Tensor, count: Tensor) -> float:
    """Nats in all rows that a map ``(d, d)`` is worth, less what chance would give.

    Covariances ``(C, d, d)`` are those of so many rows each, ``(C,)``. A map
    has d (d - 1) free numbers besides scales, each priced at half the log of the number
    of rows (Schwarz 1978, "Estimating the dimension of a model", Annals of Statistics
    6): codes that do not depend on u have a most diagonal map too, the same in every
    restart.
    """
    n, d = count.sum(), len(maps)
    share = count / n
    identity = torch.eye(d, dtype=maps.dtype)
    better = misfit(identity, covariances, share) - misfit(maps, covariances, share)
    return float(n * better - 0.5 * d * (d - 1) * torch.log(n))


def unmixable(model) -> bool:
    """Whether codes can be turned: by dense networks, under a table of p(z|u)."""
    return (
        model.n_latents > 1
        and getattr(model.prior, "tabular", False)
        and hasattr(model.encoder, "before_output")
        and hasattr(model.decoder, "turn_inputs")
        and hasattr(model.posterior_family, "write")
    )


def _bounds(model, chunks, posteriors) -> Tensor:
    """Mean ELBO at beta 1 of each replica, ``(R,)``."""
    total = weights = 0.0
    for (x, u, weight, noise), q in zip(chunks, posteriors, strict=True):
        total = total + (model.bound(x, q, q.sample(noise), u) * weight).sum(-1)
        weights = weights + weight.sum(-1)
    return total / weights


def _moments(chunks, posteriors):
    """Weight, mean and covariance of the codes given each u: (R, C, ...), doubles."""
    totals = [0.0, 0.0, 0.0]
    for (_, u, weight, _), q in zip(chunks, posteriors, strict=True):
        w, loc = (weight.unsqueeze(-1) * u).double(), q.loc.double()
        second = loc.unsqueeze(-1) * loc.unsqueeze(-2) + q.covariance
        sums = (
            w.sum(1).expand(len(loc), -1),
            w.mT @ loc,
            (w.mT @ second.flatten(2)).unflatten(2, second.shape[2:]),
        )
        totals = [a + b for a, b in zip(totals, sums, strict=True)]
    count = totals[0].clamp_min(torch.finfo(torch.float64).tiny)
    mean = totals[1] / count.unsqueeze(-1)
    second = totals[2] / count[..., None, None]
    return totals[0], mean, second - mean.unsqueeze(-1) * mean.unsqueeze(-2)


def _turn_encoder(model, chunks, maps: Tensor) -> None:
    """Turn what the encoder says: means exactly, precisions by least squares.

    Precisions are not linear in the encoder's last layer; the layer that comes closest
    to the turned ones over the rows takes its place.
    """
    d, output = model.n_latents, model.encoder.output
    inverse = torch.linalg.inv(maps).unsqueeze(1)
    squares = products = 0.0
    for x, u, weight, _ in chunks:
        inputs = model.encoder_inputs(x, u)
        h = model.encoder.before_output(inputs.expand(len(maps), -1, -1))
        encoded = model.posterior_family.read(output(h), d)
        h = torch.cat([h, torch.ones_like(h[..., :1])], dim=-1).double()
        precision = inverse.mT @ encoded.precision.double() @ inverse
        loc = encoded.loc.double() @ maps.mT
        target = model.posterior_family.write(loc, precision)[..., d:]
        weighted = (h * weight.unsqueeze(-1)).mT
        squares, products = squares + weighted @ h, products + weighted @ target
    n = squares.shape[-1]
    ridge = RIDGE * squares.diagonal(dim1=1, dim2=2).mean(1)[:, None, None]
    eye = torch.eye(n, dtype=squares.dtype, device=squares.device)
    solution = torch.linalg.solve(squares + ridge * eye, products)
    for own, fitted in (
        (output.weight, solution[:, :-1]),
        (output.bias, solution[:, -1:]),
    ):
        own[..., :d] = (own[..., :d].double() @ maps.mT).to(own)
        own[..., d:] = fitted.to(own)


@torch.no_grad()
def unmix(model, chunks) -> list[bool]:
    """Make the move in every replica whose bound it raises; tells which they are.

    `chunks` is a list of x, u, weight and noise, one draw of z a row; all chunks are
    read several times.
    """

    def posteriors():
        return [model.posterior(x, u) for x, u, _, _ in chunks]

    prior, found = model.prior, posteriors()
    before = _bounds(model, chunks, found)
    kept = [parameter.clone() for parameter in model.parameters()]
    count, mean, covariance = _moments(chunks, found)
    if not prior.learn_mean:
        covariance = covariance + mean.unsqueeze(-1) * mean.unsqueeze(-2)
    if not torch.isfinite(covariance).all():
        return [False] * model.n_replicas
    maps, worth = [], []
    for n, own in zip(count.cpu(), covariance.cpu(), strict=True):
        own, n = own[n > 0], n[n > 0]
        maps.append(jointly_diagonal(own, n / n.sum()))
        worth.append(gain(maps[-1], own, n) > 0)
    maps = torch.stack(maps).to(covariance)
    _turn_encoder(model, chunks, maps)
    model.decoder.turn_inputs(torch.linalg.inv(maps))
    # Values of u that no row has keep what is known of them.
    known = prior.table()
    seen = (count > 0).unsqueeze(-1)
    mean = torch.where(seen, mean, known.loc)
    covariance = torch.where(seen.unsqueeze(-1), covariance, known.covariance)
    turned = maps.unsqueeze(1) @ covariance @ maps.unsqueeze(1).mT
    prior.tabulate(mean @ maps.mT, turned.diagonal(dim1=2, dim2=3))
    better = _bounds(model, chunks, posteriors()) > before
    better &= torch.tensor(worth, device=before.device)
    for parameter, old in zip(model.parameters(), kept, strict=True):
        parameter[~better] = old[~better]
    return better.tolist()
