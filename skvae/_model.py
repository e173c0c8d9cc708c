"""The parts bundled: p(x, z | u) and q(z | x, u) for R replicas."""

from __future__ import annotations

import copy
from contextlib import nullcontext
from typing import NamedTuple

import torch
from torch import Generator, Tensor, nn

from skvae._gaussian import DiagonalGaussian
from skvae._memory import keep_freed_memory

keep_freed_memory()

# Numbers in the largest layer of a chunk of rows, outside training.
ACTIVATIONS = 1 << 22
# Numbers of the data in such a chunk, and in one that the frame is measured from.
EVALUATED, MEASURED = 1 << 19, 1 << 16


class Frame(nn.Module):
    """Origin and unit in which the two networks see the data.

    The encoder reads ``(features(x) - centre) / scale`` and the likelihood gets
    ``offset + unit * decoder(z)``, so that networks work near the origin whatever
    the units of X; one scale for all features keeps their proportions. The map is
    affine and invertible: the likelihood stays that of X itself.
    """

    def __init__(self, n_features: int, n_outputs: int):
        super().__init__()
        self.register_buffer("centre", torch.zeros(n_features))
        self.register_buffer("scale", torch.ones(()))
        self.register_buffer("offset", torch.zeros(n_outputs))
        self.register_buffer("unit", torch.ones(()))

    def outward(self, out: Tensor) -> Tensor:
        """The likelihood's parameters for the decoder's output."""
        return torch.addcmul(self.offset, self.unit, out)

    @torch.no_grad()
    def set_from(self, likelihood, x: Tensor, weight: Tensor, rows: int = 4096):
        """Measure weighted means and the root mean variance, a chunk at a time."""
        if getattr(likelihood, "symbolic", False):
            return
        # In double precision several times over, and best within the cache.
        rows = max(1, min(rows, MEASURED // x.shape[1]))
        total = weight.double().sum()
        sums = [0.0, 0.0, 0.0]
        # The square of a binary feature that is drawn from x has the mean x.
        drawn = getattr(likelihood, "resample", False)
        for chunk, w in zip(x.split(rows), weight.split(rows), strict=True):
            w = w.double().unsqueeze(-1)
            chunk = chunk.to(weight.device, torch.float64)
            features = likelihood.features(chunk)
            parts = (chunk, features, chunk if drawn else features.square())
            sums = [s + (w * part).sum(0) for s, part in zip(sums, parts, strict=True)]
        mean, centre, square = (s / total for s in sums)
        variance = (square - centre.square()).clamp_min(0.0).mean()
        self.centre.copy_(centre)
        self.scale.copy_(variance.sqrt() if variance > 0 else torch.ones(()))
        self.offset.copy_(likelihood.start(mean))
        if likelihood.scales_with_data:
            self.unit.copy_(self.scale)
            likelihood.set_unit(self.scale)


class FramedLikelihood(NamedTuple):
    """A likelihood whose parameters are given in the decoder's units."""

    likelihood: nn.Module
    frame: Frame

    def features(self, x: Tensor) -> Tensor:
        """What networks see of x."""
        return self.likelihood.features(x)

    def mean(self, out: Tensor) -> Tensor:
        """Mean of x for the decoder's output."""
        return self.likelihood.mean(self.frame.outward(out))

    def sample(self, out: Tensor, generator: Generator) -> Tensor:
        """Draws of x for the decoder's output."""
        return self.likelihood.sample(self.frame.outward(out), generator)


class Terms(NamedTuple):
    """Per-row terms of an objective, each of shape ``(R, B)``, in nats."""

    loss: Tensor
    log_likelihood: Tensor
    kl: Tensor


class Parts(NamedTuple):
    """The built modules of a model."""

    encoder: nn.Module
    decoder: nn.Module
    prior: nn.Module
    likelihood: nn.Module
    posterior: object


class LatentVariableModel(nn.Module):
    """R independent models of equal shape; contains no loss.

    Shapes: x ``(R or 1, B, p)``, u ``(R or 1, B, m)`` or None, z ``(R, B, d)``.
    """

    def __init__(self, parts: Parts, frame: Frame, n_latents: int, n_replicas: int):
        super().__init__()
        self.encoder, self.decoder = parts.encoder, parts.decoder
        self.prior, self.likelihood = parts.prior, parts.likelihood
        self.posterior_family = parts.posterior
        self.frame = frame
        self.n_latents, self.n_replicas = n_latents, n_replicas

    @property
    def replayable(self) -> bool:
        """Whether all parts do the same operations for every batch of a shape."""
        parts = self.encoder, self.decoder, self.prior, self.likelihood
        return all(getattr(part, "replayable", False) for part in parts)

    def encoder_inputs(self, x: Tensor, u: Tensor | None = None) -> Tensor:
        """What the encoder reads, shape ``(R or 1, B, n_inputs)``."""
        features = self.likelihood.features(x) - self.frame.centre
        features /= self.frame.scale
        return self.posterior_family.inputs(features, u)

    def encoded(self, x: Tensor, u: Tensor | None = None) -> DiagonalGaussian:
        """What the encoder says, before it meets the prior, shape ``(R, B, d)``."""
        inputs = self.encoder_inputs(x, u)
        raw = self.encoder(inputs).to(inputs.dtype)
        return self.posterior_family.read(raw, self.n_latents)

    def posterior(self, x: Tensor, u: Tensor | None = None) -> DiagonalGaussian:
        """q(z|x), or q(z|x,u), shape ``(R, B, d)``."""
        return self.posterior_family.combine(self.encoded(x, u), self.prior, u)

    def parameter_groups(self) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
        """The parameters of q, which are the encoder's, and those of p, the others."""
        encoder = list(self.encoder.parameters())
        known = {id(p) for p in encoder}
        return encoder, [p for p in self.parameters() if id(p) not in known]

    def decode(self, z: Tensor, x: Tensor | None = None) -> Tensor:
        """The likelihood's parameters, shape ``(R, B, n_outputs)``.

        An autoregressive decoder reads x as well: the parameters of each feature
        depend on z and on the features before it.
        """
        if getattr(self.decoder, "autoregressive", False):
            out = self.decoder(z, self.likelihood.features(x))
        else:
            out = self.decoder(z)
        return self.frame.outward(out)

    def generate(self, z: Tensor, generator: Generator | None = None) -> Tensor:
        """Draw x from p(x|z), ``(R, B, p)``; without a generator, a mean.

        The mean is the likelihood's. An autoregressive decoder goes through x from
        front to back and puts what it draws, or the mean, before what follows.
        """
        likelihood = FramedLikelihood(self.likelihood, self.frame)
        if getattr(self.decoder, "autoregressive", False):
            return self.decoder.generate(z, likelihood, generator)
        out = self.decoder(z)
        if generator is None:
            return likelihood.mean(out)
        return likelihood.sample(out, generator)

    def lengths(self, x: Tensor) -> Tensor | None:
        """Lengths of the rows ``(n, p)`` of x where they have any, ``(n,)``."""
        if hasattr(self.likelihood, "lengths"):
            return self.likelihood.lengths(x)
        return None

    def perturbed(self, noise: Tensor):
        """Context of a training step: decoders with dropout drop units within it."""
        if hasattr(self.decoder, "perturbed"):
            return self.decoder.perturbed(noise)
        return nullcontext()

    def rows_at_once(self, limit: int) -> int:
        """Rows to evaluate together, fewer than `limit` where they take much memory.

        Networks with layers much wider than x say in `n_activations` how wide.
        """
        parts = self.encoder, self.decoder
        largest = max(getattr(part, "n_activations", 1) for part in parts)
        fit = min(ACTIVATIONS // largest, EVALUATED // self.frame.centre.shape[-1])
        return max(1, min(limit, fit))

    def rows_in_cache(self, limit: int) -> int:
        """Rows, at most `limit`, for which the layers of several replicas fit in."""
        if self.n_replicas == 1:
            return limit
        parts = self.encoder, self.decoder
        widest = max(p.shape[-1] for part in parts for p in part.parameters())
        return max(1, min(limit, EVALUATED // (self.n_replicas * widest)))

    def log_joint(self, x: Tensor, z: Tensor, u: Tensor | None = None) -> Tensor:
        """Log p(x|z) + log p(z|u) in nats, shape ``(R, B)``."""
        log_likelihood = self.likelihood.log_prob(x, self.decode(z, x))
        return log_likelihood + self.prior.log_prob(z, u)

    def expected_log_likelihood(self, x: Tensor, q, z: Tensor) -> Tensor:
        """Estimate of E_q log p(x|z) in nats from a draw z of q, shape ``(R, B)``."""
        return self.posterior_family.expected_log_likelihood(self, x, q, z)

    def bound(self, x: Tensor, q, z: Tensor, u: Tensor | None = None) -> Tensor:
        """ELBO at beta 1 from a draw z of q, in nats, shape ``(R, B)``."""
        return self.expected_log_likelihood(x, q, z) - self.prior.kl(q, z, u)

    @torch.no_grad()
    def importance_log_weights(
        self, x: Tensor, u: Tensor | None, noise: Tensor, q=None
    ) -> Tensor:
        """Log p(x,z|u)/q(z|x,u) for noise ``(S, d)`` shared by rows: ``(R, S, B)``.

        Without `q`, the encoder's answer is the proposal.
        """
        if q is None:
            q = self.posterior(x, u)
        return self.posterior_family.importance_log_weights(self, x, u, q, noise)

    def select(self, replica: int) -> LatentVariableModel:
        """A compact copy with one replica alone."""
        chosen = copy.deepcopy(self)
        for module in chosen.modules():
            for name, value in module._parameters.items():
                if value is not None:
                    piece = value.detach()[replica : replica + 1].clone()
                    module._parameters[name] = nn.Parameter(piece)
            for name, value in module._buffers.items():
                if value.dim() == 3 and value.shape[0] == self.n_replicas:
                    module._buffers[name] = value[replica : replica + 1].clone()
        chosen.n_replicas = 1
        return chosen
