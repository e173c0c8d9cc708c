"""The methods of a comparison, and what is measured on each."""

from __future__ import annotations

import inspect
import time
import warnings
from dataclasses import dataclass, field

import numpy as np
from sklearn.base import clone
from sklearn.decomposition import PCA, FactorAnalysis, TruncatedSVD
from sklearn.exceptions import ConvergenceWarning
from sklearn.feature_extraction.text import TfidfVectorizer

import skvae
from skvae.cli._data import Prepared
from skvae.cli._documents import (
    document_parameters,
    word_frequencies,
)
from skvae.cli._files import closest
from skvae.estimators import sequence_estimators
from skvae.metrics import active_units, mutual_information
from skvae.probes import linear_probe, mlp_probe, neighbour_probe

# Wide rows cost more a step and come in larger numbers.
STEPS, WIDE_STEPS, QUICK_STEPS = 6000, 3000, 1200
WIDE = 256
DRAWS = 100
DENSITY_ROWS, PROBE_ROWS = 500, 5000
BASELINE_COLOR = "#8a949e"
COLORS = [
    *("#4c8dd6", "#e08a1e", "#22a079", "#a06bd3"),
    *("#d6568c", "#b5a020", "#9c5b3b", "#2ba6b5"),
]


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
    network: float | None = None
    active: int | None = None
    kl: float | None = None
    information: float | None = None
    ceiling: float | None = None
    log_density: float | None = None
    densities: np.ndarray | None = None
    n_tokens: int | None = None
    slope: float | None = None
    consistency: float | None = None
    warnings: list = field(default_factory=list)
    failure: str | None = None

    @property
    def is_model(self):
        """Whether this is an estimator of the package that was fitted."""
        return self.kl is not None

    @property
    def nats_per_token(self):
        """Negative log-likelihood per token, where rows are documents."""
        return None if self.n_tokens is None else -self.densities.sum() / self.n_tokens

    @property
    def collapsed(self):
        """Number of components that are inactive on the training rows."""
        if not self.is_model:
            return 0
        return int((~self.estimator.active_components_).sum())


def takes_labels(cls):
    return "u" in inspect.signature(cls.fit).parameters


def compared_estimators(documents=False):
    """The classes that a comparison of rows, or of documents, may hold."""
    if documents:
        return sequence_estimators()
    # Only models with a posterior have the numbers that are compared, and only with
    # a choice of latents they have as many as the others.
    return [
        cls
        for cls in skvae.all_estimators()
        if hasattr(cls, "posterior") and "n_components" in cls().get_params()
    ]


def chosen_estimators(names, models):
    """Classes among `models` for a comma-separated list, all of them for None."""
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
    if data.texts is not None:
        return document_parameters(arguments, data)
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


def fit_baselines(data: Prepared, n_components, probe):
    """Results of what people use today."""
    if data.texts is not None:
        return document_baselines(data, n_components, probe)
    n = min(n_components, *data.X.shape)
    transformers = {
        "raw X": None,
        "PCA": PCA(n, random_state=0),
        "FactorAnalysis": FactorAnalysis(n, random_state=0),
    }
    return [fit_baseline(name, t, data, probe) for name, t in transformers.items()]


def document_baselines(data: Prepared, n_components, probe):
    """Weighted counts of words, and a law of words that knows no order."""
    frequencies = Result("word frequencies")
    rows = spread(len(data.X_test), DENSITY_ROWS)
    shares = word_frequencies(data)[data.X_test[rows].astype(int)]
    _set_density(frequencies, shares.sum(axis=1), data.n_tokens(rows))
    if not data.probed:
        return [frequencies]
    tokenizer = data.texts.tokenizer
    vectorizer = TfidfVectorizer(
        token_pattern=tokenizer.token_pattern,
        lowercase=tokenizer.lowercase,
        vocabulary=list(tokenizer.vocabulary_),
    )
    started = time.perf_counter()
    words = vectorizer.fit_transform(data.texts.train)
    words_test = vectorizer.transform(data.texts.test)
    everything = Result("TF-IDF", seconds=time.perf_counter() - started)
    # Rare words would be blown up by scaling, and zeros would be none.
    _probe(everything, words, words_test, data, [step[-1:] for step in probes(data)])
    svd = TruncatedSVD(min(n_components, words.shape[1]), random_state=0)
    started = time.perf_counter()
    Z = svd.fit_transform(words)
    seconds = everything.seconds + time.perf_counter() - started
    reduced = Result("TF-IDF + SVD", estimator=svd, seconds=seconds)
    reduced.Z_test, reduced.n_components = svd.transform(words_test), Z.shape[1]
    _probe(reduced, Z, reduced.Z_test, data, probes(data, probe))
    return [frequencies, everything, reduced]


def fit_baseline(name, transformer, data: Prepared, probe):
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
    _probe(result, Z, result.Z_test, data, probes(data, probe))
    return result


def fit_estimator(
    estimator, data: Prepared, color, *, with_labels, callbacks=(), probe=None
):
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
    information = mutual_information(mean, std, random_state=0)
    result.information, result.ceiling = information.value, information.ceiling
    rows = spread(len(data.X_test), DENSITY_ROWS)
    scores = model.score_samples(data.X_test[rows])
    _set_density(result, scores, data.n_tokens(rows))
    _probe(result, model.transform(data.X), mean, data, probes(data, probe))
    return result


def spread(n, limit):
    """Up to `limit` evenly spaced row numbers of n, in case rows come sorted."""
    return np.unique(np.linspace(0, n - 1, min(n, limit)).astype(int))


def _set_density(result, scores, n_tokens=None):
    result.densities = np.asarray(scores, dtype=float)
    result.log_density = float(np.mean(scores))
    result.n_tokens = n_tokens


def probes(data: Prepared, more=None):
    """A linear probe, one of neighbours and, where `more` asks, a network."""
    if not data.probed:
        return []
    kind = {"regression": not data.classes}
    found = [linear_probe(max_iter=300, **kind), neighbour_probe(**kind)]
    if more is not None:
        # Rows can be held out where each class has some.
        rows = len(data.y) // 10
        counts = np.unique(data.y, return_counts=True)[1]
        stops = not data.classes or bool(counts.min() > 1 and rows > len(counts))
        stopping = {"early_stopping": stops, "max_iter": 200 if stops else 30}
        found.append(mlp_probe(**kind, **stopping, random_state=0))
    return found


def _probe(result, Z, Z_test, data: Prepared, pipelines):
    """How well each probe reads the labels of held-out rows from latents."""
    if not pipelines:
        return
    rows = spread(Z.shape[0], PROBE_ROWS)
    scores = []
    for pipeline in pipelines:
        with warnings.catch_warnings():
            # 300 iterations are enough for a probe; raw pixels never quite converge.
            warnings.simplefilter("ignore", ConvergenceWarning)
            pipeline.fit(Z[rows], data.y[rows])
        scores.append(float(pipeline.score(Z_test, data.y_test)))
    result.probe, result.neighbours, *network = scores
    result.network = network[0] if network else None
    if data.classes:
        variance = result.probe * (1 - result.probe) / len(data.y_test)
        result.probe_error = float(np.sqrt(variance))
