"""The auxiliary variable u, y in its place, and weights, in scikit-learn's tools."""

import numpy as np
import pandas as pd
import polars as pl
import pytest
import sklearn
import torch
from sklearn.base import clone
from sklearn.exceptions import UnsetMetadataPassedError
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import (
    GridSearchCV,
    KFold,
    StratifiedKFold,
    cross_val_score,
    cross_validate,
)
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import MinMaxScaler, StandardScaler
from sklearn.utils.metadata_routing import get_routing_for_object

from skvae import VAE, IdentifiableVAE, SkipVAE, all_estimators, iFlow, iVAE, posteriors
from skvae.networks import MLP, Skip
from skvae.objectives import ELBO

# Networks of eight units after a few epochs; what they learn is not the subject.
pytestmark = pytest.mark.filterwarnings("ignore::skvae.PosteriorCollapseWarning")

SMALL = {"width": 8, "depth": 1, "max_iter": 4, "n_draws": 10, "random_state": 0}
CONDITIONAL = [
    cls
    for cls in all_estimators()
    if "u" in get_routing_for_object(cls()).consumes("fit", ["u"])
]
# A flow's posterior is a point, with u and without.
BAYESIAN = [cls for cls in CONDITIONAL if cls is not iFlow]
FOLDS = KFold(3, shuffle=True, random_state=0)


def known(cls, **params):
    """An instance with those of the parameters that the class has."""
    names = cls().get_params()
    return cls(**{name: params[name] for name in params if name in names})


@pytest.fixture
def X(segments):
    return segments[0]


@pytest.fixture
def u(segments):
    return segments[1]


@pytest.fixture(params=[False, True], ids=["routing off", "routing on"])
def routing(request):
    with sklearn.config_context(enable_metadata_routing=request.param):
        yield request.param


@pytest.fixture
def routing_on():
    with sklearn.config_context(enable_metadata_routing=True):
        yield


def test_the_conditional_estimators_are_found():
    assert {iVAE, IdentifiableVAE} <= set(CONDITIONAL)
    assert VAE not in CONDITIONAL


# ------------------------------------------------------------------ direct calls


@pytest.mark.parametrize("cls", CONDITIONAL)
def test_y_stands_in_for_u_and_u_has_precedence(cls, X, u):
    by_u = known(cls, **SMALL).fit(X, u=u)
    by_y = known(cls, **SMALL).fit(X, u)
    other = np.roll(u, 7)
    both = known(cls, **SMALL).fit(X, other, u=u)
    assert by_u.loss_curve_ == by_y.loss_curve_ == both.loss_curve_
    assert known(cls, **SMALL).fit(X, other).loss_curve_ != by_u.loss_curve_
    np.testing.assert_array_equal(by_u.transform(X), by_y.transform(X))
    assert by_u.score(X, u=u) == by_y.score(X, u) == both.score(X, other, u=u)
    assert by_u.score(X, other) != by_u.score(X, u)
    np.testing.assert_array_equal(
        known(cls, **SMALL).fit_transform(X, u),
        known(cls, **SMALL).fit_transform(X, u=u),
    )


@pytest.mark.parametrize("cls", [VAE, SkipVAE])
def test_unconditional_estimators_ignore_y(cls, X, u):
    fitted = known(cls, **SMALL).fit(X, u)
    assert fitted.loss_curve_ == known(cls, **SMALL).fit(X).loss_curve_
    assert fitted.score(X, u) == fitted.score(X)
    with pytest.raises(TypeError, match="'u'"):
        known(cls, **SMALL).fit(X, u=u)


@pytest.mark.parametrize("method", ["fit", "partial_fit", "fit_transform", "score"])
def test_ivae_asks_for_u(X, u, method):
    vae = iVAE(**SMALL)
    if method == "score":
        vae.fit(X, u=u)
    with pytest.raises(ValueError, match="requires y to be passed") as error:
        getattr(vae, method)(X)
    assert "Pass the auxiliary variable as u" in str(error.value)


@pytest.mark.parametrize("cls", BAYESIAN)
def test_transform_works_with_and_without_u(cls, X, u):
    vae = known(cls, **SMALL).set_params(max_iter=30).fit(X, u=u)
    without, given = vae.transform(X), vae.transform(X, u=u)
    assert without.shape == given.shape == (len(X), 2)
    assert np.abs(without - given).max() > 1e-3
    np.testing.assert_array_equal(given, vae.posterior(X, u)[0])
    np.testing.assert_array_equal(without, vae.posterior(X)[0])
    # Knowing u makes the posterior narrower than the mixture over u does.
    assert vae.posterior(X, u)[1].mean() < vae.posterior(X)[1].mean()


@pytest.mark.parametrize("cls", CONDITIONAL)
def test_fit_transform_leaves_u_out(cls, X, u):
    Z = known(cls, **SMALL).fit_transform(X, u=u)
    np.testing.assert_array_equal(Z, known(cls, **SMALL).fit(X, u=u).transform(X))


@pytest.mark.parametrize("cls", CONDITIONAL)
def test_score_is_the_mean_of_score_samples_given_u(cls, X, u):
    vae = known(cls, **SMALL).fit(X, u=u)
    given = vae.score_samples(X, u=u)
    assert vae.score(X, u=u) == pytest.approx(given.mean(), rel=1e-6)
    weight = np.arange(len(X)) % 4
    assert vae.score(X, u, sample_weight=weight) == pytest.approx(
        np.average(given, weights=weight), rel=1e-6
    )


@pytest.mark.parametrize("cls", BAYESIAN)
def test_score_samples_without_u_is_of_the_mixture(cls, X, u):
    # Unequal frequencies, so that the mixture's weights matter.
    rows = np.r_[0:48, 48, 72, 96]
    vae = known(cls, **SMALL).set_params(n_draws=20_000, max_iter=60)
    vae.fit(X[rows], u=u[rows])
    # Priors far apart, so that a row tells which u it has.
    weight = vae.module_.prior.mean.weight
    with torch.no_grad():
        weight.copy_(torch.linspace(-2.0, 2.0, 5)[None, :, None].expand_as(weight))
    values, counts = np.unique(u[rows], return_counts=True)
    some = X[::12]
    given = [vae.score_samples(some, u=np.full(len(some), value)) for value in values]
    weights = np.log(counts / counts.sum())[:, None]
    mixture = np.logaddexp.reduce(weights + given, axis=0)
    equal_weights = np.logaddexp.reduce(given, axis=0) - np.log(5)
    scores = vae.score_samples(some)
    error = np.median(np.abs(scores - mixture))
    assert error < 0.02
    assert error < 0.1 * np.median(np.abs(scores - equal_weights))
    # The draws go where a row's own segment has its codes, so that few are enough.
    few = vae.set_params(n_draws=50).score_samples(some)
    assert np.median(np.abs(few - mixture)) < 0.2


@pytest.mark.parametrize("covariance", ["diagonal", "full"])
def test_rows_are_scored_alike_in_any_pieces(covariance, X, u, monkeypatch):
    vae = iVAE(**SMALL, covariance=covariance).fit(X, u=u)
    at_once = vae.score_samples(X)
    monkeypatch.setattr(posteriors, "PARTS_ELEMENTS", 150)
    np.testing.assert_allclose(vae.score_samples(X), at_once, rtol=1e-9)


def test_identifiable_vae_without_u_scores_under_its_mixture_prior(X, u):
    vae = IdentifiableVAE(**SMALL).fit(X)
    assert vae.score(X) == pytest.approx(vae.score_samples(X).mean(), rel=1e-6)
    # Tools pass y whatever the estimator was fitted with.
    assert vae.score(X, u) == vae.score(X)
    assert not hasattr(vae, "u_categories_")


@pytest.mark.parametrize("method", ["transform", "posterior", "score_samples", "score"])
def test_u_for_a_model_that_was_fitted_without_is_refused(X, u, method):
    vae = IdentifiableVAE(**SMALL).fit(X)
    with pytest.raises(ValueError, match="fitted without u"):
        getattr(vae, method)(X, u=u)


def test_the_joint_posterior_needs_u_always(X, u):
    vae = iVAE(**SMALL, posterior_type="joint").fit(X, u=u)
    assert vae.transform(X, u=u).shape == (len(X), 2)
    assert np.isfinite(vae.score(X, u=u))
    for call in (
        lambda: vae.transform(X),
        lambda: vae.posterior(X),
        lambda: vae.score_samples(X),
        lambda: iVAE(**SMALL, posterior_type="joint").fit_transform(X, u=u),
    ):
        with pytest.raises(ValueError, match="u must be passed") as error:
            call()
        assert "posterior_type='product'" in str(error.value)
    assert vae.sample(3, random_state=0).shape == (3, 6)


@pytest.mark.parametrize("cls", CONDITIONAL)
def test_sample_with_and_without_u(cls, X, u):
    trained = {**SMALL, "max_iter": 60, "learning_rate": 0.02}
    vae = known(cls, **trained).fit(X, u=u)
    assert vae.sample(7, random_state=0).shape == (7, 6)
    assert vae.sample(u=[0, 4, 4], random_state=0).shape == (3, 6)
    with pytest.raises(ValueError, match="not seen during fit: 9"):
        vae.sample(u=[0, 9])
    spread = [
        vae.sample(u=np.full(2000, value), random_state=0).std() for value in range(5)
    ]
    assert max(spread) > 1.02 * min(spread)


# ------------------------------------------------------------------- kinds of u

NAMES = np.array(["north", "south", "east", "west", "middle"])
DISCRETE = {
    "int": lambda u: u,
    "int8": lambda u: u.astype(np.int8),
    "list of int": lambda u: u.tolist(),
    "str": lambda u: NAMES[u],
    "list of str": lambda u: NAMES[u].tolist(),
    "object str": lambda u: NAMES[u].astype(object),
    "object int": lambda u: u.astype(object),
    "column": lambda u: u[:, None],
    "series": lambda u: pd.Series(NAMES[u], index=np.arange(len(u))[::-1]),
    "series of object": lambda u: pd.Series(NAMES[u], dtype=object),
    "categorical": lambda u: pd.Series(NAMES[u]).astype("category"),
    "nullable string": lambda u: pd.Series(NAMES[u], dtype="string"),
    "nullable int": lambda u: pd.Series(u, dtype="Int64"),
    "frame": lambda u: pd.DataFrame({"where": NAMES[u]}),
    "polars": lambda u: pl.Series(NAMES[u].tolist()),
}


@pytest.mark.parametrize("kind", DISCRETE)
def test_every_container_of_categories(X, u, kind):
    same = DISCRETE[kind](u)
    vae = iVAE(**SMALL).fit(X, u=same)
    assert len(vae.u_categories_) == 5
    # The order of the categories may differ, the mixture over them may not.
    assert vae.module_.prior.grid.shape == (1, 5, 5)
    assert np.isfinite(vae.score(X, u=same))
    # A plain array of the same values means the same.
    plain = np.asarray(u if "int" in kind or kind == "column" else NAMES[u])
    assert vae.score(X, u=plain) == pytest.approx(vae.score(X, u=same), rel=1e-9)
    assert vae.score(X[:6], u=plain[:6]) == pytest.approx(
        vae.score_samples(X, u=same)[:6].mean(), rel=1e-6
    )
    if kind not in {"int", "column"}:
        return
    np.testing.assert_array_equal(vae.u_categories_, np.arange(5))


def test_strings_and_integers_give_the_same_model(X, u):
    ordered = np.sort(NAMES)[u]
    by_name, by_number = iVAE(**SMALL).fit(X, u=ordered), iVAE(**SMALL).fit(X, u=u)
    np.testing.assert_array_equal(by_name.u_categories_, np.sort(NAMES))
    assert by_name.loss_curve_ == by_number.loss_curve_


@pytest.mark.parametrize(
    "make",
    [
        lambda u: u > 2,
        lambda u: (u > 2).tolist(),
        lambda u: pd.Series(u > 2),
        lambda u: pd.Series(u > 2, dtype="boolean"),
    ],
    ids=["array", "list", "series", "nullable"],
)
def test_booleans_are_two_categories(X, u, make):
    vae = iVAE(**SMALL).fit(X, u=make(u))
    assert vae.u_categories_.tolist() == [False, True]
    same = iVAE(**SMALL).fit(X, u=(u > 2).astype(int))
    assert vae.loss_curve_ == same.loss_curve_
    assert vae.score(X, u=u > 2) == vae.score(X, u=make(u))


@pytest.mark.parametrize(
    "make",
    [
        lambda v: v[:, 0],
        lambda v: v[:, 0].astype(np.float32),
        lambda v: v[:, 0].tolist(),
        lambda v: v[:, [0]],
        lambda v: v,
        lambda v: pd.Series(v[:, 0]),
        lambda v: pd.DataFrame(v, columns=["time", "place"]),
        lambda v: np.round(10 * v).astype(int),
        lambda v: pl.DataFrame({"time": v[:, 0], "place": v[:, 1]}),
    ],
    ids=[
        "1-D",
        "float32",
        "list",
        "column",
        "2-D",
        "series",
        "frame",
        "ints",
        "polars",
    ],
)
def test_continuous_u(X, u, make):
    values = np.c_[u + np.linspace(0, 1, len(u)), np.cos(u)]
    same = make(values)
    vae = iVAE(**SMALL).fit(X, u=same)
    assert not hasattr(vae, "u_categories_")
    assert vae.transform(X, u=same).shape == (len(X), 2)
    assert vae.score(X, u=same) == pytest.approx(
        vae.score_samples(X, u=same).mean(), rel=1e-6
    )
    # One row alone is encoded as it is among the others.
    alone = same[:1] if not hasattr(same, "iloc") else same.iloc[:1]
    np.testing.assert_allclose(
        vae.score_samples(X[:1], u=alone), vae.score_samples(X, u=same)[:1], rtol=1e-9
    )
    assert np.isfinite(vae.score_samples(X)).all()


def test_units_of_a_continuous_u_do_not_matter(X, u):
    time = np.linspace(0.0, 1.0, len(u))
    here = iVAE(**SMALL).fit(X, u=time)
    there = iVAE(**SMALL).fit(X, u=1024.0 * time)
    np.testing.assert_allclose(here.loss_curve_, there.loss_curve_, rtol=1e-4)


def test_u_type_overrides_the_guess(X, u):
    as_numbers = iVAE(**SMALL, u_type="continuous").fit(X, u=u)
    assert not hasattr(as_numbers, "u_categories_")
    assert np.isfinite(as_numbers.score(X, u=u + 0.5))
    as_categories = iVAE(**SMALL, u_type="discrete").fit(X, u=u.astype(float))
    np.testing.assert_array_equal(as_categories.u_categories_, np.arange(5.0))
    with pytest.raises(ValueError, match=r"not seen during fit: 0\.5"):
        as_categories.score(X, u=u + 0.5)


def test_a_refit_forgets_the_kind_of_u(X, u):
    vae = iVAE(**SMALL).fit(X, u=u)
    vae.fit(X, u=u + 0.5)
    assert not hasattr(vae, "u_categories_")
    vae.fit(X, u=NAMES[u])
    assert vae.u_categories_.tolist() == sorted(NAMES)


@pytest.mark.parametrize("cls", CONDITIONAL)
def test_unseen_categories_are_named(cls, X, u):
    vae = known(cls, **SMALL).fit(X[u < 4], u=u[u < 4])
    for call in (
        lambda: vae.transform(X, u=u),
        lambda: vae.posterior(X, u=u),
        lambda: vae.score(X, u=u),
        lambda: vae.score(X, u),
        lambda: vae.score_samples(X, u=u),
    ):
        with pytest.raises(ValueError, match="not seen during fit: 4") as error:
            call()
        assert "StratifiedKFold" in str(error.value)
    assert len(vae.transform(X)) == len(X)


def test_partial_fit_takes_all_categories_beforehand(X, u):
    vae = iVAE(**SMALL).partial_fit(X[:24], u=u[:24], u_categories=np.arange(5))
    vae.partial_fit(X[24:48], u=u[24:48])
    np.testing.assert_array_equal(vae.u_categories_, np.arange(5))
    assert vae.n_iter_ == 2
    assert np.isfinite(vae.score(X, u=u))
    short = iVAE(**SMALL).partial_fit(X[:24], u=u[:24])
    with pytest.raises(ValueError, match="not seen during fit: 1"):
        short.partial_fit(X[24:48], u=u[24:48])


# --------------------------------------------------------------------- pipelines


@pytest.fixture
def pipeline():
    return make_pipeline(StandardScaler(), iVAE(**SMALL), LogisticRegression())


def test_pipeline_with_y_for_u(routing, pipeline, X, u):
    labels = pipeline.fit(X, u).predict(X)
    assert set(labels) <= set(u)
    scaled = StandardScaler().fit_transform(X)
    expected = iVAE(**SMALL).fit(scaled, u=u)
    assert pipeline["ivae"].loss_curve_ == expected.loss_curve_
    np.testing.assert_array_equal(
        pipeline[:-1].transform(X), expected.transform(scaled)
    )


def test_pipeline_with_u_by_step_name(X, u):
    pipe = make_pipeline(StandardScaler(), iVAE(**SMALL), LogisticRegression())
    y = (u > 2).astype(int)
    pipe.fit(X, y, ivae__u=u)
    assert len(pipe["ivae"].u_categories_) == 5
    assert set(pipe.predict(X)) <= {0, 1}


@pytest.mark.usefixtures("routing_on")
def test_pipeline_routes_u_to_fit_and_score(pipeline, X, u):
    y = (u > 2).astype(int)
    pipeline.fit(X, y, u=u)
    assert len(pipeline["ivae"].u_categories_) == 5
    assert pipeline.predict(X).shape == u.shape
    scored = make_pipeline(StandardScaler(), iVAE(**SMALL))
    scored.fit(X, y, u=u)
    scaled = scored["standardscaler"].transform(X)
    assert scored.score(X, y, u=u) == scored["ivae"].score(scaled, u=u)
    assert scored.score(X, u) == scored["ivae"].score(scaled, u)
    np.testing.assert_array_equal(
        scored.fit_transform(X, y, u=u), scored["ivae"].transform(scaled)
    )


@pytest.mark.usefixtures("routing_on")
@pytest.mark.parametrize("cls", all_estimators())
def test_score_of_a_pipeline_that_ends_in_a_vae(cls, X, u):
    # Under routing a pipeline always offers sample_weight to the last step.
    pipe = make_pipeline(StandardScaler(), known(cls, **SMALL)).fit(X, u)
    scaled = pipe[0].transform(X)
    assert pipe.score(X, u) == pytest.approx(pipe[-1].score(scaled, u), rel=1e-12)


@pytest.mark.parametrize("cls", all_estimators())
def test_weights_by_step_name(cls, X, u):
    weight = np.linspace(0.1, 2.0, len(X))
    pipe = Pipeline([("scale", StandardScaler()), ("vae", known(cls, **SMALL))])
    pipe.fit(X, u, vae__sample_weight=weight)
    scaled = pipe["scale"].transform(X)
    expected = known(cls, **SMALL).fit(scaled, u, sample_weight=weight)
    assert pipe["vae"].loss_curve_ == expected.loss_curve_
    assert pipe["vae"].loss_curve_ != known(cls, **SMALL).fit(scaled, u).loss_curve_


@pytest.mark.usefixtures("routing_on")
@pytest.mark.parametrize("cls", all_estimators())
def test_weights_through_routing(cls, X, u):
    weight = np.linspace(0.1, 2.0, len(X))
    vae = known(cls, **SMALL)
    with pytest.raises(UnsetMetadataPassedError, match="sample_weight"):
        make_pipeline(vae).fit(X, u, sample_weight=weight)
    vae.set_fit_request(sample_weight=True).set_score_request(sample_weight=True)
    pipe = make_pipeline(StandardScaler().set_fit_request(sample_weight=False), vae)
    pipe.fit(X, u, sample_weight=weight)
    scaled = pipe[0].transform(X)
    expected = known(cls, **SMALL).fit(scaled, u, sample_weight=weight)
    assert pipe[-1].loss_curve_ == expected.loss_curve_
    assert pipe.score(X, u, sample_weight=weight) == pytest.approx(
        expected.score(scaled, u, sample_weight=weight), rel=1e-12
    )


@pytest.mark.parametrize("cls", CONDITIONAL)
def test_requests_are_declared_on_the_class(cls):
    requests = get_routing_for_object(cls())
    assert requests.fit.requests["u"] is True
    assert requests.partial_fit.requests["u"] is True
    assert requests.score.requests["u"] is True
    assert "u" not in requests.transform.requests
    assert "u_categories" not in requests.partial_fit.requests
    assert cls().__sklearn_tags__().target_tags.required is (cls in (iVAE, iFlow))


# --------------------------------------------------------------- cross-validation


def test_cross_validation_by_y(routing, X, u):
    scores = cross_val_score(iVAE(**SMALL), X, u, cv=FOLDS, error_score="raise")
    expected = [
        iVAE(**SMALL).fit(X[train], u=u[train]).score(X[test], u=u[test])
        for train, test in FOLDS.split(X)
    ]
    np.testing.assert_allclose(scores, expected, rtol=1e-12)


@pytest.mark.usefixtures("routing_on")
@pytest.mark.parametrize("cls", CONDITIONAL)
def test_cross_validate_splits_u(cls, X, u):
    y = (u > 2).astype(int)
    scores = cross_validate(
        known(cls, **SMALL), X, y, cv=FOLDS, params={"u": u}, error_score="raise"
    )["test_score"]
    expected = [
        known(cls, **SMALL).fit(X[train], u=u[train]).score(X[test], u=u[test])
        for train, test in FOLDS.split(X)
    ]
    np.testing.assert_allclose(scores, expected, rtol=1e-12)


def test_unshuffled_folds_of_segments_say_what_to_do(X, u):
    with pytest.raises(ValueError, match=r"not seen during fit: .*KFold\(shuffle=True"):
        cross_val_score(iVAE(**SMALL), X, u, cv=KFold(5), error_score="raise")


@pytest.mark.usefixtures("routing_on")
def test_grid_search_over_a_pipeline_routes_u(pipeline, X, u):
    y = (u > 2).astype(int)
    search = GridSearchCV(
        pipeline, {"ivae__beta": [0.5, 1.0]}, cv=FOLDS, error_score="raise"
    )
    search.fit(X, y, u=u)
    assert len(search.best_estimator_["ivae"].u_categories_) == 5
    assert search.predict(X).shape == y.shape
    assert 0 <= search.score(X, y) <= 1
    assert search.best_estimator_[:-1].transform(X).shape == (len(X), 2)


@pytest.mark.usefixtures("routing_on")
def test_grid_search_over_the_estimator_routes_u(X, u):
    search = GridSearchCV(
        iVAE(**SMALL), {"n_components": [1, 2]}, cv=FOLDS, error_score="raise"
    )
    search.fit(X, u=u)
    expected = np.mean(
        [
            iVAE(**{**SMALL, "n_components": 2})
            .fit(X[train], u=u[train])
            .score(X[test], u=u[test])
            for train, test in FOLDS.split(X)
        ]
    )
    assert search.cv_results_["mean_test_score"][1] == pytest.approx(expected)
    assert search.transform(X).shape == (len(X), search.best_params_["n_components"])
    assert search.score(X, u=u) == search.best_estimator_.score(X, u=u)


def test_grid_search_over_identifiable_vae_with_u_in_fit_alone(X, u):
    # Without routing, u reaches fit and not score, which falls back to the mixture.
    search = GridSearchCV(
        IdentifiableVAE(**SMALL), {"beta": [1.0]}, cv=FOLDS, error_score="raise"
    )
    search.fit(X, u=u)
    expected = [
        IdentifiableVAE(**SMALL).fit(X[train], u=u[train]).score_samples(X[test]).mean()
        for train, test in FOLDS.split(X)
    ]
    assert search.best_score_ == pytest.approx(np.mean(expected))
    assert len(search.best_estimator_.u_categories_) == 5


def test_grid_search_with_weights(routing, X, u):
    weight = np.linspace(0.1, 2.0, len(X))
    vae = VAE(**SMALL)
    if routing:
        vae.set_fit_request(sample_weight=True).set_score_request(sample_weight=True)
    search = GridSearchCV(vae, {"beta": [1.0]}, cv=FOLDS, error_score="raise")
    search.fit(X, sample_weight=weight)
    expected = []
    for train, test in FOLDS.split(X):
        fitted = VAE(**SMALL).fit(X[train], sample_weight=weight[train])
        # A search passes weights to the score even without routing.
        expected.append(fitted.score(X[test], sample_weight=weight[test]))
    assert search.best_score_ == pytest.approx(np.mean(expected))


# ------------------------------------------------------------------ grid searches


def test_the_grid_search_of_the_readme(X, u):
    """The task this package was written for, two worker processes included."""
    search = GridSearchCV(
        make_pipeline(MinMaxScaler(), SkipVAE(**SMALL), LogisticRegression()),
        {"skipvae__beta": [0.5, 1.0], "skipvae__depth": [1, 2]},
        cv=StratifiedKFold(2),
        n_jobs=2,
        error_score="raise",
    )
    search.fit(X, u)
    results = search.cv_results_
    assert len(results["params"]) == 4
    assert np.isfinite(results["mean_test_score"]).all()
    best = search.best_estimator_["skipvae"]
    assert best.depth == search.best_params_["skipvae__depth"]
    assert best.beta == search.best_params_["skipvae__beta"]
    assert len(best.module_.decoder.layers) == best.depth
    # Processes change nothing.
    alone = clone(search).set_params(n_jobs=None).fit(X, u)
    np.testing.assert_array_equal(
        alone.cv_results_["mean_test_score"], results["mean_test_score"]
    )
    np.testing.assert_array_equal(
        alone.best_estimator_[:-1].transform(X),
        search.best_estimator_[:-1].transform(X),
    )


def test_grid_search_by_score_into_a_specification(X):
    search = GridSearchCV(
        VAE(**SMALL, decoder=MLP(width=8)),
        {"decoder__depth": [0, 2], "beta": [0.5, 4.0]},
        cv=FOLDS,
        error_score="raise",
    ).fit(X)
    depth = search.best_params_["decoder__depth"]
    assert len(search.best_estimator_.module_.decoder.hidden) == depth
    for params, score in zip(
        search.cv_results_["params"], search.cv_results_["mean_test_score"], strict=True
    ):
        vae = VAE(**SMALL, decoder=MLP(width=8)).set_params(**params)
        expected = [vae.fit(X[a]).score(X[b]) for a, b in FOLDS.split(X)]
        assert score == pytest.approx(np.mean(expected))
    # The specification that was passed stays as it was.
    assert search.estimator.decoder.depth == 2
    assert search.estimator.decoder.width == 8


def test_grids_reach_every_kind_of_part(X):
    vae = SkipVAE(**SMALL, decoder=Skip(width=8), objective=ELBO())
    search = GridSearchCV(
        vae,
        {"decoder__merge": ["sum", "concat"], "objective__warm_up": [0.0, 0.5]},
        cv=2,
        error_score="raise",
    ).fit(X)
    scores = search.cv_results_["mean_test_score"]
    assert len(set(scores)) == 4
    search = GridSearchCV(
        vae, {"likelihood": ["gaussian"], "n_components": [1, 3]}, cv=2
    ).fit(X)
    assert search.transform(X).shape[1] == search.best_params_["n_components"]


def test_score_does_not_depend_on_beta_or_the_objective(X):
    fitted = VAE(**SMALL).fit(X)
    before = fitted.score(X)
    fitted.set_params(beta=50.0, objective=ELBO(free_bits=3.0))
    assert fitted.score(X) == before


# ------------------------------------------------------------------ feature names


@pytest.mark.parametrize("cls", all_estimators())
def test_names_come_from_the_frame_and_go_into_one(cls, X, u):
    frame = pd.DataFrame(
        X, columns=[f"sensor {k}" for k in range(6)], index=np.arange(len(X)) + 100
    )
    vae = known(cls, **SMALL).fit(frame, u)
    np.testing.assert_array_equal(vae.feature_names_in_, frame.columns)
    n_latents = len(vae.kl_per_component_)
    names = [f"{cls.__name__.lower()}{k}" for k in range(n_latents)]
    assert vae.get_feature_names_out().tolist() == names
    np.testing.assert_array_equal(
        vae.transform(frame), known(cls, **SMALL).fit(X, u).transform(X)
    )
    Z = vae.set_output(transform="pandas").transform(frame)
    assert Z.columns.tolist() == names
    assert (Z.index == frame.index).all()
    Z = known(cls, **SMALL).set_output(transform="pandas").fit_transform(frame, u)
    assert Z.columns.tolist() == names
    assert isinstance(vae.set_output(transform="polars").transform(frame), pl.DataFrame)
    assert isinstance(vae.inverse_transform(Z.to_numpy()), np.ndarray)
    with pytest.raises(ValueError, match="feature names should match"):
        vae.transform(frame[frame.columns[::-1]])


@pytest.mark.parametrize("cls", CONDITIONAL)
def test_set_output_with_u(cls, X, u):
    vae = known(cls, **SMALL).set_output(transform="pandas").fit(X, u=u)
    assert (
        vae.transform(X, u=u).columns.tolist() == vae.get_feature_names_out().tolist()
    )


def test_column_of_a_frame_as_u(X, u):
    frame = pd.DataFrame(X, columns=list("abcdef")).assign(where=NAMES[u])
    features = frame.drop(columns="where")
    vae = iVAE(**SMALL).fit(features, u=frame["where"])
    assert vae.u_categories_.tolist() == sorted(NAMES)
    shuffled = frame.sample(frac=1.0, random_state=0)
    assert vae.score(shuffled[list("abcdef")], u=shuffled["where"]) == pytest.approx(
        vae.score(features, u=frame["where"])
    )


def test_names_through_a_pipeline(X, u):
    frame = pd.DataFrame(X, columns=list("abcdef"))
    pipe = make_pipeline(StandardScaler(), SkipVAE(**SMALL))
    pipe.set_output(transform="pandas")
    Z = pipe.fit_transform(frame, u)
    assert Z.columns.tolist() == ["skipvae0", "skipvae1"]
    np.testing.assert_array_equal(pipe[-1].feature_names_in_, list("abcdef"))
