"""What fitting and reading a model takes beside the data.

Each measurement has a process of its own. Its limit is the kernel's RLIMIT_DATA, which
counts private memory and no pages of a file mapped for reading: whoever copies a map
whole runs into it, wherever the copy is made.
"""

import os
import platform
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.base import clone

from skvae import LIDVAE, VAE, MixtureVAE, SkipVAE
from skvae._batches import Data, batches, chunks
from skvae._random import Seeds, streams
from skvae._validation import BLOCK, constant_columns, first_where
from skvae.estimators import _fitting
from skvae.estimators._fitting import (
    as_tensor,
    largest_variance,
    split,
    subset,
    to_data,
)
from skvae.likelihoods import Poisson

ROOT = Path(__file__).parents[1]
ON_LINUX = pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="reads what Linux tells in /proc"
)
# Eighty megabytes of each kind.
N_FEATURES = 400
N_ROWS = {"uint8": 200_000, "float32": 50_000}
SIZE = 80_000_000
# Beside the data: batches, recorded steps, what the allocator keeps, lazy imports.
ALLOWANCE = 50_000_000

PRELUDE = f"""
    import resource, sys, warnings
    from pathlib import Path
    import numpy as np
    from skvae import VAE

    warnings.simplefilter("ignore")
    options = dict(width=16, depth=1, max_iter=1, batch_size=500, random_state=0)

    def held(field):
        lines = Path("/proc/self/status").read_text().splitlines()
        (line,) = [line for line in lines if line.startswith(field)]
        return 1024 * int(line.split()[1])

    def small(kind):
        rng = np.random.default_rng(0)
        return rng.integers(0, 2, (4000, {N_FEATURES})).astype(kind)
"""


def run(code, *arguments):
    """The numbers that a fresh process prints."""
    paths = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(PRELUDE) + textwrap.dedent(code)]
        + [str(argument) for argument in arguments],
        env={**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return [float(word) for word in done.stdout.split()]


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Files of zeros and ones, by dtype."""
    folder = tmp_path_factory.mktemp("data")
    rows = np.random.default_rng(1).integers(0, 2, (5000, N_FEATURES), dtype=np.uint8)
    paths = {}
    for kind, n_rows in N_ROWS.items():
        paths[kind] = folder / f"{kind}.npy"
        file = np.lib.format.open_memmap(paths[kind], "w+", kind, (n_rows, N_FEATURES))
        assert file.nbytes == SIZE
        for start in range(0, n_rows, len(rows)):
            file[start : start + len(rows)] = rows
    return paths


LIMITED = """
    path, kind, allowance = sys.argv[1:]
    early = dict(early_stopping=kind == "uint8", n_draws=2, likelihood="bernoulli")
    VAE(2, **early, **options).fit(small(kind)).score(small(kind))
    X = np.load(path, mmap_mode="r")
    limit = held("VmData") + int(allowance)
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
"""


@ON_LINUX
@pytest.mark.parametrize("kind", N_ROWS)
def test_a_map_is_never_copied_whole(files, kind):
    printed = run(
        LIMITED
        + """
    vae = VAE(2, **early, **options).fit(X)
    print(len(vae.transform(X)), len(vae.score_samples(X)))
    """,
        files[kind],
        kind,
        ALLOWANCE,
    )
    assert printed == [N_ROWS[kind]] * 2


@ON_LINUX
def test_the_limit_catches_a_copy(files):
    with pytest.raises(AssertionError, match="allocate"):
        run(LIMITED + "    np.array(X)", files["uint8"], "uint8", ALLOWANCE)


@ON_LINUX
@pytest.mark.parametrize(
    ("source", "kind"), [("uint8", "uint8"), ("float32", "float64")]
)
def test_fit_takes_little_beside_the_data(files, source, kind):
    data, peak = run(
        """
        path, kind = sys.argv[1:]
        VAE(2, **options).fit(small(kind))
        X = np.load(path, mmap_mode="r").astype(kind)
        Path("/proc/self/clear_refs").write_text("5")
        before = held("VmRSS")
        VAE(2, **options).fit(X)
        print(X.nbytes, held("VmHWM") - before)
        """,
        files[source],
        kind,
    )
    assert peak < 0.1 * data + ALLOWANCE


@ON_LINUX
def test_reading_a_model_takes_memory_for_the_result_alone():
    printed = run(
        f"""
        vae = VAE(2, n_draws=4, **options).fit(small("float32"))
        rng = np.random.default_rng(0)
        for name in ("transform", "score_samples", "inverse_transform"):
            width = 2 if name == "inverse_transform" else {N_FEATURES}
            X = rng.random((50_000, width), dtype=np.float32)
            getattr(vae, name)(X[:4000])
            Path("/proc/self/clear_refs").write_text("5")
            before = held("VmRSS")
            answer = getattr(vae, name)(X)
            print(answer.nbytes, held("VmHWM") - before)
        """
    )
    for result, peak in zip(printed[::2], printed[1::2], strict=True):
        assert peak < 1.1 * result + ALLOWANCE


# The pieces


@pytest.mark.parametrize("dtype", [np.float32, np.uint8])
def test_data_lie_over_the_callers_memory(dtype):
    X = np.arange(24).reshape(8, 3).astype(dtype)
    X.flags.writeable = False
    data = to_data(X, None, np.ones(8), torch.device("cpu"))
    assert data.x.data_ptr() == X.ctypes.data
    for part in (data, *split(data, 0.25, 0), subset(data, 3)):
        assert part.x.data_ptr() == X.ctypes.data
    # What leaves the data is a copy, or a network could write into the caller's array.
    for x, _, _ in chunks(data):
        assert x.data_ptr() != X.ctypes.data


def test_unaligned_data_are_copied():
    raw = np.zeros(4 * 6 + 1, dtype=np.uint8)[1:]
    X = raw.view(np.float32).reshape(2, 3)
    assert not X.flags.aligned
    tensor = as_tensor(X, torch.float32, torch.device("cpu"))
    assert tensor.data_ptr() != X.ctypes.data
    assert tensor.data_ptr() % 4 == 0


def test_rows_of_data_are_those_of_gathered_data():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(50, 3, generator=generator)
    weight = torch.rand(50, generator=generator)
    u = torch.randn(50, 2, generator=generator)
    rows = torch.randperm(50, generator=generator)[:20]
    chosen = Data(x, u, weight, rows=rows)
    own = chosen.gathered()
    assert own.rows is None
    assert chosen.n_rows == own.n_rows == 20
    torch.testing.assert_close(own.x, x[rows])
    torch.testing.assert_close(chosen.total_weight(), own.total_weight())
    for one, other in zip(chunks(chosen, 7), chunks(own, 7), strict=True):
        for a, b in zip(one, other, strict=True):
            torch.testing.assert_close(a, b)
    runs = []
    for data in (chosen, own):
        draws = streams([Seeds(0, 1, 2), Seeds(3, 4, 5)], "cpu")
        runs.append(list(batches(data, draws, 6, 2)))
    for one, other in zip(*runs, strict=True):
        for a, b in zip(one[:4], other[:4], strict=True):
            torch.testing.assert_close(a, b)


@pytest.mark.parametrize("n_rows", [5, 3000])
def test_power_iteration_finds_the_largest_eigenvalue(n_rows):
    X = np.random.default_rng(0).standard_normal((n_rows, 9)) * np.arange(1, 10) + 50
    X = X.astype(np.float32)
    data = to_data(X, None, np.ones(n_rows), torch.device("cpu"))
    expected = np.linalg.eigvalsh(np.cov(X.T.astype(float), bias=True))[-1]
    assert largest_variance(data) == pytest.approx(expected, rel=2e-3)


def test_the_first_bad_entry_is_found_in_any_block():
    n_rows = 3 * BLOCK // 4
    X = np.zeros((n_rows, 4), dtype=np.float32)
    assert first_where(X, lambda rows: rows > 0) is None
    for row, column in ((n_rows - 1, 3), (BLOCK // 4, 0), (0, 2)):
        X[row, column] = 1.0
        assert first_where(X, lambda rows: rows > 0) == (row, column)
    np.testing.assert_array_equal(constant_columns(X), [1])


# Maps and pieces give the numbers of arrays


@pytest.mark.filterwarnings("ignore:.*components of VAE are inactive")
@pytest.mark.filterwarnings("ignore:max_iter=3 was reached")
@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.uint8])
def test_a_map_gives_the_numbers_of_its_array(tmp_path, dtype):
    X = (np.random.default_rng(0).random((300, 5)) * 9).astype(dtype)
    np.save(tmp_path / "X.npy", X)
    mapped = np.load(tmp_path / "X.npy", mmap_mode="r")
    options = {"width": 8, "depth": 1, "max_iter": 3, "random_state": 0, "n_draws": 5}
    array = VAE(2, early_stopping=True, **options).fit(X)
    of_file = VAE(2, early_stopping=True, **options).fit(mapped)
    np.testing.assert_array_equal(of_file.transform(mapped), array.transform(X))
    np.testing.assert_array_equal(of_file.score_samples(mapped), array.score_samples(X))


@pytest.mark.filterwarnings("ignore:.*components of VAE are inactive")
@pytest.mark.filterwarnings("ignore:max_iter=3 was reached")
@pytest.mark.parametrize(
    "estimator",
    [
        VAE(2, early_stopping=True),
        VAE(2, n_init=2),
        MixtureVAE(2, n_mixtures=2),
        SkipVAE(2, inference="lagging"),
        LIDVAE(2, likelihood=Poisson()),
    ],
    ids=lambda estimator: type(estimator).__name__,
)
def test_double_precision_converted_by_the_batch(estimator, monkeypatch):
    X = (np.random.default_rng(0).random((300, 5)) * 9).round()
    estimator.set_params(width=8, depth=1, max_iter=3, random_state=0, n_draws=5)
    whole = clone(estimator).fit(X)
    monkeypatch.setattr(_fitting, "CONVERTED_BYTES", 0)
    by_batch = clone(estimator).fit(X)
    assert to_data(X, None, np.ones(300), "cpu").x.dtype == torch.float64
    np.testing.assert_allclose(by_batch.transform(X), whole.transform(X), atol=1e-5)
    assert by_batch.loss_curve_ == pytest.approx(whole.loss_curve_, rel=1e-5)


def test_pieces_of_a_file_give_what_the_whole_gives(tmp_path):
    rng = np.random.default_rng(0)
    sources = rng.standard_normal((6000, 2)) * [3.0, 1.0]
    X = sources @ rng.standard_normal((2, 8)) + 0.2 * rng.standard_normal((6000, 8))
    np.save(tmp_path / "X.npy", X.astype(np.float32))
    X = np.load(tmp_path / "X.npy", mmap_mode="r")
    options = {"width": 32, "depth": 1, "batch_size": 64, "random_state": 0}
    options |= {"learning_rate": 2e-3}
    whole = VAE(2, max_iter=10, **options).fit(X)
    pieces = VAE(2, **options)
    for _ in range(10):
        for start in range(0, len(X), 1500):
            pieces.partial_fit(X[start : start + 1500])
    assert pieces.n_iter_ == 40
    bounds = [vae.score(X[:1000]) for vae in (whole, pieces)]
    assert bounds[1] == pytest.approx(bounds[0], abs=0.15)
    # The strong source first in both, though every call orders anew.
    codes = [vae.transform(X) for vae in (whole, pieces)]
    for column in range(2):
        pair = np.corrcoef(codes[0][:, column], codes[1][:, column])[0, 1]
        assert abs(pair) > 0.95
    assert (np.diff(pieces.kl_per_component_) <= 0).all()


@pytest.mark.filterwarnings("ignore::skvae.PosteriorCollapseWarning")
@pytest.mark.filterwarnings("ignore:max_iter=4 was reached")
@pytest.mark.parametrize("params", [{}, {"n_init": 3}, {"early_stopping": True}])
def test_rows_that_are_moved_train_as_rows_that_rest(params, monkeypatch):
    """What happens to data too large for a GPU, with the CPU in the part of both."""
    X = np.random.default_rng(0).standard_normal((300, 5)).astype(np.float32)
    estimator = VAE(2, width=8, max_iter=4, batch_size=32, random_state=0, **params)
    resting = clone(estimator).fit(X)
    move, sizes = Data.moved, []

    def moved(data, rows):
        sizes.append(rows.shape[1])
        return move(data, rows)

    monkeypatch.setattr(Data, "moved", moved)
    monkeypatch.setattr(Data, "streamed", property(lambda data: True))
    monkeypatch.setattr("skvae._batches.NOISE_BLOCK", 2 * 32 * 3)
    streamed = clone(estimator).fit(X)
    assert max(sizes) == 3 * 32
    np.testing.assert_array_equal(streamed.transform(X), resting.transform(X))
    assert streamed.history_["bound"] == resting.history_["bound"]


SCORING = """
import resource
import warnings
import torch
from sklearn.datasets import load_digits
from skvae import VAE
warnings.simplefilter("ignore")
torch.set_num_threads(1)
X = load_digits().data / 16.0
vae = VAE(10, width=64, max_iter=1, device="cpu").fit(X)
def faults(n):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(n):
        vae.score(X[:400])
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
faults(5)
print(faults(10))
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="is about glibc")
def test_freed_memory_is_kept_for_the_next_chunk():
    """Else a score of these rows, ten milliseconds' work, has 6000 page faults."""
    done = subprocess.run(
        [sys.executable, "-c", SCORING], check=True, capture_output=True, text=True
    )
    assert int(done.stdout) < 20_000
