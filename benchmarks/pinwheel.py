"""Do mixture VAEs find the arms of a pinwheel? Adjusted Rand index on held-out rows.

Five arms in the plane, two latents, five mixture components, Gaussian likelihood: the
picture with which Wang, Blei, Cunningham 2021 show that the categories of a classical
mixture VAE collapse. Both models have equal widths, likelihood, epochs and learning
rate; for each seed new data and a few restarts trained in one batch, of which the
best bound on training rows is kept.

    python benchmarks/pinwheel.py --picture         # six seeds, and the picture
    python benchmarks/pinwheel.py --posteriors enumerated
"""

import time
import warnings

import numpy as np
from _common import append, done, parser, table, write_table
from sklearn.metrics import adjusted_rand_score
from sklearn.mixture import GaussianMixture

from skvae import LIDMVAE, MixtureVAE, PosteriorCollapseWarning
from skvae.datasets import make_pinwheel
from skvae.likelihoods import Gaussian

N_ARMS, N_ROWS = 5, 2000
METHODS = {
    "MixtureVAE": (MixtureVAE, {}),
    "LIDMVAE": (LIDMVAE, {}),
    "LIDMVAE, brenier": (LIDMVAE, {"decoder": "brenier"}),
}
FIELDS = ("method", "posterior", "noise", "epochs", "learning_rate", "seed")


def problem(seed):
    """Training and held-out rows of one draw, with their arms."""
    X, y = make_pinwheel(2 * N_ROWS, n_arms=N_ARMS, random_state=seed)
    return X[:N_ROWS], X[N_ROWS:], y[N_ROWS:]


def make(name, options, posterior, seed):
    cls, own = METHODS[name]
    noise = options.noise if options.noise == "shared" else float(options.noise)
    return cls(
        n_components=2,
        n_mixtures=N_ARMS,
        posterior_type=posterior,
        likelihood=Gaussian(noise=noise),
        width=options.width,
        max_iter=options.epochs,
        learning_rate=options.learning_rate,
        n_init=options.n_init,
        device="cpu",
        random_state=seed,
        **own,
    )


def measure(model, X, X_held_out, arms):
    """Fit one model and return what the table shows."""
    started = time.perf_counter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PosteriorCollapseWarning)
        model.fit(X)
    seconds = time.perf_counter() - started
    labels = model.predict(X_held_out)
    certainty = model.predict_proba(X_held_out).max(axis=1).mean()
    return {
        "ari": round(adjusted_rand_score(arms, labels), 4),
        "used": len(np.unique(labels)),
        "certainty": round(float(certainty), 3),
        "kl_discrete": round(model.kl_discrete_, 3),
        "kl_continuous": round(model.kl_continuous_, 3),
        "bound": round(model.best_bound_, 3),
        "held_out": round(model.score(X_held_out), 3),
        "noise_std": round(float(np.sqrt(model.noise_variance_)), 3),
        "seconds": round(seconds, 1),
    }


def baseline(path, seed):
    """A Gaussian mixture on X itself: how far arms are from Gaussian."""
    key = ("GaussianMixture on X", "", "", "", "", str(seed))
    if key in done(path, FIELDS):
        return
    X, X_held_out, arms = problem(seed)
    found = GaussianMixture(N_ARMS, n_init=10, random_state=seed).fit(X)
    row = dict(zip(FIELDS, key, strict=True))
    row["n_init"] = 10
    row["ari"] = round(adjusted_rand_score(arms, found.predict(X_held_out)), 4)
    row.update(dict.fromkeys(COLUMNS, ""))
    row["held_out"] = round(found.score(X_held_out), 3)
    append(path, row)


COLUMNS = [
    "used",
    "certainty",
    "kl_discrete",
    "kl_continuous",
    "bound",
    "held_out",
    "noise_std",
    "seconds",
]


def run(options, seed, name, posterior):
    key = (
        name,
        posterior,
        options.noise,
        str(options.epochs),
        str(options.learning_rate),
        str(seed),
    )
    if key in done(options.output, FIELDS):
        return
    X, X_held_out, arms = problem(seed)
    model = make(name, options, posterior, seed)
    row = dict(zip(FIELDS, key, strict=True))
    row["n_init"] = options.n_init
    append(options.output, {**row, **measure(model, X, X_held_out, arms)})


def picture(options):
    """Held-out rows of seed 0 coloured by each model's components."""
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    X, X_held_out, arms = problem(0)
    panels = {"the five arms": arms}
    for name in ("MixtureVAE", "LIDMVAE"):
        model = make(name, options, "marginal", 0).fit(X)
        labels = model.predict(X_held_out)
        ari = adjusted_rand_score(arms, labels)
        panels[f"{name}, adjusted Rand index {ari:.2f}"] = labels
    figure, axes = plt.subplots(1, 3, figsize=(12, 4.2), layout="constrained")
    for ax, (title, labels) in zip(axes, panels.items(), strict=True):
        ax.scatter(*X_held_out.T, c=labels, cmap="tab10", vmin=0, vmax=9, s=4)
        ax.set(title=title, aspect="equal", xticks=[], yticks=[])
    figure.savefig(options.output.with_suffix(".png"), dpi=110)


def main():
    arguments = parser(__doc__.splitlines()[0], "pinwheel")
    arguments.add_argument("--methods", nargs="+", default=["MixtureVAE", "LIDMVAE"])
    arguments.add_argument("--posteriors", nargs="+", default=["marginal"])
    arguments.add_argument("--epochs", type=int, default=80)
    arguments.add_argument("--width", type=int, default=64)
    arguments.add_argument("--learning-rate", type=float, default=5e-3)
    arguments.add_argument("--noise", default="1.0")
    arguments.add_argument("--n-init", type=int, default=3)
    arguments.add_argument("--first-seed", type=int, default=0)
    arguments.add_argument("--picture", action="store_true")
    options = arguments.parse_args()
    if options.picture:
        picture(options)
    first = options.first_seed
    for seed in range(first, first + (options.seeds or 6)):
        baseline(options.output, seed)
        for name in options.methods:
            for posterior in options.posteriors:
                run(options, seed, name, posterior)
    values = ["ari", "used", "certainty", "kl_discrete", "bound", "held_out", "seconds"]
    formats = ["{:.3f}", "{:.0f}", *["{:.2f}"] * 4, "{:.0f}"]
    groups = ["method", "posterior", "noise", "epochs", "learning_rate", "n_init"]
    write_table(options.output, table(options.output, groups, values, formats))


if __name__ == "__main__":
    main()
