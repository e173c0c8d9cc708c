"""Curves of time against rows, features, width, latents, replicas and candidates.

python benchmarks/speed/growth.py
"""

import numpy as np
from _measure import Study, grouped, timed

from skvae import VAE, BatchedGridSearchCV

BASE = {"rows": 4096, "features": 32, "width": 64, "latents": 4, "replicas": 1}
AXES = {
    "rows": (1024, 2048, 4096, 8192, 16384),
    "features": (16, 64, 256, 1024),
    "width": (32, 64, 128, 256, 512),
    "latents": (2, 8, 32, 128),
    "replicas": (1, 2, 4, 8, 16),
    "candidates": (1, 2, 4, 8),
}
SIGNAL = 4


def rows(n_rows, n_features):
    rng = np.random.default_rng(0)
    loadings = rng.standard_normal((SIGNAL, n_features))
    noise = rng.standard_normal((n_rows, n_features))
    X = np.tanh(rng.standard_normal((n_rows, SIGNAL)) @ loadings) + 0.3 * noise
    return X.astype(np.float32)


def contestant(axis, size):
    """One fit, or one search, with one size changed."""
    sizes = {**BASE, axis: size}
    X = rows(sizes["rows"], sizes["features"])
    vae = VAE(
        sizes["latents"],
        width=sizes["width"],
        n_init=sizes["replicas"],
        batch_size=128,
        max_iter=2,
        n_draws=10,
        device="cpu",
        random_state=0,
    )
    if axis != "candidates":
        return lambda: {"bound": vae.fit(X).best_bound_}
    betas = np.geomspace(0.5, 2.0, size).tolist()
    search = BatchedGridSearchCV(vae, {"beta": betas}, cv=2, refit=False)
    return lambda: {"bound": search.fit(X).cv_results_["mean_test_score"].max()}


def measure(configuration, options):
    axis = configuration["axis"]
    sizes = AXES[axis][:2] if options.tiny else AXES[axis]
    contestants = {str(size): contestant(axis, size) for size in sizes}
    for row in timed(axis, contestants, options.repetitions):
        yield {**row, "bound_per_feature": row.pop("bound") / features(axis, row)}


def features(axis, row):
    return int(row["contestant"]) if axis == "features" else BASE["features"]


def slopes(measured):
    """Exponent of the time's growth over the curve's upper half, by axis."""
    found = {}
    for axis, (sizes, seconds) in curves(measured).items():
        half = len(sizes) // 2
        middle = np.log(np.median(seconds, axis=1))[half - 1 :]
        found[axis] = float(np.polyfit(np.log(sizes)[half - 1 :], middle, 1)[0])
    return found


def curves(measured):
    """Sizes and seconds ``(sizes, repetitions)`` by axis, with the first threads."""
    found = {}
    for (axis, size, threads), chosen in grouped(measured):
        if threads != measured[0]["threads"]:
            continue
        sizes, seconds = found.setdefault(axis, ([], []))
        sizes.append(int(size))
        seconds.append([float(row["seconds"]) for row in chosen])
    return found


def draw(measured, path):
    """Small panels with logarithmic axes."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt
    from matplotlib.ticker import FuncFormatter, LogLocator

    found = curves(measured)
    exponents = slopes(measured)
    figure, axes = plt.subplots(
        2, 3, figsize=(7.5, 4.4), layout="constrained", sharey=True
    )
    for panel, (axis, (sizes, seconds)) in zip(axes.flat, found.items(), strict=False):
        middle, low, high = (
            np.array([f(values) for values in seconds]) for f in (np.median, min, max)
        )
        panel.errorbar(
            sizes,
            middle,
            [middle - low, high - middle],
            marker="o",
            markersize=3,
            capsize=2,
        )
        panel.set(xscale="log", yscale="log", xlabel=axis)
        panel.set_xticks(sizes, [str(size) for size in sizes])
        panel.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        panel.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        panel.minorticks_off()
        panel.set_title(f"slope {exponents[axis]:.2f}", fontsize=9)
        panel.grid(alpha=0.3)
    for panel in axes[:, 0]:
        panel.set_ylabel("seconds")
    for panel in list(axes.flat)[len(found) :]:
        panel.set_axis_off()
    figure.savefig(path, dpi=130)
    plt.close(figure)


def notes(measured):
    listed = [f"{axis} {slope:.2f}" for axis, slope in slopes(measured).items()]
    return [
        "Slopes of log time against log size, from the middle of each curve upwards "
        f"(1 is proportional): {', '.join(listed)}.",
        "",
        "![Time against each size](speed_growth.png)",
        "",
    ]


STUDY = Study(
    name="growth",
    title="How time grows",
    protocol=(
        "All of `fit` of a VAE with two hidden layers, batch 128, 2 epochs; "
        + ", ".join(f"{size} {name}" for name, size in BASE.items())
        + ", and one of them changed at a time. Candidates are those of a "
        "BatchedGridSearchCV over beta with 2 folds, scores included. The bound "
        "(candidates: the best score) is divided by the number of features."
    ),
    unit="a fit or a search",
    measure=measure,
    columns={"bound_per_feature": "{:.3f}"},
    configurations=lambda options: [
        {"axis": axis} for axis in (("rows", "candidates") if options.tiny else AXES)
    ],
    draw=draw,
    notes=notes,
)

if __name__ == "__main__":
    STUDY.main()
