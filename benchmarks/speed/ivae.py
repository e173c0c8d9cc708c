"""iVAE beside a script of the published program: a step, and the time to the sources.

    python benchmarks/speed/ivae.py

Five sources, five features, 40 segments of 1000 rows. The script follows the published
equations and settings as one writes them down: separate networks for the encoder's mean
and log-variance and for the prior's log-variance (its mean is zero), Gaussian densities
by hand, a DataLoader that drops the last incomplete batch, default Adam, a plateau
schedule, and the objective with four weights and minibatch estimates of q(z).
"""

import math
import time
from typing import NamedTuple

import numpy as np
import torch
from _measure import Study, Target, timed
from torch import nn

from skvae import iFlow, iVAE
from skvae.datasets import make_nonlinear_ica
from skvae.likelihoods import Gaussian
from skvae.metrics import mean_correlation_score
from skvae.networks import MLP
from skvae.objectives import ELBO
from skvae.priors import ConditionalGaussian

SEGMENTS, TRAINING, HELD_OUT = 40, 1000, 200
WIDTH, BATCH, RATE, NOISE_VARIANCE = 100, 64, 0.01, 0.1
GOAL, EPOCHS, FLOW_EPOCHS = 0.9, 4, 4
STEP = "one step, 5 sources, 5 features"
FIVE, TWO = (
    f"correlation of {GOAL:g}, {sizes}"
    for sizes in ("5 sources, 5 features", "2 sources, 4 features")
)
SCRIPT = "script, four weights as published"
STEADY = "script, four weights, constant rate"
PLAIN_SCRIPT = "script, plain bound"
EQUAL = "skvae.iVAE, the published model"
DEFAULT, FULL = "skvae.iVAE, defaults", "skvae.iVAE, full covariance"
FLOW = "skvae.iFlow"
PUBLISHED = 100.0, 1.0, 0.0, 10.0


class Problem(NamedTuple):
    """Rows to train on with their segments, held-out rows with theirs, sources."""

    X: np.ndarray
    u: np.ndarray
    X_held_out: np.ndarray
    u_held_out: np.ndarray
    sources: np.ndarray

    @classmethod
    def draw(cls, seed, n_sources, n_features, n_segments, n_training, n_held_out):
        n_rows = n_training + n_held_out
        data = make_nonlinear_ica(
            n_segments * n_rows,
            n_segments=n_segments,
            n_sources=n_sources,
            n_features=n_features,
            random_state=seed,
            return_X_y=False,
        )
        place = np.empty(len(data.u), dtype=int)
        for segment in range(n_segments):
            rows = np.flatnonzero(data.u == segment)
            place[rows] = np.arange(len(rows))
        kept = place < n_training
        X = data.data.astype(np.float32)
        return cls(X[kept], data.u[kept], X[~kept], data.u[~kept], data.sources[~kept])

    @property
    def sizes(self):
        return self.sources.shape[1], self.X.shape[1], int(self.u.max()) + 1


# -------------------------------------------------------------------- the script


class Tanh(nn.Module):
    def forward(self, t):
        return torch.tanh(t) + 0.1 * t


def network(n_in, n_out):
    return nn.Sequential(
        nn.Linear(n_in, WIDTH), Tanh(), nn.Linear(WIDTH, WIDTH), Tanh(),
        nn.Linear(WIDTH, n_out),
    )  # fmt: skip


def log_normal(x, mean, variance):
    return -0.5 * (math.log(2 * math.pi) + variance.log() + (x - mean) ** 2 / variance)


class Script(nn.Module):
    """Encoder of x and u, decoder with fixed noise, prior with zero mean."""

    def __init__(self, n_sources, n_features, n_segments, n_rows, weights):
        super().__init__()
        self.mean = network(n_features + n_segments, n_sources)
        self.log_variance = network(n_features + n_segments, n_sources)
        self.decoder = network(n_sources, n_features)
        self.prior = network(n_segments, n_sources)
        self.n_rows, self.weights = n_rows, weights

    @property
    def device(self):
        return self.prior[0].weight.device

    def forward(self, x, u):
        xu = torch.cat([x, u], dim=1)
        mean, variance = self.mean(xu), self.log_variance(xu).exp()
        z = mean + variance.sqrt() * torch.randn_like(mean)
        return self.decoder(z), mean, variance, z, self.prior(u).exp()

    def loss(self, x, u):
        f, mean, variance, z, prior_variance = self(x, u)
        noise = x.new_tensor(NOISE_VARIANCE)
        log_px = log_normal(x, f, noise).sum(1)
        log_qz_xu = log_normal(z, mean, variance).sum(1)
        log_pz_u = log_normal(z, x.new_zeros(()), prior_variance).sum(1)
        if self.weights is None:
            return -(log_px + log_pz_u - log_qz_xu).mean()
        a, b, c, d = self.weights
        pairs = log_normal(z.unsqueeze(1), mean.unsqueeze(0), variance.unsqueeze(0))
        constant = math.log(self.n_rows * len(x))
        log_qz = torch.logsumexp(pairs.sum(2), dim=1) - constant
        log_qz_i = (torch.logsumexp(pairs, dim=1) - constant).sum(1)
        return -(
            a * log_px
            - b * (log_qz_xu - log_qz)
            - c * (log_qz - log_qz_i)
            - d * (log_qz_i - log_pz_u)
        ).mean()

    @torch.no_grad()
    def correlation(self, X, u, sources):
        """Of posterior means with the sources."""
        _, mean, *_ = self(torch.tensor(X, device=self.device), u.to(self.device))
        return mean_correlation_score(sources, mean.cpu().numpy())

    @torch.no_grad()
    def log_likelihood(self, X, u, n_draws=100):
        """Importance-weighted estimate in nats per row, as skvae's `score`."""
        x, u, log_weights = torch.tensor(X, device=self.device), u.to(self.device), []
        for _ in range(n_draws):
            f, mean, variance, z, prior_variance = self(x, u)
            log_px = log_normal(x, f, x.new_tensor(NOISE_VARIANCE))
            log_pz = log_normal(z, x.new_zeros(()), prior_variance)
            log_qz = log_normal(z, mean, variance)
            log_weights.append(log_px.sum(1) + (log_pz - log_qz).sum(1))
        estimate = torch.logsumexp(torch.stack(log_weights), dim=0) - math.log(n_draws)
        return float(estimate.mean())


def one_hot(u, n_segments):
    return nn.functional.one_hot(torch.tensor(u, dtype=torch.long), n_segments).float()


def script(problem, weights, epochs, goal=None, decays=True, device="cpu"):
    """A contestant: seconds of the epochs, or those until the goal was reached."""
    X, u, X_held_out, u_held_out, sources = problem
    n_segments, device = problem.sizes[-1], torch.device(device)
    rows = torch.utils.data.TensorDataset(torch.tensor(X), one_hot(u, n_segments))
    seed = iter(range(10**9))

    u_held_out = one_hot(u_held_out, n_segments)

    def epoch(model, loader, optimizer):
        total = 0.0
        for x, u in loader:
            x, u = x.to(device), u.to(device)
            optimizer.zero_grad()
            loss = model.loss(x, u)
            loss.backward()
            optimizer.step()
            total += loss.item()
        return total / len(loader)

    def run():
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(next(seed))
            model = Script(*problem.sizes, len(X), weights).to(device)
            options = {"batch_size": BATCH, "shuffle": True, "drop_last": True}
            loader = torch.utils.data.DataLoader(rows, **options)
            optimizer = torch.optim.Adam(model.parameters(), lr=RATE)
            plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(
                optimizer, factor=0.1, patience=0 if decays else epochs
            )
            seconds, correlation = 0.0, 0.0
            for number in range(1, epochs + 1):
                started = time.perf_counter()
                plateau.step(epoch(model, loader, optimizer))
                seconds += time.perf_counter() - started
                if goal or number == epochs:
                    correlation = model.correlation(X_held_out, u_held_out, sources)
                if goal and correlation >= goal:
                    break
            return {
                "seconds": seconds if not goal or correlation >= goal else "",
                "spent": seconds,
                "epochs": number,
                "correlation": correlation,
                "log_likelihood": model.log_likelihood(X_held_out, u_held_out),
            }

    return run


# -------------------------------------------------------------------------- ours


class Goal:
    """Callback that stops a fit once held-out codes correlate with the sources."""

    def __init__(self, X, u, sources, goal):
        self.X, self.u, self.sources, self.goal = X, u, sources, goal
        self.correlation = 0.0

    def setup(self, estimator, context):
        self.correlation = 0.0

    def teardown(self, estimator, context):
        pass

    def on_fit_task_begin(self, estimator, context):
        pass

    def on_fit_task_end(self, estimator, context, *, fitted_estimator=None):
        if context.task_name != "epoch":
            return None
        codes = fitted_estimator.transform(self.X, u=self.u)
        self.correlation = mean_correlation_score(self.sources, codes)
        return self.correlation >= self.goal


def ours(estimator, problem, goal=None):
    """A contestant; its seconds are those of the epochs, judging them not counted."""
    X, u, X_held_out, u_held_out, sources = problem
    seed = iter(range(10**9))
    if goal:
        estimator.set_callbacks(Goal(X_held_out, u_held_out, sources, goal))

    def run():
        estimator.set_params(random_state=next(seed)).fit(X, u=u)
        codes = estimator.transform(X_held_out, u=u_held_out)
        correlation = mean_correlation_score(sources, codes)
        seconds = sum(estimator.history_["seconds"])
        return {
            "seconds": seconds if not goal or correlation >= goal else "",
            "spent": seconds,
            "epochs": estimator.n_iter_,
            "correlation": correlation,
            "log_likelihood": estimator.score(X_held_out, u=u_held_out),
        }

    return run


def estimators(n_sources, epochs, device="cpu"):
    """Ours by name: the model of the script, and those that one would take."""
    shared = {"device": device, "max_iter": epochs}
    xtanh = MLP(width=WIDTH, activation="xtanh")
    return {
        EQUAL: iVAE(
            n_sources,
            prior=ConditionalGaussian(mean="zero"),
            posterior_type="joint",
            encoder=xtanh,
            decoder=xtanh,
            likelihood=Gaussian(noise=NOISE_VARIANCE**0.5),
            objective=ELBO(),
            batch_size=BATCH,
            learning_rate=RATE,
            **shared,
        ),
        DEFAULT: iVAE(n_sources, batch_size=BATCH, **shared),
        FULL: iVAE(
            n_sources,
            covariance="full",
            batch_size=256,
            learning_rate=RATE,
            **shared,
        ),
        # Its rate falls in the second half of training: a short plan gets there first.
        FLOW: iFlow(
            batch_size=256,
            learning_rate=0.04,
            **{**shared, "max_iter": min(epochs, FLOW_EPOCHS)},
        ),
    }


def measure(configuration, options):
    question, epochs = configuration["question"], options.epochs
    n_sources, n_features = (2, 4) if question == TWO else (5, 5)
    sizes = (4, 128, 10) if options.tiny else (SEGMENTS, TRAINING, HELD_OUT)
    if options.tiny:
        epochs = 2
    problem = Problem.draw(options.seed, n_sources, n_features, *sizes)
    known = estimators(n_sources, 1 if question == STEP else epochs)
    if question == STEP:
        contestants = {
            SCRIPT: script(problem, PUBLISHED, 1),
            PLAIN_SCRIPT: script(problem, None, 1),
            EQUAL: ours(known[EQUAL], problem),
            DEFAULT: ours(known[DEFAULT], problem),
        }
        n_steps = len(problem.X) // BATCH
        for row in timed(STEP, contestants, options.repetitions):
            yield {**row, "seconds": row["seconds"] / n_steps, "spent": ""}
        return
    goal = options.goal
    contestants = {SCRIPT: script(problem, PUBLISHED, epochs, goal)}
    if question == TWO:
        contestants[STEADY] = script(problem, PUBLISHED, epochs, goal, decays=False)
    for name in (FULL,) if question == TWO else (FULL, FLOW):
        contestants[name] = ours(known[name], problem, goal)
    # No warm-up: the epochs that a race takes are many.
    yield from timed(question, contestants, options.repetitions, warm_up=False)


def arguments(parser):
    parser.add_argument("--epochs", type=int, default=EPOCHS, help="to the goal")
    parser.add_argument("--seed", type=int, default=1, help="of the data")
    parser.add_argument("--goal", type=float, default=GOAL)


STUDY = Study(
    name="ivae",
    title="iVAE: a step, and the time to the sources",
    protocol=(
        "Centred Gaussian sources in 40 segments of 1000 training and 200 held-out "
        "rows, three mixing layers, networks with two hidden layers of 100 units, "
        "batch 64 (full covariance and iFlow: 256). The script follows the released "
        "program: zero prior mean, noise variance 0.1, Adam at 0.01, a rate that falls "
        "tenfold whenever an epoch's loss does, weights 100, 1, 0, 10. `the published "
        "model` is ours with the same prior, posterior, noise and widths, one encoder "
        "network in place of two, and the plain bound. A race ends with the epoch "
        f"whose held-out codes correlate with the sources by {GOAL:g} on average, or "
        f"after {EPOCHS} epochs (`never`; `spent` are the seconds until then). Seconds "
        "of epochs, judging them not counted; every repetition has other weights. "
        "iFlow's rate and its plan of 4 epochs were chosen on this draw of the data. "
        "Targets against a peer that never got there count what it spent, so that "
        "ratios are lower bounds; a contestant that never got there counts 0. "
        "Log-likelihoods are importance-weighted, 100 draws, of held-out rows given "
        "their segment."
    ),
    unit="a step, or to the goal",
    measure=measure,
    columns={
        "spent": "{:.1f}",
        "epochs": "{:.0f}",
        "correlation": "{:.3f}",
        "log_likelihood": "{:.2f}",
    },
    configurations=lambda options: [{"question": name} for name in (STEP, FIVE, TWO)],
    targets=(
        Target(STEP, EQUAL, SCRIPT, at_least=3.0),
        Target(STEP, DEFAULT, SCRIPT, at_least=3.0),
        Target(STEP, EQUAL, PLAIN_SCRIPT),
        Target(FIVE, FULL, SCRIPT, at_least=4.0),
        Target(FIVE, FLOW, SCRIPT, at_least=4.0),
        Target(TWO, FULL, SCRIPT, at_least=4.0),
        Target(TWO, FULL, STEADY, at_least=4.0),
    ),
    arguments=arguments,
)

if __name__ == "__main__":
    STUDY.main()
