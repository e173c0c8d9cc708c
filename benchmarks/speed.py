"""Training speed as ratios measured in one run, interleaved, with spread.

Network 784-512-512-32-512-512-784, Bernoulli likelihood, random binary data, batch
128. Peers: a plain PyTorch loop (DataLoader, nn.Linear, torch.optim.Adam,
binary_cross_entropy_with_logits) and, if it is installed, pythae's VAE trained by its
own trainer. Then LIDVAE against VAE, and eight restarts against one fit.

    python benchmarks/speed.py
"""

import contextlib
import importlib.util
import io
import tempfile
import time
import warnings

import numpy as np
import torch
from _common import append, parser
from torch import nn

from skvae import LIDVAE, VAE, PosteriorCollapseWarning

N_ROWS, N_FEATURES, N_LATENTS, WIDTH, BATCH = 12_800, 784, 32, 512, 128


class PlainVAE(nn.Module):
    """The network written as most scripts write it."""

    def __init__(self):
        super().__init__()
        self.encoder = nn.Sequential(
            nn.Linear(N_FEATURES, WIDTH),
            nn.ReLU(),
            nn.Linear(WIDTH, WIDTH),
            nn.ReLU(),
            nn.Linear(WIDTH, 2 * N_LATENTS),
        )
        self.decoder = nn.Sequential(
            nn.Linear(N_LATENTS, WIDTH),
            nn.ReLU(),
            nn.Linear(WIDTH, WIDTH),
            nn.ReLU(),
            nn.Linear(WIDTH, N_FEATURES),
        )

    def loss(self, x):
        mean, log_variance = self.encoder(x).chunk(2, dim=-1)
        z = mean + torch.exp(0.5 * log_variance) * torch.randn_like(mean)
        reconstruction = nn.functional.binary_cross_entropy_with_logits(
            self.decoder(z), x, reduction="sum"
        )
        kl = -0.5 * (1 + log_variance - mean**2 - log_variance.exp()).sum()
        return (reconstruction + kl) / len(x)


def plain_loop(X):
    loader = torch.utils.data.DataLoader(
        torch.utils.data.TensorDataset(torch.tensor(X)), batch_size=BATCH, shuffle=True
    )
    model = PlainVAE()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)

    def epoch():
        for (x,) in loader:
            optimizer.zero_grad()
            model.loss(x).backward()
            optimizer.step()

    return epoch


def pythae_loop(X):
    from pythae.models import VAE as PythaeVAE
    from pythae.models import VAEConfig
    from pythae.models.base.base_utils import ModelOutput
    from pythae.models.nn import BaseDecoder, BaseEncoder
    from pythae.trainers import BaseTrainer, BaseTrainerConfig

    class Encoder(BaseEncoder):
        def __init__(self):
            super().__init__()
            layers = PlainVAE().encoder[:-1]
            self.body = layers
            self.mean = nn.Linear(WIDTH, N_LATENTS)
            self.log_variance = nn.Linear(WIDTH, N_LATENTS)

        def forward(self, x):
            h = self.body(x.reshape(len(x), -1))
            return ModelOutput(
                embedding=self.mean(h), log_covariance=self.log_variance(h)
            )

    class Decoder(BaseDecoder):
        def __init__(self):
            super().__init__()
            self.body = nn.Sequential(*PlainVAE().decoder, nn.Sigmoid())

        def forward(self, z):
            return ModelOutput(reconstruction=self.body(z))

    config = VAEConfig(
        input_dim=(N_FEATURES,), latent_dim=N_LATENTS, reconstruction_loss="bce"
    )
    model = PythaeVAE(config, encoder=Encoder(), decoder=Decoder())
    folder = tempfile.mkdtemp()
    data = [{"data": torch.tensor(row)} for row in X]

    class Rows(torch.utils.data.Dataset):
        def __len__(self):
            return len(data)

        def __getitem__(self, index):
            from pythae.data.datasets import DatasetOutput

            return DatasetOutput(data[index])

    trainer = BaseTrainer(
        model,
        Rows(),
        training_config=BaseTrainerConfig(
            output_dir=folder,
            num_epochs=1,
            per_device_train_batch_size=BATCH,
            learning_rate=1e-3,
            no_cuda=True,
        ),
    )
    trainer.prepare_training()

    def epoch():
        with contextlib.redirect_stderr(io.StringIO()):
            trainer.train_step(epoch=1)

    return epoch


def ours(estimator, X):
    """Seconds of the epochs alone, as the peers' epochs are timed without set-up."""
    return lambda: sum(estimator.fit(X).history_["seconds"])


def measure(contestants, repetitions):
    """Seconds of each contestant, interleaved, after one warm-up of each.

    A contestant may return the seconds that count; else all of its time does.
    """
    seconds = {name: [] for name in contestants}
    for repetition in range(repetitions + 1):
        for name, run in contestants.items():
            started = time.perf_counter()
            own = run()
            elapsed = time.perf_counter() - started
            if repetition:
                seconds[name].append(elapsed if own is None else own)
    return seconds


def report(path, question, seconds, reference):
    base = np.array(seconds[reference])
    for name, values in seconds.items():
        ratio = base / np.array(values)
        append(
            path,
            {
                "question": question,
                "contestant": name,
                "reference": reference,
                "repetitions": len(values),
                "seconds_median": round(float(np.median(values)), 4),
                "seconds_min": round(min(values), 4),
                "seconds_max": round(max(values), 4),
                "speedup_median": round(float(np.median(ratio)), 3),
                "speedup_min": round(float(ratio.min()), 3),
                "speedup_max": round(float(ratio.max()), 3),
            },
        )


def main():
    arguments = parser(__doc__.splitlines()[0], "speed")
    arguments.add_argument("--repetitions", type=int, default=5)
    options = arguments.parse_args()
    warnings.simplefilter("ignore", PosteriorCollapseWarning)
    rng = np.random.default_rng(0)
    X = (rng.random((N_ROWS, N_FEATURES)) < 0.2).astype(np.float32)
    shared = {
        "n_components": N_LATENTS,
        "width": WIDTH,
        "likelihood": "bernoulli",
        "batch_size": BATCH,
        "max_iter": 1,
        "device": "cpu",
        "random_state": 0,
    }
    contestants = {
        "DataLoader loop": plain_loop(X),
        "skvae.VAE": ours(VAE(**shared), X),
    }
    if importlib.util.find_spec("pythae"):
        contestants["pythae"] = pythae_loop(X)
    seconds = measure(contestants, options.repetitions)
    report(options.output, "one epoch, 100 steps", seconds, "DataLoader loop")
    if "pythae" in seconds:
        report(options.output, "one epoch, 100 steps", seconds, "pythae")

    decoders = {
        "VAE": VAE(**shared),
        "LIDVAE, anchored": LIDVAE(**shared),
        "LIDVAE, brenier depth 1": LIDVAE(decoder="brenier", **{**shared, "depth": 1}),
        "LIDVAE, brenier depth 2": LIDVAE(decoder="brenier", **shared),
    }
    seconds = measure(
        {name: ours(estimator, X) for name, estimator in decoders.items()},
        options.repetitions,
    )
    report(options.output, "decoders, one epoch", seconds, "VAE")

    small = rng.normal(size=(4000, 20)) @ rng.normal(size=(20, 20))
    options_small = {"width": 100, "max_iter": 5, "batch_size": 128, "device": "cpu"}

    def fit(**options):
        def run():
            VAE(4, **{"random_state": 0, **options_small, **options}).fit(small)

        return run

    def eight_fits():
        for seed in range(8):
            fit(random_state=seed)()

    seconds = measure(
        {
            "one fit": fit(),
            "eight fits": eight_fits,
            "n_init=8": fit(n_init=8),
        },
        options.repetitions,
    )
    report(options.output, "restarts at width 100", seconds, "eight fits")


if __name__ == "__main__":
    main()
