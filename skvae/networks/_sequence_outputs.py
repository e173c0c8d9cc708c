"""Output layers of sequence decoders: LSTM states and z to the logits of the tokens.

States ``(R, T, B, h)`` and codes ``(R, B, d)`` become ``(R, T, B, n)`` for n classes.
`align` sets what makes the tokens as frequent at the start as they are in the data.

Logits are defined up to a common constant. Where an output is called injective, the
bound is on what the constant cannot touch: |log p(.|h,z) - log p(.|h,z')| is at least
`certificate` times |z - z'|, h being the state.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from skvae._products import products
from skvae.networks._convex import ConvexGradient
from skvae.networks._layers import OUTPUT_GAIN, Linear, normal_weights


def _rows(states: Tensor, z: Tensor) -> Tensor:
    """[h; z] of every step and row, ``(R, T B, h + d)``."""
    codes = z.unsqueeze(1).expand(-1, states.shape[1], -1, -1)
    return torch.cat([states, codes], dim=-1).flatten(1, 2)


class AffineOutput(nn.Module):
    """``W h + b``: z is heard through the state alone."""

    def __init__(self, n_latents, width, n_classes, generators, inverse_lipschitz):
        super().__init__()
        self.layer = Linear(width, n_classes, generators, gain=OUTPUT_GAIN)

    def align(self, share: Tensor) -> None:
        self.layer.bias.copy_(share.log())

    def forward(self, states: Tensor, z: Tensor) -> Tensor:
        return self.layer(states.flatten(1, 2)).unflatten(1, states.shape[1:3])


class SkipOutput(AffineOutput):
    """``W h + V z + b``: z is read again before the softmax (Dieng et al. 2019)."""

    def __init__(self, n_latents, width, n_classes, generators, inverse_lipschitz):
        super().__init__(0, width + n_latents, n_classes, generators, inverse_lipschitz)

    def forward(self, states: Tensor, z: Tensor) -> Tensor:
        return self.layer(_rows(states, z)).unflatten(1, states.shape[1:3])


class AnchoredOutput(nn.Module):
    """``(I - B B^T) g(h, z) + B (m(z) + A h)``, m strongly monotone, B orthonormal.

    B is orthogonal to the ones, so B^T log p = m(z) + A h whatever the constant in the
    logits: the softmax cannot hide z. g is a network with one hidden layer u, and with
    g = u W + b the whole is one product ``[u; c] [W; B^T] + b`` with
    c = m(z) + A h - (u W + b) B, as dear as the softmax layer of g alone.
    """

    def __init__(self, n_latents, width, n_classes, generators, inverse_lipschitz):
        super().__init__()
        if n_latents > n_classes - 1:
            raise ValueError(
                f"An injective output for {n_latents} latents needs at least "
                f"{n_latents + 2} tokens, padding included, because {n_classes} "
                f"probabilities have {n_classes - 1} degrees of freedom. Lower "
                "n_components."
            )
        self.hidden = Linear(width + n_latents, width, generators, gain=math.sqrt(2.0))
        self.layer = Linear(width, n_classes, generators, gain=OUTPUT_GAIN)
        self.along = Linear(width, n_latents, generators, gain=OUTPUT_GAIN)
        anchor_width = max(16, min(width, 4 * n_latents))
        self.anchor = ConvexGradient(
            n_latents,
            n_latents,
            generators,
            anchor_width,
            1,
            "softplus",
            inverse_lipschitz,
            1.0,
        )
        draws = normal_weights(generators, n_classes, n_latents, std=1.0).detach()
        self.register_buffer("basis", draws)
        self._orthonormalise()

    @torch.no_grad()
    def _orthonormalise(self):
        ones = torch.ones_like(self.basis[..., :1])
        columns = torch.linalg.qr(torch.cat([ones, self.basis], dim=-1)).Q
        self.basis.copy_(columns[..., 1:])

    def align(self, share: Tensor) -> None:
        # Along words that are rare, z could move where the likelihood hardly looks.
        scale = (share / share.max()).sqrt().clamp_min(1e-3)
        self.basis.mul_(scale.to(self.basis).unsqueeze(-1))
        self._orthonormalise()
        self.layer.bias.copy_(share.log())
        self.along.bias.copy_(self.layer.bias @ self.basis)

    def forward(self, states: Tensor, z: Tensor) -> Tensor:
        n_steps = states.shape[1]
        u = torch.relu(self.hidden(_rows(states, z)))
        weight, bias = self.layer.weight, self.layer.bias
        monotone = self.anchor(z).unsqueeze(1).expand(-1, n_steps, -1, -1)
        wanted = monotone.flatten(1, 2) + self.along(states.flatten(1, 2))
        missing = wanted - products(u, weight @ self.basis, bias @ self.basis)
        stacked = torch.cat([weight, self.basis.transpose(1, 2)], dim=1)
        logits = products(torch.cat([u, missing], dim=-1), stacked, bias)
        return logits.unflatten(1, states.shape[1:3])

    def certificate(self) -> Tensor:
        """Lower bound on the slope of z to log p, shape ``(R,)``."""
        return self.anchor.strength().flatten()


class BrenierOutput(nn.Module):
    """``Q g_2(pad(g_1([h; z])))`` with two Brenier maps (Wang et al. 2021).

    The maps give n - 1 free logits; the columns of Q are orthonormal and orthogonal to
    the ones, as those of a reflection that takes the first axis to the ones.
    """

    def __init__(self, n_latents, width, n_classes, generators, inverse_lipschitz):
        super().__init__()
        if width + n_latents > n_classes - 1:
            raise ValueError(
                "Brenier maps of the LSTM's state and z need width + n_components <= "
                f"n_tokens - 2. Got {width} + {n_latents} and {n_classes + 1} tokens; "
                "lower width, or use decoder='anchored'."
            )
        n_in = width + n_latents
        sizes = width, 1, "softplus", math.sqrt(inverse_lipschitz), 1.0
        self.first = ConvexGradient(n_in, n_in, generators, *sizes)
        self.second = ConvexGradient(n_classes - 1, n_in, generators, *sizes)

    def align(self, share: Tensor) -> None:
        logits = share.log() - share.log().mean()
        free = logits[1:] + logits[0] / (math.sqrt(len(share)) - 1.0)
        self.second.constant.copy_(free)

    def forward(self, states: Tensor, z: Tensor) -> Tensor:
        free = self.second(self.first(_rows(states, z)))
        root = math.sqrt(free.shape[-1] + 1)
        first = free.sum(-1, keepdim=True) / root
        logits = torch.cat([first, free - first / (root - 1.0)], dim=-1)
        return logits.unflatten(1, states.shape[1:3])

    def certificate(self) -> Tensor:
        """Lower bound on the slope of z to log p, shape ``(R,)``."""
        return (self.first.strength() * self.second.strength()).flatten()


OUTPUTS = {"affine": AffineOutput, "skip": SkipOutput}
INJECTIVE_OUTPUTS = {"anchored": AnchoredOutput, "brenier": BrenierOutput}
