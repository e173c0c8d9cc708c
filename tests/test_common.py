"""What every estimator promises: scikit-learn's checks, and those it does not have."""

import copy
import io
import pickle
import random
import warnings

import joblib
import numpy as np
import pandas as pd
import pytest
import sklearn.utils.estimator_checks as checks
import torch
from sklearn.base import clone, is_clusterer
from sklearn.exceptions import InconsistentVersionWarning
from sklearn.utils.estimator_checks import parametrize_with_checks

from skvae import (
    LIDVAE,
    VAE,
    IdentifiableVAE,
    PosteriorCollapseWarning,
    SkipVAE,
    all_estimators,
)
from skvae.estimators import _base

# The data of scikit-learn's checks are a few rows of noise, with constant columns.
pytestmark = [
    pytest.mark.filterwarnings("ignore::skvae.PosteriorCollapseWarning"),
    pytest.mark.filterwarnings("ignore:Constant features in X:UserWarning"),
]

EXPECTED_FAILURES = {
    "check_sample_weight_equivalence_on_dense_data": (
        "minibatch noise: a repeated row is drawn twice, a row of weight two once"
    ),
}

# Demanded of scikit-learn's own estimators, and left out of `check_estimator`.
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
    "check_estimators_partial_fit_n_features",
]

SMALL = {"width": 8, "depth": 1, "max_iter": 3, "n_draws": 10, "random_state": 0}

# Beside the defaults, the choices that change what happens in training.
CONFORMING = [(cls, {}) for cls in all_estimators()] + [
    (SkipVAE, {"merge": "concat"}),
    (LIDVAE, {"decoder": "brenier"}),
    (IdentifiableVAE, {"prior": "gaussian_mixture"}),
]

# Several restarts exclude `partial_fit`, which scikit-learn's checks call.
CASES = [*CONFORMING, (VAE, {"n_init": 2})]


def small(cls, **params):
    """An instance that trains in milliseconds."""
    known = cls().get_params()
    estimator = cls(**{name: SMALL[name] for name in SMALL if name in known})
    return estimator.set_params(**params)


def case_id(case):
    cls, params = case
    return cls.__name__ + "".join(f"-{name}-{params[name]}" for name in params)


@pytest.fixture(params=CASES, ids=case_id)
def estimator(request):
    cls, params = request.param
    return small(cls, **params)


@pytest.fixture
def X(small_X):
    return small_X


@pytest.fixture
def y():
    return np.arange(60) % 3


def outputs(fitted, X, y):
    """Everything a fitted estimator answers, as arrays."""
    Z = fitted.transform(X)
    return {
        "transform": Z,
        "posterior mean": fitted.posterior(X)[0],
        "posterior std": fitted.posterior(X)[1],
        "inverse_transform": fitted.inverse_transform(Z),
        "score_samples": fitted.score_samples(X),
        "score": fitted.score(X, y),
        "sample": fitted.sample(5, random_state=3),
        "kl_per_component_": fitted.kl_per_component_,
        "loss_curve_": fitted.loss_curve_,
    }


def assert_equal(first, second):
    assert first.keys() == second.keys()
    for name in first:
        np.testing.assert_array_equal(first[name], second[name], err_msg=name)


# ------------------------------------------------------------ scikit-learn's checks


@parametrize_with_checks(
    [small(cls, **params) for cls, params in CONFORMING],
    expected_failed_checks=lambda estimator: EXPECTED_FAILURES,
    xfail_strict=True,
)
def test_sklearn_compatible(estimator, check):
    check(estimator)


# These compare data frames with arrays on purpose, as they do for PCA.
@pytest.mark.filterwarnings("ignore:X does not have valid feature names:UserWarning")
@pytest.mark.filterwarnings("ignore:X has feature names, but:UserWarning")
@pytest.mark.parametrize("name", EXTRA_CHECKS)
@pytest.mark.parametrize("cls", all_estimators())
def test_checks_left_out_of_check_estimator(cls, name):
    getattr(checks, name)(cls.__name__, small(cls))


def test_the_extra_checks_are_the_ones_left_out():
    for cls in all_estimators():
        yielded = {
            getattr(check, "func", check).__name__
            for _, check in checks.estimator_checks_generator(small(cls))
        }
        # One of them is yielded to clusterers.
        assert is_clusterer(cls()) or not yielded & set(EXTRA_CHECKS)
        assert set(EXTRA_CHECKS) - yielded
        assert set(EXPECTED_FAILURES) <= yielded


@pytest.mark.parametrize("cls", all_estimators())
def test_init_stores_the_very_objects_and_nothing_else(cls):
    params = {name: object() for name in cls().get_params()}
    given = cls(**params).get_params(deep=False)
    assert all(given[name] is params[name] for name in params)
    assert set(vars(cls(**params))) == set(params)


# --------------------------------------------------------------------- determinism


def test_refit_clone_and_fit_transform_agree_bit_for_bit(estimator, X, y):
    fitted = estimator.fit(X, y)
    first = outputs(fitted, X, y)
    assert_equal(first, outputs(clone(fitted).fit(X, y), X, y))
    assert_equal(first, outputs(fitted.fit(X, y), X, y))
    np.testing.assert_array_equal(clone(fitted).fit_transform(X, y), first["transform"])


def test_fit_forgets_earlier_data_and_partial_fits(estimator, X, y):
    expected = outputs(clone(estimator).fit(X, y), X, y)
    estimator.fit(X[:40, :4] * 3.0, y[:40])
    assert_equal(expected, outputs(estimator.fit(X, y), X, y))
    if estimator.n_init == 1:
        other = clone(estimator).partial_fit(X[:40, :4], y[:40])
        assert_equal(expected, outputs(other.fit(X, y), X, y))


def test_answers_are_bit_identical_on_repeat(estimator, X, y):
    estimator.fit(X, y)
    assert_equal(outputs(estimator, X, y), outputs(estimator, X, y))
    single = X.astype(np.float32)
    assert_equal(outputs(estimator, single, y), outputs(estimator, single, y))


def test_the_seed_decides_and_nothing_else(estimator, X, y):
    np.random.seed(1)  # noqa: NPY002
    torch.manual_seed(1)
    random.seed(1)
    first = estimator.fit(X, y).transform(X)
    np.random.seed(2)  # noqa: NPY002
    torch.manual_seed(2)
    random.seed(2)
    np.testing.assert_array_equal(first, clone(estimator).fit(X, y).transform(X))
    other = clone(estimator).set_params(random_state=1).fit(X, y).transform(X)
    assert np.abs(first - other).max() > 1e-3


def test_a_random_state_instance_advances(estimator, X, y):
    estimator.set_params(random_state=np.random.RandomState(0))
    first = estimator.fit(X, y).transform(X)
    second = estimator.fit(X, y).transform(X)
    assert np.abs(first - second).max() > 1e-3
    fresh = clone(estimator).set_params(random_state=np.random.RandomState(0))
    np.testing.assert_array_equal(first, fresh.fit(X, y).transform(X))


def global_state():
    name, keys, *rest = np.random.get_state()  # noqa: NPY002
    return {
        "numpy": (name, keys.tobytes(), *rest),
        "torch": torch.get_rng_state().numpy().tobytes(),
        "python": random.getstate(),
        "threads": torch.get_num_threads(),
        "interop threads": torch.get_num_interop_threads(),
        "dtype": torch.get_default_dtype(),
        "gradients": torch.is_grad_enabled(),
        "numpy errors": np.geterr(),
        "print options": str(np.get_printoptions()),
        "warning filters": list(warnings.filters),
    }


def test_global_state_is_untouched(estimator, X, y):
    fitted = clone(estimator).fit(X, y)
    Z = np.zeros((4, fitted.transform(X).shape[1]))
    actions = {
        "fit": lambda: clone(estimator).fit(X, y),
        "fit_transform": lambda: clone(estimator).fit_transform(X, y),
        "transform": lambda: fitted.transform(X),
        "posterior": lambda: fitted.posterior(X),
        "inverse_transform": lambda: fitted.inverse_transform(Z),
        "score": lambda: fitted.score(X, y),
        "score_samples": lambda: fitted.score_samples(X),
        "sample": lambda: fitted.sample(3, random_state=0),
    }
    if estimator.n_init == 1:
        actions["partial_fit"] = lambda: clone(estimator).partial_fit(X, y)
    for name, action in actions.items():
        before = global_state()
        action()
        after = global_state()
        changed = [key for key in before if before[key] != after[key]]
        assert not changed, f"{name} changed {changed}"


def test_without_a_seed_torch_is_still_untouched(estimator, X, y):
    before = torch.get_rng_state()
    estimator.set_params(random_state=None).fit(X, y).sample(2)
    assert torch.equal(before, torch.get_rng_state())


# ------------------------------------------------------------------------ restarts


class KeepLast:
    """Callback that keeps the estimator of the last epoch, restart number 0."""

    def __init__(self):
        self.seen = None

    def setup(self, estimator, context):
        pass

    def teardown(self, estimator, context):
        pass

    def on_fit_task_begin(self, estimator, context):
        pass

    def on_fit_task_end(self, estimator, context, *, fitted_estimator=None):
        if context.task_name == "epoch":
            self.seen = fitted_estimator


@pytest.mark.parametrize("cls", all_estimators())
def test_the_first_restart_is_the_fit_without_restarts(cls, X, y):
    # At a small rate, where differences by rounding do not grow.
    one = small(cls, learning_rate=1e-3).fit(X, y)
    keep = KeepLast()
    three = small(cls, n_init=3, learning_rate=1e-3).set_callbacks(keep).fit(X, y)
    np.testing.assert_allclose(
        keep.seen.transform(X), one.transform(X), rtol=1e-3, atol=1e-4
    )
    assert three.best_bound_ >= one.best_bound_ - 1e-3
    assert three.consistency_.shape == (one.transform(X).shape[1],)
    assert not hasattr(one, "consistency_")
    # Some restart differs, or the comparison above says nothing.
    others = [
        small(cls, n_init=3, random_state=seed).fit(X, y).best_bound_
        - small(cls, random_state=seed).fit(X, y).best_bound_
        for seed in range(4)
    ]
    assert max(others) > 1e-2


@pytest.mark.parametrize("cls", all_estimators())
def test_restarts_train_without_warnings_from_torch(cls, X, y):
    torch.set_warn_always(True)  # else it warns once in a process
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            small(cls, n_init=2).fit(X, y)
    finally:
        torch.set_warn_always(False)
    told = [w for w in caught if w.category is not PosteriorCollapseWarning]
    assert not [str(w.message) for w in told]


# ----------------------------------------------------------------- arrays in and out


def layouts(X, folder):
    """The same numbers in every layout an array may have."""
    locked = X.copy()
    locked.flags.writeable = False
    np.save(folder / "X.npy", X)
    wide = np.zeros((X.shape[0], 2 * X.shape[1]), dtype=X.dtype)
    wide[:, ::2] = X
    return {
        "read-only": locked,
        "Fortran": np.asfortranarray(X),
        "memory map": np.load(folder / "X.npy", mmap_mode="r"),
        "strided": wide[:, ::2],
        "list": X.tolist(),
        "frame": pd.DataFrame(X),
    }


def test_layout_and_container_do_not_matter(estimator, X, y, tmp_path):
    expected = outputs(clone(estimator).fit(X, y), X, y)
    y.flags.writeable = False
    for name, same in layouts(X, tmp_path).items():
        fitted = clone(estimator).fit(same, y)
        actual = outputs(fitted, same, y)
        for key in expected:
            np.testing.assert_array_equal(
                actual[key], expected[key], err_msg=f"{name}, {key}"
            )


def test_the_callers_arrays_are_not_written_to(estimator, X, y):
    weight = np.linspace(0.5, 1.5, len(X))
    copies = X.copy(), y.copy(), weight.copy()
    estimator.fit(X, y, sample_weight=weight)
    Z = estimator.transform(X)
    kept = Z.copy()
    estimator.inverse_transform(Z)
    estimator.score(X, y, sample_weight=weight)
    for array, before in zip((X, y, weight, Z), (*copies, kept), strict=True):
        np.testing.assert_array_equal(array, before)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_outputs_have_the_dtype_of_the_input(estimator, X, y, dtype):
    X = X.astype(dtype)
    estimator.fit(X, y)
    Z = estimator.transform(X)
    assert Z.dtype == dtype
    assert clone(estimator).fit_transform(X, y).dtype == dtype
    assert {part.dtype for part in estimator.posterior(X)} == {np.dtype(dtype)}
    assert estimator.inverse_transform(Z).dtype == dtype
    assert isinstance(estimator.score(X, y), float)


def test_precision_follows_the_input_not_the_training_data(estimator, X, y):
    estimator.fit(X.astype(np.float32), y)
    double, single = estimator.transform(X), estimator.transform(X.astype(np.float32))
    assert double.dtype == np.float64
    assert single.dtype == np.float32
    np.testing.assert_allclose(double, single, rtol=1e-3, atol=1e-4)
    # Double precision is computed and not merely labelled.
    assert np.abs(double - double.astype(np.float32)).max() > 0


@pytest.mark.parametrize("cls", all_estimators())
def test_bytes_are_accepted_and_stay_bytes_until_the_batch(cls, y):
    X = np.random.default_rng(0).integers(0, 256, size=(60, 6), dtype=np.uint8)
    as_bytes = small(cls).fit(X, y)
    as_floats = small(cls).fit(X.astype(np.float32), y)
    assert as_bytes.loss_curve_ == as_floats.loss_curve_
    Z = as_bytes.transform(X)
    assert Z.dtype == np.float32
    np.testing.assert_array_equal(Z, as_floats.transform(X.astype(np.float32)))
    assert as_bytes.score(X, y) == pytest.approx(as_floats.score(X * 1.0, y), rel=1e-4)


def test_rows_do_not_depend_on_their_chunk(estimator, X, y, monkeypatch):
    estimator.fit(X, y)
    many = np.tile(X, (100, 1))  # more than one chunk of inference
    mean, std = estimator.posterior(many)
    for big, part in zip((mean, std), estimator.posterior(X), strict=True):
        np.testing.assert_allclose(big[-60:], part, rtol=1e-9, atol=1e-9)
        np.testing.assert_allclose(big[4080:4140], part, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(
        estimator.inverse_transform(mean)[-60:],
        estimator.inverse_transform(mean[:60]),
        rtol=1e-9,
        atol=1e-9,
    )
    scores, mean_score = estimator.score_samples(X), estimator.score(X, y)
    monkeypatch.setattr(_base, "SCORE_ELEMENTS", 10 * 8 * 7)  # seven rows at a time
    np.testing.assert_allclose(estimator.score_samples(X), scores, rtol=1e-9)
    assert estimator.score(X, y) == pytest.approx(mean_score, rel=1e-5)


def test_score_does_not_depend_on_the_precision_of_x(estimator, X, y):
    estimator.fit(X, y)
    assert estimator.score(X, y) == estimator.score(X.astype(np.float32), y)


# ------------------------------------------------------------------- saving, copying


def joblib_round_trip(fitted, folder, **options):
    joblib.dump(fitted, folder / "model.joblib")
    return joblib.load(folder / "model.joblib", **options)


def test_pickles_copies_and_joblib_files_answer_alike(estimator, X, y, tmp_path):
    fitted = estimator.fit(X, y)
    expected = outputs(fitted, X, y)
    copies = {
        "pickle": pickle.loads(pickle.dumps(fitted)),
        "deepcopy": copy.deepcopy(fitted),
        "joblib": joblib_round_trip(fitted, tmp_path),
        "joblib, memory-mapped": joblib_round_trip(fitted, tmp_path, mmap_mode="r"),
    }
    for name, again in copies.items():
        assert vars(again).keys() == vars(fitted).keys(), name
        assert_equal(expected, outputs(again, X, y))
        assert_equal(expected, outputs(clone(again).fit(X, y), X, y))


@pytest.mark.parametrize("cls", all_estimators())
def test_partial_fit_continues_after_pickling(cls, X, y):
    kept = small(cls).partial_fit(X[:30], y[:30])
    again = pickle.loads(pickle.dumps(kept))
    assert_equal(
        outputs(kept.partial_fit(X[30:], y[30:]), X, y),
        outputs(again.partial_fit(X[30:], y[30:]), X, y),
    )
    # It is not the first pass over again.
    assert kept.n_iter_ == 2
    fresh = small(cls).partial_fit(X[30:], y[30:])
    assert np.abs(fresh.transform(X) - kept.transform(X)).max() > 1e-3


@pytest.mark.parametrize("cls", all_estimators())
def test_partial_fit_goes_on_from_a_fit(cls, X, y):
    fitted = small(cls, max_iter=10).fit(X, y)
    before = fitted.transform(X)
    fitted.partial_fit(X[:20], y[:20])
    # One pass over twenty rows moves little; starting anew moves everything.
    fresh = small(cls).partial_fit(X[:20], y[:20]).transform(X)
    moved = np.abs(fitted.transform(X) - before).mean()
    assert 0 < moved < 0.5 * np.abs(fresh - before).mean()


def test_the_state_holds_no_gradients_and_rests_on_the_cpu(estimator, X, y):
    estimator.fit(X, y)
    tensors = [*estimator.module_.parameters(), *estimator.module_.buffers()]
    assert all(t.device.type == "cpu" for t in tensors)
    assert not any(t.requires_grad or t.grad is not None for t in tensors)
    size = len(pickle.dumps(estimator))
    expected = sum(t.numel() * t.element_size() for t in tensors)
    # Views of a buffer for all restarts would carry the whole buffer along.
    buffer = io.BytesIO()
    torch.save(estimator.module_.state_dict(), buffer)
    assert size < 3 * max(expected, len(buffer.getvalue()))


def test_a_pickle_of_another_version_warns(X, y):
    fitted = small(VAE).fit(X, y)
    fitted._skvae_version = "0.0.1"
    saved = pickle.dumps(fitted)
    with pytest.warns(InconsistentVersionWarning, match=r"VAE.*0\.0\.1"):
        pickle.loads(saved)


# -------------------------------------------------------------------- sample weights


def test_weights_of_ones_are_no_weights(estimator, X, y):
    plain = outputs(clone(estimator).fit(X, y), X, y)
    ones = clone(estimator).fit(X, y, sample_weight=np.ones(len(X)))
    assert_equal(plain, outputs(ones, X, y))
    assert ones.score(X, y, sample_weight=np.ones(len(X))) == plain["score"]


def test_only_ratios_of_weights_count(estimator, X, y):
    weight = np.linspace(0.5, 2.0, len(X))
    first = outputs(clone(estimator).fit(X, y, sample_weight=weight), X, y)
    # A power of two, so that rounding is the same.
    scaled = outputs(clone(estimator).fit(X, y, sample_weight=4.0 * weight), X, y)
    assert_equal(first, scaled)
    plain = clone(estimator).fit(X, y).transform(X)
    assert np.abs(plain - first["transform"]).max() > 1e-3


def test_score_weighs_the_rows(estimator, X, y):
    estimator.fit(X, y)
    weight = np.zeros(len(X))
    weight[[3, 7]] = 1.0, 3.0
    expected = np.average(
        [estimator.score(X[[i]], y[[i]]) for i in (3, 7)], weights=[1, 3]
    )
    actual = estimator.score(X, y, sample_weight=weight)
    assert actual == pytest.approx(expected, rel=1e-6)


@pytest.fixture
def two_groups():
    """Rows in two groups that lie along different directions."""
    rng = np.random.default_rng(0)
    along = rng.standard_normal((80, 2)) * [2.0, 1.5]
    directions = np.zeros((2, 2, 6))
    directions[0, 0, 0] = directions[0, 1, 1] = 1.0
    directions[1, 0, 4] = directions[1, 1, 5] = 1.0
    group = np.repeat([0, 1], 40)
    X = np.einsum("ik,ikp->ip", along, directions[group])
    X += 0.3 * rng.standard_normal(X.shape) + group[:, None] * 1.5
    return X, group


def full_batch(estimator, rows, X, y, sample_weight=None):
    batch_size = len(rows)
    estimator = clone(estimator).set_params(batch_size=batch_size, max_iter=15)
    return estimator.fit(X[rows], y[rows], sample_weight=sample_weight)


@pytest.mark.usefixtures("without_noise")
def test_weights_equal_repetitions_where_there_is_no_noise(estimator, two_groups):
    """Replaces scikit-learn's equivalence check, which minibatches cannot pass."""
    X, group = two_groups
    y = np.arange(len(X)) % 2
    weight = np.where(group == 1, 5, 1)
    everything = np.arange(len(X))
    repeated = np.repeat(everything, weight)
    weighted = full_batch(estimator, everything, X, y, weight)
    by_repetition = full_batch(estimator, repeated, X, y)
    plain = full_batch(estimator, everything, X, y)
    Z = by_repetition.transform(X)
    apart = np.abs(plain.transform(X) - Z).max()
    assert apart > 0.1
    assert np.abs(weighted.transform(X) - Z).max() < 0.01 * apart
    assert weighted.best_bound_ == pytest.approx(by_repetition.best_bound_, rel=1e-3)
    np.testing.assert_allclose(
        weighted.loss_curve_, by_repetition.loss_curve_, rtol=1e-3
    )
    np.testing.assert_allclose(
        weighted.kl_per_component_, by_repetition.kl_per_component_, rtol=1e-2
    )


@pytest.mark.usefixtures("without_noise")
def test_rows_of_weight_zero_are_absent(estimator, two_groups):
    X, group = two_groups
    y = np.arange(len(X)) % 2
    everything, kept = np.arange(len(X)), np.flatnonzero(group == 1)
    masked = full_batch(estimator, everything, X, y, (group == 1).astype(float))
    removed = full_batch(estimator, kept, X, y)
    plain = full_batch(estimator, everything, X, y)
    Z = removed.transform(X)
    apart = np.abs(plain.transform(X) - Z).max()
    assert apart > 0.1
    assert np.abs(masked.transform(X) - Z).max() < 0.01 * apart
    np.testing.assert_allclose(masked.loss_curve_, removed.loss_curve_, rtol=1e-3)
    np.testing.assert_allclose(
        masked.kl_per_component_, removed.kl_per_component_, rtol=1e-2
    )
    np.testing.assert_array_equal(masked.active_components_, removed.active_components_)


def test_weights_equal_repetitions_up_to_noise(two_groups):
    """With the noise, in the scores of two groups of rows, over two seeds."""
    X, group = two_groups
    weight = np.where(group == 1, 5, 1)
    repeated = np.repeat(np.arange(len(X)), weight)

    def scores(rows, sample_weight):
        fits = [
            small(
                VAE,
                max_iter=250,
                batch_size=len(rows),
                learning_rate=0.01,
                random_state=seed,
            ).fit(X[rows], sample_weight=sample_weight)
            for seed in range(2)
        ]
        return np.mean([[f.score(X[group == g]) for g in (0, 1)] for f in fits], axis=0)

    everything = np.arange(len(X))
    weighted = scores(everything, weight)
    by_repetition = scores(repeated, None)
    effect = np.abs(weighted - scores(everything, None)).max()
    assert effect > 0.5
    assert np.abs(weighted - by_repetition).max() < 0.25 * effect


@pytest.mark.parametrize("batch_size", [1, 4, "auto"])
def test_a_batch_may_hold_no_weight_at_all(X, y, batch_size):
    weight = np.zeros(len(X))
    weight[:8] = 1.0
    fitted = small(VAE, batch_size=batch_size, max_iter=8)
    fitted.fit(X, y, sample_weight=weight)
    assert fitted.n_rollbacks_ == 0
    assert np.isfinite(fitted.loss_curve_).all()
    assert np.isfinite(fitted.transform(X)).all()
