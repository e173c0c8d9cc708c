"""The batched grid search: scikit-learn's results, with the networks side by side.

Batched matrix products may add in another order than single ones, so scores agree to
rounding, which a few epochs of training leave far below the tolerance used here.
"""

import pickle
import threading
import time
import warnings

import numpy as np
import pytest
import sklearn
import torch
from joblib import parallel_config
from joblib.parallel import get_active_backend
from sklearn.base import BaseEstimator, TransformerMixin, clone
from sklearn.exceptions import FitFailedWarning
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, KFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from skvae import LIDVAE, VAE, IdentifiableVAE, all_estimators, iVAE
from skvae._batches import Data
from skvae.estimators import _stacking
from skvae.estimators._stacking import stack, train_together
from skvae.inference import Lagging, SemiAmortized
from skvae.likelihoods import Gaussian
from skvae.model_selection import BatchedGridSearchCV, _batching
from skvae.model_selection._fibers import Cancelled, Fiber
from skvae.objectives import ELBO, IWAE, TotalCorrelation

pytestmark = pytest.mark.filterwarnings(
    "ignore::skvae.PosteriorCollapseWarning",
    "ignore::sklearn.exceptions.ConvergenceWarning",
)

SMALL = {"width": 8, "depth": 1, "max_iter": 3, "n_draws": 10, "random_state": 0}
FOLDS = KFold(3, shuffle=True, random_state=0)
BETAS = {"beta": [0.5, 4.0]}


def both(estimator, grid, X, y=None, *, fit=None, **options):
    """The batched search and scikit-learn's, both fitted."""
    searches = []
    for cls in (BatchedGridSearchCV, GridSearchCV):
        search = cls(clone(estimator), grid, cv=FOLDS, **options)
        searches.append(search.fit(X, y, **(fit or {})))
    return searches


def assert_same_results(batched, single):
    got, expected = batched.cv_results_, single.cv_results_
    assert got.keys() == expected.keys()
    assert got["params"] == expected["params"]
    for name in expected:
        if "test_" in name or "train_" in name:
            # Ranks and scores near zero, as of accuracies, are compared absolutely.
            np.testing.assert_allclose(
                got[name], expected[name], rtol=1e-4, atol=1e-4, err_msg=name
            )


def sizes(search):
    return sorted(batch["n_replicas"] for batch in search.batches_)


def assert_every_fit_once(search):
    fits = [fit for batch in search.batches_ for fit in batch["fits"]]
    n_candidates = len(search.cv_results_["params"])
    expected = [(c, s) for c in range(n_candidates) for s in range(search.n_splits_)]
    assert sorted(fits) == expected
    assert search.unstacked_ == []


# ------------------------------------------------------------------------ equality


@pytest.mark.parametrize(
    ("estimator", "grid"),
    [
        (VAE(**SMALL), {"beta": [0.5, 4.0], "learning_rate": [1e-3, 1e-2]}),
        (VAE(**SMALL), {"random_state": [0, 1, 2]}),
        (VAE(**SMALL), {"objective": [ELBO(), ELBO(0.5), ELBO(0.9)]}),
        (VAE(**SMALL), {"likelihood": [Gaussian(0.3), Gaussian(1.0)]}),
        (VAE(**SMALL, objective=TotalCorrelation()), BETAS),
        (VAE(**SMALL, objective=IWAE(3)), BETAS),
        (VAE(**SMALL, inference=SemiAmortized(2), objective=ELBO(0.5)), BETAS),
        (VAE(**SMALL, inference=Lagging(5, 2, 1)), BETAS),
        (LIDVAE(**SMALL, decoder="brenier"), BETAS),
        (IdentifiableVAE(**SMALL, decoder="flow", learning_rate=1e-3), BETAS),
    ],
    ids=str,
)
def test_one_batch_has_the_scores_of_separate_fits(estimator, grid, small_X):
    batched, single = both(estimator, grid, small_X)
    assert_same_results(batched, single)
    assert_every_fit_once(batched)
    assert len(batched.batches_) == 1


@pytest.mark.parametrize("cls", all_estimators())
def test_every_estimator_shares_a_batch_among_folds(cls, segments):
    names = cls().get_params()
    estimator = cls(**{name: value for name, value in SMALL.items() if name in names})
    batched, single = both(estimator, {"learning_rate": [5e-4, 1e-3]}, *segments)
    assert_same_results(batched, single)
    assert_every_fit_once(batched)
    assert len(batched.batches_) == 1


def test_a_batch_reads_as_many_rows_at_once_as_a_fit_alone(small_X):
    models = [VAE(**SMALL).fit(scale * small_X).module_ for scale in (1.0, 2.0)]
    assert stack(models).frame.centre.shape == (2, 1, small_X.shape[1])
    assert stack(models).rows_at_once(1 << 30) == models[0].rows_at_once(1 << 30)


def test_refit_best_and_transform_are_scikit_learns(small_X):
    batched, single = both(VAE(**SMALL), BETAS, small_X, return_train_score=True)
    assert_same_results(batched, single)
    assert batched.best_params_ == single.best_params_
    assert batched.best_index_ == single.best_index_
    assert batched.best_score_ == pytest.approx(single.best_score_, rel=1e-4)
    # The refit trains alone, so it is the same to the last bit.
    np.testing.assert_array_equal(batched.transform(small_X), single.transform(small_X))
    assert batched.score(small_X) == single.score(small_X)


@pytest.mark.parametrize(
    ("objective", "expected"), [("elbo", [6]), (TotalCorrelation(), [2, 4])]
)
def test_folds_that_differ_by_a_row_share_a_batch(objective, expected, small_X):
    """Unless the rows of a batch are judged together."""
    vae = VAE(**SMALL, objective=objective)
    batched, single = both(vae, BETAS, small_X[:59])
    assert_same_results(batched, single)
    assert_every_fit_once(batched)
    assert sizes(batched) == expected


@pytest.mark.parametrize("cls", all_estimators())
def test_every_estimator_has_its_scores_with_folds_that_differ(cls, segments):
    """A step of another size rounds otherwise, which flows show in the fourth digit."""
    names = cls().get_params()
    options = {**SMALL, "batch_size": 64}
    estimator = cls(**{name: value for name, value in options.items() if name in names})
    rows = [part[:-1] for part in segments]
    batched, single = both(estimator, {"learning_rate": [5e-4, 1e-3]}, *rows)
    for split in range(3):
        name = f"split{split}_test_score"
        found, expected = batched.cv_results_[name], single.cv_results_[name]
        np.testing.assert_allclose(found, expected, rtol=5e-4, atol=1e-3)


def test_few_rows_are_filled_up_to_many():
    data = [Data(torch.randn(n, 2), None, torch.ones(n)) for n in (60, 20)]
    whole = _stacking.pooled(data, [1, 2])
    assert whole.n_rows == 60
    assert whole.own_rows(3) == [60, 20, 20]
    assert whole.total_weight().tolist() == [60.0, 20.0, 20.0]


def test_rows_that_fill_up_a_batch_are_not_seen(small_X, monkeypatch):
    """Not even where they are extreme: they have no weight."""
    vae = VAE(**SMALL)
    expected = both(vae, BETAS, small_X[:59])[0].cv_results_["mean_test_score"]
    padded = _stacking._padded

    def spoiled(data, n_rows):
        found = padded(data, n_rows)
        found.x[data.n_rows :] *= 3.0
        return found

    monkeypatch.setattr(_stacking, "_padded", spoiled)
    found = both(vae, BETAS, small_X[:59])[0].cv_results_["mean_test_score"]
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_depth_and_width_in_the_grid_make_batches_of_their_own(small_X):
    grid = {"depth": [1, 2], "width": [4, 8], **BETAS}
    batched, single = both(VAE(**SMALL), grid, small_X)
    assert_same_results(batched, single)
    assert_every_fit_once(batched)
    assert sizes(batched) == [6, 6, 6, 6]


def test_restarts_are_replicas_and_equal_those_of_a_single_fit(small_X):
    batched, single = both(VAE(**SMALL, n_init=2), BETAS, small_X)
    assert_same_results(batched, single)
    assert sizes(batched) == [12]
    np.testing.assert_array_equal(
        batched.best_estimator_.consistency_, single.best_estimator_.consistency_
    )


@pytest.mark.parametrize("n_init", [1, 2])
def test_early_stopping_stops_every_fit_where_it_would_alone(n_init, small_X):
    vae = VAE(**{**SMALL, "max_iter": 40, "learning_rate": 0.05}, n_init=n_init)
    vae.set_params(early_stopping=True, n_iter_no_change=2)
    fitted = {}

    def remember(estimator, X, y=None):
        fitted.setdefault(estimator.random_state, []).append(estimator.n_iter_)
        return estimator.score(X)

    grid = {"random_state": [0, 1, 2, 3]}
    batched, single = both(vae, grid, small_X, scoring=remember, refit=False)
    assert_same_results(batched, single)
    epochs = {seed: (n[:3], n[3:]) for seed, n in fitted.items()}
    assert all(together == alone for together, alone in epochs.values())
    assert len({n for together, _ in epochs.values() for n in together}) > 1


def test_history_is_that_of_the_fit_alone(small_X):
    histories = []

    def remember(estimator, X, y=None):
        histories.append(estimator.history_)
        return 0.0

    vae = VAE(**SMALL, objective=ELBO(warm_up=0.5))
    both(vae, {**BETAS, "learning_rate": [1e-3, 1e-2]}, small_X, scoring=remember,
         refit=False)  # fmt: skip
    together, alone = histories[:12], histories[12:]
    assert {tuple(h["kl_weight"]) for h in together} == {
        tuple(h["kl_weight"]) for h in alone
    }
    for one, other in zip(together, alone, strict=True):
        assert one.keys() == other.keys()
        for name in one.keys() - {"seconds"}:
            np.testing.assert_allclose(one[name], other[name], rtol=1e-4, err_msg=name)


def test_max_replicas_bounds_the_batches(small_X):
    grid = {"random_state": list(range(5))}
    search = BatchedGridSearchCV(VAE(**SMALL), grid, cv=FOLDS, max_replicas=4)
    search.fit(small_X)
    assert_every_fit_once(search)
    assert sizes(search) == [3, 4, 4, 4]


def test_pre_dispatch_bounds_the_fits_on_their_way(small_X):
    grid = {"random_state": list(range(4))}
    search = BatchedGridSearchCV(VAE(**SMALL), grid, cv=FOLDS, pre_dispatch=5)
    search.fit(small_X)
    assert_every_fit_once(search)
    assert max(sizes(search)) == 5


@pytest.mark.parametrize("value", [0, "many", 2.5])
def test_an_invalid_max_replicas_is_named(value, small_X):
    search = BatchedGridSearchCV(VAE(**SMALL), BETAS, max_replicas=value)
    with pytest.raises(ValueError, match="max_replicas"):
        search.fit(small_X)


# --------------------------------------------------------------- pipelines, metadata


@pytest.mark.parametrize("scoring", ["accuracy", ["accuracy", "neg_log_loss"]])
def test_pipeline_with_scaler_and_probe(scoring, segments):
    X, y = segments
    pipeline = make_pipeline(StandardScaler(), VAE(**SMALL), LogisticRegression())
    grid = {"vae__beta": [0.5, 4.0], "logisticregression__C": [0.1, 10.0]}
    refit = "accuracy" if isinstance(scoring, list) else True
    batched, single = both(pipeline, grid, X, y, scoring=scoring, refit=refit)
    assert_same_results(batched, single)
    assert_every_fit_once(batched)
    np.testing.assert_array_equal(batched.predict(X), single.predict(X))


@pytest.mark.parametrize("estimator", [iVAE(**SMALL), IdentifiableVAE(**SMALL)])
@pytest.mark.parametrize("routing", [False, True], ids=["routing off", "routing on"])
def test_u_and_sample_weight_are_split_with_the_rows(estimator, routing, segments):
    X, u = segments
    weight = np.random.default_rng(0).uniform(0.5, 2.0, len(X))
    with sklearn.config_context(enable_metadata_routing=routing):
        if routing:
            estimator = clone(estimator).set_fit_request(sample_weight=True)
            estimator.set_score_request(sample_weight=True)
        fit = {"u": u, "sample_weight": weight}
        # Without routing the scorer gets no u, and so y stands in for it.
        batched, single = both(estimator, BETAS, X, u, fit=fit)
    assert_same_results(batched, single)
    assert_every_fit_once(batched)


def test_continuous_u_is_standardised_by_fold(segments):
    X, u = segments
    batched, single = both(iVAE(**SMALL, u_type="continuous"), BETAS, X, u * 0.1)
    assert_same_results(batched, single)
    assert sizes(batched) == [6]


class WithoutNetwork(TransformerMixin, BaseEstimator):
    """Scores by a parameter alone."""

    def __init__(self, value=1.0):
        self.value = value

    def fit(self, X, y=None):
        return self

    def score(self, X, y=None):
        return self.value


class KeepsBackend(WithoutNetwork):
    """Remembers the joblib backend that nested work would use."""

    def fit(self, X, y=None):
        self.backend_ = type(get_active_backend()[0])
        return self


def test_nested_work_of_the_refit_has_the_backend_of_the_caller(small_X):
    pipeline = make_pipeline(VAE(**SMALL), KeepsBackend())
    search = BatchedGridSearchCV(pipeline, {"vae__beta": [1.0]}, cv=FOLDS)
    search.fit(small_X)
    expected = type(get_active_backend()[0])
    assert search.best_estimator_[-1].backend_ is expected


def test_estimators_without_networks_fall_back_and_it_is_said(small_X):
    search = BatchedGridSearchCV(WithoutNetwork(), {"value": [1.0, 3.0]}, cv=FOLDS)
    with pytest.warns(UserWarning, match="6 of 6 fits trained one by one"):
        search.fit(small_X)
    assert search.best_params_ == {"value": 3.0}
    assert search.batches_ == []
    assert search.unstacked_ == [(c, s) for c in range(2) for s in range(3)]


def test_a_part_that_cannot_be_stacked_trains_alone(small_X, monkeypatch):
    from skvae.networks._layers import DenseNetwork

    monkeypatch.setattr(DenseNetwork, "stackable", False, raising=False)
    vae = VAE(**SMALL)
    single = GridSearchCV(vae, BETAS, cv=FOLDS).fit(small_X)
    with pytest.warns(UserWarning, match="one by one"):
        batched = BatchedGridSearchCV(vae, BETAS, cv=FOLDS).fit(small_X)
    assert_same_results(batched, single)
    assert sizes(batched) == [1] * 6


# ------------------------------------------------------------------------ processes


def test_processes_divide_the_fits_and_give_the_same_scores(small_X):
    grid = {"depth": [1, 2], **BETAS}
    # Folds of 39 and 40 training rows: more than one size in every process.
    X = small_X[:59]
    alone = BatchedGridSearchCV(VAE(**SMALL), grid, cv=FOLDS).fit(X)
    divided = BatchedGridSearchCV(VAE(**SMALL), grid, cv=FOLDS, n_jobs=2).fit(X)
    assert_same_results(divided, alone)
    assert_every_fit_once(divided)
    assert len(divided.batches_) > len(alone.batches_)
    numbers = [
        {3 * candidate + split for candidate, split in batch["fits"]}
        for batch in divided.batches_
    ]
    # Tasks are dealt out in turn, so that no batch mixes even and odd ones.
    assert all(len({number % 2 for number in batch}) == 1 for batch in numbers)


def test_a_joblib_context_sets_the_number_of_processes(small_X, monkeypatch):
    seen = []
    divide = _batching.BatchingBackend._divide
    monkeypatch.setattr(
        _batching.BatchingBackend,
        "_divide",
        lambda backend: (seen.append(backend.n_processes), divide(backend)),
    )
    search = BatchedGridSearchCV(VAE(**SMALL), BETAS, cv=FOLDS, refit=False)
    with parallel_config("threading", n_jobs=2):
        search.fit(small_X)
    assert seen == [2]
    assert_every_fit_once(search)
    search.fit(small_X)
    assert seen == [2]


def test_what_becomes_of_fits_in_other_processes_comes_back(small_X):
    grid = {"n_components": [2, 7], **BETAS}
    options = {"cv": FOLDS, "refit": False, "n_jobs": 2}
    search = BatchedGridSearchCV(LIDVAE(**SMALL), grid, error_score=-1e6, **options)
    with pytest.warns(FitFailedWarning, match="6 fits failed out of a total of 12"):
        search.fit(small_X)
    assert search.unstacked_ == []
    search.set_params(error_score="raise")
    with pytest.raises(ValueError, match="lower n_components"):
        search.fit(small_X)
    without = BatchedGridSearchCV(WithoutNetwork(), {"value": [1.0, 3.0]}, **options)
    with pytest.warns(UserWarning, match="6 of 6 fits trained one by one"):
        without.fit(small_X)


# ------------------------------------------------------------------------- failures


def test_failing_candidates_get_error_score_and_the_others_train(small_X):
    grid = {"n_components": [2, 7], **BETAS}
    # An injective decoder to six features has at most six latents.
    results = []
    for cls in (BatchedGridSearchCV, GridSearchCV):
        search = cls(LIDVAE(**SMALL), grid, cv=FOLDS, error_score=-1e6)
        with pytest.warns(FitFailedWarning, match="6 fits failed out of a total of 12"):
            results.append(search.fit(small_X))
    assert_same_results(*results)
    assert results[0].unstacked_ == []


def test_an_error_of_a_whole_batch_is_told_once(small_X, monkeypatch):
    def broken(requests):
        raise RuntimeError("out of memory")

    monkeypatch.setattr(_batching, "train_together", broken)
    search = BatchedGridSearchCV(VAE(2, **SMALL), {"beta": [1.0, 2.0]}, cv=3)
    with pytest.raises(ValueError, match="All the 6 fits failed") as raised:
        search.fit(small_X)
    assert str(raised.value).count("RuntimeError: out of memory") == 1


def test_divergence_of_one_candidate_leaves_its_batch_alone(small_X):
    grid = {"learning_rate": [1e-3, 1e30]}
    vae = VAE(**{**SMALL, "max_iter": 8})
    results = []
    for cls in (BatchedGridSearchCV, GridSearchCV):
        search = cls(vae, grid, cv=FOLDS, error_score=-1e6)
        with pytest.warns(FitFailedWarning, match="became non-finite"):
            results.append(search.fit(small_X))
    assert_same_results(*results)
    assert sizes(results[0]) == [6]
    assert results[0].cv_results_["mean_test_score"][1] == -1e6


def test_errors_are_raised_on_request_and_no_thread_is_left(small_X):
    before = threading.active_count()
    search = BatchedGridSearchCV(
        LIDVAE(**SMALL), {"n_components": [2, 7]}, cv=FOLDS, error_score="raise"
    )
    with pytest.raises(ValueError, match="lower n_components"):
        search.fit(small_X)
    assert threading.active_count() == before
    assert not hasattr(search, "_batching")


def test_interruption_ends_every_fit(small_X):
    before = threading.active_count()

    def interrupt(estimator, X, y=None):
        raise KeyboardInterrupt

    search = BatchedGridSearchCV(VAE(**SMALL), BETAS, cv=FOLDS, scoring=interrupt)
    with pytest.raises(KeyboardInterrupt):
        search.fit(small_X)
    assert threading.active_count() == before


# ------------------------------------------------------------------------ callbacks


class Recorder:
    """Counts the epochs of every fit, and stops after some of them."""

    def __init__(self, n_epochs=None):
        self.n_epochs, self.log = n_epochs, []

    def setup(self, estimator, context):
        self.log.append(("setup", context.task_name))

    def on_fit_task_begin(self, estimator, context):
        pass

    def on_fit_task_end(self, estimator, context, *, X=None, fitted_estimator=None):
        if context.task_name != "epoch":
            return False
        # As if training had stopped here.
        self.log.append(("codes", float(fitted_estimator.transform(X).sum())))
        return self.n_epochs is not None and context.task_id + 1 >= self.n_epochs

    def teardown(self, estimator, context):
        self.log.append(("teardown", context.task_name))


@pytest.mark.parametrize("n_epochs", [None, 2])
def test_callbacks_see_every_epoch_and_can_stop(n_epochs, small_X):
    logs, results = [], []
    for cls in (BatchedGridSearchCV, GridSearchCV):
        recorder = Recorder(n_epochs)
        vae = VAE(**SMALL).set_callbacks(recorder)
        results.append(cls(vae, BETAS, cv=FOLDS, refit=False).fit(small_X))
        logs.append(recorder.log)
    assert_same_results(*results)
    codes = [sorted(v for name, v in log if name == "codes") for log in logs]
    assert len(codes[0]) == 6 * (n_epochs or SMALL["max_iter"])
    np.testing.assert_allclose(*codes, rtol=1e-3, atol=1e-3)
    names = [sorted(name for name, _ in log) for log in logs]
    assert names[0] == names[1]


def test_a_failing_callback_fails_its_own_fit(small_X):
    class Failing(Recorder):
        def on_fit_task_end(self, estimator, context):
            if context.task_name == "epoch" and estimator.beta > 1:
                raise RuntimeError("no more")

    vae = VAE(**SMALL).set_callbacks(Failing())
    search = BatchedGridSearchCV(vae, BETAS, cv=FOLDS, error_score=0.0, refit=False)
    with pytest.warns(FitFailedWarning, match="no more"):
        search.fit(small_X)
    scores = search.cv_results_["mean_test_score"]
    assert scores[1] == 0.0
    assert scores[0] != 0.0


# --------------------------------------------------------------------- the estimator


def test_clone_pickle_and_repr(small_X):
    search = BatchedGridSearchCV(VAE(**SMALL), BETAS, cv=FOLDS, max_replicas=4)
    assert clone(search).get_params()["max_replicas"] == 4
    assert "max_replicas=4" in repr(search)
    search.fit(small_X)
    restored = pickle.loads(pickle.dumps(search))
    np.testing.assert_array_equal(
        restored.transform(small_X), search.transform(small_X)
    )
    assert restored.batches_ == search.batches_


def test_the_same_search_twice_is_the_same_to_the_last_bit(small_X):
    search = BatchedGridSearchCV(VAE(**SMALL), BETAS, cv=FOLDS)
    first = search.fit(small_X).cv_results_["mean_test_score"]
    second = search.fit(small_X).cv_results_["mean_test_score"]
    np.testing.assert_array_equal(first, second)


def test_only_training_computes_in_parallel(small_X, monkeypatch):
    """Teams of OpenMP in every waiting thread would slow training down."""
    seen = {"train": [], "score": []}

    def counted(requests):
        seen["train"].append(torch.get_num_threads())
        return train_together(requests)

    def scoring(estimator, X, y=None):
        seen["score"].append(torch.get_num_threads())
        return estimator.score(X)

    monkeypatch.setattr(_batching, "train_together", counted)
    torch.set_num_threads(2)
    try:
        search = BatchedGridSearchCV(VAE(**SMALL), BETAS, cv=FOLDS, scoring=scoring)
        search.fit(small_X)
        later = threading.Thread(
            target=lambda: seen.update(later=torch.get_num_threads())
        )
        later.start()
        later.join()
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(1)
    assert seen == {"train": [2], "score": [1] * 6, "later": 2}


def test_no_global_state_is_left(small_X):
    torch_state = torch.get_rng_state()
    filters, show = list(warnings.filters), warnings.showwarning
    BatchedGridSearchCV(VAE(**SMALL), BETAS, cv=FOLDS).fit(small_X)
    assert torch.equal(torch_state, torch.get_rng_state())
    assert warnings.filters == filters
    assert warnings.showwarning is show


def test_fit_times_are_shares_of_the_batch(small_X, monkeypatch):
    def slowly(requests):
        time.sleep(0.5)
        return train_together(requests)

    monkeypatch.setattr(_batching, "train_together", slowly)
    search = BatchedGridSearchCV(VAE(**SMALL), BETAS, cv=FOLDS).fit(small_X)
    trained = sum(batch["seconds"] for batch in search.batches_)
    times = search.cv_results_["mean_fit_time"] * search.n_splits_
    assert (search.cv_results_["mean_fit_time"] > 0).all()
    assert times.sum() >= trained
    # Waiting for the others is not a fit's own time.
    assert times.sum() < 2 * trained + 1


def test_verbose_says_how_fits_were_grouped(small_X, capsys):
    search = BatchedGridSearchCV(VAE(**SMALL), BETAS, cv=FOLDS, verbose=1)
    search.fit(small_X)
    assert "Trained 6 fits, 6 replicas" in capsys.readouterr().out


# --------------------------------------------------------------------------- fibers


def test_a_fiber_pauses_answers_and_raises():
    def work(fiber):
        first = fiber.ask("one")
        try:
            fiber.ask(first + 1)
        except ValueError as error:
            return str(error)

    fiber = Fiber(work)
    fiber.resume()
    assert (fiber.asked, fiber.done) == ("one", False)
    fiber.resume(41)
    assert fiber.asked == 42
    fiber.resume(ValueError("told"))
    assert (fiber.done, fiber.result) == (True, "told")


def test_a_closed_fiber_runs_its_finally_blocks():
    ended = []

    def work(fiber):
        try:
            fiber.ask("forever")
        except Exception:
            ended.append("caught")
        finally:
            ended.append("ended")

    fiber = Fiber(work)
    fiber.resume()
    fiber.close()
    assert ended == ["ended"]
    assert isinstance(fiber.error, Cancelled)


def test_warning_filters_belong_to_the_fiber_that_sets_them():
    before = list(warnings.filters)
    seen = []

    def work(fiber):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            fiber.ask("inside")
            seen.append(warnings.filters[0][0])
            warnings.warn("unheard", stacklevel=1)

    fibers = [Fiber(work), Fiber(work)]
    for fiber in fibers:
        fiber.resume()
        assert warnings.filters == before
    # First in, first out: the order in which nested contexts would break.
    for fiber in fibers:
        fiber.resume()
        assert warnings.filters == before
    assert seen == ["ignore", "ignore"]
    assert [fiber.error for fiber in fibers] == [None, None]
