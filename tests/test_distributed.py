"""Training by two processes of one group: the numbers of one process, up to rounding.

The same file is the program of the two processes: each fits all cases under a gloo
group and writes down what came out.
"""

import os
import pickle
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from joblib import parallel_config
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from skvae import LIDVAE, TCL, VAE, MixtureVAE, SequenceVAE, iVAE
from skvae._distributed import ALONE, Ranks
from skvae.inference import Lagging, SemiAmortized
from skvae.likelihoods import Bernoulli, Gaussian
from skvae.model_selection import BatchedGridSearchCV
from skvae.objectives import ELBO, IWAE, TotalCorrelation

N_PROCESSES = 2
SMALL = {"width": 12, "depth": 1, "max_iter": 4, "batch_size": 50, "random_state": 3}


def data(n_rows=203):
    """Rows of a noisy curve; the last batch of 50 has three rows, or what is asked."""
    rng = np.random.default_rng(0)
    t = rng.uniform(-2, 2, n_rows)
    curve = np.stack([t, t**2, np.sin(2 * t), np.cos(t)], axis=1)
    return (curve + 0.1 * rng.standard_normal(curve.shape)).astype(np.float32)


def segments():
    return np.arange(203) % 3


def fit(estimator, **options):
    return estimator.fit(data(), **options)


def weighted():
    return np.random.default_rng(1).uniform(0.2, 3.0, 203)


def in_chunks(estimator):
    X = data()
    return estimator.partial_fit(X[:120]).partial_fit(X[120:])


def again(estimator):
    return estimator.fit(data()).set_params(warm_start=True).fit(data())


SAME = {
    "plain": lambda: fit(VAE(2, **SMALL)),
    # In the last batch one process has no row.
    "one row left": lambda: VAE(2, **SMALL).fit(data(201)),
    "fewer rows than processes": lambda: VAE(2, **{**SMALL, "batch_size": 1}).fit(
        data(30)
    ),
    "restarts": lambda: fit(VAE(2, n_init=2, **SMALL)),
    "weights": lambda: fit(VAE(2, **SMALL), sample_weight=weighted()),
    "early stopping": lambda: fit(VAE(2, early_stopping=True, **SMALL)),
    "warm-up": lambda: fit(VAE(2, beta=2.0, objective=ELBO(warm_up=0.5), **SMALL)),
    "many draws": lambda: fit(VAE(2, objective=IWAE(n_draws=3), **SMALL)),
    "refined": lambda: fit(VAE(2, inference=SemiAmortized(n_steps=2), **SMALL)),
    "drawn anew": lambda: VAE(2, likelihood=Bernoulli(resample=True), **SMALL).fit(
        data().clip(0, 1)
    ),
    "mixture": lambda: fit(MixtureVAE(2, n_mixtures=3, **SMALL)),
    "injective": lambda: fit(LIDVAE(2, **SMALL)),
    "auxiliary": lambda: fit(iVAE(2, **SMALL), u=segments()),
    "contrastive": lambda: TCL(2, max_iter=3, batch_size=50, random_state=0).fit(
        data(), segments()
    ),
    "tokens": lambda: SequenceVAE(2, width=8, max_iter=2, random_state=0).fit(tokens()),
    "chunks": lambda: in_chunks(VAE(2, **SMALL)),
    "continued": lambda: again(VAE(2, **SMALL)),
}
REFUSED = {
    "free_bits": lambda: fit(VAE(2, objective=ELBO(free_bits=0.1), **SMALL)),
    "TotalCorrelation": lambda: fit(VAE(2, objective=TotalCorrelation(), **SMALL)),
    "Lagging": lambda: fit(VAE(2, inference=Lagging(), **SMALL)),
    "random_state": lambda: fit(VAE(2).set_params(**{**SMALL, "random_state": None})),
    "the order": lambda: VAE(2, **SMALL).fit(data()[:: 1 - 2 * rank()]),
    "X, ": lambda: VAE(2, **SMALL).fit(data(100 + rank())),
    "the parameters": lambda: fit(VAE(2, **{**SMALL, "max_iter": 2 + rank()})),
}


def tokens():
    rng = np.random.default_rng(2)
    X = rng.integers(3, 9, (60, 6))
    X[np.arange(6) > rng.integers(2, 6, 60)[:, None]] = 0
    return X


def rank():
    return torch.distributed.get_rank() if torch.distributed.is_initialized() else 0


def outcome(case):
    """What a fit leaves behind, as arrays; or the text of its error."""
    try:
        estimator = case()
    except ValueError as error:
        return str(error)
    state = {k: v.numpy() for k, v in estimator.module_.state_dict().items()}
    curves = getattr(estimator, "history_", {"loss": estimator.loss_curve_})
    curves = {k: np.array(v) for k, v in curves.items() if k != "seconds"}
    return {"state": state, "curves": curves, "n_iter": estimator.n_iter_}


class FailsOnce(Gaussian):
    """A likelihood whose seventh training step goes wrong in the last process alone."""

    def build(self, n_features, n_replicas):
        module = super().build(n_features, n_replicas)
        log_prob, calls = module.log_prob, []

        def failing(x, out):
            calls.append(torch.is_grad_enabled())
            wrong = calls[-1] and sum(calls) == 7 and rank() == N_PROCESSES - 1
            return log_prob(x, out) * (float("nan") if wrong else 1.0)

        names = {"log_prob": staticmethod(failing)}
        module.__class__ = type("Failing", (type(module),), names)
        return module


class Stop:
    """Callback of the last process, which asks for the end after the second epoch."""

    def setup(self, estimator, context):
        pass

    def teardown(self, estimator, context):
        pass

    def on_fit_task_begin(self, estimator, context):
        pass

    def on_fit_task_end(self, estimator, context):
        return rank() == N_PROCESSES - 1 and context.task_id == 1


def failing():
    """Returns to the last good weights, and what is learned all the same."""
    vae = fit(VAE(2, likelihood=FailsOnce(), **SMALL))
    return vae.n_rollbacks_, vae.history_["learning_rate"], vae.transform(data())


def stopped():
    """Number of epochs until all have stopped."""
    return fit(VAE(2, **SMALL).set_callbacks(Stop())).n_iter_


def work(number, size, folder):
    """The program of one process."""
    warnings.simplefilter("ignore")
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/meeting", rank=number, world_size=size
    )
    found = {name: outcome(case) for name, case in {**SAME, **REFUSED}.items()}
    found |= {"failing": failing(), "stopped": stopped()}
    torch.distributed.destroy_process_group()
    Path(folder, f"{number}.pickle").write_bytes(pickle.dumps(found))


@pytest.fixture(scope="module")
def together(tmp_path_factory):
    """What each of the processes found, by case."""
    folder = tmp_path_factory.mktemp("group")
    root = str(Path(__file__).parents[1])
    paths = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH", "")]))
    environment = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, __file__]
    processes = [
        subprocess.Popen(
            [*command, str(number), str(N_PROCESSES), str(folder)],
            env=environment,
            stderr=subprocess.PIPE,
            text=True,
        )
        for number in range(N_PROCESSES)
    ]
    try:
        for process in processes:
            _, errors = process.communicate(timeout=300)
            assert process.returncode == 0, errors
    finally:
        for process in processes:
            process.kill()
    files = [folder / f"{number}.pickle" for number in range(N_PROCESSES)]
    return [pickle.loads(file.read_bytes()) for file in files]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", SAME)
def test_two_processes_give_the_numbers_of_one(together, name):
    alone, shared = outcome(SAME[name]), together[0][name]
    assert shared["n_iter"] == alone["n_iter"]
    for kind in ("state", "curves"):
        assert shared[kind].keys() == alone[kind].keys()
        for key, values in alone[kind].items():
            np.testing.assert_allclose(
                shared[kind][key], values, rtol=1e-4, atol=2e-5, err_msg=key
            )


@pytest.mark.parametrize("name", SAME)
def test_all_processes_hold_the_same_model(together, name):
    first, second = (found[name] for found in together)
    for kind in ("state", "curves"):
        for key, values in first[kind].items():
            np.testing.assert_array_equal(second[kind][key], values, err_msg=key)


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_shared_is_refused_everywhere(together, name):
    for found in together:
        assert isinstance(found[name], str)
        assert name in found[name]


def test_a_failure_of_one_process_is_the_failure_of_all(together):
    first, second = (found["failing"] for found in together)
    assert first[0] == second[0] == 1
    assert first[1] == second[1]
    np.testing.assert_array_equal(first[2], second[2])
    assert np.isfinite(first[2]).all()


def test_all_stop_where_one_wants_to(together):
    assert [found["stopped"] for found in together] == [2, 2]


@pytest.mark.parametrize("n_rows", [1, 2, 3, 7, 50])
@pytest.mark.parametrize("size", [2, 3, 8])
def test_shares_cover_a_batch_exactly_once(n_rows, size):
    weight = torch.rand(2, n_rows, generator=torch.Generator().manual_seed(0))
    shares = [Ranks(number, size).share(weight) for number in range(size)]
    counted = [share for share in shares if share.counts]
    rows = torch.cat([torch.arange(n_rows)[share.rows] for share in counted])
    torch.testing.assert_close(rows, torch.arange(n_rows))
    torch.testing.assert_close(sum(s.fraction for s in shares), torch.ones(2))
    sizes = [share.rows.stop - share.rows.start for share in counted]
    assert max(sizes) - min(sizes) <= 1
    for share in shares:
        expected = weight[:, share.rows].sum(1) * share.counts
        torch.testing.assert_close(share.of(weight[:, share.rows].sum(1)), expected)


def test_without_a_group_a_process_is_alone():
    assert ALONE.share(torch.ones(1, 3)) is None
    assert ALONE.owns(7)
    assert ALONE.equal(torch.tensor([1.0]))
    assert ALONE.any(True, "cpu")
    assert not ALONE.any(None, "cpu")


# Dask


@pytest.fixture
def cluster():
    """Two workers that get everything over a socket, as workers elsewhere do."""
    distributed = pytest.importorskip("distributed")
    options = {
        "dashboard_address": "127.0.0.1:0",
        "host": "127.0.0.1",
        "protocol": "tcp://",
    }
    with (
        distributed.LocalCluster(
            n_workers=2, threads_per_worker=1, processes=False, **options
        ) as cluster,
        distributed.Client(cluster) as client,
    ):
        yield client


# Components may be inactive after three epochs; workers report it where they are.
@pytest.mark.filterwarnings("ignore::skvae.PosteriorCollapseWarning")
@pytest.mark.parametrize("search", [GridSearchCV, BatchedGridSearchCV])
def test_a_search_on_dask_finds_what_it_finds_here(cluster, search):
    vae = VAE(2, **{**SMALL, "max_iter": 3}, n_draws=5)
    model = make_pipeline(StandardScaler(), vae)
    grid = {"vae__beta": [0.5, 4.0], "vae__n_init": [1, 2]}
    here = GridSearchCV(model, grid, cv=3).fit(data())
    with parallel_config(backend="dask"):
        there = search(model, grid, cv=3).fit(data())
    found = there.cv_results_["mean_test_score"]
    np.testing.assert_allclose(found, here.cv_results_["mean_test_score"], rtol=1e-6)
    assert there.best_params_ == here.best_params_
    np.testing.assert_allclose(
        there.transform(data()), here.transform(data()), rtol=1e-4, atol=1e-5
    )


def test_a_fitted_model_travels_to_a_worker_and_back(cluster):
    vae = cluster.submit(fit, VAE(2, **SMALL)).result()
    here = fit(VAE(2, **SMALL))
    np.testing.assert_array_equal(vae.transform(data()), here.transform(data()))
    codes = cluster.submit(type(vae).transform, vae, data()).result()
    np.testing.assert_array_equal(codes, here.transform(data()))


if __name__ == "__main__":
    work(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
