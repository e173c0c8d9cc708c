"""scikit-learn's callbacks: epochs are tasks that can be shown, judged and stopped."""

import pickle
import re
import warnings

import joblib
import numpy as np
import pytest
import sklearn
import torch
from sklearn.base import clone
from sklearn.callback import ProgressBar, ScoringMonitor
from sklearn.model_selection import GridSearchCV, KFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from skvae import VAE, IdentifiableVAE, all_estimators, iVAE
from skvae.inference import Amortized
from skvae.objectives import ELBO

# Networks of eight units after a few epochs; collapse is not the subject.
pytestmark = pytest.mark.filterwarnings("ignore::skvae.PosteriorCollapseWarning")

SMALL = {"width": 8, "depth": 1, "max_iter": 4, "n_draws": 10, "random_state": 0}
# What a step does then does not depend on how many are to come.
UNSCHEDULED = {
    **SMALL,
    "schedule": "constant",
    "objective": ELBO(),
    "inference": Amortized(unmix=False),
}
ESTIMATORS = pytest.mark.parametrize("cls", all_estimators())


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


class Recorder:
    """Callback that writes down what it is told, and may stop or fail."""

    def __init__(self, stop_at=None, raise_at=None, error=KeyboardInterrupt):
        self.stop_at = stop_at
        self.raise_at = raise_at
        self.error = error
        self.events = []
        self.given = {}

    def setup(self, estimator, context):
        self.events.append("setup")

    def teardown(self, estimator, context):
        self.events.append("teardown")

    def on_fit_task_begin(self, estimator, context, *, X=None, y=None, metadata=None):
        self.events.append(("begin", context.task_name, context.task_id))
        self.given = {"X": X, "y": y, "metadata": metadata}
        self.max_subtasks = getattr(self, "max_subtasks", context.max_subtasks)

    def on_fit_task_end(self, estimator, context):
        self.events.append(("end", context.task_name, context.task_id))
        if context.task_name != "epoch":
            return None
        if context.task_id == self.raise_at:
            raise self.error
        return context.task_id == self.stop_at


class Keeper(Recorder):
    """Also keeps the estimator that is ready as if fit had stopped there."""

    def __init__(self, **options):
        super().__init__(**options)
        self.epochs = []
        self.whole = None

    def on_fit_task_end(self, estimator, context, *, fitted_estimator=None):
        if context.task_name == "epoch":
            self.epochs.append(fitted_estimator)
        else:
            self.whole = fitted_estimator
        return super().on_fit_task_end(estimator, context)


class ReadsAtOnce(Keeper):
    """Answers within the hook, while training goes on."""

    def __init__(self, X, **options):
        super().__init__(**options)
        self.X = X
        self.codes = []

    def on_fit_task_end(self, estimator, context, *, fitted_estimator=None):
        self.codes.append(fitted_estimator.transform(self.X))
        fitted_estimator.score_samples(self.X)
        fitted_estimator.sample(2, random_state=0)
        return super().on_fit_task_end(
            estimator, context, fitted_estimator=fitted_estimator
        )


# ------------------------------------------------------------------- what is told


@ESTIMATORS
def test_epochs_are_the_tasks(cls, X, y):
    recorder = Recorder()
    known(cls, **SMALL).set_callbacks(recorder).fit(X, y)
    epochs = [(kind, "epoch", k) for k in range(4) for kind in ("begin", "end")]
    assert recorder.events == [
        "setup",
        ("begin", "fit", 0),
        *epochs,
        ("end", "fit", 0),
        "teardown",
    ]
    assert recorder.max_subtasks == 4


@ESTIMATORS
def test_callbacks_are_given_the_data(cls, X, y):
    recorder = Recorder()
    vae = known(cls, **SMALL).set_callbacks(recorder).fit(X.astype(np.float32), y)
    np.testing.assert_array_equal(recorder.given["X"], X.astype(np.float32))
    np.testing.assert_array_equal(recorder.given["y"], y)
    # As in scikit-learn: only what was passed, so that scorers need not know it all.
    assert not recorder.given["metadata"]
    weight = np.linspace(1, 2, 60)
    vae.fit(X, y, sample_weight=weight)
    assert list(recorder.given["metadata"]) == ["sample_weight"]
    np.testing.assert_array_equal(recorder.given["metadata"]["sample_weight"], weight)


@pytest.mark.parametrize("cls", [iVAE, IdentifiableVAE])
def test_callbacks_are_given_u(cls, X, y):
    recorder = Recorder()
    known(cls, **SMALL).set_callbacks(recorder).fit(X, u=y)
    assert list(recorder.given["metadata"]) == ["u"]
    np.testing.assert_array_equal(recorder.given["metadata"]["u"], y)


@ESTIMATORS
def test_watching_changes_nothing(cls, X, y):
    plain = known(cls, **SMALL).fit(X, y)
    watched = known(cls, **SMALL).set_callbacks(ReadsAtOnce(X)).fit(X, y)
    assert watched.loss_curve_ == plain.loss_curve_
    np.testing.assert_array_equal(watched.transform(X), plain.transform(X))
    traces = {"_skl_callbacks"}
    assert vars(watched).keys() - vars(plain).keys() == traces
    assert watched.get_params() == plain.get_params()


def test_fitted_estimators_are_made_only_for_who_asks(X, monkeypatch):
    made = []
    original = VAE._fitted_state
    monkeypatch.setattr(
        VAE,
        "_fitted_state",
        lambda self, *args: made.append(None) or original(self, *args),
    )
    VAE(**SMALL).set_callbacks(Recorder()).fit(X)
    assert len(made) == 1
    VAE(**SMALL).set_callbacks(Keeper(), Keeper()).fit(X)
    assert len(made) == 1 + 5


def test_callbacks_survive_clones_and_further_fits(X):
    recorder = Recorder()
    vae = clone(VAE(**SMALL).set_callbacks(recorder))
    vae.fit(X).fit(X)
    assert recorder.events.count("setup") == recorder.events.count("teardown") == 2
    vae.set_callbacks().fit(X)
    assert recorder.events.count("setup") == 2
    assert not any("callback" in name for name in vars(vae))


def test_an_estimator_with_callbacks_pickles(X):
    vae = VAE(**SMALL).set_callbacks(Keeper()).fit(X)
    again = pickle.loads(pickle.dumps(vae))
    np.testing.assert_array_equal(again.transform(X), vae.transform(X))
    again.fit(X)


# -------------------------------------------------------- estimators within training


@ESTIMATORS
def test_each_epoch_offers_an_estimator_that_is_ready(cls, X, y):
    keeper, reader = Keeper(), ReadsAtOnce(X)
    vae = known(cls, **UNSCHEDULED).set_callbacks(keeper, reader).fit(X, y)
    assert len(keeper.epochs) == 4
    for k, fitted in enumerate(keeper.epochs):
        assert type(fitted) is cls
        assert fitted is not vae
        # Later epochs leave it alone.
        np.testing.assert_array_equal(fitted.transform(X), reader.codes[k])
        # It is what a shorter fit gives.
        short = known(cls, **UNSCHEDULED).set_params(max_iter=k + 1).fit(X, y)
        np.testing.assert_array_equal(fitted.transform(X), short.transform(X))
        assert fitted.score(X, y) == short.score(X, y)
        np.testing.assert_array_equal(
            fitted.inverse_transform(reader.codes[k]),
            short.inverse_transform(reader.codes[k]),
        )
        np.testing.assert_array_equal(
            fitted.sample(3, random_state=0), short.sample(3, random_state=0)
        )
        np.testing.assert_array_equal(
            fitted.get_feature_names_out(), short.get_feature_names_out()
        )
    np.testing.assert_array_equal(keeper.whole.transform(X), vae.transform(X))


def test_estimators_within_a_refit_are_of_the_new_data(X):
    keeper = Keeper()
    vae = VAE(**SMALL).fit(X)
    vae.set_callbacks(keeper).fit(X[:, :4])
    assert keeper.epochs[0].transform(X[:, :4]).shape == (60, 2)
    assert keeper.epochs[0].n_features_in_ == 4


@pytest.mark.filterwarnings("ignore:max_iter=4 was reached")
def test_estimators_within_early_stopping_and_restarts(X):
    for params in ({"early_stopping": True}, {"n_init": 2}, {"warm_start": True}):
        keeper = Keeper()
        VAE(**SMALL, **params).set_callbacks(keeper).fit(X)
        assert np.isfinite(keeper.epochs[-1].transform(X)).all()


# -------------------------------------------------------------------------- stopping


@ESTIMATORS
def test_true_stops_training(cls, X, y):
    recorder = Recorder(stop_at=1)
    vae = known(cls, **UNSCHEDULED).set_callbacks(recorder).fit(X, y)
    assert vae.n_iter_ == 2
    assert len(vae.loss_curve_) == 2
    assert recorder.events[-2:] == [("end", "fit", 0), "teardown"]
    short = known(cls, **UNSCHEDULED).set_params(max_iter=2).fit(X, y)
    np.testing.assert_array_equal(vae.transform(X), short.transform(X))


def test_one_of_several_callbacks_may_stop(X):
    first, second = Recorder(stop_at=0), Recorder()
    vae = VAE(**SMALL).set_callbacks(first, second).fit(X)
    assert vae.n_iter_ == 1
    assert second.events == first.events


def test_a_stop_by_a_callback_is_not_a_lack_of_epochs(X):
    vae = VAE(**SMALL, early_stopping=True).set_callbacks(Recorder(stop_at=1))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", "[0-9]+ of [0-9]+ components")
        vae.fit(X)
    assert vae.n_iter_ == 2
    assert len(vae.validation_scores_) == 2


# ------------------------------------------------------------------ interrupted fits


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
@pytest.mark.parametrize("keeper", [Recorder, Keeper])
@ESTIMATORS
def test_an_interrupted_fit_leaves_the_object_as_it_was(cls, keeper, error, X, y):
    callback = keeper(raise_at=1, error=error)
    unfitted = known(cls, **SMALL).set_callbacks(callback)
    before = dict(vars(unfitted))
    with pytest.raises(error):
        unfitted.fit(X, y)
    assert vars(unfitted) == before
    assert callback.events[-1] == "teardown"

    fitted = known(cls, **SMALL).fit(X, y).set_callbacks(callback)
    before = dict(vars(fitted))
    codes, score = fitted.transform(X), fitted.score(X, y)
    with pytest.raises(error):
        fitted.fit(3.0 * X[:, :5], y)
    assert vars(fitted).keys() == before.keys()
    assert all(vars(fitted)[name] is before[name] for name in before)
    np.testing.assert_array_equal(fitted.transform(X), codes)
    assert fitted.score(X, y) == score
    # The next fit is not disturbed.
    callback.raise_at = None
    again = known(cls, **SMALL).fit(X, y)
    np.testing.assert_array_equal(fitted.fit(X, y).transform(X), again.transform(X))


def test_an_interrupted_warm_start_keeps_the_earlier_weights(X):
    vae = VAE(**SMALL, warm_start=True).fit(X)
    codes, losses = vae.transform(X), list(vae.loss_curve_)
    vae.set_callbacks(Recorder(raise_at=2))
    with pytest.raises(KeyboardInterrupt):
        vae.fit(X)
    np.testing.assert_array_equal(vae.transform(X), codes)
    assert vae.loss_curve_ == losses


def test_an_interrupted_partial_fit_keeps_the_earlier_weights(X, monkeypatch):
    vae = VAE(**SMALL).partial_fit(X)
    codes, losses = vae.transform(X), list(vae.loss_curve_)
    pristine = pickle.loads(pickle.dumps(vae))

    def interrupt(*args):
        raise KeyboardInterrupt

    # After the pass, when the model has moved and the results are put together.
    with monkeypatch.context() as patch:
        patch.setattr(VAE, "_fitted_state", interrupt)
        with pytest.raises(KeyboardInterrupt):
            vae.partial_fit(X)
    np.testing.assert_array_equal(vae.transform(X), codes)
    assert vae.loss_curve_ == losses
    vae.partial_fit(X)
    pristine.partial_fit(X)
    np.testing.assert_array_equal(vae.transform(X), pristine.transform(X))


def test_an_error_in_teardown_or_setup_is_not_swallowed(X):
    class Clumsy(Recorder):
        def setup(self, estimator, context):
            raise RuntimeError("no display")

    vae = VAE(**SMALL).set_callbacks(Clumsy())
    before = dict(vars(vae))
    with pytest.raises(RuntimeError, match="no display"):
        vae.fit(X)
    assert vars(vae) == before


def test_a_warning_turned_into_an_error_leaves_the_object_as_it_was(X):
    vae = VAE(**SMALL, early_stopping=True)
    before = dict(vars(vae))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(UserWarning, match=r"max_iter=4 was reached|inactive"):
            vae.fit(X)
    assert vars(vae) == before


# ----------------------------------------------------------------------- ProgressBar


@ESTIMATORS
def test_a_progress_bar_shows_epochs(cls, X, y, capsys):
    vae = known(cls, **SMALL).set_callbacks(ProgressBar())
    plain = known(cls, **SMALL).fit(X, y)
    np.testing.assert_array_equal(vae.fit(X, y).transform(X), plain.transform(X))
    shown = capsys.readouterr().out
    assert f"{cls.__name__} - fit" in shown
    assert "100%" in shown


@pytest.mark.parametrize("n_jobs", [1, 2])
def test_a_progress_bar_on_a_search_shows_our_fits(X, y, capsys, n_jobs):
    search = GridSearchCV(
        VAE(**SMALL),
        {"beta": [0.5, 1.0]},
        cv=KFold(2),
        n_jobs=n_jobs,
        error_score="raise",
    )
    expected = clone(search).set_params(n_jobs=1).fit(X).cv_results_
    capsys.readouterr()
    search.set_callbacks(ProgressBar(max_propagation_depth=None)).fit(X)
    shown = re.sub(r"\s+", " ", capsys.readouterr().out)
    assert "GridSearchCV - fit" in shown
    assert "VAE - fit" in shown
    assert "100%" in shown
    np.testing.assert_array_equal(
        search.cv_results_["mean_test_score"], expected["mean_test_score"]
    )
    assert not any("callback" in name for name in vars(search.best_estimator_))


def test_a_progress_bar_reaches_through_a_pipeline(X, y, capsys):
    pipe = make_pipeline(StandardScaler(), VAE(**SMALL))
    if not hasattr(pipe, "set_callbacks"):
        pytest.skip("this scikit-learn's Pipeline takes no callbacks")
    pipe.set_callbacks(ProgressBar(max_propagation_depth=None)).fit(X, y)
    assert "VAE" in capsys.readouterr().out


def test_a_progress_bar_ends_when_fit_is_interrupted(X, capsys):
    bar = ProgressBar()
    vae = VAE(**SMALL).set_callbacks(bar, Recorder(raise_at=1))
    with pytest.raises(KeyboardInterrupt):
        vae.fit(X)
    assert "VAE - fit" in capsys.readouterr().out
    # The display is closed: a second one can open.
    vae.set_callbacks(bar).fit(X)


# -------------------------------------------------------------------- ScoringMonitor


def log_likelihood(estimator, X, y, **metadata):
    return estimator.score(X, y, **metadata)


def codes_spread(estimator, X, y):
    return float(estimator.transform(X).std())


@pytest.mark.parametrize("routing", [False, True])
@ESTIMATORS
def test_a_scoring_monitor_follows_training(cls, X, y, routing):
    with sklearn.config_context(enable_metadata_routing=routing):
        monitor, keeper = ScoringMonitor(scoring={"spread": codes_spread}), Keeper()
        vae = known(cls, **SMALL).set_callbacks(monitor, keeper).fit(X, y)
        rows = monitor.get_logs().data
        epochs = [row["spread"] for row in rows if row["task_name"] == "epoch"]
        expected = [codes_spread(fitted, X, y) for fitted in keeper.epochs]
        assert epochs == expected
        whole = [row["spread"] for row in rows if row["task_name"] == "fit"]
        assert whole == [codes_spread(vae, X, y)]


@ESTIMATORS
def test_a_scoring_monitor_of_the_log_likelihood(cls, X, y):
    monitor, keeper = ScoringMonitor(scoring={"score": log_likelihood}), Keeper()
    vae = known(cls, **{**SMALL, "max_iter": 12})
    vae.set_callbacks(monitor, keeper).fit(X, y)
    rows = monitor.get_logs().data
    epochs = [row["score"] for row in rows if row["task_name"] == "epoch"]
    assert epochs == [fitted.score(X, y) for fitted in keeper.epochs]
    assert epochs[-1] > epochs[0]
    monitor = ScoringMonitor(scoring={"score": log_likelihood})
    vae.set_callbacks(monitor)
    if "u" in vae.get_metadata_routing().consumes("fit", ["u"]):
        vae.fit(X, y, u=y)
        last = monitor.get_logs().data[-1]["score"]
        assert vae.score(X, u=y) in {last, monitor.get_logs().data[0]["score"]}


def test_a_scoring_monitor_within_a_search(X, y):
    monitor = ScoringMonitor(scoring={"spread": codes_spread})
    search = GridSearchCV(
        VAE(**SMALL).set_callbacks(monitor),
        {"beta": [0.5, 1.0]},
        cv=2,
        error_score="raise",
    ).fit(X, y)
    runs = monitor.get_logs(select="all")
    rows = [row for run in runs for row in run.data if row["task_name"] == "epoch"]
    # Two candidates on two folds, and the refit.
    assert len(rows) == 5 * 4
    assert np.isfinite([row["spread"] for row in rows]).all()
    assert search.best_estimator_.n_iter_ == 4


# ------------------------------------------------------------------- parallel places


def test_callbacks_and_threads(X):
    """Fits in threads share no state but the callback."""
    vaes = [VAE(**{**SMALL, "random_state": seed}) for seed in range(3)]
    expected = [clone(vae).fit(X).transform(X) for vae in vaes]
    before = torch.get_rng_state()
    results = joblib.Parallel(n_jobs=3, backend="threading")(
        joblib.delayed(lambda vae: vae.set_callbacks(Keeper()).fit(X).transform(X))(vae)
        for vae in vaes
    )
    np.testing.assert_array_equal(results, expected)
    assert torch.equal(before, torch.get_rng_state())
