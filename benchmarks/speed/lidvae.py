"""What an injective decoder costs, and the published one in closed form.

    python benchmarks/speed/lidvae.py

The peer of the published decoder is the same map written as the paper does: the
gradient of a convex network by automatic differentiation, which training then
differentiates a second time. Its parameters are those of our decoder, so the two maps
can be, and are, compared.
"""

import _peers
import torch
from _measure import Study, Target, timed
from torch import nn
from torch.nn.functional import pad, softplus

from skvae import LIDVAE, VAE
from skvae.networks import Brenier

ROWS, HELD_OUT, EPOCHS = 6_400, 640, 2
DEPTHS = 1, 2
QUESTION = "one step, by decoder"
BASE, DEFAULT = "skvae.VAE", "skvae.LIDVAE, anchored (default)"
CLOSED = "skvae.LIDVAE, brenier depth {}, closed form"
TWICE = "brenier depth {}, double backward, default Adam"


class ConvexPotential(nn.Module):
    """A strongly convex network F on R^n and its gradient by differentiation.

    Takes over the parameters of one of skvae's closed-form gradients.
    """

    def __init__(self, closed):
        super().__init__()
        self.width, self.scale = closed.width, closed.path_scale
        self.floor = closed.strength.floor

        def own(parameter):
            return nn.Parameter(parameter.detach()[0].clone())

        self.excess = own(closed.strength.excess)
        self.directions = own(torch.cat([closed.live, closed.further], dim=1))
        self.thresholds, self.constant = own(closed.thresholds), own(closed.constant)
        self.mixing = nn.ParameterList(map(own, closed.mixing))
        self.path = own(closed.path)

    def potential(self, x):
        parts = (x @ self.directions + self.thresholds).split(self.width, dim=-1)
        t = parts[0]
        value = 0.5 * softplus(t).square()
        for part, mixing in zip(parts[1:], self.mixing, strict=True):
            value = softplus(part + value @ (softplus(mixing) / self.width))
        strength = self.floor + softplus(self.excess)
        convex = (self.scale * softplus(self.path) * value).sum()
        return convex + (self.constant * x).sum() + 0.5 * (strength * x * x).sum()

    def forward(self, x):
        with torch.enable_grad():
            if not x.requires_grad:
                x = x.detach().requires_grad_()
            (gradient,) = torch.autograd.grad(
                self.potential(x), x, create_graph=self.training
            )
        return gradient


class DoubleBackward(nn.Module):
    """The published decoder: gradient, zero padding, gradient."""

    def __init__(self, closed):
        super().__init__()
        self.first = ConvexPotential(closed.first)
        self.second = ConvexPotential(closed.second)
        self.n_padding = closed.second.further.shape[1]

    def forward(self, z):
        return self.second(pad(self.first(z), (0, self.n_padding)))


def closed_form(sizes, depth):
    """Our decoder with the parameters that LIDVAE gives it."""
    generator = torch.Generator().manual_seed(0)
    network = Brenier(width=sizes.width, depth=depth)
    return network.build(sizes.n_latents, sizes.n_features, [generator])


def difference(sizes, depth):
    """Largest difference between the two ways to evaluate one map, over its scale."""
    ours = closed_form(sizes, depth)
    z = torch.randn(64, sizes.n_latents, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        wanted = ours(z.unsqueeze(0))[0]
    found = DoubleBackward(ours)(z).detach()
    return float((found - wanted).abs().max() / wanted.abs().max())


def measure(configuration, options):
    rows, sizes = ROWS, _peers.Sizes()
    if options.tiny:
        rows, sizes = 256, _peers.Sizes(64, 16, 4)
    epochs, n_held_out = options.epochs, max(64, rows // 10)
    data = _peers.images(rows + n_held_out, sizes.n_features)
    X, held_out = data[:rows], data[rows:]
    shared = {
        "n_components": sizes.n_latents,
        "width": sizes.width,
        "likelihood": "bernoulli",
        "batch_size": sizes.batch_size,
        "learning_rate": sizes.learning_rate,
        "schedule": "constant",
        "max_iter": epochs,
        "device": "cpu",
        "random_state": 0,
    }
    estimators = {BASE: VAE(**shared), DEFAULT: LIDVAE(**shared)}
    peers, errors = {}, {}
    for depth in DEPTHS:
        name = CLOSED.format(depth)
        decoder = Brenier(width=sizes.width, depth=depth)
        estimators[name] = LIDVAE(decoder=decoder, **shared)
        errors[TWICE.format(depth)] = difference(sizes, depth)
        peers[TWICE.format(depth)] = _peers.plain(
            X,
            held_out,
            sizes,
            epochs,
            indexed=True,
            decoder=lambda depth=depth: DoubleBackward(closed_form(sizes, depth)),
        )
    contestants = {
        name: _peers.ours(vae, X, held_out) for name, vae in estimators.items()
    }
    contestants |= peers
    n_steps = epochs * -(-rows // sizes.batch_size)
    for row in timed(QUESTION, contestants, options.repetitions):
        name = row["contestant"]
        row.pop("whole", None)
        row["seconds"] /= n_steps
        row["difference"] = errors.get(name, "")
        if name in estimators:
            row["active_units"] = int(estimators[name].active_components_.sum())
            slope = getattr(estimators[name], "inverse_lipschitz_", "")
            row["inverse_lipschitz"] = slope
        yield row


STUDY = Study(
    name="lidvae",
    title="What an injective decoder costs",
    protocol=(
        "784-512-512-32 and back, Bernoulli likelihood, batch 128, Adam at 0.001, "
        f"{ROWS:,} binarised images of ellipses, {EPOCHS} epochs from fresh weights. "
        "Encoders are equal and so are width and depth of the decoders; the published "
        "one (brenier) is shown with one and two hidden layers in each potential, "
        "encoders having two. Active units "
        "of 32; inverse_lipschitz is the certificate that the weights give. The double "
        "backward peer cuts its batches by index; `difference` is how far its map is "
        "from ours for equal weights, relative to the largest output."
    ),
    unit="a step",
    measure=measure,
    columns={
        "bound": "{:.1f}",
        "active_units": "{:.0f}",
        "inverse_lipschitz": "{:.2f}",
        "difference": "{:.0e}",
    },
    targets=(
        Target(QUESTION, DEFAULT, BASE, at_most=1.5),
        *(
            Target(QUESTION, CLOSED.format(depth), TWICE.format(depth), at_least=1.8)
            for depth in DEPTHS
        ),
    ),
    arguments=lambda parser: parser.add_argument("--epochs", type=int, default=EPOCHS),
)

if __name__ == "__main__":
    STUDY.main()
