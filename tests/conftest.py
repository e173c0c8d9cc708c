"""What every test shares: one thread, the devices, two tiny data sets."""

import numpy as np
import pytest
import sklearn
import torch

from skvae import _batches, _training

# Workers with more than one thread each fight over the cores.
torch.set_num_threads(1)

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


def pytest_collection_modifyitems(config, items):
    asked_for_network = "network" in config.option.markexpr
    for item in items:
        if item.get_closest_marker("gpu") and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))
        if item.get_closest_marker("network") and not asked_for_network:
            item.add_marker(pytest.mark.skip(reason="run with -m network"))


def global_settings():
    return {
        "torch threads": torch.get_num_threads(),
        "torch dtype": torch.get_default_dtype(),
        "torch deterministic": torch.are_deterministic_algorithms_enabled(),
        "torch grad mode": torch.is_grad_enabled(),
        "scikit-learn configuration": sklearn.get_config(),
    }


@pytest.fixture(autouse=True)
def settings_left_alone():
    before = global_settings()
    yield
    assert global_settings() == before, "a test or the package left a setting changed"


@pytest.fixture(params=DEVICES)
def device(request):
    return request.param


def zero_noise(streams, *shape, dtype=torch.float32, counts=None):
    return torch.zeros(len(streams), *shape, dtype=dtype, device=streams[0].device)


@pytest.fixture
def without_noise(monkeypatch):
    """Training without draws of z: full batches then depend on no random number."""
    for module in _batches, _training:
        monkeypatch.setattr(module, "standard_normal", zero_noise)


@pytest.fixture
def small_X():
    """Sixty correlated rows of six standard normal features, float64."""
    rng = np.random.default_rng(0)
    shared = rng.standard_normal((60, 2)) @ rng.standard_normal((2, 6))
    X = shared + 0.5 * rng.standard_normal((60, 6))
    return (X - X.mean(axis=0)) / X.std(axis=0)


@pytest.fixture
def segments():
    """Rows of six features mixed from two sources whose variance u decides."""
    rng = np.random.default_rng(1)
    u = np.repeat(np.arange(5), 24)
    scale = rng.uniform(0.3, 3.0, size=(5, 2))[u]
    sources = scale * rng.standard_normal((u.size, 2))
    X = np.tanh(sources @ rng.standard_normal((2, 6))) @ rng.standard_normal((6, 6))
    return X, u
