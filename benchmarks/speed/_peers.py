"""The peers, written as their users write them, and what judges all contestants.

Network 784-512-512-32-512-512-784 with a Bernoulli likelihood, unless sizes say
otherwise. Quality is the evidence lower bound on held-out rows, evaluated in one way
for everybody: from posterior means and scales and the decoder's probabilities.
"""

import contextlib
import importlib.util
import io
import logging
import tempfile
import time
from typing import NamedTuple

import numpy as np
import torch
from torch import nn


class Sizes(NamedTuple):
    """Shape of the network and how it is trained."""

    n_features: int = 784
    width: int = 512
    n_latents: int = 32
    batch_size: int = 128
    learning_rate: float = 1e-3


def images(n_rows, n_features=784, seed=0):
    """Binarised ellipses of random place, size and angle, ``(n_rows, n_features)``."""
    side = round(n_features**0.5)
    if side * side != n_features:
        raise ValueError(f"Images are square; n_features={n_features} is not.")
    rng = np.random.default_rng(seed)
    axis = np.linspace(-1.0, 1.0, side)
    across, down = (grid.reshape(1, -1) for grid in np.meshgrid(axis, axis))
    centre = rng.uniform(-0.4, 0.4, size=(2, n_rows, 1))
    radius = rng.uniform(0.2, 0.6, size=(2, n_rows, 1))
    angle = rng.uniform(0.0, np.pi, size=(n_rows, 1))
    right, below = across - centre[0], down - centre[1]
    first = (np.cos(angle) * right + np.sin(angle) * below) / radius[0]
    second = (np.cos(angle) * below - np.sin(angle) * right) / radius[1]
    probability = 1.0 / (1.0 + np.exp(6.0 * (first**2 + second**2 - 1.0)))
    return (rng.random(probability.shape) < probability).astype(np.float32)


def bound(encode, decode, X, seed=0):
    """Evidence lower bound in nats per row from one draw per row, noise fixed.

    `encode` gives means and standard deviations, `decode` probabilities.
    """
    mean, std = (np.asarray(part, dtype=np.float64) for part in encode(X))
    noise = np.random.default_rng(seed).standard_normal(mean.shape)
    z = (mean + std * noise).astype(np.float32)
    p = np.clip(np.asarray(decode(z), dtype=np.float64), 1e-7, 1.0 - 1e-7)
    log_likelihood = np.where(X > 0.5, np.log(p), np.log1p(-p)).sum(1)
    kl = 0.5 * (mean**2 + std**2 - 1.0).sum(1) - np.log(std).sum(1)
    return float((log_likelihood - kl).mean())


def judged(vae, X):
    """The :func:`bound` of a fitted estimator."""
    return bound(vae.posterior, vae.inverse_transform, X)


def ours(vae, X, held_out, fit=None):
    """A contestant: the seconds of the epochs alone, as the peers' are counted."""

    def run():
        started = time.perf_counter()
        (fit or vae.fit)(X)
        whole = time.perf_counter() - started
        seconds = sum(vae.history_["seconds"])
        return {"seconds": seconds, "whole": whole, "bound": judged(vae, held_out)}

    return run


# ----------------------------------------------------------------- plain PyTorch


class PlainVAE(nn.Module):
    """The network written as most scripts write it; `decoder` may replace its own."""

    def __init__(self, sizes, decoder=None):
        super().__init__()
        n, width, d = sizes.n_features, sizes.width, sizes.n_latents
        self.encoder = nn.Sequential(
            nn.Linear(n, width),
            nn.ReLU(),
            nn.Linear(width, width),
            nn.ReLU(),
            nn.Linear(width, 2 * d),
        )
        self.decoder = decoder or nn.Sequential(
            nn.Linear(d, width),
            nn.ReLU(),
            nn.Linear(width, width),
            nn.ReLU(),
            nn.Linear(width, n),
        )

    def loss(self, x):
        mean, log_variance = self.encoder(x).chunk(2, dim=-1)
        z = mean + torch.exp(0.5 * log_variance) * torch.randn_like(mean)
        reconstruction = nn.functional.binary_cross_entropy_with_logits(
            self.decoder(z), x, reduction="sum"
        )
        kl = -0.5 * (1 + log_variance - mean**2 - log_variance.exp()).sum()
        return (reconstruction + kl) / len(x)

    def bound(self, X):
        device = next(self.parameters()).device

        def encode(rows):
            with torch.no_grad():
                out = self.encoder(torch.tensor(rows, device=device)).cpu()
            mean, log_variance = out.chunk(2, dim=-1)
            return mean.numpy(), torch.exp(0.5 * log_variance).numpy()

        def decode(z):
            # Decoders that are gradients of something need them here as well.
            logits = self.decoder(torch.tensor(z, device=device))
            return torch.sigmoid(logits).detach().cpu().numpy()

        return bound(encode, decode, X)


def train(model, batches, optimizer, epochs, synchronise=lambda: None):
    """Seconds of some epochs of the usual loop."""
    started = time.perf_counter()
    for _ in range(epochs):
        for x in batches():
            optimizer.zero_grad()
            model.loss(x).backward()
            optimizer.step()
    synchronise()
    return time.perf_counter() - started


def loader_batches(X, batch_size, device):
    """What a DataLoader yields, moved to the device batch by batch."""
    loader = torch.utils.data.DataLoader(
        torch.utils.data.TensorDataset(torch.tensor(X)),
        batch_size=batch_size,
        shuffle=True,
    )
    return lambda: (x.to(device) for (x,) in loader)


def indexed_batches(X, batch_size, device):
    """Batches by a random permutation of rows that lie on the device."""
    rows = torch.tensor(X, device=device)

    def batches():
        order = torch.randperm(len(rows), device=device)
        return (rows[part] for part in order.split(batch_size))

    return batches


def plain(
    X, held_out, sizes, epochs, *, indexed=False, fused=None, device="cpu", decoder=None
):
    """A contestant: a script with one of the two ways to cut batches and torch's Adam.

    `decoder` makes the decoder's module where it is not the plain one.
    """
    batches = (indexed_batches if indexed else loader_batches)(
        X, sizes.batch_size, device
    )
    seed = iter(range(10**9))

    def synchronise():
        if torch.device(device).type == "cuda":
            torch.cuda.synchronize()

    def run():
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(next(seed))
            model = PlainVAE(sizes, decoder and decoder()).to(device)
            optimizer = torch.optim.Adam(
                model.parameters(), lr=sizes.learning_rate, fused=fused
            )
            synchronise()
            seconds = train(model, batches, optimizer, epochs, synchronise)
        return {"seconds": seconds, "bound": model.bound(held_out)}

    return run


# ------------------------------------------------------------------------ pythae


def has_pythae():
    """Whether pythae is installed."""
    return importlib.util.find_spec("pythae") is not None


def pythae(X, held_out, sizes, epochs):
    """A contestant: pythae's VAE, trained by the `train_step` of its own trainer.

    One such call is one epoch; evaluation and checkpoints, which its `train` adds, are
    not counted.
    """
    from pythae.data.datasets import BaseDataset
    from pythae.models import VAE, VAEConfig
    from pythae.models.base.base_utils import ModelOutput
    from pythae.models.nn import BaseDecoder, BaseEncoder
    from pythae.trainers import BaseTrainer, BaseTrainerConfig

    for name in list(logging.root.manager.loggerDict):
        if name.startswith("pythae"):
            logging.getLogger(name).setLevel(logging.ERROR)

    class Encoder(BaseEncoder):
        def __init__(self):
            super().__init__()
            self.body = PlainVAE(sizes).encoder[:-1]
            self.mean = nn.Linear(sizes.width, sizes.n_latents)
            self.log_variance = nn.Linear(sizes.width, sizes.n_latents)

        def forward(self, x):
            h = self.body(x)
            return ModelOutput(
                embedding=self.mean(h), log_covariance=self.log_variance(h)
            )

    class Decoder(BaseDecoder):
        def __init__(self):
            super().__init__()
            self.body = nn.Sequential(*PlainVAE(sizes).decoder, nn.Sigmoid())

        def forward(self, z):
            return ModelOutput(reconstruction=self.body(z))

    def encode(model, rows):
        out = model.encoder(torch.tensor(rows))
        std = torch.exp(0.5 * out.log_covariance)
        return out.embedding.detach().numpy(), std.detach().numpy()

    def decode(model, z):
        return model.decoder(torch.tensor(z)).reconstruction.detach().numpy()

    def trainer(seed, folder):
        shape = {"input_dim": (sizes.n_features,), "latent_dim": sizes.n_latents}
        config = VAEConfig(**shape, reconstruction_loss="bce")
        training = BaseTrainerConfig(
            output_dir=folder,
            num_epochs=epochs,
            per_device_train_batch_size=sizes.batch_size,
            learning_rate=sizes.learning_rate,
            no_cuda=True,
            seed=seed,
        )
        rows = torch.tensor(X)
        return BaseTrainer(
            VAE(config, encoder=Encoder(), decoder=Decoder()),
            BaseDataset(rows, torch.zeros(len(rows))),
            training_config=training,
        )

    seed = iter(range(10**9))

    def run():
        quiet = contextlib.redirect_stderr(io.StringIO())
        with tempfile.TemporaryDirectory() as folder, quiet:
            running = trainer(next(seed), folder)
            running.prepare_training()
            started = time.perf_counter()
            for epoch in range(1, epochs + 1):
                running.train_step(epoch)
            seconds = time.perf_counter() - started
            running.callback_handler.on_train_end(running.training_config)
        model = running.model.eval()
        found = bound(lambda x: encode(model, x), lambda z: decode(model, z), held_out)
        return {"seconds": seconds, "bound": found}

    return run
