"""Sequence estimators: exact likelihoods, padding, replicas, certificates, collapse."""

import copy
import itertools
import math
import pickle

import numpy as np
import pytest
import sklearn.utils.estimator_checks as checks
import torch
from sklearn.base import clone
from sklearn.model_selection import GridSearchCV
from sklearn.utils.estimator_checks import parametrize_with_checks

import skvae.inference
from skvae import (
    LIDSVAE,
    PosteriorCollapseWarning,
    SequenceVAE,
    SkipSequenceVAE,
    load,
    save,
)
from skvae._batches import by_length
from skvae._random import generator
from skvae._validation import check_X
from skvae.estimators._sequences import check_tokens
from skvae.inference import Lagging, SemiAmortized
from skvae.networks import recurrent
from skvae.networks.recurrent import LSTM, LSTMDecoder, LSTMEncoder
from skvae.objectives import ELBO

pytestmark = [
    pytest.mark.filterwarnings("ignore::skvae.PosteriorCollapseWarning"),
    # Data of scikit-learn's checks, rounded to integers.
    pytest.mark.filterwarnings("ignore:Padding .0. before tokens:UserWarning"),
    pytest.mark.filterwarnings("ignore:Row .* holds no token:UserWarning"),
]

ESTIMATORS = [SequenceVAE, SkipSequenceVAE, LIDSVAE]
KINDS = [(cls, {}) for cls in ESTIMATORS] + [(LIDSVAE, {"decoder": "brenier"})]
SMALL = {
    "n_components": 2,
    "width": 5,
    "embedding_size": 4,
    "max_iter": 2,
    "n_draws": 10,
    "random_state": 0,
}
DROPPING = {"dropout": 0.2, "word_dropout": 0.3}
OUTPUTS = ["affine", "skip", "anchored", "brenier"]
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


def small(cls, **params):
    return cls(**{**SMALL, **params})


def kind_id(kind):
    return "-".join([kind[0].__name__, *kind[1].values()])


@pytest.fixture(params=KINDS, ids=kind_id)
def estimator(request):
    cls, params = request.param
    return small(cls, **params)


def documents(n=60, longest=9, n_tokens=12, seed=0):
    """Random words of random lengths, each document with its end token."""
    rng = np.random.default_rng(seed)
    X = rng.integers(3, n_tokens, (n, longest))
    ends = rng.integers(1, longest, n)
    X[np.arange(longest) >= ends[:, None]] = 0
    X[np.arange(n), ends] = 2
    return X


@pytest.fixture
def X():
    return documents()


def coins(n=300, length=20):
    """Documents of threes and fours whose share of fours is the one latent."""
    rng = np.random.default_rng(0)
    share = rng.random((n, 1))
    return 3 + (rng.random((n, length)) < share), share[:, 0]


def decoder(output, n_replicas=1, n_latents=2, n_tokens=10, n_steps=3, **options):
    generators = [generator(seed) for seed in range(n_replicas)]
    specification = LSTMDecoder(
        n_tokens=n_tokens,
        embedding_size=4,
        width=5,
        conditioned=output in {"affine", "skip"},
        output=output,
        **options,
    )
    return specification.build(n_latents, n_steps, generators).double()


def codes(*shape, seed=0):
    return torch.randn(*shape, generator=generator(seed), dtype=torch.float64)


# ------------------------------------------------------------------ scikit-learn


class FromRealNumbers:
    """Mixin that reads documents into real numbers: eight words by their remainder.

    scikit-learn rounds the data of its checks where the tags ask for categories,
    which leaves padding anywhere. Here they become documents as a user has them.
    """

    def _check_X(self, X, *, reset=False):
        X = check_X(self, X, reset=reset)
        X = 3.0 + np.floor(4.0 * X) % 8
        check_tokens(self, X, 11)
        self.n_tokens_ = 11
        return X

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.input_tags.categorical = tags.input_tags.positive_only = False
        return tags


class RealSequenceVAE(FromRealNumbers, SequenceVAE):
    pass


class RealSkipSequenceVAE(FromRealNumbers, SkipSequenceVAE):
    pass


class RealLIDSVAE(FromRealNumbers, LIDSVAE):
    pass


EXPECTED_FAILURES = {
    "check_sample_weight_equivalence_on_dense_data": (
        "minibatch noise: a repeated row is drawn twice, a row of weight two once; "
        "its data are real numbers whatever the tags say"
    )
}
ADAPTED = [RealSequenceVAE, RealSkipSequenceVAE, RealLIDSVAE]


@parametrize_with_checks(
    [small(cls) for cls in ESTIMATORS + ADAPTED],
    expected_failed_checks=lambda estimator: EXPECTED_FAILURES,
    xfail_strict=True,
)
def test_sklearn_compatible(estimator, check):
    check(estimator)


@pytest.mark.parametrize("cls", ESTIMATORS)
def test_all_checks_are_run(cls):
    """The extra ones are not among those that are yielded; the exception is."""
    yielded = {
        getattr(check, "func", check).__name__
        for _, check in checks.estimator_checks_generator(small(cls))
    }
    assert len(yielded) > 40
    assert not yielded & set(EXTRA_CHECKS)
    assert set(EXPECTED_FAILURES) <= yielded


@pytest.mark.filterwarnings("ignore:X does not have valid feature names:UserWarning")
@pytest.mark.filterwarnings("ignore:X has feature names, but:UserWarning")
@pytest.mark.parametrize("name", EXTRA_CHECKS)
@pytest.mark.parametrize("cls", ESTIMATORS)
def test_checks_left_out_of_check_estimator(cls, name):
    getattr(checks, name)(cls.__name__, small(cls))


def test_grid_search(X):
    search = GridSearchCV(
        small(SequenceVAE, n_tokens=12), {"beta": [0.5, 1.0], "width": [3, 5]}, cv=2
    )
    assert np.isfinite(search.fit(X).cv_results_["mean_test_score"]).all()


# ------------------------------------------------------------------- likelihoods


def reference_states(lstm, inputs, hidden, cell):
    """torch's own LSTM cell, in torch's layout of the weights."""
    own = torch.nn.LSTMCell(inputs.shape[-1], lstm.width).double()
    with torch.no_grad():
        own.weight_ih.copy_(lstm.inward.weight[0].t())
        own.weight_hh.copy_(lstm.recurrent[0].t())
        own.bias_ih.copy_(lstm.inward.bias.view(-1))
        own.bias_hh.zero_()
        states = []
        for given in inputs[0]:
            hidden, cell = own(given, (hidden, cell))
            states.append(hidden)
    return torch.stack(states)


def test_lstm_is_an_lstm():
    generators = [generator(0), generator(1)]
    both = LSTM(3, 4, generators).double()
    one = LSTM(3, 4, generators[:1]).double()
    one.load_state_dict({k: v[:1] for k, v in both.state_dict().items()})
    inputs, hidden, cell = codes(2, 6, 5, 3), codes(2, 5, 4), codes(2, 5, 4, seed=1)
    expected = reference_states(one, inputs[:1], hidden[0], cell[0])
    torch.testing.assert_close(one(inputs[:1], hidden[:1], cell[:1])[0], expected)
    torch.testing.assert_close(both(inputs, hidden, cell)[0], expected)
    first, kept = both.step(inputs[:, 0], hidden, cell)
    again, _ = both.step(inputs[:, 1], first, kept)
    torch.testing.assert_close(again[0], expected[1])


@pytest.mark.parametrize("output", OUTPUTS)
def test_probabilities_of_all_documents_sum_to_one(output):
    """Every document of up to 3 tokens: ended by 2, or cut at the last column."""
    n_tokens = 10
    network = decoder(output, n_tokens=n_tokens)
    rows = []
    for length in range(1, 4):
        for words in itertools.product(range(1, n_tokens), repeat=length):
            if 2 in words[:-1] or (length < 3 and words[-1] != 2):
                continue
            rows.append([*words, *[0] * (3 - length)])
    x = torch.tensor(rows, dtype=torch.float64)[None]
    z = codes(1, 1, 2).expand(-1, len(rows), -1)
    with torch.no_grad():
        total = network(z, x).sum(-1).exp().sum()
    assert total.item() == pytest.approx(1.0, abs=1e-12)


@pytest.mark.parametrize("output", OUTPUTS)
def test_a_token_depends_on_those_before_it_alone(output):
    network = decoder(output, n_steps=5)
    x = torch.tensor([[[3, 4, 5, 6, 2]]], dtype=torch.float64)
    z = codes(1, 1, 2)
    with torch.no_grad():
        before = network.log_probabilities(z, x)
        for place in range(5):
            changed = x.clone()
            changed[..., place] = 7
            after = network.log_probabilities(z, changed)
            same = (before == after).all(-1)[0, 0]
            assert same[: place + 1].all()
            assert not same[place + 1 :].any()
        # And the terms are the entries of these laws.
        chosen = before.gather(-1, x.long().unsqueeze(-1) - 1).squeeze(-1)
        torch.testing.assert_close(network(z, x), chosen)


@pytest.mark.parametrize("output", OUTPUTS)
def test_gradients_are_those_of_differences(output):
    network = decoder(output)
    x = torch.tensor([[[3, 4, 2], [5, 2, 0]]], dtype=torch.float64)
    z = codes(1, 2, 2).requires_grad_()
    assert torch.autograd.gradcheck(lambda z: network(z, x).sum(-1), z)
    # Semi-amortised training differentiates twice.
    assert torch.autograd.gradgradcheck(lambda z: network(z, x).sum(-1), z)


def test_samples_follow_the_law():
    network = decoder("skip", n_tokens=5, n_steps=2)
    n = 40_000
    z = codes(1, 1, 2).expand(-1, n, -1)
    with torch.no_grad():
        drawn = network.generate(z, None, generator(3))[0].long()
        for words in itertools.product(range(1, 5), repeat=2):
            row = [words[0], 0 if words[0] == 2 else words[1]]
            x = torch.tensor(row, dtype=torch.float64).view(1, 1, 2)
            share = network(z[:, :1], x).sum().exp().item()
            seen = (drawn == torch.tensor(row)).all(1).double().mean().item()
            assert abs(seen - share) < 4.5 * math.sqrt(share / n)
    assert (drawn[drawn[:, 0] == 2, 1] == 0).all()


@pytest.mark.parametrize("output", OUTPUTS)
def test_greedy_decoding_takes_the_likeliest_token(output):
    network = decoder(output, n_steps=6)
    z = 2.0 * codes(1, 20, 2)
    with torch.no_grad():
        x = network.generate(z, None, None)
        likeliest = 1 + network.log_probabilities(z, x).argmax(-1)
    written = x > 0
    assert torch.equal(x[written], likeliest[written].double())
    # Nothing follows the end token.
    ended = (x == 2).cumsum(-1) > 0
    assert (x[ended & (x != 2)] == 0).all()


def test_scores_agree_with_quadrature(X):
    vae = small(SequenceVAE, n_components=1, n_draws=20_000, max_iter=20).fit(X)
    grid = torch.linspace(-8, 8, 2001, dtype=torch.float64)
    model = copy.deepcopy(vae.module_).double()
    x = torch.tensor(X[:5]).double()
    with torch.no_grad():
        for row, score in zip(x, vae.score_samples(X[:5]), strict=True):
            repeated = row.expand(1, len(grid), -1)
            log_joint = model.log_joint(repeated, grid.view(1, -1, 1))[0]
            exact = torch.logsumexp(log_joint, 0).item() + math.log(16 / 2000)
            assert score == pytest.approx(exact, abs=0.02)


def test_perplexity_counts_tokens_and_ends(estimator, X):
    estimator.fit(X)
    n_tokens = (X > 0).sum()
    expected = math.exp(-estimator.score_samples(X).sum() / n_tokens)
    assert estimator.perplexity(X) == pytest.approx(expected, rel=1e-12)
    assert math.isnan(estimator.perplexity(np.zeros((2, 9))))


def test_the_first_epoch_starts_from_the_frequencies(X):
    """Before anything is learned, a token is about as likely as it is frequent."""
    for cls in (SequenceVAE, SkipSequenceVAE):
        vae = small(cls, max_iter=1, learning_rate=1e-9).fit(X)
        counts = np.bincount(X[X > 0], minlength=12)[1:]
        share = counts[counts > 0] / counts.sum()
        entropy = -(share * np.log(share)).sum()
        assert math.log(vae.perplexity(X)) == pytest.approx(entropy, abs=0.05)


# ----------------------------------------------------------------------- padding


def outputs(fitted, X):
    Z = fitted.transform(X)
    return [
        Z,
        fitted.posterior(X)[1],
        fitted.score_samples(X),
        fitted.kl_per_component_,
        fitted.loss_curve_,
        fitted.sample(4, random_state=1)[:, :9],
        fitted.inverse_transform(Z)[:, :9],
    ]


INFERENCE = ["amortized", SemiAmortized(n_steps=2)]


@pytest.mark.parametrize("inference", INFERENCE)
def test_columns_of_padding_change_nothing(estimator, X, inference):
    estimator.set_params(inference=inference, **DROPPING)
    wide = np.hstack([X, np.zeros((len(X), 4), int)])
    narrow = outputs(clone(estimator).fit(X), X)
    padded = outputs(clone(estimator).fit(wide), wide)
    for first, second in zip(narrow[:-2], padded[:-2], strict=True):
        np.testing.assert_array_equal(first, second)
    # A drawn document may be longer now, but is the same as far as it went.
    np.testing.assert_array_equal(narrow[-1], padded[-1])


def test_a_row_does_not_depend_on_longer_ones(estimator, X):
    estimator.fit(X)
    mean, score = estimator.transform(X), estimator.score_samples(X)
    for row in range(5):
        alone = X[[row]]
        np.testing.assert_allclose(estimator.transform(alone)[0], mean[row], rtol=1e-9)
        np.testing.assert_allclose(
            estimator.score_samples(alone)[0], score[row], rtol=1e-9
        )


@pytest.mark.parametrize("inference", INFERENCE)
def test_rows_do_not_depend_on_their_slice(estimator, X, inference, monkeypatch):
    estimator.set_params(inference=inference).fit(X)
    mean, score = estimator.transform(X), estimator.score_samples(X)
    monkeypatch.setattr(recurrent, "SLICE_ELEMENTS", 1000)  # a few rows at a time
    monkeypatch.setattr(skvae.inference, "REFINED_ROWS", 7)
    np.testing.assert_allclose(estimator.transform(X), mean, rtol=1e-9)
    np.testing.assert_allclose(estimator.score_samples(X), score, rtol=1e-9)


def test_batches_hold_rows_of_like_length():
    lengths = torch.randint(1, 40, (1003,), generator=generator(0))
    streams = [generator(1), generator(2)]
    order = torch.stack([torch.randperm(1003, generator=g) for g in streams])
    grouped = by_length(order, lengths, 50, streams)
    assert all(torch.equal(row.sort().values, torch.arange(1003)) for row in grouped)
    spans = []
    for rows in grouped:
        batch_lengths = lengths[rows[:1000]].view(20, 50)
        spans.append(batch_lengths.amax(1) - batch_lengths.amin(1))
        # The batches themselves are in no order.
        assert (batch_lengths[:, 0].diff() < 0).any()
    assert torch.stack(spans).max() <= 4
    assert not torch.equal(grouped[0], grouped[1])


# ------------------------------------------------------------- replicas and seeds


class KeepLast:
    """Callback that keeps the estimator of the last epoch, restart number 0."""

    def setup(self, estimator, context):
        pass

    def teardown(self, estimator, context):
        pass

    def on_fit_task_begin(self, estimator, context):
        pass

    def on_fit_task_end(self, estimator, context, *, fitted_estimator=None):
        if context.task_name == "epoch":
            self.seen = fitted_estimator


@pytest.mark.parametrize(
    "inference",
    ["amortized", SemiAmortized(n_steps=2), Lagging(max_inner_steps=4, block=2)],
    ids=["amortized", "semi_amortized", "lagging"],
)
def test_replicas_together_fare_as_alone(estimator, X, inference):
    estimator.set_params(inference=inference, **DROPPING)
    one = clone(estimator).fit(X)
    keep = KeepLast()
    three = clone(estimator).set_params(n_init=3).set_callbacks(keep).fit(X)
    np.testing.assert_allclose(
        keep.seen.transform(X), one.transform(X), rtol=1e-4, atol=1e-5
    )
    np.testing.assert_allclose(
        keep.seen.score_samples(X), one.score_samples(X), rtol=1e-4
    )
    assert three.consistency_.shape == (2,)


def test_the_seed_decides_and_copies_answer_alike(estimator, X, tmp_path):
    estimator.set_params(**DROPPING)
    torch.manual_seed(1)
    before = torch.get_rng_state()
    fitted = clone(estimator).fit(X)
    assert torch.equal(before, torch.get_rng_state())
    save(fitted, tmp_path / "model.skvae")
    others = [
        clone(estimator).fit(X),
        pickle.loads(pickle.dumps(fitted)),
        load(tmp_path / "model.skvae"),
    ]
    for other in others:
        for first, second in zip(outputs(fitted, X), outputs(other, X), strict=True):
            np.testing.assert_array_equal(first, second)
    changed = clone(estimator).set_params(random_state=1).fit(X)
    assert np.abs(changed.transform(X) - fitted.transform(X)).max() > 1e-4


@pytest.mark.parametrize("inference", ["amortized", "semi_amortized"])
def test_devices_train_and_answer(estimator, X, device, inference):
    estimator.set_params(device=device, inference=inference, **DROPPING)
    fitted = estimator.fit(X)
    mean, drawn = fitted.transform(X), fitted.sample(3, random_state=0)
    on_cpu = pickle.loads(pickle.dumps(fitted)).set_params(device="cpu")
    np.testing.assert_allclose(on_cpu.transform(X), mean, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(on_cpu.sample(3, random_state=0), drawn)


def test_partial_fit_goes_on_after_pickling(estimator, X):
    estimator.set_params(n_tokens=12, **DROPPING)
    kept = clone(estimator).partial_fit(X[:30])
    again = pickle.loads(pickle.dumps(kept))
    first, second = kept.partial_fit(X[30:]), again.partial_fit(X[30:])
    np.testing.assert_array_equal(first.transform(X), second.transform(X))
    assert first.n_iter_ == 2


def test_dropout_acts_in_training_alone(X):
    plain = small(SequenceVAE).fit(X)
    for name in ("dropout", "word_dropout"):
        dropping = small(SequenceVAE, **{name: 0.5}).fit(X)
        assert dropping.loss_curve_ != plain.loss_curve_
        np.testing.assert_array_equal(dropping.transform(X), dropping.transform(X))
    network = decoder("affine", dropout=0.25, word_dropout=0.5, n_steps=4)
    x = torch.full((1, 5000, 4), 3.0, dtype=torch.float64)
    z = torch.zeros(1, 5000, 2, dtype=torch.float64)
    with torch.no_grad():
        clean = network(z, x)
        with network.perturbed(codes(1, 5000, 2)):
            noisy = network(z, x)
            words = torch.full((1, 4, 5000), 3)
            unknown = network._inputs(z, words)[..., :4]
        assert network._seeds is None
        torch.testing.assert_close(network(z, x), clean)
    assert not torch.allclose(noisy, clean)
    vectors = network.embedding.weight[0].detach() / 0.75
    told = torch.isclose(unknown[..., :1], vectors[3, :1]).double().mean()
    hidden = torch.isclose(unknown[..., :1], vectors[1, :1]).double().mean()
    gone = (unknown[..., 0] == 0).double().mean()
    assert told.item() == pytest.approx(0.5 * 0.75, abs=0.02)
    assert hidden.item() == pytest.approx(0.5 * 0.75, abs=0.02)
    assert gone.item() == pytest.approx(0.25, abs=0.02)


def test_weights_of_zero_are_absent_and_objectives_are_served(X):
    weight = np.repeat([1.0, 0.0], 30)
    kept = small(SequenceVAE, n_tokens=12).fit(X[:30])
    masked = small(SequenceVAE, n_tokens=12).fit(X, sample_weight=weight)
    assert masked.loss_curve_ == kept.loss_curve_
    for objective in (ELBO(warm_up=0.5, free_bits=0.1), "iwae", "total_correlation"):
        fitted = small(SkipSequenceVAE, objective=objective).fit(X)
        assert np.isfinite(fitted.loss_curve_).all()
    early = small(LIDSVAE, early_stopping=True, max_iter=4, n_iter_no_change=4, tol=0.0)
    with pytest.warns(UserWarning, match="max_iter=4 was reached"):
        early.fit(X)
    assert len(early.validation_scores_) == 4


@pytest.mark.usefixtures("without_noise")
def test_weights_equal_repetitions_where_there_is_no_noise(estimator, monkeypatch):
    """Replaces scikit-learn's equivalence check, which minibatches cannot pass."""
    # Training starts from frequencies to which one is added: repetition makes them
    # larger, and the start another.
    started = lambda network, x, weight: None
    monkeypatch.setattr(recurrent.LSTMDecoderNetwork, "align", started)
    X = documents(40)
    # Two groups of documents that have their words for themselves.
    X[:20][X[:20] > 2] = 3 + X[:20][X[:20] > 2] % 4
    X[20:][X[20:] > 2] = 7 + X[20:][X[20:] > 2] % 4
    weight = np.repeat([1, 5], 20)

    def fitted(rows, sample_weight=None):
        one = clone(estimator).set_params(
            batch_size=len(rows), max_iter=15, learning_rate=0.01, n_tokens=12
        )
        return one.fit(X[rows], sample_weight=sample_weight)

    everything = np.arange(40)
    weighted = fitted(everything, weight)
    by_repetition = fitted(np.repeat(everything, weight))
    plain = fitted(everything)
    scores = by_repetition.score_samples(X)
    apart = np.abs(plain.score_samples(X) - scores).max()
    assert apart > 0.1
    assert np.abs(weighted.score_samples(X) - scores).max() < 0.01 * apart
    np.testing.assert_allclose(
        weighted.loss_curve_, by_repetition.loss_curve_, rtol=1e-3
    )


# ----------------------------------------------------------- collapse, certificate


@pytest.mark.parametrize("output", ["anchored", "brenier"])
@pytest.mark.parametrize("slope", [0.1, 2.0])
def test_log_probabilities_keep_the_certified_distance(output, slope):
    network = decoder(output, inverse_lipschitz=slope, n_tokens=12, n_steps=4)
    with torch.no_grad():
        share = torch.arange(1.0, 12.0, dtype=torch.float64)
        network.output.align(share / share.sum())
        # Weights far from their start, of every size.
        for number, weight in enumerate(network.parameters()):
            weight += codes(*weight.shape, seed=number)
        x = torch.tensor([[[3, 4, 5, 2]]], dtype=torch.float64).expand(1, 400, 4)
        ratios = []
        for scale in (1e-3, 1.0, 10.0):
            z = codes(1, 400, 2)
            other = z + scale * codes(1, 400, 2, seed=1)
            laws = network.log_probabilities(z, x), network.log_probabilities(other, x)
            apart = torch.linalg.vector_norm(laws[0] - laws[1], dim=-1)[0]
            moved = torch.linalg.vector_norm(z - other, dim=-1)[0]
            ratios.append((apart / moved.unsqueeze(-1)).min().item())
        certificate = network.inverse_lipschitz().item()
    assert certificate >= slope
    assert min(ratios) >= certificate * (1 - 1e-6)


@pytest.mark.parametrize("output", ["anchored", "brenier"])
def test_the_start_has_the_given_frequencies(output):
    """With z and states out of the way, the softmax gives the shares back."""
    share = torch.tensor([0.4, 0.1, 0.05, 0.05, 0.1, 0.1, 0.05, 0.05, 0.1]).double()
    network = decoder(output, n_tokens=10).output
    with torch.no_grad():
        for weight in network.parameters():
            weight.mul_(0.0)
        network.align(share)
        # Slopes are positive by construction, but zero input stays zero.
        law = torch.softmax(
            network(torch.zeros(1, 1, 1, 5).double(), torch.zeros(1, 1, 2).double()), -1
        )
    torch.testing.assert_close(law.flatten(), share, rtol=1e-6, atol=1e-8)


def test_lidsvae_recovers_what_sequence_vae_gives_up():
    """One latent worth under a nat: the LSTM can do without, the certificate not."""
    X, share = coins()
    options = {
        "n_components": 1,
        "width": 16,
        "embedding_size": 8,
        "max_iter": 15,
        "learning_rate": 0.01,
        "random_state": 0,
    }
    found = {}
    for cls in (SequenceVAE, LIDSVAE):
        vae = cls(**options).fit(X)
        z = vae.transform(X)[:, 0]
        found[cls] = vae.kl_per_component_[0], abs(np.corrcoef(z, share)[0, 1])
    assert found[SequenceVAE][0] < 0.05
    assert found[LIDSVAE][0] > 0.5
    assert found[LIDSVAE][1] > 0.9
    # Nothing was bought at the likelihood's expense: the exact entropy per token.
    log_marginal = [
        -math.log(21) - math.log(math.comb(20, int(k))) for k in (X == 4).sum(1)
    ]
    exact = math.exp(-np.mean(log_marginal) / 20)
    assert vae.perplexity(X) == pytest.approx(exact, rel=0.03)


def test_collapse_is_told():
    X, _ = coins(100)
    vae = small(SequenceVAE, beta=20.0, max_iter=8, learning_rate=0.02)
    with pytest.warns(PosteriorCollapseWarning, match="2 of 2 components of Seq"):
        vae.fit(X)


# ------------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (2.5, r"column 3, row 1 holds 2\.5"),
        (-1, "Negative values"),
        (np.nan, "NaN in column 3, row 1"),
    ],
)
def test_what_is_no_token_is_named(X, value, message):
    X = X.astype(float)
    X[1, 3] = value
    with pytest.raises(ValueError, match=message):
        small(SequenceVAE).fit(X)


@pytest.mark.parametrize(
    ("X", "message"),
    [
        (["the cat", "a dog"], r"row 0 holds the text 'the cat'. Tokenizer\(\)"),
        ([[3, 4], [3, "cat"]], "row 1 holds the text 'cat'"),
        (np.array([["a", "b"], ["c", "d"]]), "row 0 holds the text 'a'"),
        ([[3, 4, 2], [3, 2]], "row 0 holds 3 token numbers, row 1 holds 2. Fill"),
        (np.zeros((4, 3), int), "No row .* holds a token"),
    ],
)
@pytest.mark.parametrize("cls", ESTIMATORS)
def test_what_is_no_token_matrix_is_explained(cls, X, message):
    with pytest.raises(ValueError, match=message):
        small(cls).fit(X)


def test_text_is_explained_to_a_fitted_model(X):
    vae = small(SequenceVAE).fit(X)
    for answer in (vae.transform, vae.score_samples, vae.perplexity):
        with pytest.raises(ValueError, match="row 1 holds the text 'cat'"):
            answer([[3] * 9, ["cat"] * 9])


def test_tokens_beyond_the_vocabulary_are_named(X):
    vae = small(SequenceVAE).fit(X)
    X[1, 0] = 12
    with pytest.raises(ValueError, match=r"below 12.*column 0, row 1 holds 12\.0"):
        vae.transform(X)
    with pytest.raises(ValueError, match="Pass n_tokens"):
        vae.partial_fit(X)
    assert small(SequenceVAE, n_tokens=20).fit(X).n_tokens_ == 20


def test_padding_on_the_left_is_told(X):
    with pytest.warns(UserWarning, match="Pad on the right"):
        small(SequenceVAE).fit(X[:, ::-1])
    fitted = small(SequenceVAE).fit(X)
    within = X.copy()
    within[4, :3] = 3, 0, 4
    for answer in (fitted.transform, fitted.score_samples, fitted.partial_fit):
        with pytest.warns(UserWarning, match=r"\(0\).* row 4, column 1.*Pad on"):
            answer(within)
    X[2] = 0
    with pytest.warns(UserWarning, match="Row 2 of X .* holds no token"):
        fitted = small(SequenceVAE).fit(X)
    assert fitted.score_samples(X)[2] == pytest.approx(0.0, abs=0.02)


def test_too_small_vocabularies_for_an_injective_output(X):
    with pytest.raises(ValueError, match="needs at least 14 tokens"):
        small(LIDSVAE, n_components=12).fit(X)
    with pytest.raises(ValueError, match="use decoder='anchored'"):
        small(LIDSVAE, decoder="brenier", width=50).fit(X)
    assert small(LIDSVAE, n_components=10).fit(X).transform(X).shape == (60, 10)


def test_the_encoder_reads_up_to_the_last_token():
    specification = LSTMEncoder(n_tokens=6, embedding_size=3, width=4)
    network = specification.build(5, 2, [generator(0)]).double()
    x = torch.tensor([[[3, 4, 0, 0, 0], [3, 4, 5, 3, 2]]], dtype=torch.float64)
    with torch.no_grad():
        both = network(x)
        torch.testing.assert_close(both[:, :1], network(x[:, :1, :2]))
        changed = x.clone()
        changed[0, 1, 0] = 5
        assert not torch.allclose(network(changed)[0, 1], both[0, 1])
