"""Time-contrastive learning: its parts, its surface, and the sources it finds."""

import pickle

import numpy as np
import pytest
import sklearn.utils.estimator_checks as checks
import torch
from sklearn.base import clone
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from sklearn.model_selection import cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

from skvae import TCL
from skvae._random import generator
from skvae.datasets import make_nonlinear_ica
from skvae.estimators._contrastive import (
    CrossEntropy,
    HeadFirst,
    SegmentClassifier,
    _independent,
)
from skvae.metrics import mean_correlation_score
from skvae.networks._maxout import MaxoutNetwork

# A few rows of noise have few independent features or none.
pytestmark = [
    pytest.mark.filterwarnings("ignore:The linear ICA:UserWarning"),
    pytest.mark.filterwarnings("ignore:Constant features in X:UserWarning"),
]

EXTRA_CHECKS = [
    "check_param_validation",
    "check_set_output_transform",
    "check_set_output_transform_pandas",
    "check_set_output_transform_polars",
    "check_global_output_transform_pandas",
    "check_transformer_get_feature_names_out",
    "check_transformer_get_feature_names_out_pandas",
    "check_get_feature_names_out_error",
    "check_dataframe_column_names_consistency",
]


def small(**params):
    return TCL(**{"width": 6, "max_iter": 3, "random_state": 0, **params})


@pytest.fixture
def data():
    return make_nonlinear_ica(
        1200, n_segments=6, n_features=2, random_state=0, return_X_y=False
    )


# ------------------------------------------------------------------------- the surface


@parametrize_with_checks([small(), small(readout="none", n_init=2)])
def test_sklearn_compatible(estimator, check):
    check(estimator)


@pytest.mark.filterwarnings("ignore:X does not have valid feature names:UserWarning")
@pytest.mark.filterwarnings("ignore:X has feature names, but:UserWarning")
@pytest.mark.parametrize("name", EXTRA_CHECKS)
def test_checks_left_out_of_check_estimator(name):
    getattr(checks, name)("TCL", small())


def test_u_stands_in_for_y_and_labels_may_be_text(data):
    X, u = data.data, data.u
    by_y = small().fit(X, u)
    by_u = small().fit(X, u=u)
    np.testing.assert_array_equal(by_y.transform(X), by_u.transform(X))
    assert by_y.score(X, u) == by_u.score(X, u=u)
    names = np.array(list("abcdef"))[u]
    named = small().fit(X, names)
    assert set(named.predict(X)) <= set("abcdef")
    np.testing.assert_array_equal(named.transform(X), by_y.transform(X))
    with pytest.raises(ValueError, match="requires y to be passed"):
        small().fit(X)
    with pytest.raises(ValueError, match="not seen during fit: 9"):
        by_y.score(X, np.full(len(X), 9))


def test_probabilities_prediction_and_score_agree(data):
    X, u = data.data, data.u
    tcl = small(max_iter=10).fit(X, u)
    proba = tcl.predict_proba(X)
    np.testing.assert_allclose(proba.sum(axis=1), 1.0, rtol=1e-12)
    np.testing.assert_array_equal(tcl.predict(X), tcl.classes_[proba.argmax(axis=1)])
    assert tcl.score(X, u) == pytest.approx(-log_loss(u, proba), rel=1e-9)
    assert tcl.best_score_ == pytest.approx(tcl.score(X, u), abs=1e-5)


def test_refits_pickles_and_seeds(data):
    X, u = data.data, data.u
    state = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    tcl = small().fit(X, u)
    Z = tcl.transform(X)
    np.testing.assert_array_equal(clone(tcl).fit_transform(X, u), Z)
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(tcl)).transform(X), Z)
    assert np.abs(small(random_state=1).fit(X, u).transform(X) - Z).max() > 1e-3
    assert torch.equal(state[0], torch.get_rng_state())
    np.testing.assert_array_equal(state[1], np.random.get_state()[1])  # noqa: NPY002
    assert not any(p.requires_grad for p in tcl.module_.parameters())
    assert tcl.transform(X.astype(np.float32)).dtype == np.float32
    assert len(tcl.loss_curve_) == tcl.n_iter_ == len(tcl.history_["cross_entropy"])


def test_it_lives_in_pipelines_and_cross_validation(data):
    X, u = data.data, data.u
    order = np.random.default_rng(0).permutation(len(X))
    pipeline = make_pipeline(StandardScaler(), small(), LogisticRegression())
    scores = cross_val_score(pipeline, X[order], u[order], cv=2)
    assert scores.min() > 1 / 6


def test_restarts_keep_the_best_and_equal_fits_alone(data):
    X, u = data.data, data.u
    options = {"readout": "none", "learning_rate": 1e-3, "head_start": 0.0}
    three = small(n_init=3, **options).fit(X, u)
    assert three.consistency_.shape == (2,)
    assert not hasattr(small(**options).fit(X, u), "consistency_")
    # The first restart has the seeds of the fit without restarts.
    one = small(**options).fit(X, u)
    assert three.best_score_ >= one.best_score_ - 1e-5
    scores = []
    for seed in range(3):
        several = small(n_init=3, **{**options, "random_state": seed}).fit(X, u)
        alone = small(**{**options, "random_state": seed}).fit(X, u)
        scores.append(several.best_score_ - alone.best_score_)
    assert max(scores) > 1e-4


# --------------------------------------------------------------------------- the parts


def classifier(n_replicas=2, n_classes=4):
    generators = [generator(seed) for seed in range(n_replicas)]
    return SegmentClassifier(3, 2, n_classes, generators, width=5, depth=2, n_pieces=3)


def test_maxout_is_the_largest_of_its_pieces_and_the_output_is_absolute():
    network = MaxoutNetwork(3, 2, [generator(0)], width=4, depth=1, n_pieces=3)
    x = torch.randn(1, 7, 3, generator=generator(1))
    (layer,) = network.hidden
    pieces = (x[0] @ layer.weight[0] + layer.bias[0]).detach().numpy()
    largest = pieces.reshape(7, 3, 4).max(axis=1)
    output = network.output
    expected = np.abs(
        largest @ output.weight[0].detach().numpy() + output.bias[0].detach().numpy()
    )
    np.testing.assert_allclose(network(x)[0].detach(), expected, rtol=1e-5, atol=1e-6)


def test_replicas_are_independent():
    together = classifier(3)
    x = torch.randn(1, 6, 3, generator=generator(0))
    for replica in range(3):
        alone = together.select(replica)
        torch.testing.assert_close(
            alone.log_probabilities(x)[0], together.log_probabilities(x)[replica]
        )


def test_whitening_gives_unit_covariance_and_bears_flat_columns():
    model = classifier()
    x = torch.randn(500, 3, generator=generator(0)) @ torch.randn(
        3, 3, generator=generator(1)
    )
    model.whiten(x + 7.0)
    white = (x + 7.0 - model.centre) @ model.whitening
    torch.testing.assert_close(torch.cov(white.T), torch.eye(3), atol=0.01, rtol=0.0)
    model.whiten(x * torch.tensor([1.0, 1.0, 0.0]))
    assert torch.isfinite(model.whitening).all()


def test_the_objective_is_cross_entropy_and_half_the_squared_weights():
    model = classifier(2)
    x = torch.randn(2, 9, 3, generator=generator(0))
    labels = torch.arange(9) % 4
    u = torch.eye(4)[labels].expand(2, -1, -1)
    terms = CrossEntropy(0.1).terms(model, x, u, None, None, 0.0)
    for replica in range(2):
        logits = model.head(model.features(x))[replica]
        expected = torch.nn.functional.cross_entropy(logits, labels, reduction="none")
        torch.testing.assert_close(-terms.log_likelihood[replica], expected)
        squares = sum(
            p[replica].square().sum()
            for name, p in model.named_parameters()
            if "bias" not in name
        )
        penalty = (terms.loss + terms.log_likelihood)[replica]
        torch.testing.assert_close(penalty, (0.05 * squares).expand(9))


def test_the_head_is_trained_first_and_alone(data):
    X, u = data.data, data.u
    options = {"averaging": 0.0, "head_start": 0.5, "schedule": "constant"}
    start = small(max_iter=2, learning_rate=1e-12, **options).fit(X, u).module_
    modules = []

    class Watch:
        def setup(self, estimator, context):
            pass

        def teardown(self, estimator, context):
            pass

        def on_fit_task_begin(self, estimator, context):
            pass

        def on_fit_task_end(self, estimator, context, *, fitted_estimator=None):
            if context.task_name == "epoch":
                modules.append(fitted_estimator.module_)

    small(max_iter=2, **options).set_callbacks(Watch()).fit(X, u)
    first, second = modules
    for name, before in start.extractor.named_parameters():
        after = dict(first.extractor.named_parameters())[name]
        last = dict(second.extractor.named_parameters())[name]
        torch.testing.assert_close(after, before, rtol=0.0, atol=1e-6)
        assert (last - after).abs().max() > 1e-3
    assert (first.head.weight - start.head.weight).abs().max() > 1e-2


def test_averages_are_exponential_and_forget_what_is_not_finite():
    procedure = HeadFirst(0.0, 0.9)
    model = classifier(1)
    values = procedure.optimizer(model).values
    expected = values.clone()
    draws = generator(0)
    for step in range(1, 200):
        values.copy_(torch.randn(values.shape, generator=draws))
        procedure.remember(values)
        decay = min(0.9, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * values
    torch.testing.assert_close(procedure.average, expected, rtol=1e-4, atol=1e-5)
    kept = procedure.average.clone()
    procedure.remember(torch.full_like(values, torch.nan))
    torch.testing.assert_close(procedure.average, kept)
    procedure.finish()
    weight = model.head.weight.detach().flatten()
    assert torch.isin(weight, kept).all()


def test_the_read_out_unmixes_squares_with_positive_skewness():
    rng = np.random.default_rng(0)
    scale = np.repeat(rng.uniform(0.5, 3.0, size=(20, 3)), 200, axis=0)
    squares = (scale * rng.standard_normal((4000, 3))) ** 2
    features = squares @ rng.standard_normal((3, 3)) + 1.0
    mean, matrix = _independent(features, 0)
    found = (features - mean) @ matrix.T
    assert mean_correlation_score(squares, found) > 0.97
    assert ((found**3).mean(axis=0) > 0).all()


def test_a_read_out_that_fails_says_so():
    features = np.random.default_rng(0).standard_normal((50, 1)) * np.ones(3)
    with pytest.warns(ConvergenceWarning, match="did not settle"):
        _independent(features, 0)


# ------------------------------------------------------------------------- what it does


def test_it_recovers_squared_sources_on_held_out_rows():
    data = make_nonlinear_ica(
        20_000,
        n_segments=40,
        n_features=2,
        n_layers=2,
        random_state=0,
        return_X_y=False,
    )
    held_out = np.arange(20_000) % 10 == 0
    tcl = TCL(2, max_iter=20, n_init=4, random_state=0)
    tcl.fit(data.data[~held_out], data.u[~held_out])
    X, S = data.data[held_out], data.sources[held_out]
    Z = tcl.transform(X)
    squared = mean_correlation_score(S**2, Z)
    assert squared > 0.85
    assert squared > mean_correlation_score(S**2, X**2) + 0.05
    # Signs are lost: the sources themselves are not what it finds.
    assert mean_correlation_score(S, Z) < 0.2
    # What the true sources would say about the segment, by Bayes' rule.
    scale, u = data.modulation, data.u[held_out]
    log_p = (-0.5 * (S[:, None, :] / scale) ** 2 - np.log(scale)).sum(axis=-1)
    log_p -= np.logaddexp.reduce(log_p, axis=1)[:, None]
    best = log_p[np.arange(len(u)), u].mean()
    assert best - 0.03 < tcl.score(X, u) < best + 0.01
