"""One-file saving: what comes back, and what is refused."""

import json
import os
import pickle
import warnings

import numpy as np
import pandas as pd
import pytest
import sklearn
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from sklearn.base import clone
from sklearn.exceptions import InconsistentVersionWarning, NotFittedError
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler

import skvae
from skvae import (
    LIDMVAE,
    LIDVAE,
    VAE,
    IdentifiableVAE,
    MixtureVAE,
    SkipSequenceVAE,
    SkipVAE,
    Tokenizer,
    all_estimators,
    iFlow,
    iVAE,
)
from skvae import load as load_file
from skvae import save as save_file_of
from skvae.inference import Lagging, SemiAmortized
from skvae.likelihoods import Gaussian, NegativeBinomial
from skvae.networks import MLP, Anchored, Brenier, Skip
from skvae.objectives import ELBO, CovariateInformed, TotalCorrelation
from skvae.persistence import FORMAT_VERSION
from skvae.priors import ConditionalGaussian, GaussianMixture

pytestmark = [
    pytest.mark.filterwarnings("ignore::skvae.PosteriorCollapseWarning"),
    pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning"),
]

TINY = {
    "width": 6,
    "max_iter": 2,
    "batch_size": 16,
    "n_draws": 4,
    "random_state": 0,
    "device": "cpu",
}


def real():
    return np.random.default_rng(0).normal(size=(40, 4))


def frame():
    return pd.DataFrame(real(), columns=["a", "b", "c", "d"])


def counts():
    return np.random.default_rng(0).poisson(4.0, size=(40, 4)).astype(np.float32)


def grey():
    return np.random.default_rng(0).uniform(size=(40, 4)).astype(np.float32)


def pixels():
    return np.random.default_rng(0).integers(0, 255, size=(40, 4), dtype=np.uint8)


INTEGERS = np.arange(40) % 4
STRINGS = np.array(["left", "right", "up", "über"])[INTEGERS]
REALS = np.random.default_rng(1).normal(size=(40, 2))

# name: estimator, data, u.
CASES = {
    "VAE": (VAE(2, **TINY), real, None),
    "data frame": (VAE(2, **TINY), frame, None),
    "uint8": (VAE(2, **TINY), pixels, None),
    "restarts": (VAE(2, n_init=3, **TINY), real, None),
    "early stopping": (VAE(2, early_stopping=True, **TINY), real, None),
    "grey levels": (VAE(2, likelihood="bernoulli", **TINY), grey, None),
    "counts": (VAE(2, likelihood=NegativeBinomial(), **TINY), counts, None),
    "nested": (
        VAE(
            2,
            encoder=MLP(5, 1, "silu"),
            decoder=MLP(7, 3, "tanh"),
            likelihood=Gaussian(noise="per_feature"),
            objective=ELBO(warm_up=0.5, free_bits=0.1),
            **TINY,
        ),
        real,
        None,
    ),
    "SkipVAE": (SkipVAE(2, **TINY), real, None),
    "concatenation": (SkipVAE(2, decoder=Skip(5, merge="concat"), **TINY), real, None),
    "LIDVAE": (LIDVAE(2, **TINY), real, None),
    "Brenier": (LIDVAE(2, decoder=Brenier(5, 2), **TINY), real, None),
    "three blocks": (LIDVAE(2, decoder=Anchored(5, blocks=3), **TINY), real, None),
    "fixed noise": (LIDVAE(2, likelihood=Gaussian(noise=0.3), **TINY), real, None),
    "integer u": (iVAE(2, **TINY), real, INTEGERS),
    "string u": (iVAE(2, **TINY), frame, STRINGS),
    "object u": (iVAE(2, **TINY), real, STRINGS.astype(object)),
    "bool u": (iVAE(2, covariance="full", **TINY), real, INTEGERS > 1),
    "continuous u": (iVAE(2, **TINY), real, REALS),
    "joint": (iVAE(2, posterior_type="joint", **TINY), real, INTEGERS),
    "prior of one's own": (
        iVAE(2, prior=ConditionalGaussian(mean="zero", width=9), **TINY),
        real,
        REALS,
    ),
    "IdentifiableVAE": (IdentifiableVAE(2, **TINY), real, None),
    "IdentifiableVAE with u": (IdentifiableVAE(2, **TINY), real, STRINGS),
    "mixture": (IdentifiableVAE(2, prior=GaussianMixture(4), **TINY), real, None),
    "iFlow": (iFlow(depth=2, max_iter=2, n_init=2, random_state=0), real, INTEGERS),
    "refined": (VAE(2, inference=SemiAmortized(n_steps=2), **TINY), real, None),
    "lagging": (VAE(2, inference=Lagging(max_inner_steps=2), **TINY), real, None),
    "total correlation": (VAE(2, objective=TotalCorrelation(), **TINY), real, None),
    "without u": (iVAE(2, objective=CovariateInformed(), **TINY), real, STRINGS),
    "MixtureVAE": (MixtureVAE(2, n_mixtures=3, **TINY), real, None),
    "LIDMVAE": (LIDMVAE(2, n_mixtures=3, weights="learned", **TINY), real, None),
    "enumerated": (
        MixtureVAE(2, n_mixtures=3, posterior_type="enumerated", **TINY),
        real,
        None,
    ),
}
ROUND_TRIPS = pytest.mark.parametrize("case", CASES.values(), ids=list(CASES))


def fitted(case):
    estimator, data, u = case
    given = {} if u is None else {"u": u}
    return clone(estimator).fit(data(), **given), data(), given


@pytest.fixture
def path(tmp_path):
    return tmp_path / "model.skvae"


@pytest.fixture(scope="module")
def vae():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return VAE(2, **TINY).fit(real())


def round_trip(estimator, path):
    save_file_of(estimator, path)
    return load_file(path)


def assert_same(a, b, name):
    """Equal values of equal kinds, however nested."""
    if isinstance(a, np.ndarray):
        assert isinstance(b, np.ndarray), name
        assert a.dtype == b.dtype, name
        np.testing.assert_array_equal(a, b, err_msg=name)
    elif isinstance(a, torch.Tensor):
        assert a.dtype == b.dtype, name
        assert torch.equal(a, b), name
    elif isinstance(a, dict):
        assert list(a) == list(b), name
        for key in a:
            assert_same(a[key], b[key], f"{name}[{key!r}]")
    elif isinstance(a, (list, tuple)):
        assert type(a) is type(b), name
        assert len(a) == len(b), name
        for number, pair in enumerate(zip(a, b, strict=True)):
            assert_same(*pair, f"{name}[{number}]")
    elif hasattr(a, "get_params"):
        assert repr(a) == repr(b), name
    elif hasattr(a, "__dict__"):
        assert type(a) is type(b), name
        assert_same(vars(a), vars(b), name)
    else:
        assert a == b, name


def test_every_estimator_is_saved():
    assert {type(case[0]) for case in CASES.values()} == set(all_estimators())


@ROUND_TRIPS
def test_everything_comes_back(case, path):
    estimator, *_ = fitted(case)
    again = round_trip(estimator, path)
    assert type(again) is type(estimator)
    assert repr(again) == repr(estimator)
    kept = {k: v for k, v in vars(estimator).items() if "callback" not in k}
    kept.pop("module_")
    found = dict(vars(again))
    module = found.pop("module_")
    assert sorted(found) == sorted(kept)
    assert_same(kept, {k: found[k] for k in kept}, "estimator")
    assert_same(
        dict(estimator.module_.state_dict()), dict(module.state_dict()), "module_"
    )
    assert not any(p.requires_grad for p in module.parameters())


@ROUND_TRIPS
def test_answers_are_identical(case, path):
    estimator, X, given = fitted(case)
    again = round_trip(estimator, path)
    Z = np.asarray(estimator.transform(X, **given))
    np.testing.assert_array_equal(again.transform(X, **given), Z)
    for a, b in zip(
        again.posterior(X, **given), estimator.posterior(X, **given), strict=True
    ):
        np.testing.assert_array_equal(a, b)
    codes = Z.astype(np.float64)
    np.testing.assert_array_equal(
        again.inverse_transform(codes), estimator.inverse_transform(codes)
    )
    np.testing.assert_array_equal(
        again.score_samples(X, **given), estimator.score_samples(X, **given)
    )
    assert again.score(X, **given) == estimator.score(X, **given)
    for options in ({"n_samples": 7}, given):
        np.testing.assert_array_equal(
            again.sample(**options, random_state=3),
            estimator.sample(**options, random_state=3),
        )
    if given and getattr(estimator, "posterior_type", None) != "joint":
        np.testing.assert_array_equal(again.transform(X), estimator.transform(X))
        np.testing.assert_array_equal(
            again.score_samples(X), estimator.score_samples(X)
        )


@ROUND_TRIPS
def test_a_second_round_trip_writes_the_same_file(case, path):
    estimator, *_ = fitted(case)
    again = round_trip(estimator, path)
    first = contents(path)
    save_file_of(again, path)
    second = contents(path)
    assert first[0] == second[0]
    assert_same(first[1], second[1], "tensors")


def contents(path):
    with safe_open(path, framework="pt") as file:
        names = sorted(file.keys())
        return dict(file.metadata()), {name: file.get_tensor(name) for name in names}


def rewrite(path, **changes):
    header, tensors = contents(path)
    save_file(tensors, path, metadata={**header, **changes})


@pytest.mark.parametrize("u", [None, INTEGERS, STRINGS, REALS])
def test_partial_fit_goes_on_as_if_never_saved(u, path):
    estimator = VAE(2, **TINY) if u is None else iVAE(2, **TINY)
    X = real()
    given = [{}, {}] if u is None else [{"u": u[:20]}, {"u": u[20:]}]
    estimator.partial_fit(X[:20], **given[0])
    again = round_trip(estimator, path)
    for _ in range(2):
        estimator.partial_fit(X[20:], **given[1])
        again.partial_fit(X[20:], **given[1])
    np.testing.assert_array_equal(again.transform(X), estimator.transform(X))
    assert again.loss_curve_ == estimator.loss_curve_
    assert again.n_iter_ == 3


def test_fit_after_load_equals_the_first_fit(vae, path):
    again = round_trip(vae, path).fit(real())
    np.testing.assert_array_equal(again.transform(real()), vae.transform(real()))


def test_feature_names_are_kept(path):
    again = round_trip(VAE(2, **TINY).fit(frame()), path)
    assert again.feature_names_in_.tolist() == ["a", "b", "c", "d"]
    with pytest.raises(ValueError, match="feature names"):
        again.transform(frame().rename(columns={"a": "z"}))


def test_output_container_is_kept(path):
    estimator = VAE(2, **TINY).set_output(transform="pandas").fit(frame())
    again = round_trip(estimator, path)
    pd.testing.assert_frame_equal(
        again.transform(frame()), estimator.transform(frame())
    )


def test_metadata_requests_are_kept(path):
    with sklearn.config_context(enable_metadata_routing=True):
        estimator = iVAE(2, **TINY).set_score_request(u=False)
        estimator.fit(real(), u=INTEGERS)
        again = round_trip(estimator, path)
        expected = estimator.get_metadata_routing().score.requests
        assert again.get_metadata_routing().score.requests == expected


def test_special_values_are_kept(path):
    estimator = VAE(2, **{**TINY, "verbose": False, "tol": np.float64(1e-3)})
    estimator.fit(real())
    estimator.history_ = {"loss": [float("inf"), float("nan"), -0.0]}
    again = round_trip(estimator, path)
    assert repr(again.history_) == repr(estimator.history_)
    assert again.tol == 1e-3
    assert again.verbose is False


def test_callbacks_are_left_out(path):
    from sklearn.callback import ProgressBar

    estimator = clone(VAE(2, **TINY)).fit(real())
    estimator.set_callbacks(ProgressBar())
    again = round_trip(estimator, path)
    np.testing.assert_array_equal(again.transform(real()), estimator.transform(real()))


@pytest.mark.parametrize("kind", [str, lambda path: path], ids=["str", "Path"])
def test_files_are_replaced(vae, path, kind):
    path.write_bytes(b"something else")
    save_file_of(vae, kind(path))
    assert load_file(kind(path)).n_features_in_ == 4


def test_pipelines_from_text_come_back(path):
    texts = ["the cat sat on the mat", "a dog ran home", "Über the moon"] * 8
    model = SkipSequenceVAE(2, width=6, embedding_size=5, max_iter=2, random_state=0)
    steps = [("words", Tokenizer(max_length=9)), ("model", model)]
    pipeline = Pipeline(steps, verbose=True).fit(texts)
    save_file_of(pipeline, path)
    again = load_file(path)
    assert [*again.named_steps] == ["words", "model"]
    assert again.get_params().keys() == pipeline.get_params().keys()
    assert again.verbose
    assert again["words"].vocabulary_ == pipeline["words"].vocabulary_
    Z = pipeline.transform(texts)
    np.testing.assert_array_equal(again.transform(texts), Z)
    np.testing.assert_array_equal(
        again.score_samples(texts), pipeline.score_samples(texts)
    )
    assert again.inverse_transform(Z) == pipeline.inverse_transform(Z)


def test_two_models_in_a_pipeline_keep_apart(path):
    pipeline = make_pipeline(VAE(3, **TINY), VAE(2, **TINY | {"width": 5})).fit(real())
    save_file_of(pipeline, path)
    again = load_file(path)
    np.testing.assert_array_equal(again.transform(real()), pipeline.transform(real()))


# ------------------------------------------------------------------- refusals


def refuses(error, match, estimator, path):
    with pytest.raises(error, match=match):
        save_file_of(estimator, path)
    assert not path.exists()


def test_unfitted_estimators_are_refused(path):
    refuses(NotFittedError, "not fitted", VAE(2), path)


def test_steps_of_others_are_refused(path):
    pipeline = make_pipeline(StandardScaler(), VAE(2, **TINY)).fit(real())
    refuses(TypeError, "Got StandardScaler; use joblib", pipeline, path)
    pipeline = make_pipeline(Tokenizer(), VAE(2))
    refuses(NotFittedError, "not fitted", pipeline, path)


def test_estimators_of_the_user_are_refused(path):
    own = type("Own", (VAE,), {"__init__": VAE.__init__})
    refuses(TypeError, "Got Own", own(2, **TINY).fit(real()), path)
    # A name alone does not make it skvae's.
    own = type("VAE", (VAE,), {"__init__": VAE.__init__})
    refuses(TypeError, "save writes", own(2, **TINY).fit(real()), path)


@pytest.mark.parametrize("name", ["OwnMLP", "MLP"])
def test_parts_of_the_user_are_refused(name, path):
    own = type(name, (MLP,), {"__init__": MLP.__init__})
    estimator = VAE(2, decoder=own(5), **TINY).fit(real())
    refuses(TypeError, "save cannot write decoder", estimator, path)


def test_random_state_instances_are_refused(path):
    options = {**TINY, "random_state": np.random.RandomState(0)}
    estimator = VAE(2, **options).fit(real())
    refuses(TypeError, "Use an int for random_state", estimator, path)


CHANGES = {
    "width": (VAE(2, **TINY), {"width": 9}),
    "depth": (VAE(2, **TINY), {"depth": 1}),
    "likelihood": (VAE(2, **TINY), {"likelihood": "bernoulli"}),
    "likelihood of equal shape": (
        VAE(2, likelihood="poisson", **TINY),
        {"likelihood": "bernoulli"},
    ),
    "noise": (VAE(2, **TINY), {"likelihood": Gaussian(noise="per_feature")}),
    "activation": (VAE(2, **TINY), {"decoder": MLP(6, activation="tanh")}),
    "decoder": (LIDVAE(2, **TINY), {"decoder": "brenier"}),
    "floor": (LIDVAE(2, **TINY), {"inverse_lipschitz": 0.4}),
}


@pytest.mark.parametrize("case", CHANGES.values(), ids=list(CHANGES))
def test_parameters_changed_after_fit_are_refused(case, path):
    estimator, changes = case
    estimator = clone(estimator).fit(counts()).set_params(**changes)
    refuses(ValueError, "changed after fit", estimator, path)


def test_parameters_that_do_not_shape_the_network_may_change(path):
    estimator = VAE(2, **TINY).fit(real()).set_params(max_iter=50, beta=2.0)
    again = round_trip(estimator, path)
    assert again.max_iter == 50
    np.testing.assert_array_equal(again.transform(real()), estimator.transform(real()))


def test_pickles_and_other_files_are_refused(vae, path):
    path.write_bytes(pickle.dumps(vae))
    with pytest.raises(ValueError, match="Pickles are read by joblib"):
        load_file(path)
    for junk in (b"", b"skvae", b"\x00" * 100):
        path.write_bytes(junk)
        with pytest.raises(ValueError, match=r"not a file of skvae\.save"):
            load_file(path)


def test_a_pickle_is_not_run(path):
    class Bomb:
        def __reduce__(self):
            return os.mkdir, (str(path) + ".exploded",)

    path.write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(ValueError, match=r"not a file of skvae\.save"):
        load_file(path)
    assert not os.path.exists(str(path) + ".exploded")


@pytest.mark.parametrize("metadata", [None, {"format": "pt"}])
def test_plain_safetensors_files_are_refused(path, metadata):
    save_file({"weight": torch.zeros(3)}, path, metadata=metadata)
    with pytest.raises(ValueError, match=r"not written by skvae\.save"):
        load_file(path)


@pytest.mark.parametrize("kept", [4, 50, 0.5, 0.9, -1])
def test_truncated_files_are_refused(vae, path, kept):
    save_file_of(vae, path)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(kept * len(whole)) if 0 < kept < 1 else kept])
    with pytest.raises(ValueError, match="damaged"):
        load_file(path)


def test_later_formats_are_refused(vae, path):
    save_file_of(vae, path)
    rewrite(path, format_version=str(FORMAT_VERSION + 1), skvae_version="99.0")
    with pytest.raises(ValueError, match=r"by skvae 99\.0.*Update skvae"):
        load_file(path)


def test_unknown_estimators_are_refused(vae, path):
    save_file_of(vae, path)
    content = json.loads(contents(path)[0]["content"])
    rewrite(path, content=json.dumps({**content, "estimator": "os.system"}))
    with pytest.raises(ValueError, match=r"unknown to this skvae: 'os\.system'"):
        load_file(path)


def test_missing_files_are_named(path):
    with pytest.raises(FileNotFoundError, match=r"model\.skvae"):
        load_file(path)


def test_loading_runs_no_code(vae, path, monkeypatch):
    save_file_of(vae, path)

    def forbidden(*args, **kwargs):
        raise AssertionError("loading must execute nothing")

    for module, name in (
        (pickle, "load"),
        (pickle, "loads"),
        (pickle, "Unpickler"),
        (torch, "load"),
    ):
        monkeypatch.setattr(module, name, forbidden)
    again = load_file(path)
    np.testing.assert_array_equal(again.transform(real()), vae.transform(real()))


def test_file_is_json_and_raw_numbers(vae, path):
    save_file_of(vae, path)
    whole = path.read_bytes()
    size = int.from_bytes(whole[:8], "little")
    header = json.loads(whole[8 : 8 + size])
    metadata = header.pop("__metadata__")
    assert metadata["skvae_version"] == skvae.__version__
    assert json.loads(metadata["content"])["parameters"]["n_components"] == 2
    end = max(entry["data_offsets"][1] for entry in header.values())
    assert len(whole) == 8 + size + end
    assert {name.split("/")[0] for name in header} == {"attribute", "module"}


# ------------------------------------------------------------------- versions


def test_another_version_is_told(vae, path):
    save_file_of(vae, path)
    rewrite(path, skvae_version="0.0.0")
    with pytest.warns(InconsistentVersionWarning, match=r"0\.0\.0") as caught:
        again = load_file(path)
    assert caught[0].filename == __file__
    np.testing.assert_array_equal(again.transform(real()), vae.transform(real()))


@pytest.mark.parametrize("case", ["VAE", "restarts", "string u", "IdentifiableVAE"])
def test_pickle_gives_identical_answers(case):
    estimator, X, given = fitted(CASES[case])
    again = pickle.loads(pickle.dumps(estimator))
    np.testing.assert_array_equal(
        again.transform(X, **given), estimator.transform(X, **given)
    )
    assert again.score(X, **given) == estimator.score(X, **given)


def test_pickles_of_another_version_are_told(monkeypatch):
    written = VAE(2, **TINY).fit(real())
    pickled = pickle.dumps(written)
    pickle.loads(pickled)
    written._skvae_version = "0.0.0"
    with pytest.warns(InconsistentVersionWarning, match=r"0\.0\.0"):
        pickle.loads(pickle.dumps(written))
