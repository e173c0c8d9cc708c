"""Networks of images against dense references and exact enumeration."""

import itertools
import math
import pickle
import warnings

import numpy as np
import pytest
import torch
from scipy.stats import chi2
from sklearn.base import clone
from sklearn.datasets import load_digits
from sklearn.model_selection import GridSearchCV
from torch.nn import functional

from skvae import VAE, BatchedGridSearchCV, SkipVAE, _model, iVAE, load, save
from skvae._model import FramedLikelihood
from skvae._random import Seeds
from skvae._training import SCHEDULES, Settings, train
from skvae.estimators._fitting import (
    Auxiliary,
    Specifications,
    build_model,
    prepare,
    to_data,
)
from skvae.inference import Amortized, Lagging, SemiAmortized
from skvae.likelihoods import Bernoulli, Gaussian, Poisson
from skvae.networks import (
    DECODERS,
    ENCODERS,
    IMAGE_DECODERS,
    IMAGE_ENCODERS,
    MLP,
    ConvDecoder,
    ConvEncoder,
    PixelCNN,
    ResNetEncoder,
)
from skvae.networks._images import ImageShape
from skvae.objectives import ELBO, IWAE
from skvae.posteriors import EncoderPosterior
from skvae.priors import StandardNormal

pytestmark = pytest.mark.filterwarnings("ignore::skvae.PosteriorCollapseWarning")

SHAPE, D = (5, 4, 2), 3
SEEDS = [Seeds(1, 2, 3), Seeds(4, 5, 6), Seeds(7, 8, 9)]
FAST = {"max_iter": 2, "n_draws": 4, "random_state": 0, "device": "cpu"}


def generators(*seeds):
    return [torch.Generator().manual_seed(s) for s in seeds]


def draw(seed, *shape):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def build(network, n_in, n_out, seeds=(0,), disturbed=0.3):
    """The module in double precision, its weights and biases moved by noise."""
    module = network.build(n_in, n_out, generators(*seeds)).double()
    module.requires_grad_(False)
    for number, parameter in enumerate(module.parameters()):
        parameter += disturbed * draw(100 + number, *parameter.shape)
    return module


ENCODER_CASES = [
    ConvEncoder((3, 4), 6, "tanh", SHAPE),
    ConvEncoder((3,), 6, "elu", SHAPE),
    ResNetEncoder((3, 4), 6, "elu", SHAPE),
    ResNetEncoder((3, 3), 6, "relu", SHAPE),
]
DECODER_CASES = [
    ConvDecoder((4, 3), 6, "tanh", SHAPE),
    ConvDecoder((4,), 6, "elu", SHAPE),
    PixelCNN(1, 3, image_shape=SHAPE),
    PixelCNN(2, 3, image_shape=SHAPE, n_maps=2),
    PixelCNN(2, 2, image_shape=SHAPE, skip=True),
    PixelCNN(3, 3, (5, 3, 1), image_shape=SHAPE, skip=True, n_maps=2),
]
N = math.prod(SHAPE)


def case(network):
    """Whether it decodes, its numbers of inputs and outputs, and inputs for R, B."""
    decodes = network in DECODER_CASES
    n_in, n_out = (D, N) if decodes else (N, D)

    def inputs(n_replicas, n_rows):
        given = [draw(1, n_replicas, n_rows, n_in)]
        reads_x = getattr(build(network, n_in, n_out), "autoregressive", False)
        return (*given, draw(2, n_replicas, n_rows, N)) if reads_x else tuple(given)

    return n_in, n_out, inputs


EACH = pytest.mark.parametrize("network", ENCODER_CASES + DECODER_CASES, ids=repr)
PIXELCNN = [network for network in DECODER_CASES if hasattr(network, "n_maps")]
EACH_PIXELCNN = pytest.mark.parametrize("network", PIXELCNN, ids=repr)


def test_every_network_is_tested():
    tested = {type(network) for network in ENCODER_CASES}
    assert tested == set(IMAGE_ENCODERS.values())
    tested = {type(network) for network in DECODER_CASES}
    assert tested == set(IMAGE_DECODERS.values())
    assert set(IMAGE_ENCODERS) < set(ENCODERS)
    assert set(IMAGE_DECODERS) < set(DECODERS)


# ----------------------------------------------------------------- every one


@EACH
def test_replica_equals_the_network_built_from_its_own_stream(network):
    n_in, n_out, inputs = case(network)
    given = inputs(3, 7)
    together = build(network, n_in, n_out, (4, 5, 6), 0.0)(*given)
    assert together.shape == (3, 7, n_out)
    for r, seed in enumerate((4, 5, 6)):
        alone = build(network, n_in, n_out, (seed,), 0.0)
        # Affine maps of several replicas are one product, which rounds otherwise.
        torch.testing.assert_close(
            alone(*(t[r : r + 1] for t in given))[0], together[r]
        )
    assert not torch.allclose(together[0], together[1])


@EACH
def test_one_copy_of_the_input_serves_all_replicas(network):
    n_in, n_out, inputs = case(network)
    module, given = build(network, n_in, n_out, (4, 5)), inputs(1, 7)
    found = module(*given)
    torch.testing.assert_close(found, module(*(t.repeat(2, 1, 1) for t in given)))


@EACH
def test_rows_do_not_see_each_other(network):
    n_in, n_out, inputs = case(network)
    module, given = build(network, n_in, n_out), inputs(1, 9)
    module.train()
    together = module(*given)
    apart = [module(*(t[:, i : i + 1] for t in given)) for i in range(9)]
    torch.testing.assert_close(torch.cat(apart, dim=1), together)


@EACH
def test_gradients_are_right_and_reach_every_parameter(network):
    n_in, n_out, inputs = case(network)
    module = build(network, n_in, n_out, (0, 1)).requires_grad_(True)
    given = tuple(t.requires_grad_() for t in inputs(2, 5))
    names, parameters = zip(*module.named_parameters(), strict=True)

    def call(*values):
        state = dict(zip(names, values[len(given) :], strict=True))
        return torch.func.functional_call(module, state, values[: len(given)])

    values = [*given, *(p.detach().clone().requires_grad_() for p in parameters)]
    assert torch.autograd.gradcheck(call, values, fast_mode=True, atol=1e-4)
    out = module(*given)
    found = torch.autograd.grad((out * draw(2, *out.shape)).sum(), parameters)
    for name, gradient in zip(names, found, strict=True):
        reached = (gradient != 0).flatten(1).any(1)
        assert reached.all(), f"no gradient reaches {name}"


@EACH
def test_parameters_lead_with_the_replicas(network):
    n_in, n_out, _ = case(network)
    module = build(network, n_in, n_out, (0, 1))
    assert all(p.shape[0] == 2 for p in module.parameters())


def test_rows_become_images_as_numpy_flattens_them():
    image = np.arange(2 * 3 * 5 * 4 * 2).reshape(2, 3, 5, 4, 2)
    shape = ImageShape(5, 4, 2)
    found = shape.unflatten(torch.tensor(image.reshape(2, 3, -1)))
    assert np.array_equal(found.numpy(), image.transpose(0, 1, 4, 2, 3))
    assert np.array_equal(shape.flatten(found).numpy(), image.reshape(2, 3, -1))


# ------------------------------------------------------------ encoders and decoder


def image_of(x):
    """Row of a replica to torch's ``(B, C, H, W)``, for SHAPE."""
    return x.reshape(-1, *SHAPE).permute(0, 3, 1, 2)


def dense(layer, x):
    return x @ layer.weight[0] + layer.bias[0]


def convolved(layer, x, **options):
    return functional.conv2d(x, layer.weight[0], layer.bias[0], **options)


def test_conv_encoder_equals_its_formula():
    module, x = build(ENCODER_CASES[0], N, D), draw(1, 1, 7, N)
    h = image_of(x[0])
    for stage in module.stages:
        h = convolved(stage, h, stride=2, padding=1).tanh()
    assert h.shape[2:] == (2, 1)
    expected = dense(module.output, dense(module.hidden, h.flatten(1)).tanh())
    torch.testing.assert_close(module(x)[0], expected)


@pytest.mark.parametrize("network", ENCODER_CASES[2:], ids=repr)
def test_resnet_encoder_equals_its_formula(network):
    activate = getattr(functional, network.activation)
    module, x = build(network, N, D), draw(1, 1, 7, N)
    h = image_of(x[0])
    for block, smaller in module.stages:
        inner = activate(convolved(block.first, h, padding=1))
        branch = convolved(block.second, inner, padding=1)
        if h.shape[1] != branch.shape[1]:
            h = convolved(block.shortcut, h)
        h = activate(convolved(smaller, activate(h + branch), stride=2))
    expected = dense(module.output, activate(dense(module.hidden, h.flatten(1))))
    torch.testing.assert_close(module(x)[0], expected)


def test_conv_decoder_equals_its_formula():
    module, z = build(DECODER_CASES[0], D, N), draw(1, 1, 7, D)
    h = dense(module.map, dense(module.hidden, z[0]).tanh())
    h = h.reshape(7, 2, 1, 4).permute(0, 3, 1, 2)
    for stage, (height, width) in zip(module.stages, [(3, 2), (5, 4)], strict=True):
        weight, bias = stage.weight[0], stage.bias[0]
        h = functional.conv_transpose2d(h.tanh(), weight, bias, stride=2, padding=1)
        h = h[:, :, :height, :width]
    expected = h.permute(0, 2, 3, 1).flatten(1)
    torch.testing.assert_close(module(z)[0], expected)


def test_a_fresh_network_keeps_the_scale_of_its_input():
    """Activations neither die out nor explode on the way to the output."""
    x = draw(1, 1, 8, 784)
    for network in (ConvEncoder(), ResNetEncoder(), ResNetEncoder((16,) * 4)):
        out = build(network, 784, 8, disturbed=0.0)(x)
        assert 0.05 < out.std() < 1.5, network
    for network in (ConvDecoder(), PixelCNN(), PixelCNN(skip=True)):
        module = build(network, 8, 784, disturbed=0.0)
        reads_x = getattr(module, "autoregressive", False)
        out = module(draw(2, 1, 8, 8), *[x] * reads_x)
        assert 0.02 < out.std() < 1.5, network


# ------------------------------------------------------------------- PixelCNN


def masked(weight, rows, columns):
    """A dense square kernel with the given weights at these offsets, else zeros."""
    reach = max(*map(abs, rows), *map(abs, columns))
    side = 2 * reach + 1
    kernel = weight.new_zeros(*weight.shape[:2], side, side)
    for a, row in enumerate(rows):
        for b, column in enumerate(columns):
            kernel[:, :, reach + row, reach + column] = weight[:, :, a, b]
    return kernel


def around(x, kernel):
    return functional.conv2d(x, kernel, padding=kernel.shape[-1] // 2)


def reference(module, kernels, z, x):
    """The network of one replica by dense convolutions with masks A, then B."""
    n_maps, n_places = module.n_maps, module.n_places
    maps = dense(module.maps, z[0])
    maps = maps.reshape(-1, *SHAPE[:2], n_places * n_maps).permute(0, 3, 1, 2)
    maps = list(maps.split(n_maps, dim=1))
    v = h = image_of((x[0] - module.centre) / module.scale)
    for number, (layer, k) in enumerate(zip(module.layers, kernels, strict=True)):
        reach, first, n = k // 2, number == 0, v.shape[1]
        up_to, across = list(range(-reach, 1)), list(range(-reach, reach + 1))
        before = [offset - first for offset in up_to]
        weight = layer.vertical.weight[0]
        above = around(v, masked(weight[:, :n], before, across))
        row_weight = layer.horizontal.weight[0]
        beside = around(h, masked(row_weight[:, :n], [0], before))
        for m in maps[number : number + 1]:
            above = above + around(m, masked(weight[:, n:], up_to, across))
            beside = beside + around(m, masked(row_weight[:, n:], [0], up_to))
        above = above + layer.vertical.bias[0, :, None, None]
        beside = beside + layer.horizontal.bias[0, :, None, None]
        beside = beside + convolved(layer.across, above)

        def gate(t):
            a, b = t[:, : t.shape[1] // 2], t[:, t.shape[1] // 2 :]
            return a.tanh() / (1.0 + torch.exp(-b))

        row = convolved(layer.out, gate(beside))
        v, h = gate(above), row if first else h + row
    out = convolved(module.output, torch.cat([h, *maps[len(kernels) :]], dim=1))
    return out.permute(0, 2, 3, 1).flatten(1)


@EACH_PIXELCNN
def test_pixelcnn_equals_dense_convolutions_with_masks(network):
    module = build(network, D, N)
    module.centre += 0.3
    module.scale *= 1.7
    z, x = draw(1, 1, 6, D), draw(2, 1, 6, N)
    expected = reference(module, network._kernels(), z, x)
    torch.testing.assert_close(module(z, x)[0], expected)


@EACH_PIXELCNN
def test_no_output_depends_on_its_own_or_a_later_pixel(network):
    """The Jacobian by pixel is strictly lower triangular."""
    module, z = build(network, D, N), draw(1, 1, 1, D)

    def one(x):
        return module(z, x.reshape(1, 1, N)).reshape(N)

    jacobian = torch.autograd.functional.jacobian(one, draw(2, N))
    by_pixel = jacobian.reshape(20, 2, 20, 2).abs().amax((1, 3))
    assert (by_pixel.triu() == 0).all()
    # The pixel before, the first but one in a row, and the one above are seen.
    for i in range(1, 20):
        assert by_pixel[i, i - (4 if i % 4 == 0 else 1)] > 0


@EACH_PIXELCNN
def test_changing_later_pixels_changes_no_earlier_output(network):
    module, z, x = build(network, D, N), draw(1, 1, 3, D), draw(2, 1, 3, N)
    before = module(z, x)
    for pixel in range(20):
        changed = x.clone()
        changed[..., 2 * pixel :] += draw(3, N - 2 * pixel)
        after = module(z, changed)
        end = 2 * pixel + 2
        assert torch.equal(after[..., :end], before[..., :end])
        if pixel < 19:
            assert not torch.equal(after[..., end:], before[..., end:])


@pytest.mark.parametrize(("n_layers", "kernel"), [(1, 3), (1, 5), (2, 3), (3, 1)])
def test_receptive_field(n_layers, kernel):
    """Pixels seen, from the row and from the vertical stack."""
    side = 9
    module = build(PixelCNN(n_layers, 4, kernel), D, side * side)
    z, x = draw(1, 1, 1, D), draw(2, 1, 1, side * side).requires_grad_()
    row, column, reach = 6, 4, n_layers * (kernel // 2)
    out = module(z, x)[0, 0, row * side + column]
    (gradient,) = torch.autograd.grad(out, x)
    seen = gradient.reshape(side, side) != 0
    expected = torch.zeros(side, side, dtype=torch.bool)
    # The row stack looks left, and at each step up as far as the vertical stack went.
    expected[row, max(0, column - reach - 1) : column] = True
    for up in range(1, reach + 2):
        for j in range(side):
            expected[row - up, j] = -2 * reach <= j - column <= reach
    inside = expected[: row + 1]
    assert (seen[: row + 1] <= inside).all()
    assert (seen[row] == expected[row]).all()
    assert seen[row - 1, max(0, column - reach) : column + reach + 1].all()
    assert seen[row - reach - 1, column]
    assert not seen[: row - reach - 1].any()


@pytest.mark.parametrize("skip", [False, True])
def test_z_reaches_every_pixel_and_with_skips_past_every_layer(skip):
    module = build(PixelCNN(3, 3, image_shape=SHAPE, skip=skip), D, N)
    x, z = draw(2, 1, 1, N), draw(1, 1, 1, D)

    def moves():
        return (module(z, x) != module(z + 1.0, x))[0, 0]

    assert moves().all()
    # Without a word from the layers, the output reads z itself or not at all.
    for layer in module.layers:
        layer.out.weight.zero_()
    assert moves().all() if skip else not moves().any()


def test_unskipped_layers_have_no_maps_of_z():
    for skip, n_places in ((False, 1), (True, 4)):
        module = build(PixelCNN(3, 5, skip=skip, n_maps=2), D, 16)
        assert module.maps.weight.shape == (1, D, n_places * 2 * 16)
        widths = [layer.vertical.weight.shape[2] for layer in module.layers]
        assert widths == ([3, 7, 7] if skip else [3, 5, 5])


# ------------------------------------------------------------- as a distribution


def model_of(network, shape, likelihood=None, n_replicas=1, disturbed=0.5):
    """A model with an arbitrary frame, in double precision."""
    n = math.prod(shape)
    likelihood = likelihood or Bernoulli()
    parts = {
        "encoder": MLP(6, 1),
        "decoder": network,
        "prior": StandardNormal(),
        "likelihood": likelihood,
        "posterior": EncoderPosterior(),
        "inference": Amortized(),
        "objective": ELBO(),
    }
    seeds = SEEDS[:n_replicas]
    model = build_model(Specifications(**parts), D, n, Auxiliary(), seeds).double()
    model.requires_grad_(False)
    for number, parameter in enumerate(model.decoder.parameters()):
        parameter += disturbed * draw(40 + number, *parameter.shape)
    model.frame.offset += 0.5 * draw(30, n)
    model.decoder.centre += 0.4
    model.decoder.scale *= 0.6
    return model


def binary_images(n):
    images = itertools.product([0.0, 1.0], repeat=n)
    return torch.tensor(list(images), dtype=torch.float64).unsqueeze(0)


@pytest.mark.parametrize("skip", [False, True])
@pytest.mark.parametrize("shape", [(2, 2), (2, 3), (3, 2), (2, 2, 2)])
def test_probabilities_of_all_binary_images_sum_to_one(shape, skip):
    network = PixelCNN(2, 4, image_shape=shape, skip=skip, n_maps=2)
    model = model_of(network, shape, n_replicas=2)
    images = binary_images(math.prod(shape))
    for z in draw(1, 3, 2, 1, D):
        codes = z.expand(-1, images.shape[1], -1)
        log_prob = model.likelihood.log_prob(images, model.decode(codes, images))
        total = torch.logsumexp(log_prob, dim=1)
        torch.testing.assert_close(total, torch.zeros(2).double(), rtol=0, atol=1e-10)
        # It is a distribution that pixels depend on each other in.
        assert log_prob.std() > 0.1


def test_log_joint_and_importance_weights_read_x():
    shape = (2, 3)
    model = model_of(PixelCNN(2, 4, image_shape=shape), shape)
    x, z = binary_images(6)[:, ::9], draw(1, 1, 8, D)
    expected = model.likelihood.log_prob(x, model.decode(z, x))
    expected = expected + model.prior.log_prob(z)
    assert torch.equal(model.log_joint(x, z), expected)
    noise = draw(2, 5, D)
    q = model.posterior(x)
    found = model.importance_log_weights(x, None, noise)
    for s in range(5):
        z = q.loc + q.scale * noise[s]
        joint = model.log_joint(x, z)
        torch.testing.assert_close(found[:, s], joint - q.log_prob(z))


@pytest.mark.parametrize("skip", [False, True])
def test_draws_have_the_exact_probabilities(skip):
    shape, n = (2, 2), 20_000
    model = model_of(PixelCNN(2, 3, image_shape=shape, skip=skip), shape)
    images, z = binary_images(4), draw(1, 1, 1, D)
    codes = z.expand(-1, 16, -1)
    log_prob = model.likelihood.log_prob(images, model.decode(codes, images))
    expected = n * log_prob[0].exp()
    drawn = model.generate(z.expand(-1, n, -1), generators(5)[0])[0]
    place = (drawn * torch.tensor([8.0, 4.0, 2.0, 1.0])).sum(-1).long()
    counts = torch.bincount(place, minlength=16)
    assert counts.sum() == n
    statistic = ((counts - expected).square() / expected).sum().item()
    assert statistic < chi2.ppf(0.999, 15)
    # The test has the power to tell pixels apart that were drawn independently.
    p = model.likelihood.mean(model.decode(codes, images))[0, 0]
    flat = torch.where(images[0] > 0, p, 1 - p).prod(-1) * n
    assert ((counts - flat).square() / flat).sum().item() > chi2.ppf(0.999, 15)


@pytest.mark.parametrize("likelihood", [Bernoulli(), Gaussian(), Poisson()], ids=repr)
@EACH_PIXELCNN
def test_generation_by_windows_equals_full_passes(network, likelihood):
    """Images of means are where feeding the image back changes nothing."""
    shape = (9, 4, 2)
    network = clone(network).set_params(image_shape=shape)
    model = model_of(network, shape, likelihood, n_replicas=2, disturbed=0.1)
    z = draw(1, 2, 3, D)
    x = model.generate(z)
    torch.testing.assert_close(model.likelihood.mean(model.decode(z, x)), x)
    assert x.flatten(0, 1).std(0).min() > 0


def test_a_draw_is_what_each_pixel_gives_after_the_ones_before():
    shape = (6, 3)
    model = model_of(PixelCNN(2, 4, image_shape=shape), shape)
    z = draw(1, 1, 4, D)
    x = model.generate(z, generators(3)[0])
    stream, again = generators(3)[0], torch.zeros(1, 4, 18).double()
    for i in range(18):
        uniform = torch.rand(1, 4, 18, generator=stream, dtype=torch.float64)
        p = model.likelihood.mean(model.decode(z, again))
        again[..., i] = (uniform < p)[..., i].double()
    assert torch.equal(x, again)


def test_framed_likelihood_speaks_in_the_decoders_units():
    model = model_of(PixelCNN(1, 2, image_shape=(2, 2)), (2, 2), Gaussian())
    model.frame.unit *= 3.0
    framed = FramedLikelihood(model.likelihood, model.frame)
    out = draw(1, 1, 5, 4)
    expected = model.frame.offset + 3.0 * out
    torch.testing.assert_close(framed.mean(out), expected)
    drawn = framed.sample(out, generators(0)[0])
    again = model.likelihood.sample(expected, generators(0)[0])
    torch.testing.assert_close(drawn, again)


# ------------------------------------------------------------------ training


def binary_digits(n=60):
    return (load_digits().data[:n] > 7).astype(np.float32)


def train_replicas(network, encoder, seeds, inference=None):
    parts = {
        "encoder": encoder,
        "decoder": network,
        "prior": StandardNormal(),
        "likelihood": Bernoulli(),
        "posterior": EncoderPosterior(),
        "inference": inference or Amortized(),
        "objective": ELBO(),
    }
    model = build_model(Specifications(**parts), D, 64, Auxiliary(), seeds)
    X = binary_digits()
    data = to_data(X, None, np.ones(len(X), dtype=np.float32), torch.device("cpu"))
    prepare(model, data, Auxiliary())
    history = train(
        model,
        data,
        objective=parts["objective"].build(1.0, model.prior, len(X)),
        inference=parts["inference"].build(),
        settings=Settings(2, 16, 0.003, SCHEDULES["constant"]),
        seeds=seeds,
        begin_epoch=lambda: lambda row: False,
    )
    return model, history


@pytest.mark.parametrize(
    ("encoder", "decoder"),
    [
        (ConvEncoder((3, 4), 8), ConvDecoder((4, 3), 8)),
        (ResNetEncoder((3, 4), 8), PixelCNN(2, 4, skip=True)),
        (MLP(8, 1), PixelCNN(2, 4, n_maps=2)),
    ],
    ids=repr,
)
def test_replicas_trained_together_equal_those_trained_alone(encoder, decoder):
    together, history = train_replicas(decoder, encoder, SEEDS)
    for r, seed in enumerate(SEEDS):
        alone, row = train_replicas(decoder, encoder, [seed])
        chosen = together.select(r)
        assert row.epochs[-1].loss[0] == pytest.approx(history.epochs[-1].loss[r])
        state = chosen.state_dict()
        for name, value in alone.state_dict().items():
            torch.testing.assert_close(state[name], value, rtol=1e-3, atol=1e-5)


def test_pixelcnn_learns_a_known_distribution_to_its_entropy():
    """Three free bits, and a second row that repeats the first."""
    rng = np.random.default_rng(0)
    bits = rng.integers(2, size=(400, 3)).astype(np.float32)
    X = np.hstack([bits, bits])
    vae = VAE(
        1,
        encoder=MLP(8, 1),
        decoder=PixelCNN(2, 8, image_shape=(2, 3)),
        likelihood="bernoulli",
        max_iter=40,
        batch_size=50,
        learning_rate=0.02,
        random_state=0,
        device="cpu",
    ).fit(X)
    entropy = 3 * math.log(2)
    assert -vae.score(X) == pytest.approx(entropy, abs=0.08)
    drawn = vae.sample(400, random_state=0)
    assert (drawn[:, :3] == drawn[:, 3:]).all(axis=1).mean() > 0.97
    assert abs(drawn[:, :3].mean() - 0.5) < 0.08


# ------------------------------------------------------------------ estimators


def estimators():
    shared = {"n_components": 3, "likelihood": "bernoulli", **FAST}
    yield VAE(encoder="conv", decoder="conv", **shared)
    yield VAE(encoder=ResNetEncoder((4, 4), 8), decoder=PixelCNN(1, 4), **shared)
    yield SkipVAE(decoder=PixelCNN(2, 4, skip=True), width=8, **shared)


EACH_ESTIMATOR = pytest.mark.parametrize("vae", list(estimators()), ids=repr)


@EACH_ESTIMATOR
def test_an_estimator_of_images_keeps_the_promises(vae, tmp_path):
    X = binary_digits()
    vae = clone(vae).fit(X)
    Z = vae.transform(X)
    assert np.array_equal(clone(vae).fit(X).transform(X), Z)
    assert np.array_equal(vae.transform(X), Z)
    np.testing.assert_allclose(vae.transform(X[3:5]), Z[3:5], rtol=1e-4, atol=1e-5)
    double = vae.transform(X.astype(np.float64))
    assert (Z.dtype, double.dtype) == (np.float32, np.float64)
    np.testing.assert_allclose(double, Z, rtol=1e-3, atol=1e-4)
    restored = vae.inverse_transform(Z[:4])
    assert restored.shape == (4, 64)
    assert np.array_equal(vae.inverse_transform(Z[:4]), restored)
    assert ((restored > 0) & (restored < 1)).all()
    np.testing.assert_allclose(
        vae.inverse_transform(Z[2:3]), restored[2:3], rtol=1e-4, atol=1e-5
    )
    drawn = vae.sample(5, random_state=1)
    assert np.array_equal(drawn, vae.sample(5, random_state=1))
    assert set(np.unique(drawn)) <= {0.0, 1.0}
    save(vae, tmp_path / "images.skvae")
    for copy in (load(tmp_path / "images.skvae"), pickle.loads(pickle.dumps(vae))):
        assert np.array_equal(copy.transform(X), Z)
        assert np.array_equal(copy.sample(5, random_state=1), drawn)
        assert copy.score(X[:10]) == vae.score(X[:10])


@EACH_ESTIMATOR
def test_chunks_of_rows_change_nothing(vae, monkeypatch):
    X = binary_digits(20)
    vae = clone(vae).fit(X)
    Z, scores = vae.transform(X), vae.score_samples(X)
    restored = vae.inverse_transform(Z)
    monkeypatch.setattr(_model, "ACTIVATIONS", 1 << 12)
    assert vae.module_.rows_at_once(4096) < 20
    close = {"rtol": 1e-4, "atol": 1e-5}
    np.testing.assert_allclose(vae.transform(X), Z, **close)
    np.testing.assert_allclose(vae.score_samples(X), scores, **close)
    np.testing.assert_allclose(vae.inverse_transform(Z), restored, **close)


def test_dense_networks_take_as_many_rows_as_ever():
    vae = VAE(likelihood="bernoulli", width=8, **FAST).fit(binary_digits(20))
    assert vae.module_.rows_at_once(4096) == 4096


@pytest.mark.parametrize(
    "inference", [SemiAmortized(2), Lagging(6, block=2)], ids=lambda i: type(i).__name__
)
@EACH_ESTIMATOR
def test_other_inference_procedures_work(vae, inference):
    X = binary_digits(40)
    vae = clone(vae).set_params(inference=inference, max_iter=2).fit(X)
    assert np.isfinite(vae.transform(X)).all()
    assert np.isfinite(vae.score(X[:8]))


def test_refinement_climbs_the_bound_of_a_pixelcnn():
    model, _ = train_replicas(PixelCNN(2, 4, skip=True), MLP(8, 1), SEEDS[:1])
    x = torch.tensor(binary_digits()).unsqueeze(0)

    def bound(q):
        noise = torch.randn(30, D, generator=generators(9)[0])
        draws = [q.sample(e.expand(1, 60, D)) for e in noise]
        rows = [model.expected_log_likelihood(x, q, z) for z in draws]
        return (torch.stack(rows).mean(0) - model.prior.kl(q, draws[0])).mean()

    with torch.no_grad():
        before = bound(model.posterior(x))
        after = bound(SemiAmortized(10).posterior(model, x))
    assert after > before


def test_iwae_reads_every_draw_against_its_row():
    """With one row and one pixel order, each draw has the likelihood of its own."""
    shape = (2, 3)
    model = model_of(PixelCNN(2, 4, image_shape=shape), shape)
    x, noise = binary_images(6)[:, ::9], draw(2, 1, 8, 4, D)
    q = model.posterior(x)
    terms = (
        IWAE(n_draws=4).build(1.0, model.prior, 8).terms(model, x, None, q, noise, 1.0)
    )
    rows = []
    for s in range(4):
        z = q.sample(noise[:, :, s])
        rows.append(model.log_joint(x, z) - q.log_prob(z))
    expected = math.log(4) - torch.logsumexp(torch.stack(rows), dim=0)
    torch.testing.assert_close(terms.loss, expected)


def test_names_of_networks():
    plain = VAE(decoder="pixelcnn", encoder="resnet", width=33)._parts(False)
    assert plain.decoder.get_params() == PixelCNN().get_params()
    assert plain.encoder.get_params() == ResNetEncoder(width=33).get_params()
    assert SkipVAE(decoder="pixelcnn")._parts(False).decoder.skip
    given = SkipVAE(decoder=PixelCNN(n_maps=4, skip=False))._parts(False).decoder
    assert given.n_maps == 4
    assert not given.skip


def test_nested_grid():
    X = binary_digits(30)
    vae = VAE(2, encoder=MLP(8, 1), decoder=PixelCNN(1, 4), likelihood="bernoulli")
    grid = {"decoder__n_layers": [1, 2], "decoder__skip": [True]}
    search = GridSearchCV(vae.set_params(**FAST), grid, cv=2).fit(X)
    layers = search.best_estimator_.module_.decoder.layers
    assert len(layers) == search.best_params_["decoder__n_layers"]
    assert search.best_estimator_.module_.decoder.skip


def test_batched_search_trains_networks_of_images_alone():
    vae = VAE(2, encoder=MLP(8, 1), decoder=PixelCNN(1, 4), likelihood="bernoulli")
    vae.set_params(**FAST)
    grid, X = {"beta": [0.5, 1.0]}, binary_digits(30)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        batched = BatchedGridSearchCV(vae, grid, cv=2).fit(X)
    plain = GridSearchCV(vae, grid, cv=2).fit(X)
    assert len(batched.unstacked_) == 4
    assert np.array_equal(
        batched.cv_results_["mean_test_score"], plain.cv_results_["mean_test_score"]
    )


def test_partial_fit_and_early_stopping():
    X = binary_digits(40)
    vae = next(estimators()).partial_fit(X[:20]).partial_fit(X[20:])
    assert vae.n_iter_ == 2
    stopped = VAE(
        2, decoder=PixelCNN(1, 4), likelihood="bernoulli", width=8, **FAST
    ).set_params(early_stopping=True, tol=0.0, n_iter_no_change=1, max_iter=30)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        stopped.fit(X)
    assert np.isfinite(stopped.validation_scores_).all()


def test_gaussian_and_rectangular_colour_images():
    rng = np.random.default_rng(0)
    shape = (6, 4, 3)
    X = 5.0 + 2.0 * rng.normal(size=(40, math.prod(shape)))
    for decoder in (
        ConvDecoder((4,), 8, image_shape=shape),
        PixelCNN(1, 4, image_shape=shape),
    ):
        encoder = ConvEncoder((4,), 8, image_shape=shape)
        vae = VAE(2, encoder=encoder, decoder=decoder, **FAST).fit(X)
        restored = vae.inverse_transform(vae.transform(X))
        assert abs(restored.mean() - 5.0) < 1.0
        assert vae.sample(3, random_state=0).shape == (3, 72)


@pytest.mark.gpu
def test_networks_of_images_run_on_a_gpu():
    X = binary_digits()
    for vae in estimators():
        found = clone(vae).set_params(device="cuda").fit(X)
        assert next(found.module_.parameters()).device.type == "cpu"
        Z = found.transform(X)
        on_cpu = found.set_params(device="cpu").transform(X)
        np.testing.assert_allclose(Z, on_cpu, rtol=1e-2, atol=1e-3)


# ---------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("network", "n", "words"),
    [
        (
            ConvEncoder(),
            10,
            ["ConvEncoder", "10 values", "image_shape=(height, width)"],
        ),
        (PixelCNN(), 10, ["PixelCNN", "10 values", "image_shape=(height, width)"]),
        (ConvDecoder(image_shape=(3, 4)), 10, ["(3, 4)", "12 values", "have 10"]),
        (ConvEncoder(image_shape=(4,)), 16, ["'image_shape'", "(4,)"]),
        (ConvEncoder(image_shape=(4, 4.0)), 16, ["'image_shape'", "(4, 4.0)"]),
        (ConvEncoder(image_shape=(4, 0)), 16, ["'image_shape'", "(4, 0)"]),
        (ConvEncoder(channels=()), 16, ["'channels'", "positive integers"]),
        (ConvDecoder(channels=(4, -1)), 16, ["'channels'", "positive integers"]),
        (ResNetEncoder((4,) * 4), 64, ["8 x 8", "4 times", "fewer channels"]),
        (PixelCNN(kernel_size=4), 16, ["'kernel_size'", "odd", "4"]),
        (PixelCNN(2, kernel_size=(3, 3, 3)), 16, ["'kernel_size'", "n_layers=2"]),
    ],
    ids=repr,
)
def test_errors_name_the_remedy(network, n, words):
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        network.build(n, n, generators(0))
    for word in words:
        assert word in str(caught.value)


def test_errors_reach_the_user():
    X = np.random.default_rng(0).normal(size=(20, 10))
    for vae in (VAE(encoder="conv"), VAE(decoder="pixelcnn")):
        with pytest.raises(ValueError, match="10 values make no square"):
            vae.fit(X)
    u = np.repeat([0, 1], 10)
    ivae = iVAE(encoder=ConvEncoder(image_shape=(2, 5)), posterior_type="joint")
    with pytest.raises(ValueError, match="networks of images read x alone"):
        ivae.fit(X, u=u)
    for wrong in ("encoder", "decoder"):
        part = {"encoder": ConvDecoder(), "decoder": ConvEncoder()}[wrong]
        with pytest.raises(TypeError, match="is needed"):
            VAE(**{wrong: part}).fit(X)
    with pytest.raises(ValueError, match="'n_layers' parameter of PixelCNN"):
        VAE(decoder=PixelCNN(n_layers=0)).fit(X)


def test_ivae_reads_images():
    X = binary_digits(40)
    vae = iVAE(
        2, encoder="conv", decoder=PixelCNN(1, 4), likelihood="bernoulli", **FAST
    ).fit(X, u=np.arange(40) % 3)
    assert vae.transform(X).shape == (40, 2)
