"""Nothing fails late or quietly: what is refused, in which words, and what remains."""

import warnings
from contextlib import contextmanager

import joblib
import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.base import clone
from sklearn.exceptions import ConvergenceWarning, NotFittedError

from skvae import LIDVAE, VAE, IdentifiableVAE, SkipVAE, all_estimators, iVAE
from skvae._training import NonFiniteLossError
from skvae.inference import Amortized
from skvae.likelihoods import Gaussian
from skvae.networks import MLP, Brenier, Skip
from skvae.objectives import ELBO
from skvae.priors import ConditionalGaussian, GaussianMixture, StandardNormal

# Networks of eight units after a few epochs; collapse is not the subject.
pytestmark = pytest.mark.filterwarnings("ignore::skvae.PosteriorCollapseWarning")

SMALL = {"width": 8, "depth": 1, "max_iter": 3, "n_draws": 10, "random_state": 0}
COUNTS = ["poisson", "negative_binomial"]
COLUMNS = list("abcdef")


def known(cls, **params):
    """An instance with those of the parameters that the class has."""
    names = cls().get_params()
    return cls(**{name: params[name] for name in params if name in names})


@pytest.fixture
def X(small_X):
    return small_X


@pytest.fixture
def y():
    return np.arange(60) % 3


@pytest.fixture
def unit_X():
    return np.random.default_rng(0).random((60, 6))


@pytest.fixture
def counts_X():
    return np.random.default_rng(0).poisson(3.0, (60, 6)).astype(float)


def contents(value):
    """A fingerprint of an attribute, tensors included."""
    if isinstance(value, torch.nn.Module):
        return {k: v.numpy().copy() for k, v in value.state_dict().items()}
    if isinstance(value, dict):
        return {k: contents(v) for k, v in value.items()}
    if isinstance(value, torch.Tensor):
        return value.numpy().copy()
    return value


@contextmanager
def refused(estimator, *words, error=ValueError):
    """The block raises `error`, whose text holds `words`, and changes nothing."""
    attributes = dict(vars(estimator))
    before = joblib.hash({k: contents(v) for k, v in attributes.items()})
    with pytest.raises(error) as caught:
        yield
    missing = [word for word in words if word not in str(caught.value)]
    assert not missing, f"{missing} not in: {caught.value}"
    assert vars(estimator).keys() == attributes.keys()
    changed = [k for k in attributes if vars(estimator)[k] is not attributes[k]]
    assert not changed
    assert joblib.hash({k: contents(v) for k, v in attributes.items()}) == before


@pytest.fixture(params=["unfitted", "fitted"])
def state(request):
    """Makes an estimator that has been fitted on other rows, or has not."""

    def make(estimator, X, y=None):
        if request.param == "fitted":
            estimator.fit(X, y)
        return estimator

    make.fitted = request.param == "fitted"
    return make


def at(X, row, column, value):
    X = X.copy()
    X[row, column] = value
    return X


# ---------------------------------------------------- missing, infinite and too large


@pytest.mark.parametrize("cls", all_estimators())
@pytest.mark.parametrize(
    ("value", "name"), [(np.nan, "NaN"), (np.inf, "infinity"), (-np.inf, "infinity")]
)
def test_missing_and_infinite_values(cls, state, X, y, value, name):
    vae = state(known(cls, **SMALL), X, y)
    bad = at(X, 7, 2, value)
    frame = pd.DataFrame(bad, columns=COLUMNS)
    with refused(vae, name, "column 2", "row 7"):
        vae.fit(bad, y)
    with refused(vae, name, "column 2 ('c')", "row 7"):
        vae.fit(frame, y)
    with refused(vae, name, "column 2"):
        vae.fit_transform(bad, y)
    if not state.fitted:
        with refused(vae, name, "column 2"):
            vae.partial_fit(bad, y)
        return
    expected = vae.transform(X)
    for method in ("transform", "posterior", "score_samples"):
        with refused(vae, name, "column 2", "row 7"):
            getattr(vae, method)(bad)
    with refused(vae, name, "column 2", "row 7"):
        vae.score(bad, y)
    with refused(vae, name):
        vae.inverse_transform([[0.0, value]])
    np.testing.assert_array_equal(vae.transform(X), expected)


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("cls", all_estimators())
def test_values_too_large_for_single_precision(cls, state, X, y, sign):
    vae = state(known(cls, **SMALL), X, y)
    bad = at(X, 7, 2, sign * 1e39)
    words = str(sign * 1e39), "column 2", "row 7", "single precision", "StandardScaler"
    with refused(vae, *words):
        vae.fit(bad, y)
    with refused(vae, "column 2 ('c')"):
        vae.fit(pd.DataFrame(bad, columns=COLUMNS), y)
    if not state.fitted:
        with refused(vae, *words):
            vae.partial_fit(bad, y)
        return
    for method in ("transform", "posterior", "score_samples"):
        with refused(vae, *words):
            getattr(vae, method)(bad)
    with refused(vae, *words):
        vae.score(bad, y)


@pytest.mark.parametrize("likelihood", COUNTS)
def test_counts_too_large_for_single_precision(state, counts_X, likelihood):
    vae = state(VAE(**SMALL, likelihood=likelihood), counts_X)
    bad = at(counts_X, 7, 2, 1e39)
    words = "1e+39", "column 2", "row 7"
    with refused(vae, *words):
        vae.fit(bad)
    if state.fitted:
        with refused(vae, *words):
            vae.transform(bad)
        with refused(vae, *words):
            vae.score(bad)


@pytest.mark.parametrize(
    "lose", [lambda X: X + 1e9, lambda X: X * 1e-60], ids=["offset", "tiny"]
)
def test_what_single_precision_cannot_tell_apart_is_not_learned_from(state, X, lose):
    # All columns vary in double precision and none does in the tensors.
    vae = state(VAE(**SMALL), X)
    with refused(vae, "single precision"):
        vae.fit(lose(X))
    mixed = X.copy()
    mixed[:, 2] = lose(X)[:, 2]
    with pytest.warns(UserWarning, match=r"column 2"):
        vae.fit(mixed)


# -------------------------------------------------------- the domain of a likelihood

OUTSIDE = [
    ("bernoulli", 1.5, "[0, 1]", "MinMaxScaler"),
    ("bernoulli", -0.25, "[0, 1]", "MinMaxScaler"),
    ("poisson", -1.0, "counts 0, 1, 2", "'gaussian'"),
    ("poisson", 0.5, "counts 0, 1, 2", "without scaling"),
    ("negative_binomial", -1.0, "counts 0, 1, 2", "'gaussian'"),
    ("negative_binomial", 0.5, "counts 0, 1, 2", "without scaling"),
]


@pytest.mark.parametrize("cls", [VAE, LIDVAE, iVAE])
@pytest.mark.parametrize(("likelihood", "value", "allowed", "remedy"), OUTSIDE)
def test_values_outside_the_likelihoods_domain(
    cls, state, unit_X, y, likelihood, value, allowed, remedy
):
    good = np.round(unit_X)
    vae = state(known(cls, **SMALL, likelihood=likelihood), good, y)
    bad = at(good, 7, 2, value)
    words = [str(value), "column 2", "row 7", repr(likelihood), allowed, remedy]
    if value < 0:
        words.append("Negative values in data passed to " + cls.__name__)
    with refused(vae, *words):
        vae.fit(bad, y)
    with refused(vae, "column 2 ('c')"):
        vae.fit(pd.DataFrame(bad, columns=COLUMNS), y)
    if not state.fitted:
        with refused(vae, *words):
            vae.partial_fit(bad, y)
        return
    expected = vae.transform(good)
    for method in ("transform", "posterior", "score_samples"):
        with refused(vae, *words):
            getattr(vae, method)(bad)
    with refused(vae, *words):
        vae.score(bad, y)
    np.testing.assert_array_equal(vae.transform(good), expected)


def test_grey_levels_of_bytes_are_told_to_be_divided(unit_X):
    vae = VAE(**SMALL, likelihood="bernoulli")
    with refused(vae, "255"):
        vae.fit((255 * unit_X).astype(np.uint8))


def test_the_edges_of_the_domain_belong_to_it(unit_X):
    edges = at(at(unit_X, 0, 0, 0.0), 1, 1, 1.0 + 1e-9)  # as scalers round
    VAE(**SMALL, likelihood="bernoulli").fit(edges).score(edges)
    VAE(**SMALL, likelihood="poisson").fit(np.round(unit_X)).score(np.round(unit_X))


# --------------------------------------------------------------- too little to learn


@pytest.mark.parametrize("cls", all_estimators())
def test_constant_columns_are_named(cls, X, y):
    constant = X.copy()
    constant[:, [1, 4]] = 3.0
    with pytest.warns(UserWarning, match=r"column 1, column 4\.") as caught:
        known(cls, **SMALL).fit(constant, y)
    assert "VarianceThreshold" in str(caught[0].message)
    with pytest.warns(UserWarning, match=r"column 1 \('b'\), column 4 \('e'\)"):
        known(cls, **SMALL).fit(pd.DataFrame(constant, columns=COLUMNS), y)
    with pytest.warns(UserWarning, match="column 1, column 4"):
        known(cls, **SMALL).partial_fit(constant, y)


def test_many_constant_columns_are_counted(X):
    wide = np.hstack([X, np.ones((60, 9))])
    with pytest.warns(UserWarning, match=r"column 10 and 4 more\."):
        VAE(**SMALL).fit(wide)


def test_constant_pixels_are_usual(unit_X):
    unit_X[:, 0] = 0.0
    VAE(**SMALL, likelihood="bernoulli").fit(unit_X)


@pytest.mark.parametrize("method", ["fit", "partial_fit", "fit_transform"])
def test_the_warning_points_at_the_callers_line(X, method):
    X[:, 1] = 3.0
    with pytest.warns(UserWarning, match="Constant") as caught:
        getattr(VAE(**SMALL), method)(X)
    assert caught[0].filename == __file__


@pytest.mark.parametrize("likelihood", ["gaussian", "bernoulli", *COUNTS])
@pytest.mark.parametrize("cls", all_estimators())
def test_nothing_varies(cls, state, unit_X, y, likelihood):
    vae = state(known(cls, **SMALL, likelihood=likelihood), np.round(unit_X), y)
    words = "Every column", "constant", cls.__name__
    with refused(vae, *words):
        vae.fit(np.ones((60, 6)), y)
    if not state.fitted:
        with refused(vae, *words):
            vae.partial_fit(np.ones((60, 6)), y)


@pytest.mark.parametrize("cls", all_estimators())
def test_too_few_rows_or_columns(cls, state, X, y):
    vae = state(known(cls, **SMALL), X, y)
    with refused(vae, "1 sample", "minimum of 2 is required", cls.__name__):
        vae.fit(X[:1], y[:1])
    with refused(vae, "0 sample", cls.__name__):
        vae.fit(X[:0], y[:0])
    with refused(vae, "0 feature(s)"):
        vae.fit(X[:, :0], y)
    with refused(vae, "Reshape your data"):
        vae.fit(X[:, 0], y)
    if state.fitted:
        with refused(vae, "X has 5 features", "expecting 6 features"):
            vae.transform(X[:, :5])
        with refused(vae, "0 sample"):
            vae.transform(X[:0])
        n_latents = len(vae.kl_per_component_)
        with refused(vae, "3 columns", f"{n_latents} components"):
            vae.inverse_transform(np.zeros((4, 3)))
        assert vae.transform(X[:1]).shape == (1, n_latents)
        assert np.isfinite(vae.score(X[:1], y[:1]))


@pytest.mark.parametrize("cls", all_estimators())
def test_two_rows_are_enough(cls, X, y):
    assert np.isfinite(known(cls, **SMALL).fit(X[:2], y[:2]).transform(X)).all()


@pytest.mark.parametrize("cls", all_estimators())
def test_before_fit_nothing_is_answered(cls, X, y):
    vae = known(cls, **SMALL)
    calls = {
        "transform": lambda: vae.transform(X),
        "posterior": lambda: vae.posterior(X),
        "inverse_transform": lambda: vae.inverse_transform(X[:, :2]),
        "sample": lambda: vae.sample(2),
        "score_samples": lambda: vae.score_samples(X),
        "score": lambda: vae.score(X, y),
        "get_feature_names_out": lambda: vae.get_feature_names_out(),
    }
    for call in calls.values():
        with refused(vae, cls.__name__, "fit", error=NotFittedError):
            call()


# ----------------------------------------------------------------------- auxiliary u

MISSING = {
    "float": np.r_[np.nan, np.arange(59.0)],
    "infinite": np.r_[np.inf, np.arange(59.0)],
    "2-D": np.c_[np.r_[np.nan, np.arange(59.0)], np.ones(60)],
    "object None": np.array([None, *"ab" * 29, "a"], dtype=object),
    "object NaN": np.array([np.nan, *"ab" * 29, "a"], dtype=object),
    "list": [None, *"ab" * 29, "a"],
    "nullable string": pd.Series([None, *"ab" * 29, "a"], dtype="string"),
    "nullable int": pd.Series([None, *[1, 2] * 29, 1], dtype="Int64"),
    "categorical": pd.Series([None, *"ab" * 29, "a"], dtype="category"),
}


@pytest.mark.parametrize("cls", [iVAE, IdentifiableVAE])
@pytest.mark.parametrize("kind", MISSING)
def test_u_with_missing_values(cls, state, X, y, kind):
    vae = state(known(cls, **SMALL), X, y)
    with refused(vae, "u "):
        vae.fit(X, u=MISSING[kind])
    with pytest.raises(ValueError, match=r"\bu\b.*(NaN|missing|infinity)"):
        vae.fit(X, MISSING[kind])


@pytest.mark.parametrize("cls", [iVAE, IdentifiableVAE])
def test_u_of_the_wrong_length(cls, state, X, y):
    vae = state(known(cls, **SMALL), X, y)
    with refused(vae, "u ", "50", "60"):
        vae.fit(X, u=y[:50])
    with refused(vae, "u ", "50", "60"):
        vae.fit(X, u=np.linspace(0, 1, 50))
    if state.fitted:
        expected = vae.transform(X, u=y)
        for method in ("transform", "posterior", "score_samples", "score"):
            with refused(vae, "u ", "50", "60"):
                getattr(vae, method)(X, u=y[:50])
        np.testing.assert_array_equal(vae.transform(X, u=y), expected)


@pytest.mark.parametrize("cls", [iVAE, IdentifiableVAE])
def test_unseen_u(cls, X, y):
    vae = known(cls, **SMALL).fit(X, u=np.array(["red", "green", "blue"])[y])
    other = np.array(["red", "green", "violet"])[y]
    for method in ("transform", "posterior", "score_samples", "score"):
        with refused(vae, "not seen during fit: 'violet'", "Leave u out"):
            getattr(vae, method)(X, u=other)
    with refused(vae, "not seen during fit: 'violet'"):
        vae.sample(u=["violet"])


def test_u_of_another_width(X):
    vae = iVAE(**SMALL).fit(X, u=X[:, :2])
    with refused(vae, "u has 3 columns", "2 were seen"):
        vae.transform(X, u=X[:, :3])


@pytest.mark.parametrize("u", [3, "abc", None])
def test_u_that_is_no_column(state, X, y, u):
    vae = state(iVAE(**SMALL), X, y)
    with refused(vae, error=(TypeError, ValueError)):
        vae.fit(X, u=u)


def test_a_prior_that_needs_u(state, X):
    for prior in ("conditional_gaussian", ConditionalGaussian()):
        vae = state(IdentifiableVAE(**SMALL), X).set_params(prior=prior)
        with refused(vae, "prior=", "neither u nor y", "gaussian_mixture"):
            vae.fit(X)


@pytest.mark.parametrize("cls", [iVAE, IdentifiableVAE])
def test_the_joint_posterior_without_u(cls, X, y):
    vae = known(cls, **SMALL, posterior_type="joint").fit(X, u=y)
    expected = vae.transform(X, u=y)
    for method in ("transform", "posterior", "score_samples"):
        with refused(vae, "u must be passed", "posterior_type='product'"):
            getattr(vae, method)(X)
    np.testing.assert_array_equal(vae.transform(X, u=y), expected)


# --------------------------------------------------------------------------- weights

BAD_WEIGHTS = {
    "zero": (np.zeros(60), ["weight", "zero"]),
    "negative": (np.r_[-1.0, np.ones(59)], ["sample_weight", "negative"]),
    "missing": (np.r_[np.nan, np.ones(59)], ["sample_weight", "NaN"]),
    "infinite": (np.r_[np.inf, np.ones(59)], ["sample_weight", "infinity"]),
    "short": (np.ones(50), ["sample_weight", "50", "60"]),
    "2-D": (np.ones((60, 2)), ["weight", "1D"]),
}


@pytest.mark.parametrize("cls", all_estimators())
@pytest.mark.parametrize("kind", BAD_WEIGHTS)
def test_weights_that_are_none(cls, state, X, y, kind):
    weight, words = BAD_WEIGHTS[kind]
    vae = state(known(cls, **SMALL), X, y)
    with refused(vae, *words):
        vae.fit(X, y, sample_weight=weight)
    if not state.fitted:
        with refused(vae, *words):
            vae.partial_fit(X, y, sample_weight=weight)
        return
    expected = vae.transform(X)
    with refused(vae, *words):
        vae.score(X, y, sample_weight=weight)
    np.testing.assert_array_equal(vae.transform(X), expected)


@pytest.mark.parametrize("unit", [2.0**-160, 2.0**160], ids=["tiny", "huge"])
def test_the_unit_of_the_weights_does_not_matter(X, unit):
    # In single precision these are zero and infinity.
    weight = np.linspace(0.5, 2.0, 60)
    plain = VAE(**SMALL).fit(X, sample_weight=weight)
    scaled = VAE(**SMALL).fit(X, sample_weight=unit * weight)
    np.testing.assert_allclose(scaled.loss_curve_, plain.loss_curve_, rtol=1e-4)
    assert scaled.n_rollbacks_ == 0
    assert scaled.score(X, sample_weight=unit * weight) == pytest.approx(
        plain.score(X, sample_weight=weight), rel=1e-3
    )


# ------------------------------------------------------------------------ parameters


@pytest.mark.parametrize(
    "vae",
    [
        LIDVAE(7, **SMALL),
        LIDVAE(7, decoder="brenier", **SMALL),
        LIDVAE(7, decoder=Brenier(width=8), **SMALL),
        IdentifiableVAE(7, **SMALL),
    ],
    ids=["anchored", "brenier", "specification", "IdentifiableVAE"],
)
def test_injective_decoders_need_as_many_features(state, X, y, vae):
    vae = state(clone(vae).set_params(n_components=2), X, y).set_params(n_components=7)
    with refused(vae, "n_components=7", "n_features=6", "lower n_components"):
        vae.fit(X, y)
    if not state.fitted:
        with refused(vae, "n_components=7", "n_features=6"):
            vae.partial_fit(X, y)
        return
    assert vae.transform(X).shape == (60, 2)


def test_other_decoders_may_have_more_components_than_features(X):
    assert VAE(9, **SMALL).fit_transform(X).shape == (60, 9)


WRONG = [
    (VAE, {"decoder": "resnet"}, ["'decoder'", "VAE", "'mlp'", "Got 'resnet'"]),
    (LIDVAE, {"decoder": "mlp"}, ["'decoder'", "LIDVAE", "'anchored'", "Got 'mlp'"]),
    (VAE, {"encoder": "skip"}, ["'encoder'", "'mlp'", "Got 'skip'"]),
    (VAE, {"likelihood": "normal"}, ["'likelihood'", "'gaussian'", "Got 'normal'"]),
    (VAE, {"objective": "iwae2"}, ["'objective'", "'elbo'", "Got 'iwae2'"]),
    (VAE, {"n_components": 0}, ["'n_components'", "Got 0"]),
    (VAE, {"n_components": 2.0}, ["'n_components'", "Got 2.0"]),
    (VAE, {"beta": -1.0}, ["'beta'", "[0.0, inf)", "Got -1.0"]),
    (VAE, {"beta": "1"}, ["'beta'", "Got '1'"]),
    (VAE, {"learning_rate": 0.0}, ["'learning_rate'", "Got 0.0"]),
    (VAE, {"max_iter": 1.5}, ["'max_iter'", "Got 1.5"]),
    (VAE, {"batch_size": 0}, ["'batch_size'", "'auto'", "Got 0"]),
    (VAE, {"validation_fraction": 1.0}, ["'validation_fraction'", "Got 1.0"]),
    (VAE, {"random_state": "seed"}, ["'random_state'", "Got 'seed'"]),
    (VAE, {"decoder": None}, ["'decoder'", "Got None"]),
    (SkipVAE, {"merge": "add"}, ["'merge'", "'concat'", "Got 'add'"]),
    (LIDVAE, {"inverse_lipschitz": 0.0}, ["'inverse_lipschitz'", "Got 0.0"]),
    (iVAE, {"prior": "standard_normal"}, ["'prior'", "Got 'standard_normal'"]),
    (iVAE, {"u_type": "ordinal"}, ["'u_type'", "'discrete'", "Got 'ordinal'"]),
    (iVAE, {"posterior_type": "sum"}, ["'posterior_type'", "Got 'sum'"]),
]


@pytest.mark.parametrize(("cls", "params", "words"), WRONG)
def test_parameters_out_of_range(cls, params, words, state, X, y):
    vae = state(known(cls, **SMALL), X, y).set_params(**params)
    with refused(vae, "parameter of", *words, error=(ValueError, TypeError)):
        vae.fit(X, y)
    if not state.fitted:
        with refused(vae, *words, error=(ValueError, TypeError)):
            vae.partial_fit(X, y)


# The options of a specification are validated as those of an estimator are.
WRONG_PARTS = [
    ({"decoder": MLP(activation="gelu2")}, ["'activation'", "MLP", "'relu'", "gelu2"]),
    ({"decoder": MLP(width=0)}, ["'width'", "MLP", "0"]),
    ({"encoder": MLP(width="wide")}, ["'width'", "MLP", "'wide'"]),
    ({"decoder": MLP(depth=-1)}, ["'depth'", "MLP", "-1"]),
    ({"decoder": Skip(merge="add")}, ["'merge'", "Skip", "concat", "'add'"]),
    ({"likelihood": Gaussian(noise="none")}, ["'noise'", "Gaussian", "'none'"]),
    ({"likelihood": Gaussian(noise=-1.0)}, ["'noise'", "Gaussian", "-1.0"]),
    ({"likelihood": Gaussian(noise=None)}, ["'noise'", "Gaussian", "None"]),
    ({"objective": ELBO(warm_up=1)}, ["'warm_up'", "ELBO", "Got 1"]),
    ({"objective": ELBO(warm_up=-0.1)}, ["'warm_up'", "ELBO", "Got -0.1"]),
    ({"objective": ELBO(warm_up="0.3")}, ["'warm_up'", "ELBO", "'0.3'"]),
    ({"objective": ELBO(free_bits=-1.0)}, ["'free_bits'", "ELBO", "Got -1.0"]),
    ({"objective": ELBO(free_bits=None)}, ["'free_bits'", "ELBO", "None"]),
]


@pytest.mark.parametrize(("params", "words"), WRONG_PARTS)
def test_options_of_parts_out_of_range(params, words, state, X):
    vae = state(VAE(**SMALL), X).set_params(**params)
    with refused(vae, *words, error=(ValueError, TypeError)):
        vae.fit(X)
    if not state.fitted:
        with refused(vae, *words, error=(ValueError, TypeError)):
            vae.partial_fit(X)


@pytest.mark.parametrize(
    ("options", "word"),
    [({"mean": "free"}, "'mean'"), ({"variance": None}, "'variance'")],
)
def test_options_of_a_prior_out_of_range(options, word, state, X, y):
    vae = state(iVAE(**SMALL), X, y).set_params(prior=ConditionalGaussian(**options))
    with refused(vae, word, "ConditionalGaussian", "Got"):
        vae.fit(X, y)


def test_a_mixture_without_components(state, X):
    vae = state(IdentifiableVAE(**SMALL), X)
    vae.set_params(prior=GaussianMixture(n_mixtures=0))
    with refused(vae, "n_mixtures", "0"):
        vae.fit(X)


@pytest.mark.parametrize(
    ("name", "family", "part"),
    [
        ("decoder", "network", Gaussian()),
        ("decoder", "network", MLP),
        ("likelihood", "likelihood", MLP()),
        ("likelihood", "likelihood", Gaussian),
        ("objective", "objective", Amortized()),
        ("inference", "inference", ELBO()),
    ],
)
def test_a_part_in_the_place_of_another(name, family, part, state, X):
    vae = state(VAE(**SMALL), X).set_params(**{name: part})
    given = part.__name__ if isinstance(part, type) else type(part).__name__
    with pytest.raises((ValueError, TypeError), match=f"{name}|{family}"):
        vae.fit(X)
    with refused(vae, given, error=(ValueError, TypeError)):
        vae.fit(X)


@pytest.mark.parametrize("cls", all_estimators())
def test_partial_fit_excludes_what_needs_all_the_data(cls, state, X, y):
    vae = state(known(cls, **SMALL), X, y)
    for params in ({"early_stopping": True}, {"n_init": 2}):
        vae.set_params(early_stopping=False, n_init=1).set_params(**params)
        with refused(vae, "partial_fit", "early_stopping=False", "n_init=1"):
            vae.partial_fit(X, y)


@pytest.mark.parametrize("cls", all_estimators())
def test_warm_start_excludes_restarts(cls, state, X, y):
    vae = state(known(cls, **SMALL), X, y).set_params(warm_start=True, n_init=2)
    with refused(vae, "warm_start", "n_init=1"):
        vae.fit(X, y)


@pytest.mark.parametrize("prior", ["auto", "gaussian_mixture", GaussianMixture(3)])
def test_free_bits_need_independent_coordinates(state, X, prior):
    vae = state(IdentifiableVAE(**SMALL), X)
    vae.set_params(prior=prior, objective=ELBO(free_bits=0.1))
    with refused(vae, "free_bits", "mixture", "free_bits=0"):
        vae.fit(X)


@pytest.mark.parametrize("n_samples", [-1, 2.5, "3"])
def test_numbers_of_rows_to_sample(X, n_samples):
    vae = VAE(**SMALL).fit(X)
    with refused(vae, "n_samples", repr(n_samples), error=(ValueError, TypeError)):
        vae.sample(n_samples)


# ---------------------------------------------------------------------------- device


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
@pytest.mark.parametrize("device", ["cuda", "cuda:1"])
def test_cuda_where_there_is_none(state, X, device):
    vae = state(VAE(**SMALL), X).set_params(device=device)
    with refused(vae, f"device='{device}'", "no CUDA device", "device='auto'"):
        vae.fit(X)
    if not state.fitted:
        with refused(vae, f"device='{device}'"):
            vae.partial_fit(X)
        return
    expected = clone(vae).set_params(device="cpu").fit(X).transform(X)
    with pytest.warns(UserWarning, match="The CPU is used"):
        Z = vae.transform(X)
    np.testing.assert_array_equal(Z, expected)


@pytest.mark.skipif(torch.backends.mps.is_available(), reason="there is an MPS device")
@pytest.mark.parametrize("device", ["gpu", "cpu:zero", "mps", ""])
def test_devices_that_do_not_exist(state, X, device):
    vae = state(VAE(**SMALL), X).set_params(device=device)
    with refused(vae, f"device={device!r}", "device='auto'"):
        vae.fit(X)
    if state.fitted:
        with pytest.warns(UserWarning, match="The CPU is used"):
            vae.transform(X)


# --------------------------------------------------------------- training that fails


def broken_class(module, **methods):
    """The module with methods replaced; on its class, so that copies have them."""
    namespace = {name: staticmethod(method) for name, method in methods.items()}
    module.__class__ = type("Broken", (type(module),), namespace)
    return module


class Failing(Gaussian):
    """Likelihood whose training turns non-finite in given epochs, counted from one.

    With one batch an epoch, the calls that are differentiated count the epochs.
    """

    def __init__(self, epochs=(), replica=0, how="value", noise="shared"):
        super().__init__(noise)
        self.epochs = epochs
        self.replica = replica
        self.how = how

    def build(self, n_features, n_replicas):
        module = super().build(n_features, n_replicas)
        log_prob, calls = module.log_prob, []

        def failing(x, out):
            value = log_prob(x, out)
            if not torch.is_grad_enabled():
                return value
            calls.append(None)
            if len(calls) not in self.epochs:
                return value
            broken = torch.zeros(n_replicas, 1, device=value.device)
            broken[self.replica] = float("nan")
            if self.how == "gradient":
                value.register_hook(lambda gradient: gradient + broken)
                return value
            return value + broken

        module.__class__ = type(
            "Broken", (type(module),), {"log_prob": staticmethod(failing)}
        )
        return module


class FailingPrior(StandardNormal):
    """The same for the KL term."""

    def __init__(self, epochs=()):
        self.epochs = epochs

    def build(self, n_latents, n_auxiliary, discrete, generators):
        module = super().build(n_latents, n_auxiliary, discrete, generators)
        kl, calls = module.kl, []

        def failing(q, z, u=None):
            value = kl(q, z, u)
            if not torch.is_grad_enabled():
                return value
            calls.append(None)
            return value + float("nan") if len(calls) in self.epochs else value

        module.__class__ = type(
            "Broken", (type(module),), {"kl": staticmethod(failing)}
        )
        return module


ONE_BATCH = {
    **SMALL,
    "batch_size": 60,
    "max_iter": 8,
    "schedule": "constant",
    "learning_rate": 0.01,
}


class Watch:
    """Callback that keeps the codes of some rows after each epoch."""

    def __init__(self, X):
        self.X = X
        self.codes = []

    def setup(self, estimator, context):
        pass

    def teardown(self, estimator, context):
        pass

    def on_fit_task_begin(self, estimator, context):
        pass

    def on_fit_task_end(self, estimator, context, *, fitted_estimator=None):
        if context.task_name == "epoch":
            # Reading the codes evaluates the model without derivatives.
            self.codes.append(np.sort(fitted_estimator.transform(self.X), axis=1))


@pytest.mark.parametrize("how", ["value", "gradient"])
def test_one_failure_is_recovered_from_and_told(X, how):
    vae = VAE(**ONE_BATCH, likelihood=Failing((4,), how=how))
    watch = Watch(X)
    with pytest.warns(ConvergenceWarning, match=r"non-finite 1 time") as caught:
        vae.set_callbacks(watch).fit(X)
    assert "half the learning rate" in str(caught[0].message)
    assert "lower learning_rate" in str(caught[0].message)
    assert caught[0].filename == __file__
    assert vae.n_rollbacks_ == 1
    assert vae.n_iter_ == 8
    # Back to the weights after the third epoch, and on at half the rate.
    np.testing.assert_array_equal(watch.codes[3], watch.codes[2])
    assert np.abs(watch.codes[4] - watch.codes[3]).max() > 1e-4
    rates = vae.history_["learning_rate"]
    assert rates[:3] == [0.01] * 3
    assert rates[4:] == [0.005] * 4
    good = [loss for k, loss in enumerate(vae.loss_curve_) if k != 3]
    assert np.isfinite(good).all()
    assert good[-1] < good[0]
    assert np.isfinite(vae.transform(X)).all()
    assert np.isfinite(vae.best_bound_)


def test_three_failures_are_allowed(X):
    vae = VAE(**ONE_BATCH, likelihood=Failing((2, 4, 5)))
    with pytest.warns(ConvergenceWarning, match=r"non-finite 3 time"):
        vae.fit(X)
    assert vae.n_rollbacks_ == 3
    assert vae.history_["learning_rate"][-1] == pytest.approx(0.01 / 8)
    assert np.isfinite(vae.score(X))


def test_a_failure_in_the_last_epoch_returns_the_last_good_weights(X):
    with pytest.warns(ConvergenceWarning, match="last good weights"):
        vae = VAE(**ONE_BATCH, likelihood=Failing((8,))).fit(X)
    shorter = VAE(**{**ONE_BATCH, "max_iter": 7}).fit(X)
    np.testing.assert_array_equal(vae.transform(X), shorter.transform(X))


FATAL = [
    (VAE, {"likelihood": Failing((2, 3, 4, 6))}, "log-likelihood term"),
    (VAE, {"likelihood": Failing((2, 3, 4, 6), how="gradient")}, "gradient"),
    (IdentifiableVAE, {"prior": FailingPrior((2, 3, 4, 6))}, "KL term"),
]


@pytest.mark.parametrize(("cls", "params", "term"), FATAL)
def test_the_fourth_failure_is_fatal_and_names_term_and_epoch(
    cls, params, term, state, X
):
    vae = state(cls(**ONE_BATCH), X)
    expected = vae.transform(X) if state.fitted else None
    vae.set_params(**params)
    words = f"The {term} became non-finite", "epoch 6", "3 returns", "StandardScaler"
    with refused(vae, *words, "learning_rate", error=NonFiniteLossError):
        vae.fit(X)
    if state.fitted:
        np.testing.assert_array_equal(vae.transform(X), expected)


def test_one_restart_fails_and_the_others_go_on(X):
    # The watched restart is number 0, and number 1 fails.
    untouched, beside = Watch(X), Watch(X)
    two = VAE(**ONE_BATCH, n_init=2)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        clone(two).set_callbacks(untouched).fit(X)
        failing = clone(two).set_params(likelihood=Failing((3,), replica=1))
        failing.set_callbacks(beside).fit(X)
    np.testing.assert_allclose(untouched.codes, beside.codes, rtol=1e-4, atol=1e-5)
    assert np.isfinite(failing.transform(X)).all()


def test_the_failing_restart_alone_is_rolled_back(X):
    watch = Watch(X)
    vae = VAE(**ONE_BATCH, n_init=2, likelihood=Failing((3,), replica=0))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        vae.set_callbacks(watch).fit(X)
    np.testing.assert_array_equal(watch.codes[2], watch.codes[1])
    assert np.abs(watch.codes[3] - watch.codes[2]).max() > 1e-4


def test_a_failing_partial_fit_is_not_silent(X):
    vae = VAE(**ONE_BATCH, likelihood=Failing((1,)))
    with pytest.warns(ConvergenceWarning, match="non-finite"):
        vae.partial_fit(X)
    assert np.isfinite(vae.transform(X)).all()


@pytest.mark.parametrize("cls", all_estimators())
def test_a_senseless_learning_rate(cls, state, X, y):
    vae = state(known(cls, **SMALL), X, y)
    vae.set_params(learning_rate=1e30, max_iter=20)
    words = "became non-finite in epoch", "lower learning_rate"
    with refused(vae, *words, error=NonFiniteLossError):
        vae.fit(X, y)


def test_a_warm_start_does_not_keep_another_likelihood(unit_X):
    # The networks have the same shapes, and their outputs mean something else.
    X = np.round(unit_X)
    vae = VAE(**SMALL, likelihood="bernoulli", warm_start=True).fit(X)
    vae.set_params(likelihood="poisson").fit(X)
    assert vae.sample(500, random_state=0).max() > 1.0


def test_rows_beyond_what_squares_can_hold(state, X):
    # Single precision holds 1e30, not its square; units do not matter all the same.
    vae = state(VAE(**SMALL), X)
    score = clone(vae).fit(X).score(X)
    rescaled = vae.fit(1e30 * X).score(1e30 * X)
    change = X.shape[1] * np.log(1e30)
    assert rescaled + change == pytest.approx(score, abs=0.05)


def test_the_error_of_training_is_a_value_error():
    assert issubclass(NonFiniteLossError, ValueError)
