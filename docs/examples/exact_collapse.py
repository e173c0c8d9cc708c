"""Posterior collapse with exact inference: no network, no encoder, no bound.

Two models whose posteriors are known exactly show that collapse comes from the
likelihood being flat in the latent variable (Wang, Blei and Cunningham, "Posterior
Collapse and Latent Variable Non-identifiability", NeurIPS 2021, section 2): the weight
of a Gaussian mixture, and the latent of probabilistic PCA. The published figures stem
from Hamiltonian Monte Carlo; here quadrature and closed forms take its place, so that
nothing is left to a sampler's convergence.

Run ``python exact_collapse.py`` (a few minutes, with skvae[plot]). Tables go to
``benchmarks/results``, pictures next to this file.
"""

import csv
import warnings
from pathlib import Path

import numpy as np
from scipy.special import logsumexp
from scipy.stats import beta as beta_law

HERE = Path(__file__).parent
RESULTS = HERE.parents[1] / "benchmarks" / "results"
WEIGHT = 0.15
PRIOR = beta_law(5, 5)
# Generating means, and the means at which the likelihood is drawn.
MIXTURES = {
    "one cluster": ((-1.0, -1.0), (-0.5, -0.5)),
    "overlapping": ((-0.5, 0.5), (-0.75, 0.75)),
    "separate": ((-10.0, 10.0), (-10.0, 10.0)),
}
# Posterior mean and standard deviation of the weight, and the ends of the likelihood.
PUBLISHED = {
    "one cluster": (0.514, 0.162, -1.5426, -1.5426),
    "overlapping": (0.504, 0.155, -2.09, -1.498),
    "separate": (0.146, 0.0035, -172.0, -1.841),
}
NOISE_LEVELS = (0.1, 0.2, 0.5, 1.0, 2.0)
PUBLISHED_SPREAD = (141_931, 35_483, 5_677, 1_419, 355)


# The weight of a Gaussian mixture


def draw_mixture(name, n=10_000, seed=0):
    """Return n points, 15% of them from the second component."""
    rng = np.random.default_rng(seed)
    means = np.array(MIXTURES[name][0])
    return rng.normal(means[(rng.random(n) < WEIGHT).astype(int)], 1.0)


def mean_log_likelihood(x, weight, means, stds):
    """Mean over x of log [w N(x; m_1, s_1^2) + (1 - w) N(x; m_2, s_2^2)] per weight."""
    standard = (x[:, None] - np.array(means)) / stds
    log_density = -0.5 * standard**2 - np.log(stds) - 0.5 * np.log(2 * np.pi)
    weight = np.atleast_1d(weight)
    with np.errstate(divide="ignore"):
        log_weights = np.log(np.stack([weight, 1 - weight], axis=1))
    return np.array([logsumexp(log_density + w, axis=1).mean() for w in log_weights])


def binned(x, width=0.02):
    """Mean and number of the points in each bin, for likelihoods of many parameters."""
    index = np.unique(np.floor(x / width), return_inverse=True)[1]
    counts = np.bincount(index)
    return np.bincount(index, weights=x) / counts, counts


def log_posterior(parameters, x, counts):
    """Unnormalised log posterior of (theta, mu_1, mu_2, log s_1, log s_2), per row.

    theta ~ Beta(5, 5), mu_j ~ N(0, 2^2), s_j ~ half-N(0, 2); theta weighs component 1.
    """
    theta, means, log_stds = np.split(parameters, [1, 3], axis=1)
    inside = (theta[:, 0] > 0) & (theta[:, 0] < 1) & (np.abs(log_stds) < 10).all(axis=1)
    result = np.full(len(parameters), -np.inf)
    theta, means, log_stds = theta[inside], means[inside], log_stds[inside]
    stds = np.exp(log_stds)
    prior = 4 * (np.log(theta) + np.log1p(-theta)).sum(axis=1)
    prior -= (means**2 / 8).sum(axis=1)
    prior += (log_stds - stds**2 / 8).sum(axis=1)
    log_weights = np.log(np.concatenate([theta, 1 - theta], axis=1)) - log_stds
    standard = (x - means[..., None]) / stds[..., None]
    both = log_weights[..., None] - 0.5 * standard**2
    result[inside] = prior + np.logaddexp(both[:, 0], both[:, 1]) @ counts
    return result


def stretched(limit, n):
    """A grid over [-limit, limit], fine around 0, and the logarithm of its steps."""
    t = np.linspace(-3, 3, n)
    grid = limit * np.sinh(t) / np.sinh(3)
    return grid, np.log(np.cosh(t))


def weight_posterior(x, weights, n_steps=49):
    """Density of theta on the grid `weights`, by quadrature over the other four.

    In the mean m and deviation s of the whole mixture, which many points fix almost to
    a Gaussian, and in d = (mu_1 - mu_2) / s and r = log(s_1 / s_2): Gauss-Hermite
    rules for m and log s, a grid for d and r. For data near one Gaussian; the
    separate clusters have `separate_posterior`. Swapping the components makes the
    density symmetric, so half of the grid is computed.
    """
    points, counts = binned(x)
    n = counts.sum()
    nodes, rule = np.polynomial.hermite_e.hermegauss(5)
    (d, log_d), (r, log_r) = stretched(6.0, n_steps), stretched(3.0, n_steps)
    a, b, d, r = (g.ravel() for g in np.meshgrid(nodes, nodes, d, r, indexing="ij"))
    log_rule = np.add.outer(np.log(np.outer(rule, rule)), np.add.outer(log_d, log_r))
    log_rule = log_rule.ravel() + 0.5 * (a**2 + b**2)
    m = x.mean() + x.std() * a / np.sqrt(n)
    s = x.std() * np.exp(b / np.sqrt(2 * n))
    log_density = []
    for theta in weights[: (len(weights) + 1) // 2]:
        # What the components' own variances leave: (mixture variance) / s^2.
        own = 1 - theta * (1 - theta) * d**2
        keep = own > 0.02
        kept_m, kept_s, kept_d, kept_r = m[keep], s[keep], d[keep], r[keep]
        log_s2 = np.log(kept_s) + 0.5 * np.log(
            own[keep] / (theta * np.exp(2 * kept_r) + 1 - theta)
        )
        rows = np.column_stack(
            [
                np.full(len(kept_m), theta),
                kept_m + (1 - theta) * kept_d * kept_s,
                kept_m - theta * kept_d * kept_s,
                log_s2 + kept_r,
                log_s2,
            ]
        )
        parts = np.array_split(rows, 1 + len(rows) // 4000)
        values = np.concatenate([log_posterior(p, points, counts) for p in parts])
        # d(mu_1, mu_2, log s_1, log s_2) / d(m, log s, d, r) is s / own.
        log_density.append(
            logsumexp(values + log_rule[keep] + np.log(kept_s / own[keep]))
        )
    half = np.exp(np.array(log_density) - np.max(log_density))
    density = np.concatenate([half, half[: len(weights) // 2][::-1]])
    return density / np.trapezoid(density, weights)


def moments(weights, density):
    """Mean and standard deviation of a density on a grid."""
    mean = np.trapezoid(weights * density, weights)
    return mean, np.sqrt(np.trapezoid((weights - mean) ** 2 * density, weights))


def separate_posterior(x):
    """Beta law of the weight of the positive component, once no point is ambiguous."""
    positive = int((x > 0).sum())
    return beta_law(5 + positive, 5 + len(x) - positive)


# Probabilistic PCA


def draw_ppca(n_latents, n=500, n_features=5, noise=0.1, seed=0):
    """Loadings (n_features, 2), W_ij ~ N(0, 2^2), and n rows; unused columns are 0."""
    rng = np.random.default_rng(seed)
    loadings = rng.normal(0, 2, size=(n_features, 2))
    loadings[:, n_latents:] = 0.0
    Z = rng.standard_normal((n, 2))
    return loadings, Z @ loadings.T + rng.normal(0, noise, size=(n, n_features))


def log_likelihood_surface(loadings, noise, n=500, side=50):
    """Log p(x = 0 | z) of n zero rows of scalars, on a grid over [-2, 2]^2.

    The published surface: n zeros against the recycled vector W z, hence the
    n / n_features in front of the norm.
    """
    axis = np.linspace(-2, 2, side)
    grid = np.stack(np.meshgrid(axis, axis, indexing="ij"), axis=-1)
    norm = np.square(grid @ loadings.T).sum(axis=-1) * (n / len(loadings))
    constant = -n * np.log(noise * np.sqrt(2 * np.pi))
    return axis, constant - norm / (2 * noise**2)


def posterior_variances(loadings, noise):
    """1 / (1 + e_j / noise^2), e_j the eigenvalues of W'W, largest first."""
    return 1 / (1 + np.linalg.eigvalsh(loadings.T @ loadings)[::-1] / noise**2)


def fitted_variances(X, noise, n_components=2):
    """Posterior variances at the loadings of maximum likelihood, for a known noise.

    Their e_j is l_j - noise^2, l_j the eigenvalues of the covariance, or 0.
    """
    eigenvalues = np.linalg.eigvalsh(np.cov(X.T, bias=True))[::-1][:n_components]
    return np.minimum(1.0, noise**2 / eigenvalues)


def vae_variances(X, noise, max_iter=500, seed=0):
    """What skvae's VAE with a linear decoder gives for the same, largest KL first."""
    import skvae
    from skvae.likelihoods import Gaussian

    model = skvae.VAE(
        2,
        depth=0,
        likelihood=Gaussian(noise=noise),
        max_iter=max_iter,
        batch_size=100,
        learning_rate=0.03,
        random_state=seed,
    )
    with warnings.catch_warnings():
        # Collapse is what this is about.
        warnings.simplefilter("ignore", skvae.PosteriorCollapseWarning)
        model.fit(X)
    return (model.posterior(X)[1] ** 2).mean(axis=0)


# Tables and pictures


def mixture_results(weights):
    """For each data set: points, posterior density of theta, likelihood by weight."""
    results = {}
    for name, (_, shown) in MIXTURES.items():
        x = draw_mixture(name)
        if name == "separate":
            grid = np.linspace(0.1, 0.2, 401)
            density = separate_posterior(x).pdf(grid)
        else:
            grid = weights
            density = weight_posterior(x, grid)
        shares = np.linspace(0, 1, 201)
        likelihood = mean_log_likelihood(x, shares, shown[::-1], 1.0)
        results[name] = grid, density, shares, likelihood
    return results


def ppca_results():
    """Posterior variances per number of true latents: exact, at the optimum, VAE's."""
    found = {}
    for n_latents in (1, 2):
        loadings, X = draw_ppca(n_latents)
        found[n_latents] = [
            (
                noise,
                posterior_variances(loadings, noise),
                fitted_variances(X, noise),
                vae_variances(X, noise),
            )
            for noise in NOISE_LEVELS
        ]
    return found


def table_rows(mixtures, ppca):
    """Rows (question, data, quantity, ours, reference, source)."""
    rows = [("weight", "prior", "sd", PRIOR.std(), 0.1508, "published")]
    for name, (grid, density, _, likelihood) in mixtures.items():
        mean, sd = moments(grid, density)
        known = PUBLISHED[name]
        quantities = (
            ("posterior mean", mean, known[0]),
            ("posterior sd", sd, known[1]),
            ("least mean log-likelihood", likelihood.min(), known[2]),
            ("largest mean log-likelihood", likelihood.max(), known[3]),
        )
        rows += [("weight", name, *q, "published") for q in quantities]
    loadings, _ = draw_ppca(2)
    spread = {s: log_likelihood_surface(loadings, s)[1].std() for s in NOISE_LEVELS}
    for noise, known in zip(NOISE_LEVELS, PUBLISHED_SPREAD, strict=True):
        ratio, reference = spread[noise] / spread[1.0], known / PUBLISHED_SPREAD[3]
        label = f"spread of the likelihood, times that at 1, noise {noise}"
        rows.append(("ppca", "2 latents", label, ratio, reference, "published"))
    for n_latents, entries in ppca.items():
        for noise, _, fitted, vae in entries:
            for j in range(2):
                label = f"posterior variance of z{j + 1}, noise {noise}"
                data = f"{n_latents} latent" + "s" * (n_latents > 1)
                row = ("ppca", data, label, vae[j], fitted[j], "closed form")
                rows.append(row)
    return rows


def write_tables(rows):
    """Write the rows as CSV and Markdown."""
    import skvae

    header = ("model", "data", "quantity", "ours", "reference", "reference_is")
    with (RESULTS / "exact_collapse.csv").open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(header)
        writer.writerows(
            [*row[:3], f"{row[3]:.6g}", f"{row[4]:.6g}", row[5]] for row in rows
        )
    lines = ["| " + " | ".join(header) + " |", "|" + " --- |" * len(header)]
    lines += [
        f"| {row[0]} | {row[1]} | {row[2]} | {row[3]:.4g} | {row[4]:.4g} | {row[5]} |"
        for row in rows
    ]
    made_by = f"skvae {skvae.__version__}, numpy {np.__version__}, data seeds 0"
    lines += ["", f"`python docs/examples/exact_collapse.py`, {made_by}."]
    text = "\n".join(lines) + "\n"
    (RESULTS / "exact_collapse.md").write_text(text, encoding="utf-8")
    print(text)


INK, OURS, PALE = "#33414c", "#22a079", "#b9c3cb"


def clean(ax):
    """Axes without a box."""
    ax.spines[["top", "right"]].set_visible(False)


def draw_mixtures(mixtures, path):
    """Likelihood by weight above, prior and posterior below, one column per data."""
    import matplotlib.pyplot as plt

    titles = {
        "one cluster": "One cluster: flat, collapsed",
        "overlapping": "Overlap: components give way, collapsed",
        "separate": "Two clusters: peaked, alive",
    }
    figure, axes = plt.subplots(2, 3, figsize=(10, 5.4), layout="constrained")
    prior = np.linspace(0, 1, 201)
    for k, (name, result) in enumerate(mixtures.items()):
        grid, density, shares, likelihood = result
        top, bottom = axes[:, k]
        top.plot(shares, likelihood, color=OURS, lw=2.2)
        if np.ptp(likelihood) < 1e-6:
            top.set_ylim(likelihood[0] - 0.5, likelihood[0] + 0.5)
        top.set_title(titles[name], loc="left", fontsize=10.5, color=INK)
        top.set_xlabel("mixture weight θ")
        bottom.fill_between(prior, PRIOR.pdf(prior), color=PALE, label="prior")
        bottom.plot(grid, density, color=OURS, lw=2.2, label="exact posterior")
        sd = moments(grid, density)[1]
        note = f"posterior sd {sd:.3g}\nprior sd {PRIOR.std():.3g}"
        bottom.text(0.97, 0.95, note, transform=bottom.transAxes, ha="right", va="top")
        bottom.set(xlabel="mixture weight θ", xlim=(0, 1), ylim=(0, None))
        clean(top), clean(bottom)
    axes[0, 0].set_ylabel("mean log p(x | θ), nats")
    axes[1, 0].set_ylabel("density")
    axes[1, 2].legend(frameon=False, loc="center right", fontsize=9)
    axes[1, 0].set_ylim(0, 3.6)
    axes[1, 1].set_ylim(0, 3.6)
    figure.savefig(path, dpi=130)
    plt.close(figure)


def draw_ppca_picture(ppca, path):
    """Two likelihood surfaces, and posterior variances against the assumed noise."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 3, figsize=(11.4, 3.7), layout="constrained")
    titles = {1: "One true latent: flat along z₂", 2: "Two true latents: a peak"}
    for ax, n_latents in zip(axes, (1, 2), strict=False):
        axis, surface = log_likelihood_surface(draw_ppca(n_latents)[0], 1.0)
        image = ax.contourf(axis, axis, surface.T / 1000, levels=18, cmap="viridis")
        figure.colorbar(image, ax=ax, shrink=0.9, label="log p(x = 0 | z), 1000 nats")
        ax.set_title(titles[n_latents], loc="left", fontsize=11, color=INK)
        ax.set(xlabel="z₁", ylabel="z₂", aspect="equal")
    ax = axes[2]
    noise = np.geomspace(0.09, 2.3, 200)
    styles = {1: ("#d97706", "one true latent"), 2: (OURS, "two true latents")}
    for n_latents, entries in ppca.items():
        color, label = styles[n_latents]
        X = draw_ppca(n_latents)[1]
        curves = np.array([fitted_variances(X, s) for s in noise])
        ax.plot(noise, curves, color=color, lw=1.8, label=[f"exact, {label}", None])
        dots = [(s, v) for s, _, _, vae in entries for v in vae]
        ax.plot(*zip(*dots, strict=True), "o", color=color, ms=6, mec="white")
    ax.plot([], [], "o", color=INK, mec="white", label="skvae.VAE(depth=0)")
    ax.axhline(1, color=PALE, zorder=0)
    ax.set(xscale="log", yscale="log", xlabel=r"assumed noise $\sigma$", ylim=(3e-4, 2))
    ax.set_title("Posterior variance (1 = collapsed)", loc="left", fontsize=11)
    ax.legend(frameon=False, fontsize=8.5, loc="lower right")
    clean(ax)
    figure.savefig(path, dpi=130)
    plt.close(figure)


def main():
    """Compute everything, print the table, draw the pictures."""
    import matplotlib

    matplotlib.use("agg")
    mixtures = mixture_results(np.linspace(0.01, 0.99, 49))
    ppca = ppca_results()
    write_tables(table_rows(mixtures, ppca))
    draw_mixtures(mixtures, HERE / "exact_mixture.png")
    draw_ppca_picture(ppca, HERE / "exact_ppca.png")


if __name__ == "__main__":
    main()
