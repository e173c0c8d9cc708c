"""The methods of a comparison, and what is measured on each."""

from __future__ import annotations

import copy
import inspect
import time
import warnings
from dataclasses import dataclass, field

import numpy as np
from scipy.special import logsumexp
from sklearn.base import clone
from sklearn.decomposition import PCA, FactorAnalysis
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression, RidgeCV
from sklearn.neighbors import KNeighborsClassifier, KNeighborsRegressor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import skvae
from skvae.cli._data import Prepared
from skvae.cli._files import closest
from skvae.metrics import active_units, mutual_information

# Wide rows cost more a step and come in larger numbers.
STEPS, WIDE_STEPS, QUICK_STEPS = 6000, 3000, 1200
WIDE = 256
DRAWS = 100
DENSITY_ROWS, PROBE_ROWS = 500, 5000
# With more classes than this, p(x) is estimated without going through them.
MAX_ENUMERATED = 20
BASELINE_COLOR = "#8a949e"
COLORS = ["#4c8dd6", "#e08a1e", "#22a079", "#a06bd3", "#d6568c", "#b5a020", "#2ba6b5"]


@dataclass
class Result:
    """What one method gave; None stands for what does not apply to it."""

    name: str
    color: str = BASELINE_COLOR
    estimator: object = None
    with_labels: bool = False
    seconds: float = 0.0
    Z_test: np.ndarray | None = None
    n_components: int | None = None
    probe: float | None = None
    probe_error: float | None = None
    neighbours: float | None = None
    active: int | None = None
    kl: float | None = None
    information: float | None = None
    ceiling: float | None = None
    log_density: float | None = None
    densities: np.ndarray | None = None
    slope: float | None = None
    consistency: float | None = None
    warnings: list = field(default_factory=list)
    failure: str | None = None

    @property
    def is_model(self):
        """Whether this is an estimator of the package that was fitted."""
        return self.kl is not None

    @property
    def collapsed(self):
        """Number of components that are inactive on the training rows."""
        if not self.is_model:
            return 0
        return int((~self.estimator.active_components_).sum())


def takes_labels(cls):
    return "u" in inspect.signature(cls.fit).parameters


def chosen_estimators(names):
    """Classes for a comma-separated list, all of them for None."""
    # Only models with a posterior have the numbers that are compared, and only with
    # a choice of latents they have as many as the others.
    models = [
        cls
        for cls in skvae.all_estimators()
        if hasattr(cls, "posterior") and "n_components" in cls().get_params()
    ]
    known = {cls.__name__: cls for cls in models}
    if names is None:
        return list(known.values())
    by_case = {name.lower(): cls for name, cls in known.items()}
    chosen = []
    for name in filter(None, (name.strip() for name in names.split(","))):
        if name.lower() not in by_case:
            raise ValueError(f"Unknown method {name!r}.{closest(name, known)}")
        chosen.append(by_case[name.lower()])
    return chosen


def common_parameters(arguments, data: Prepared):
    """Constructor arguments that all estimators of a comparison share."""
    n_rows, n_features = data.X.shape
    batch_size = int(np.clip(n_rows // 32, 16, 128))
    steps = WIDE_STEPS if n_features > WIDE else STEPS
    steps = QUICK_STEPS if arguments.quick else steps
    epochs = int(np.clip(round(steps * batch_size / n_rows), 10, 200))
    width = 64 if arguments.quick else 128 if n_features <= WIDE else 256
    return {
        "n_components": arguments.n_components,
        "max_iter": arguments.max_iter or epochs,
        "width": arguments.width or width,
        "batch_size": min(batch_size, n_rows),
        "likelihood": data.likelihood,
        "n_init": arguments.n_init,
        "n_draws": DRAWS,
        "random_state": arguments.seed,
    }


def baselines(data: Prepared, n_components):
    """Names and transformers of what people use today; None is X itself."""
    n = min(n_components, *data.X.shape)
    return [
        ("raw X", None),
        ("PCA", PCA(n, random_state=0)),
        ("FactorAnalysis", FactorAnalysis(n, random_state=0)),
    ]


def fit_baseline(name, transformer, data: Prepared):
    """Result of a linear baseline."""
    result = Result(name, estimator=transformer)
    Z, result.Z_test = data.X, data.X_test
    if transformer is not None:
        X, X_test = data.X.astype(np.float64), data.X_test.astype(np.float64)
        started = time.perf_counter()
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            transformer.fit(X)
        result.seconds = time.perf_counter() - started
        result.warnings = [item.message for item in caught]
        Z, result.Z_test = transformer.transform(X), transformer.transform(X_test)
        result.n_components = Z.shape[1]
        # With a noise of its own, a constant column has a density without limit.
        per_column = np.ndim(transformer.noise_variance_) > 0
        bounded = not per_column or bool((X[0] != X).any(axis=0).all())
        if data.comparable_density and bounded:
            rows = spread(len(X_test), DENSITY_ROWS)
            _set_density(result, transformer.score_samples(X_test[rows]))
    _probe(result, Z, data)
    return result


def fit_estimator(estimator, data: Prepared, color, *, with_labels, callbacks=()):
    """Result of an estimator of the package; a failure is part of it."""
    name = type(estimator).__name__
    result = Result(name, color, clone(estimator))
    result.with_labels = with_labels and takes_labels(type(estimator))
    model, u = result.estimator, data.u if result.with_labels else None
    if callbacks:
        model.set_callbacks(*callbacks)
    started = time.perf_counter()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            model.fit(data.X, u)
        except ValueError as error:
            result.failure = " ".join(str(error).split())
            return result
    result.seconds = time.perf_counter() - started
    result.warnings = [item.message for item in caught]
    result.n_components = len(model.kl_per_component_)
    result.kl = float(model.kl_per_component_.sum())
    result.slope = getattr(model, "inverse_lipschitz_", None)
    if hasattr(model, "consistency_"):
        result.consistency = float(np.mean(model.consistency_))
    mean, std = model.posterior(data.X_test)
    result.Z_test = mean
    result.active = active_units(mean).count
    # A point mass tells the row exactly: there is nothing to estimate.
    if np.all(std > 0):
        information = mutual_information(mean, std, random_state=0)
        result.information, result.ceiling = information.value, information.ceiling
    rows = spread(len(data.X_test), DENSITY_ROWS)
    _set_density(result, log_density(model, data.X_test[rows], u))
    _probe(result, model.transform(data.X), data)
    return result


def log_density(model, X, u):
    """Estimates of log p(x) from about 100 draws, u summed out where it was given.

    Where u took few values, p(x) is the sum over them of p(u) p(x|u), each with its
    share of the draws: a proposal per class is much tighter than one for all.
    """
    if u is None or len(np.unique(u)) > MAX_ENUMERATED or u.dtype.kind not in "iu":
        return model.score_samples(X)
    values, counts = np.unique(u, return_counts=True)
    draws = max(10, round(DRAWS / len(values)))
    scorer = copy.copy(model)
    if "n_draws" in scorer.get_params(deep=False):
        scorer.set_params(n_draws=draws)
    parts = [scorer.score_samples(X, u=np.full(len(X), value)) for value in values]
    return logsumexp(parts, axis=0, b=(counts / counts.sum())[:, None])


def spread(n, limit):
    """Up to `limit` evenly spaced row numbers of n, in case rows come sorted."""
    return np.unique(np.linspace(0, n - 1, min(n, limit)).astype(int))


def _set_density(result, scores):
    result.densities = np.asarray(scores, dtype=float)
    result.log_density = float(np.mean(scores))


def _probe(result, Z, data: Prepared):
    """How well a linear model and five neighbours read the labels from latents."""
    if not data.probed:
        return
    if data.classes:
        linear, near = LogisticRegression(max_iter=300), KNeighborsClassifier()
    else:
        linear = RidgeCV(alphas=np.logspace(-3, 3, 7))
        near = KNeighborsRegressor()
    rows = spread(len(Z), PROBE_ROWS)
    Z, y = Z[rows], data.y[rows]
    scores = []
    for model in (linear, near):
        pipeline = make_pipeline(StandardScaler(), model)
        with warnings.catch_warnings():
            # 300 iterations are enough for a probe; raw pixels never quite converge.
            warnings.simplefilter("ignore", ConvergenceWarning)
            pipeline.fit(Z, y)
        scores.append(float(pipeline.score(result.Z_test, data.y_test)))
    result.probe, result.neighbours = scores
    if data.classes:
        variance = result.probe * (1 - result.probe) / len(data.y_test)
        result.probe_error = float(np.sqrt(variance))
