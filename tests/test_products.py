"""Products by oneDNN against torch's own in double precision."""

import threading

import pytest
import torch

from skvae import _products
from skvae._products import product, products

ONEDNN = pytest.mark.skipif(
    _products.KERNEL is None, reason="needs oneDNN and AVX-512 on this processor"
)
B, N, M = 6, 5, 4


@pytest.fixture(params=["torch's own operations", "the kernel of layers"])
def always(request, monkeypatch):
    """Have oneDNN multiply whatever it can, however small; counts its products.

    Where its rounding is not to be trusted, the kernel of layers multiplies.
    """
    calls = []

    def counted(x, weight, *rest):
        calls.append(weight)
        # A thousand times slower otherwise.
        assert weight.is_contiguous() or weight.t().is_contiguous()
        return kernel(x, weight, *rest)

    def operation(*given):
        calls.append(given)
        return own(*given)

    kernel, own = _products.KERNEL, _products.PRODUCTS
    exact = request.param.startswith("torch")
    if exact and not _products.multiplies_exactly():
        pytest.skip("oneDNN rounds to bfloat16 on this processor")
    monkeypatch.setattr(_products, "multiplies_exactly", lambda: exact)
    monkeypatch.setattr(_products, "KERNEL", counted)
    monkeypatch.setattr(_products, "PRODUCTS", operation)
    monkeypatch.setattr(_products, "LEAST_WORK", 0)
    monkeypatch.setattr(_products, "LEAST_TOGETHER", 0)
    return calls


@pytest.fixture
def together(always):
    """As `always`, where it multiplies batches."""
    if not _products.multiplies_exactly():
        pytest.skip("batches are torch's here")
    return always


def draw(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def layouts():
    """Ways in which x and the weight may lie in memory."""
    yield "plain", draw(0, B, N), draw(1, N, M)
    yield "transposed", draw(0, N, B).t(), draw(1, M, N).t()
    yield "every other column", draw(0, B, 2 * N)[:, ::2], draw(1, N, 2 * M)[:, ::2]
    yield "one row for all", draw(0, 1, N).expand(B, N), draw(1, N, M)


def derivatives(x, weight, bias, plain):
    """The product, its gradients, and gradients of a function of the gradients."""
    dtype = torch.float64 if plain else torch.float32
    given = [t.detach().to(dtype).requires_grad_() for t in (x, weight, bias)]
    y = given[0] @ given[1] + given[2] if plain else product(*given)
    first = torch.autograd.grad(torch.tanh(y).sum(), given, create_graph=True)
    second = torch.autograd.grad(sum((g**2).sum() for g in first), given)
    return [t.detach().double() for t in (y, *first, *second)]


@ONEDNN
@pytest.mark.parametrize(("_name", "x", "weight"), list(layouts()))
def test_values_and_derivatives_are_those_of_the_plain_product(
    always, _name, x, weight
):
    bias = draw(2, M)
    found = derivatives(x, weight, bias, plain=False)
    # Forward, two gradients, and what the gradients of gradients need.
    assert len(always) >= 5
    for one, other in zip(found, derivatives(x, weight, bias, True), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


def batches():
    """The same for three replicas, whose weights have gaps between them."""
    yield "plain", draw(0, 3, B, N), draw(1, 3, N, M)
    yield "one for all", draw(0, 1, B, N), draw(1, 3, N, M)
    yield "transposed", draw(0, 3, N, B).mT, draw(1, 3, M, N).mT
    yield "gaps", draw(0, 3, B, 2 * N)[..., ::2], draw(1, 3, 50)[:, 7:27].view(3, N, M)


@ONEDNN
@pytest.mark.parametrize(("_name", "x", "weight"), list(batches()))
@pytest.mark.parametrize("with_bias", [True, False])
def test_batches_and_their_derivatives_are_those_of_the_plain_product(
    together, _name, x, weight, with_bias
):
    given = [x, weight, draw(2, 3, 1, M) if with_bias else None]

    def found(multiply, dtype):
        own = [None if t is None else t.detach().to(dtype) for t in given]
        asked = [t.requires_grad_() for t in own if t is not None]
        y = multiply(*own)
        first = torch.autograd.grad(torch.tanh(y).sum(), asked, create_graph=True)
        second = torch.autograd.grad(sum((g**2).sum() for g in first), asked)
        return [t.detach().double() for t in (y, *first, *second)]

    def plain(x, weight, bias):
        return x @ weight + (0.0 if bias is None else bias)

    one, other = found(products, torch.float32), found(plain, torch.float64)
    for ours, expected in zip(one, other, strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-5)
    assert len(together) >= 5


@ONEDNN
def test_batches_are_multiplied_in_single_precision(together):
    """One part in 2^20 is lost in bfloat16, and in TF32."""
    x = torch.full((3, 64, 64), 1.0 + 2.0**-20)
    assert torch.equal(products(x, torch.eye(64).repeat(3, 1, 1)), x)
    assert together


@ONEDNN
def test_what_torch_may_round_is_as_it_was_afterwards(together, monkeypatch):
    def setting():
        return torch.backends.mkldnn.matmul.fp32_precision

    before = setting()
    products(draw(0, 3, B, N), draw(1, 3, N, M))
    assert setting() == before
    with pytest.raises(RuntimeError):
        products(draw(0, 3, B, N), draw(1, 3, M, N))
    assert setting() == before
    with _products.ALLOWED:
        # Another thread comes and goes.
        thread = threading.Thread(target=products, args=(x := draw(0, 3, N, N), x))
        thread.start()
        thread.join()
        assert setting() == "bf16"
    assert setting() == before


@ONEDNN
def test_a_narrow_layer_may_pay_backwards_alone(together, monkeypatch):
    x, weight = draw(0, 3, 8, 2), draw(1, 3, 2, 16).requires_grad_()
    monkeypatch.setattr(_products, "LEAST_TOGETHER", 3 * 8 * 16 * _products.NARROW)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    y = products(x.requires_grad_(), weight)
    assert not together
    by_x, by_weight = torch.autograd.grad(torch.tanh(y).sum(), (x, weight))
    assert len(together) == 1
    slope = 1.0 - torch.tanh(y).square()
    torch.testing.assert_close(by_x, slope @ weight.mT)
    torch.testing.assert_close(by_weight, x.mT @ slope)


def test_layers_that_read_nothing_are_their_bias():
    bias = draw(2, 3, 1, M)
    found = products(torch.zeros(3, B, 0), torch.zeros(3, 0, M), bias)
    assert torch.equal(found, bias.expand(3, B, M))


def test_processors_with_tiles_are_left_to_torch(monkeypatch):
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: True)
    assert not _products.multiplies_exactly.__wrapped__()


@ONEDNN
def test_more_threads_ask_for_more_work(monkeypatch):
    monkeypatch.setattr(_products, "multiplies_exactly", lambda: True)
    x, weight = torch.empty(8, 128, 64), torch.empty(8, 64, 64)
    for n_threads, expected in ((1, True), (4, True), (8, False)):
        monkeypatch.setattr(torch, "get_num_threads", lambda n=n_threads: n)
        assert _products._pays_together(x, weight, 64, 64) == expected


@ONEDNN
def test_only_what_is_asked_for_is_differentiated(always):
    x, weight = draw(0, B, N), draw(1, N, M).requires_grad_()
    y = product(x, weight)
    torch.autograd.grad(y.sum(), weight)
    assert len(always) == 2


@ONEDNN
def test_gradients_that_nobody_asked_for_are_not_computed(always):
    """Weights are views of parameters, and codes come from other operations."""
    x, weight, bias = (
        t.requires_grad_() for t in (draw(0, 1, B, N), draw(1, 1, N, M), draw(2, 1, M))
    )
    given = x, weight, bias

    def found(*chosen):
        y = product(*(t.squeeze(0) for t in given))
        before = len(always)
        gradients = torch.autograd.grad(torch.tanh(y).sum(), chosen)
        return gradients, len(always) - before

    everything, n_products = found(*given)
    assert n_products == 2
    for k, n_expected in enumerate((1, 1, 0)):
        (gradient,), n_products = found(given[k])
        assert n_products == n_expected
        assert torch.equal(gradient, everything[k])


@ONEDNN
def test_double_precision_is_left_to_torch(always):
    x, weight, bias = (t.double() for t in (draw(0, B, N), draw(1, N, M), draw(2, M)))
    assert torch.equal(product(x, weight), x @ weight)
    assert torch.equal(product(x, weight, bias), torch.addmm(bias, x, weight))
    assert not always


@ONEDNN
def test_short_numbers_stay_short(always):
    with torch.autocast("cpu", torch.bfloat16):
        y = product(draw(0, B, N), draw(1, N, M), draw(2, M))
    assert y.dtype == torch.bfloat16
    assert not always


@ONEDNN
def test_small_products_are_left_to_torch(monkeypatch):
    monkeypatch.setattr(_products, "KERNEL", None)
    small = draw(0, B, N), draw(1, N, M)
    expected = product(*small)
    monkeypatch.undo()
    assert torch.equal(product(*small), expected)
    for name in ("KERNEL", "PRODUCTS"):
        monkeypatch.setattr(_products, name, lambda *args: pytest.fail("was called"))
    product(*small)
    products(*(t.expand(3, -1, -1) for t in small))


def test_without_onednn_torch_multiplies(monkeypatch):
    monkeypatch.setattr(_products, "KERNEL", None)
    monkeypatch.setattr(_products, "LEAST_WORK", 0)
    x, weight, bias = draw(0, B, N), draw(1, N, M), draw(2, M)
    assert torch.equal(product(x, weight, bias), torch.addmm(bias, x, weight))
    assert torch.equal(products(x[None], weight[None]), (x @ weight)[None])
