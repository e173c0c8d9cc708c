"""Generated data against their definitions; loaders on files made here."""

import numpy as np
import pytest
from scipy.special import expit
from scipy.stats import kurtosis, multivariate_normal, norm
from sklearn.utils import Bunch

from skvae.datasets import (
    fetch_fashion_mnist,
    fetch_mnist,
    fetch_omniglot,
    make_linear_gaussian,
    make_nonlinear_ica,
    make_pinwheel,
)


def nonlinear_ica(n_samples=4000, **options):
    return make_nonlinear_ica(n_samples, random_state=0, return_X_y=False, **options)


class TestNonlinearICA:
    def test_shapes_and_types(self):
        X, u = make_nonlinear_ica(400, random_state=0)
        assert X.shape == (400, 4)
        assert X.dtype == np.float64
        assert u.dtype == np.int64
        data = nonlinear_ica(400)
        assert isinstance(data, Bunch)
        assert data.sources.shape == (400, 2)
        assert data.modulation.shape == data.centers.shape == (40, 2)
        assert "40 segments" in data.DESCR
        np.testing.assert_array_equal(data.data, X)

    def test_segments_are_balanced_and_in_order(self):
        _, u = make_nonlinear_ica(103, n_segments=10, random_state=0)
        assert np.all(np.diff(u) >= 0)
        counts = np.bincount(u)
        assert counts.min() == 10
        assert counts.max() == 11

    def test_segment_standard_deviations(self):
        data = nonlinear_ica(40_000, n_sources=3)
        assert data.modulation.min() >= 0.5
        assert data.modulation.max() <= 3.0
        spread = [data.sources[data.u == k].std(axis=0) for k in range(40)]
        np.testing.assert_allclose(spread, data.modulation, rtol=0.12)
        np.testing.assert_array_equal(data.centers, 0.0)

    @pytest.mark.parametrize(
        ("source", "excess"), [("gaussian", 0.0), ("laplace", 3.0), ("sech", 2.0)]
    )
    def test_source_distributions_have_unit_variance(self, source, excess):
        data = nonlinear_ica(60_000, source=source, modulation_range=(1.0, 1.0))
        np.testing.assert_allclose(data.sources.std(axis=0), 1.0, atol=0.02)
        np.testing.assert_allclose(kurtosis(data.sources), excess, atol=0.5)

    def test_mixing_matrices(self):
        data = nonlinear_ica(n_sources=5, n_features=5)
        first = data.mixing[0]
        np.testing.assert_allclose(np.linalg.norm(first, axis=0), 1.0)
        assert all(matrix is first for matrix in data.mixing)
        reference = np.random.default_rng(1).uniform(-1, 1, (10_000, 5, 5))
        reference /= np.linalg.norm(reference, axis=1, keepdims=True)
        limit = np.percentile(np.linalg.cond(reference), 25)
        assert np.linalg.cond(first) < 1.05 * limit

    def test_rectangular_mixing_reuses_the_square_matrix(self):
        data = nonlinear_ica()
        assert [matrix.shape for matrix in data.mixing] == [(2, 4), (4, 4), (4, 4)]
        assert data.mixing[1] is data.mixing[2]
        fresh = nonlinear_ica(reuse_mixing=False)
        assert not np.array_equal(fresh.mixing[1], fresh.mixing[2])

    def test_fixed_condition_limit(self):
        data = nonlinear_ica(n_sources=4, max_condition=5.0, reuse_mixing=False)
        assert max(np.linalg.cond(matrix) for matrix in data.mixing) <= 5.0

    def test_impossible_condition_limit(self, monkeypatch):
        monkeypatch.setattr("skvae.datasets._nonlinear_ica._N_ATTEMPTS", 20)
        with pytest.raises(ValueError, match="mixing='orthogonal'"):
            nonlinear_ica(n_sources=4, max_condition=1.0)

    @pytest.mark.parametrize("n_sources", [1, 2, 4])
    def test_orthogonal_mixing(self, n_sources):
        data = nonlinear_ica(n_sources=n_sources, mixing="orthogonal")
        for matrix in data.mixing:
            identity = np.eye(len(matrix))
            np.testing.assert_allclose(matrix @ matrix.T, identity, atol=1e-12)

    @pytest.mark.parametrize(
        ("activation", "function"),
        [
            ("xtanh", lambda t: np.tanh(t) + 0.2 * t),
            ("leaky_relu", lambda t: np.maximum(t, 0.2 * t)),
            ("sigmoid", expit),
            ("identity", lambda t: t),
        ],
    )
    def test_features_are_the_mixed_sources(self, activation, function):
        data = nonlinear_ica(400, activation=activation, slope=0.2)
        first, second, third = data.mixing
        expected = function(function(data.sources @ first) @ second) @ third
        np.testing.assert_allclose(data.data, expected)

    def test_one_layer_is_linear_and_one_source_works(self):
        data = nonlinear_ica(n_layers=1, n_sources=1)
        np.testing.assert_allclose(data.data, data.sources @ data.mixing[0])

    def test_centers(self):
        uniform = nonlinear_ica(centers="uniform", center_range=(1.0, 2.0))
        assert uniform.centers.min() >= 1.0
        assert uniform.centers.max() <= 2.0
        means = [uniform.sources[uniform.u == k].mean(axis=0) for k in range(40)]
        np.testing.assert_allclose(means, uniform.centers, atol=1.2)
        stairs = nonlinear_ica(centers="staircase")
        np.testing.assert_array_equal(
            np.sort(stairs.centers[:, 0]), 3.0 * np.arange(40)
        )
        np.testing.assert_array_equal(stairs.centers[:, 1], 0.0)
        moved = nonlinear_ica(centers="staircase_uniform").centers[:, 1]
        assert 0.0 < np.abs(moved).max() <= 1.0
        given = np.ones((40, 2))
        np.testing.assert_array_equal(nonlinear_ica(centers=given).centers, given)

    def test_shuffle_keeps_rows_together(self):
        ordered, shuffled = nonlinear_ica(400), nonlinear_ica(400, shuffle=True)
        assert np.any(np.diff(shuffled.u) < 0)
        for name in ("data", "sources"):
            index = np.lexsort(shuffled[name].T)
            expected = np.lexsort(ordered[name].T)
            np.testing.assert_array_equal(
                shuffled[name][index], ordered[name][expected]
            )
            np.testing.assert_array_equal(shuffled.u[index], ordered.u[expected])

    def test_noise_and_binarisation(self):
        clean, noisy = nonlinear_ica(), nonlinear_ica(noise_std=0.3)
        difference = noisy.data - clean.data
        np.testing.assert_allclose(difference.std(), 0.3, atol=0.01)
        binary = nonlinear_ica(binarize=True)
        assert set(np.unique(binary.data)) == {0.0, 1.0}
        expected = expit(clean.data).mean(axis=0)
        np.testing.assert_allclose(binary.data.mean(axis=0), expected, atol=0.04)

    def test_model_does_not_depend_on_the_number_of_rows(self):
        small, large = nonlinear_ica(80), nonlinear_ica(4000)
        np.testing.assert_array_equal(small.mixing[0], large.mixing[0])
        np.testing.assert_array_equal(small.modulation, large.modulation)

    @pytest.mark.parametrize(
        ("options", "match"),
        [
            ({"n_features": 1}, "not be injective"),
            ({"n_segments": 5000}, "n_samples"),
            ({"source": "cauchy"}, "source must be one of"),
            ({"activation": "relu"}, "activation must be one of"),
            ({"mixing": "gaussian"}, "mixing must be one of"),
            ({"centers": "random"}, "centers must be one of"),
            ({"centers": np.ones((3, 2))}, "centers must have shape"),
            ({"modulation_range": (3.0, 0.5)}, "modulation_range"),
            ({"modulation_range": (0.0, 1.0)}, "modulation_range"),
            ({"noise_std": np.inf}, "noise_std must be finite"),
            ({"slope": 0.0}, "slope"),
            ({"max_condition": 0.5}, "max_condition"),
        ],
    )
    def test_bad_options(self, options, match):
        with pytest.raises(ValueError, match=match):
            nonlinear_ica(**options)


class TestPinwheel:
    def test_moments(self):
        X, y = make_pinwheel(50_000, random_state=0)
        squared_radius = (X**2).sum(axis=1).mean()
        assert squared_radius == pytest.approx(100 * (1 + 0.3**2 + 0.05**2), rel=0.01)
        np.testing.assert_allclose(X.mean(axis=0), 0.0, atol=0.1)
        np.testing.assert_array_equal(np.bincount(y), 10_000)

    def test_arms_are_rotations_of_one_another(self):
        X, y = make_pinwheel(50_000, random_state=0)
        points = X[:, 0] + 1j * X[:, 1]
        means = np.array([points[y == arm].mean() for arm in range(5)])
        turned = means * np.exp(-2j * np.pi * np.arange(5) / 5)
        np.testing.assert_allclose(turned, turned[0], atol=0.15)

    def test_untwisted_arm_is_gaussian(self):
        X, _ = make_pinwheel(
            20_000, n_arms=1, rate=0.0, scale=1.0, shuffle=False, random_state=0
        )
        np.testing.assert_allclose(X.mean(axis=0), [1.0, 0.0], atol=0.01)
        np.testing.assert_allclose(X.std(axis=0), [0.3, 0.05], rtol=0.03)

    def test_order_and_types(self):
        X, y = make_pinwheel(11, shuffle=False, random_state=0)
        assert X.dtype == np.float64
        assert y.dtype == np.int64
        assert np.all(np.diff(y) >= 0)
        _, shuffled = make_pinwheel(11, random_state=0)
        np.testing.assert_array_equal(np.sort(shuffled), y)

    def test_bad_options(self):
        with pytest.raises(ValueError, match="n_samples"):
            make_pinwheel(4)
        with pytest.raises(ValueError, match="radial_std"):
            make_pinwheel(radial_std=-1.0)
        with pytest.raises(TypeError, match="n_arms"):
            make_pinwheel(n_arms=2.5)


class TestLinearGaussian:
    @pytest.fixture
    def data(self):
        return make_linear_gaussian(
            3000,
            n_features=6,
            loading_scales=[2.0, 0.5, 0.0],
            noise_std=0.4,
            mean=np.arange(6.0),
            random_state=0,
            return_X_y=False,
        )

    def test_likelihood_equals_scipy(self, data):
        covariance = data.loadings @ data.loadings.T
        covariance += data.noise_variance * np.eye(6)
        expected = multivariate_normal(data.mean, covariance).logpdf(data.data)
        np.testing.assert_allclose(data.log_likelihood, expected)

    def test_loadings(self, data):
        gram = data.loadings.T @ data.loadings
        np.testing.assert_allclose(gram, np.diag([4.0, 0.25, 0.0]), atol=1e-12)

    def test_posterior_satisfies_bayes(self, data):
        z = np.random.default_rng(0).standard_normal(data.latents.shape)
        joint = norm.logpdf(z).sum(axis=1) + norm.logpdf(
            data.data, z @ data.loadings.T + data.mean, 0.4
        ).sum(axis=1)
        posterior = norm.logpdf(z, data.posterior_mean, data.posterior_std).sum(axis=1)
        np.testing.assert_allclose(joint - posterior, data.log_likelihood)

    def test_information(self, data):
        expected = 0.5 * np.log(1 + np.array([4.0, 0.25, 0.0]) / 0.16)
        np.testing.assert_allclose(data.kl_per_component, expected)

    def test_samples_follow_the_model(self, data):
        residual = data.data - data.latents @ data.loadings.T - data.mean
        np.testing.assert_allclose(residual.std(), 0.4, rtol=0.03)
        np.testing.assert_allclose(data.latents.std(axis=0), 1.0, atol=0.05)

    def test_tuple_and_default_scales(self):
        X, Z = make_linear_gaussian(20, random_state=0)
        assert X.shape == (20, 10)
        assert Z.shape == (20, 3)
        data = make_linear_gaussian(20, random_state=0, return_X_y=False)
        np.testing.assert_array_equal(data.data, X)
        norms = np.linalg.norm(data.loadings, axis=0)
        np.testing.assert_allclose(norms, [3.0, 2.0, 1.0])

    @pytest.mark.parametrize(
        ("options", "match"),
        [
            ({"noise_std": 0.0}, "noise_std"),
            ({"n_features": 2}, "n_features"),
            ({"loading_scales": [1.0]}, "loading_scales must hold"),
            ({"loading_scales": [1.0, 1.0, -1.0]}, "loading_scales must hold"),
            ({"mean": [1.0, 2.0]}, "mean must be"),
        ],
    )
    def test_bad_options(self, options, match):
        with pytest.raises(ValueError, match=match):
            make_linear_gaussian(**options)


@pytest.mark.parametrize(
    "make", [make_nonlinear_ica, make_pinwheel, make_linear_gaussian]
)
def test_generators_are_reproducible_and_leave_the_global_state(make):
    before = np.random.get_state()  # noqa: NPY002
    first, second = make(120, random_state=3), make(120, random_state=3)
    for left, right in zip(first, second, strict=True):
        np.testing.assert_array_equal(left, right)
    assert not np.array_equal(first[0], make(120, random_state=4)[0])
    after = np.random.get_state()  # noqa: NPY002
    np.testing.assert_array_equal(before[1], after[1])
    assert before[2:] == after[2:]


def write_local_form(folder, name, **changes):
    rng = np.random.default_rng(0)
    arrays = {
        "X_train": rng.integers(0, 256, (6, 784), dtype=np.uint8),
        "X_test": rng.integers(0, 256, (4, 784), dtype=np.uint8),
        "y_train": np.arange(6, dtype=np.uint8),
        "y_test": np.arange(4, dtype=np.uint8),
        **changes,
    }
    arrays = {key: value for key, value in arrays.items() if value is not None}
    np.savez_compressed(folder / f"{name}.npz", **arrays)
    return arrays


LOADERS = [
    (fetch_mnist, "mnist"),
    (fetch_fashion_mnist, "fashion_mnist"),
    (fetch_omniglot, "omniglot"),
]


@pytest.mark.parametrize(("fetch", "name"), LOADERS)
class TestLocalForm:
    @pytest.mark.parametrize(
        ("subset", "parts"),
        [("train", ["train"]), ("test", ["test"]), ("all", ["train", "test"])],
    )
    def test_subsets(self, tmp_path, fetch, name, subset, parts):
        arrays = write_local_form(tmp_path, name)
        data = fetch(data_home=tmp_path, subset=subset, download_if_missing=False)
        X = np.concatenate([arrays[f"X_{part}"] for part in parts])
        y = np.concatenate([arrays[f"y_{part}"] for part in parts])
        np.testing.assert_array_equal(data.data, X)
        np.testing.assert_array_equal(data.target, y)
        assert data.data.dtype == np.float32
        assert data.target.dtype == np.int64
        assert data.frame is None
        assert len(data.feature_names) == 784
        assert "28 x 28" in data.DESCR

    def test_types_and_scale(self, tmp_path, fetch, name):
        arrays = write_local_form(tmp_path, name)
        X, _ = fetch(data_home=str(tmp_path), return_X_y=True, dtype="uint8")
        assert X.dtype == np.uint8
        np.testing.assert_array_equal(X, arrays["X_train"])
        X, _ = fetch(
            data_home=tmp_path, return_X_y=True, dtype=np.float64, scale="unit"
        )
        assert X.dtype == np.float64
        np.testing.assert_allclose(X, arrays["X_train"] / 255.0)
        with pytest.raises(ValueError, match="scale='unit' needs"):
            fetch(data_home=tmp_path, dtype="uint8", scale="unit")

    def test_frames(self, tmp_path, fetch, name):
        pytest.importorskip("pandas")
        arrays = write_local_form(tmp_path, name)
        data = fetch(data_home=tmp_path, as_frame=True)
        assert data.frame.shape == (6, 785)
        assert list(data.data.columns) == data.feature_names
        np.testing.assert_array_equal(data.target.to_numpy(), arrays["y_train"])

    def test_missing_file(self, tmp_path, fetch, name):
        with pytest.raises(OSError, match=f"Data not found.*{name}"):
            fetch(data_home=tmp_path, download_if_missing=False)

    def test_damaged_file(self, tmp_path, fetch, name):
        for content in (b"", b"PK\x03\x04 broken", b"text"):
            (tmp_path / f"{name}.npz").write_bytes(content)
            with pytest.raises(OSError, match=r"not a readable \.npz file"):
                fetch(data_home=tmp_path)
        write_local_form(tmp_path, name)
        content = bytearray((tmp_path / f"{name}.npz").read_bytes())
        content[200:260] = bytes(60)
        (tmp_path / f"{name}.npz").write_bytes(content)
        with pytest.raises(OSError, match=r"not a readable \.npz file"):
            fetch(data_home=tmp_path)
        with open(tmp_path / f"{name}.npz", "wb") as file:
            np.save(file, np.zeros(3))
        with pytest.raises(OSError, match=r"not a readable \.npz file"):
            fetch(data_home=tmp_path)

    def test_pickles_are_refused(self, tmp_path, fetch, name):
        write_local_form(tmp_path, name, X_train=np.array([{}], dtype=object))
        with pytest.raises(OSError, match="plain arrays"):
            fetch(data_home=tmp_path)

    @pytest.mark.parametrize(
        ("change", "match"),
        [
            ({"y_train": None}, r"lacks the arrays \['y_train'\]"),
            ({"X_train": np.zeros((6, 784))}, "must be uint8"),
            ({"X_train": np.zeros((6, 28, 28), dtype=np.uint8)}, "must be uint8"),
            ({"y_train": np.arange(5)}, "must hold 6 integers"),
            ({"y_train": np.zeros(6)}, "must hold 6 integers"),
        ],
    )
    def test_wrong_contents(self, tmp_path, fetch, name, change, match):
        write_local_form(tmp_path, name, **change)
        with pytest.raises(OSError, match=match):
            fetch(data_home=tmp_path)

    @pytest.mark.parametrize("option", ["subset", "dtype", "scale"])
    def test_bad_options(self, tmp_path, fetch, name, option):
        with pytest.raises(ValueError, match=f"{option} must be one of"):
            fetch(data_home=tmp_path, **{option: "wrong"})


def test_class_names(tmp_path):
    write_local_form(tmp_path, "mnist")
    write_local_form(tmp_path, "fashion_mnist")
    assert fetch_mnist(data_home=tmp_path).target_names[9] == "9"
    assert fetch_fashion_mnist(data_home=tmp_path).target_names[9] == "ankle boot"


def test_omniglot_extras(tmp_path):
    names = np.array(["Greek", "Latin"])
    write_local_form(
        tmp_path,
        "omniglot",
        alphabet_train=np.zeros(6, dtype=np.uint8),
        alphabet_test=np.ones(4, dtype=np.uint8),
        alphabet_names=names,
    )
    data = fetch_omniglot(data_home=tmp_path, subset="all")
    np.testing.assert_array_equal(data.alphabet, [0] * 6 + [1] * 4)
    np.testing.assert_array_equal(data.alphabet_names, names)
    assert data.drawer is None


class TestDownload:
    @pytest.fixture
    def openml(self, monkeypatch):
        calls = []

        def fetch_openml(name, **options):
            calls.append((name, options))
            data = np.zeros((11, 784))
            data[:, 0] = np.arange(11)
            target = np.array([str(i % 10) for i in range(11)], dtype=object)
            return Bunch(data=data, target=target)

        module = "skvae.datasets._image_files"
        monkeypatch.setattr(f"{module}.fetch_openml", fetch_openml)
        monkeypatch.setattr(f"{module}._N_TRAIN", 7)
        monkeypatch.setattr(f"{module}._N_TEST", 4)
        return calls

    def test_is_split_kept_and_not_repeated(self, tmp_path, openml):
        with pytest.warns(UserWarning, match="differ from the published files"):
            first = fetch_mnist(data_home=tmp_path, subset="test", n_retries=1)
        np.testing.assert_array_equal(first.data[:, 0], [7, 8, 9, 10])
        np.testing.assert_array_equal(first.target, [7, 8, 9, 0])
        second = fetch_mnist(data_home=tmp_path, subset="all")
        np.testing.assert_array_equal(second.data[:, 0], np.arange(11))
        assert [name for name, _ in openml] == ["mnist_784"]
        assert openml[0][1]["n_retries"] == 1
        assert [file.name for file in tmp_path.iterdir()] == ["mnist.npz"]

    def test_wrong_size(self, tmp_path, openml, monkeypatch):
        monkeypatch.setattr("skvae.datasets._image_files._N_TEST", 5)
        with pytest.raises(OSError, match="OpenML returned"):
            fetch_fashion_mnist(data_home=tmp_path)
        assert openml[0][0] == "Fashion-MNIST"

    def test_a_full_disk_does_not_lose_the_data(self, tmp_path, openml, monkeypatch):
        def refuse(path, arrays):
            raise OSError("no space")

        monkeypatch.setattr("skvae.datasets._image_files.write_arrays", refuse)
        with pytest.warns(UserWarning, match="could not be kept|differ") as record:
            data = fetch_mnist(data_home=tmp_path)
        assert data.data.shape == (7, 784)
        assert any("could not be kept" in str(w.message) for w in record)
        assert all(w.filename == __file__ for w in record)
