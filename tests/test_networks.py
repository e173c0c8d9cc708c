"""Networks against hand-written formulas, autograd and their own certificates."""

import math

import numpy as np
import pytest
import torch
from torch.nn.functional import softplus

from skvae.networks import (
    INJECTIVE,
    MLP,
    NETWORKS,
    Anchored,
    Brenier,
    InjectiveFlow,
    Skip,
)
from skvae.networks._convex import CONVEX, ConvexGradient, _Positive
from skvae.networks._layers import ACTIVATIONS, Linear, tanh

N_IN, N_OUT = 2, 5


def generators(*seeds):
    return [torch.Generator().manual_seed(s) for s in seeds]


def draw(seed, *shape):
    return torch.randn(
        *shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
    )


def build(specification, n_in=N_IN, n_out=N_OUT, seeds=(0,), disturbed=0.0):
    """The module in double precision, its weights moved by noise."""
    module = specification.build(n_in, n_out, generators(*seeds)).double()
    module.requires_grad_(False)
    for number, parameter in enumerate(module.parameters()):
        parameter += disturbed * draw(100 + number, *parameter.shape)
    return module


def each_network():
    for activation in ("relu", "tanh"):
        yield MLP(8, 2, activation)
        yield Skip(8, 2, activation)
        yield Skip(8, 2, activation, merge="concat")
        yield Skip(8, 2, activation, output=False)
        yield Anchored(8, 2, activation)
    yield MLP(8, 0)
    yield Skip(8, 1)
    yield Anchored(8, 1, blocks=1)
    yield Anchored(8, 2, blocks=3)
    yield Anchored(8, 2, skip=False)
    yield Anchored(8, 0)
    for depth in (1, 2, 3):
        yield Brenier(8, depth)
    yield Brenier(8, 1, "relu")
    yield Brenier(8, 2, "relu")
    yield InjectiveFlow(2)


EACH = pytest.mark.parametrize("network", list(each_network()), ids=repr)


def test_every_network_is_tested():
    assert {type(network) for network in each_network()} == set(NETWORKS.values())


# ----------------------------------------------------------------- every one


@EACH
@pytest.mark.parametrize("n_out", [N_OUT, N_IN])
def test_replica_equals_the_network_built_from_its_own_stream(network, n_out):
    if type(network) in INJECTIVE.values() or n_out == N_OUT:
        z = draw(1, 3, 7, N_IN)
        together = build(network, n_out=n_out, seeds=(4, 5, 6))(z)
        assert together.shape == (3, 7, n_out)
        for r, seed in enumerate((4, 5, 6)):
            alone = build(network, n_out=n_out, seeds=(seed,))(z[r : r + 1])
            torch.testing.assert_close(alone[0], together[r])
        assert not torch.allclose(together[0], together[1])


@EACH
def test_one_copy_of_the_input_serves_all_replicas(network):
    module, z = build(network, seeds=(4, 5, 6)), draw(1, 1, 7, N_IN)
    torch.testing.assert_close(module(z), module(z.repeat(3, 1, 1)))


@EACH
def test_gradients_are_right_and_reach_every_parameter(network):
    module = build(network, seeds=(0, 1), disturbed=0.2).requires_grad_(True)
    z = draw(1, 2, 9, N_IN).requires_grad_()
    named = [(name, p) for name, p in module.named_parameters() if p.numel()]
    names, parameters = zip(*named, strict=True)

    def call(z, *parameters):
        given = dict(zip(names, parameters, strict=True))
        return torch.func.functional_call(module, given, (z,))

    inputs = [z, *(p.detach().clone().requires_grad_() for p in parameters)]
    assert torch.autograd.gradcheck(call, inputs, fast_mode=True, atol=1e-4)
    out = module(z)
    weight = draw(2, *out.shape)
    found = torch.autograd.grad((out * weight).sum(), parameters)
    for name, gradient in zip(names, found, strict=True):
        reached = (gradient != 0).flatten(1).any(1)
        assert reached.all(), f"no gradient reaches {name}"


@EACH
def test_forward_leaves_its_input_and_weights_alone(network):
    module, z = build(network, seeds=(0, 1)), draw(1, 2, 9, N_IN)
    before = z.clone()
    first = module(z)
    assert torch.equal(z, before)
    assert torch.equal(module(z), first)


@EACH
def test_equal_seeds_build_equal_networks(network):
    a, b, c = (build(network, seeds=(seed,)).state_dict() for seed in (7, 7, 8))
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert any(not torch.equal(a[name], c[name]) for name in a)


# ------------------------------------------------------------------ MLP, Skip


def test_mlp_of_depth_0_is_affine():
    module, z = build(MLP(depth=0), disturbed=0.3), draw(1, 1, 7, N_IN)
    assert not module.hidden
    expected = z @ module.output.weight + module.output.bias
    torch.testing.assert_close(module(z), expected)


@pytest.mark.parametrize("activation", sorted(ACTIVATIONS))
def test_mlp_equals_its_formula(activation):
    module, z = build(MLP(6, 2, activation), disturbed=0.3), draw(1, 1, 7, N_IN)
    formula = {
        "relu": lambda t: t.clamp_min(0.0),
        "leaky_relu": lambda t: torch.where(t > 0, t, 0.1 * t),
        "tanh": lambda t: 1.0 - 2.0 / (torch.exp(2.0 * t) + 1.0),
        "xtanh": lambda t: torch.tanh(t) + 0.1 * t,
        "silu": lambda t: t / (1.0 + torch.exp(-t)),
        "softplus": lambda t: torch.log1p(torch.exp(t)),
        "identity": lambda t: t,
    }[activation]
    h = z
    for layer in module.hidden:
        h = formula(h @ layer.weight + layer.bias)
    expected = h @ module.output.weight + module.output.bias
    torch.testing.assert_close(module(z), expected)


def test_the_fast_tanh_is_tanh_and_has_its_derivatives():
    t = torch.cat([torch.linspace(-20, 20, 4001), torch.tensor([-1e30, 1e30])])
    t.requires_grad_(True)
    y, exact = tanh(t), np.tanh(t.detach().double().numpy())
    np.testing.assert_allclose(y.detach().numpy(), exact, atol=5e-7)
    assert y[-2:].tolist() == [-1.0, 1.0]
    (slope,) = torch.autograd.grad(y.sum(), t, create_graph=True)
    (bend,) = torch.autograd.grad(slope.sum(), t)
    by_formula = 1.0 - exact**2
    np.testing.assert_allclose(slope.detach().numpy(), by_formula, atol=2e-6)
    np.testing.assert_allclose(bend.numpy(), -2.0 * exact * by_formula, atol=4e-6)
    # In double precision it is torch's own.
    wide = t.detach().double()
    assert torch.equal(tanh(wide), torch.tanh(wide))


def affine_layers(module):
    return [part for part in module.modules() if isinstance(part, Linear)]


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_skip_without_skips_is_a_plain_network(depth):
    skip = build(Skip(6, depth, "tanh"), disturbed=0.3)
    plain = build(MLP(6, depth, "tanh"))
    z = draw(1, 1, 7, N_IN)
    with_skips = skip(z)
    skip.skip_weight.zero_()
    for own, other in zip(affine_layers(plain), affine_layers(skip), strict=True):
        own.load_state_dict(other.state_dict())
    torch.testing.assert_close(skip(z), plain(z))
    assert not torch.allclose(skip(z), with_skips)


@pytest.mark.parametrize("depth", [1, 2, 3])
@pytest.mark.parametrize("output", [True, False])
def test_sum_and_concat_merges_are_the_same_function(depth, output):
    options = {"width": 6, "depth": depth, "activation": "tanh", "output": output}
    total = build(Skip(**options), seeds=(0, 1), disturbed=0.3)
    concat = build(Skip(**options, merge="concat"), seeds=(2, 3))
    start = 0
    pairs = zip(affine_layers(concat), affine_layers(total), strict=True)
    for number, (layer, other) in enumerate(pairs):
        layer.bias.copy_(other.bias)
        if number == 0 or (number == depth and not output):
            layer.weight.copy_(other.weight)
            continue
        end = start + other.weight.shape[-1]
        skip = total.skip_weight[..., start:end]
        layer.weight.copy_(torch.cat([other.weight, skip], dim=1))
        start = end
    assert start == total.skip_weight.shape[-1]
    z = draw(1, 2, 7, N_IN)
    torch.testing.assert_close(total(z), concat(z))


@pytest.mark.parametrize("merge", ["sum", "concat"])
def test_the_output_reads_z_only_if_asked(merge):
    """With dead hidden units, what is left of z is what the output reads."""
    for output in (True, False):
        network = build(Skip(6, 2, merge=merge, output=output), disturbed=0.3)
        for layer in affine_layers(network)[:-1]:
            layer.weight.zero_()
            layer.bias.fill_(-100.0)
        one, other = network(draw(1, 1, 7, N_IN)), network(draw(2, 1, 7, N_IN))
        assert torch.equal(one, other) != output


def test_skip_refuses_unknown_merges():
    with pytest.raises(ValueError, match="'merge' parameter of Skip"):
        Skip(merge="product").build(N_IN, N_OUT, generators(0))


# ------------------------------------------------------------- Brenier's maps


def half_square(activation):
    return {
        "softplus": lambda t: 0.5 * softplus(t).square(),
        "relu": lambda t: 0.5 * t.clamp_min(0.0).square(),
    }[activation]


def potential(module, x):
    """F(x) written from its definition: an input-convex network plus a quadratic."""
    rho = half_square(module.activation)
    a, b = module.live, module.thresholds
    width = module.width
    levels = (x @ a + b).split(width, dim=-1)
    value = rho(levels[0])
    for level, mixing in zip(levels[1:], module.mixing, strict=True):
        weight = softplus(mixing) / width
        value = softplus(value @ weight + level)
    path = module.path_scale * softplus(module.path)
    live = module.constant[..., : x.shape[-1]]
    strength = module.strength()
    quadratic = 0.5 * strength * x.square().sum(-1, keepdim=True)
    terms = (path * value).sum(-1, keepdim=True) + quadratic
    return terms + (live * x).sum(-1, keepdim=True)


def test_positive_weights_and_their_derivatives_are_those_of_softplus():
    t = torch.linspace(-30.0, 30.0, 21, dtype=torch.float64, requires_grad=True)
    assert torch.equal(_Positive.apply(t), softplus(t))
    assert torch.autograd.gradcheck(_Positive.apply, t)
    assert torch.autograd.gradgradcheck(_Positive.apply, t)


def convex(n=3, n_live=None, depth=1, activation="softplus", seeds=(0, 1)):
    module = ConvexGradient(
        n, n_live or n, generators(*seeds), 7, depth, activation, 0.2, 0.5
    ).double()
    module.requires_grad_(False)
    for number, parameter in enumerate(module.parameters()):
        parameter += 0.3 * draw(50 + number, *parameter.shape)
    return module


CONVEX_CASES = pytest.mark.parametrize(
    ("activation", "depth"), [(a, d) for a in CONVEX for d in (1, 2, 3)]
)


@CONVEX_CASES
def test_closed_form_gradient_equals_autograd_of_the_potential(activation, depth):
    module = convex(depth=depth, activation=activation)
    x = 2.0 * draw(1, 2, 40, 3)
    x.requires_grad_()
    (expected,) = torch.autograd.grad(potential(module, x).sum(), x)
    torch.testing.assert_close(module(x.detach()), expected)


@CONVEX_CASES
def test_jacobian_is_symmetric_and_positive_definite(activation, depth):
    module = convex(depth=depth, activation=activation, seeds=(0,))

    def one(point):
        return module(point.reshape(1, 1, 3)).reshape(3)

    for point in 2.0 * draw(1, 10, 3):
        jacobian = torch.autograd.functional.jacobian(one, point)
        torch.testing.assert_close(jacobian, jacobian.T)
        smallest = torch.linalg.eigvalsh(jacobian).min()
        assert smallest >= module.strength().item() - 1e-9


@CONVEX_CASES
def test_gradient_is_strongly_monotone(activation, depth):
    module = convex(depth=depth, activation=activation)
    x = 3.0 * draw(1, 2, 500, 3)
    near = x + 1e-3 * draw(2, 2, 500, 3)
    for y in (3.0 * draw(3, 2, 500, 3), near):
        product = ((module(x) - module(y)) * (x - y)).sum(-1)
        bound = module.strength().squeeze(-1) * (x - y).square().sum(-1)
        assert (product >= bound * (1.0 - 1e-9)).all()


@CONVEX_CASES
def test_zero_padded_map_equals_the_full_map_on_padded_input(activation, depth):
    padded = convex(5, 2, depth, activation)
    full = convex(5, 5, depth, activation)
    state = padded.state_dict()
    state["live"] = torch.cat([state["live"], state["further"]], dim=1)
    state["further"] = state["further"][:, :0]
    full.load_state_dict(state)
    full.path_scale = padded.path_scale
    x = draw(1, 2, 20, 2)
    wide = torch.cat([x, torch.zeros(2, 20, 3).double()], dim=-1)
    torch.testing.assert_close(padded(x), full(wide))


@pytest.mark.parametrize("activation", sorted(CONVEX))
def test_slopes_are_the_derivatives_of_convex_increasing_functions(activation):
    t = torch.linspace(-5.0, 5.0, 201, dtype=torch.float64, requires_grad=True)
    for value, slope in CONVEX[activation]:
        (expected,) = torch.autograd.grad(value(t).sum(), t)
        torch.testing.assert_close(slope(t).detach(), expected)
        assert (expected >= 0).all()
        assert (expected.diff() >= -1e-12).all()


def test_modulus_starts_where_told_and_never_falls_below_its_floor():
    module = convex(seeds=(0,))
    fresh = ConvexGradient(3, 3, generators(0), 7, 1, "softplus", 0.2, 0.5)
    assert fresh.strength().item() == pytest.approx(0.5, rel=1e-5)
    module.strength.excess.fill_(-100.0)
    assert module.strength().item() == pytest.approx(0.2)


# -------------------------------------------------------------- certificates


def injective():
    for dial in (0.01, 0.1, 0.7, 2.0):
        yield Brenier(8, 1, inverse_lipschitz=dial)
        yield Anchored(8, 2, inverse_lipschitz=dial)
    yield Brenier(8, 2, inverse_lipschitz=0.3)
    yield Brenier(8, 1, "relu", inverse_lipschitz=0.3)
    for activation in ("softplus", "tanh", "silu", "identity"):
        yield Anchored(8, 2, activation, inverse_lipschitz=0.3)
    yield Anchored(8, 0, inverse_lipschitz=0.3)
    yield Anchored(8, 2, skip=False, inverse_lipschitz=0.3)
    yield Anchored(8, 2, blocks=1, inverse_lipschitz=0.3)
    yield Anchored(8, 2, blocks=3, inverse_lipschitz=0.3)


def smallest_slope(module, n_in, n_replicas=2):
    """Smallest |f(z) - f(z')| / |z - z'| over 2000 near and far pairs."""
    z = 2.0 * draw(1, n_replicas, 1000, n_in)
    far = 2.0 * draw(2, n_replicas, 1000, n_in)
    near = z + 1e-4 * draw(3, n_replicas, 1000, n_in)
    slopes = [
        (module(z) - module(y)).norm(dim=-1) / (z - y).norm(dim=-1) for y in (far, near)
    ]
    return torch.cat(slopes, dim=1).min(1).values


@pytest.mark.parametrize("network", list(injective()), ids=repr)
@pytest.mark.parametrize("disturbed", [0.0, 0.5, 3.0])
@pytest.mark.parametrize("n_out", [N_IN, N_OUT])
def test_certificate_holds(network, disturbed, n_out):
    module = build(network, n_out=n_out, seeds=(0, 1), disturbed=disturbed)
    certificate = module.inverse_lipschitz()
    assert certificate.shape == (2,)
    assert (certificate >= network.inverse_lipschitz * (1.0 - 1e-9)).all()
    assert (smallest_slope(module, N_IN) >= certificate * (1.0 - 1e-6)).all()


@pytest.mark.parametrize("network", [Brenier(8), Anchored(8)], ids=repr)
def test_certificate_is_the_dial_where_the_modulus_is_pressed_down(network):
    module = build(network)
    for name, parameter in module.named_parameters():
        if name.endswith("excess"):
            parameter.fill_(-50.0)
    found = module.inverse_lipschitz().item()
    assert found == pytest.approx(network.inverse_lipschitz, rel=1e-6)
    assert smallest_slope(module, N_IN, 1).item() >= found * (1.0 - 1e-6)


@pytest.mark.parametrize("network", [Brenier(8), Anchored(8)], ids=repr)
def test_certificate_is_reached_by_a_map_without_curvature(network):
    # Nothing but the quadratic part is left, so that the bound is the slope.
    module = build(network, n_out=N_IN)
    for name, parameter in module.named_parameters():
        if name.endswith("path"):
            parameter.fill_(-60.0)
    found = module.inverse_lipschitz().item()
    assert smallest_slope(module, N_IN, 1).item() == pytest.approx(found, rel=1e-6)


def test_certificate_holds_after_align():
    module = build(Anchored(8), seeds=(0, 1), disturbed=0.5)
    rows = draw(4, 50, N_OUT) * torch.tensor([0.0, 3.0, 0.0, 1.0, 0.1]).double()
    module.turn.zero_()
    before = module.basis()
    module.align(rows, torch.ones(50).double())
    basis = module.basis()
    assert not torch.allclose(basis, before)
    gram = basis.mT @ basis
    torch.testing.assert_close(gram, torch.eye(N_IN).double().expand(2, -1, -1))
    # Next to nothing of the basis lies in the features without variance.
    assert basis[:, [0, 2]].abs().max() < 0.05
    slopes = smallest_slope(module, N_IN)
    assert (slopes >= module.inverse_lipschitz() * (1.0 - 1e-6)).all()


def test_certificate_holds_in_units_of_what_is_noticed():
    module = build(Anchored(8), seeds=(0, 1), disturbed=0.5)
    information = torch.tensor([0.04, 0.25, 1e-9, 0.16, 0.09]).double()
    module.notice(information)
    scale = module.scale.mT
    # Square roots of shares of the largest, with a floor.
    wanted = torch.tensor([0.4, 1.0, 0.1, 0.8, 0.6]).double()
    torch.testing.assert_close(scale[0, 0], wanted, rtol=0, atol=1e-6)
    # Moduli start at their root mean square.
    expected = math.sqrt(float((information / 0.25).mean()))
    assert module.anchor[0].strength()[0].item() == pytest.approx(expected, rel=1e-5)
    slopes = smallest_slope(lambda z: scale * module(z), N_IN)
    assert (slopes >= module.inverse_lipschitz() * (1.0 - 1e-6)).all()


def test_align_reads_weights():
    rows = draw(4, 50, N_OUT)
    rows[25:] = 0.0
    weight = torch.ones(50).double()
    weight[25:] = 0.0
    weighted, alone = build(Anchored(8)), build(Anchored(8))
    weighted.align(rows, weight)
    alone.align(rows[:25], weight[:25])
    torch.testing.assert_close(weighted.basis(), alone.basis())


@pytest.mark.parametrize("blocks", [1, 2, 3])
def test_anchored_shadow_is_the_anchor(blocks):
    module = build(Anchored(8, blocks=blocks), seeds=(0, 1), disturbed=0.5)
    z = draw(1, 2, 20, N_IN)
    m = module.anchor[0](z)
    for number in range(1, blocks):
        m = module.anchor[number](m @ getattr(module, f"rotation_{number}"))
    basis = module.basis()
    gram = basis.mT @ basis
    torch.testing.assert_close(gram, torch.eye(N_IN).double().expand(2, -1, -1))
    torch.testing.assert_close(module(z) @ basis, m)
    # What is orthogonal to the basis is the free network's.
    normal = torch.eye(N_OUT).double() - basis @ basis.mT
    torch.testing.assert_close(module(z) @ normal, module.free(z) @ normal)


def straightness(module):
    """Share of vanishing second differences along a line."""
    t = torch.linspace(-4.0, 4.0, 4001, dtype=torch.float64)[:, None]
    line = torch.tensor([[0.3, -0.2]]).double() + t * torch.tensor([[1.0, 0.7]])
    values = module(line.unsqueeze(0).double())[0]
    second = values.diff(dim=0).diff(dim=0).norm(dim=-1)
    return (second < 1e-9).double().mean().item()


@pytest.mark.parametrize(
    "network",
    [
        *(Anchored(8, 2, a) for a in sorted(ACTIVATIONS)),
        Brenier(8, 1, "relu"),
        Brenier(8, 2, "relu"),
        Brenier(8, 1, "softplus"),
    ],
    ids=repr,
)
def test_piecewise_affine_flag_is_true(network):
    module = build(network, disturbed=0.3)
    share = straightness(module)
    assert share > 0.95 if module.piecewise_affine else share < 0.5


@pytest.mark.parametrize("cls", INJECTIVE.values())
def test_fewer_features_than_latents_are_refused(cls):
    with pytest.raises(ValueError, match="needs n_components <= n_features"):
        cls().build(3, 2, generators(0))


@pytest.mark.parametrize("cls", INJECTIVE.values())
def test_as_many_features_as_latents_and_one_of_each(cls):
    for n in (1, 3):
        module = build(cls(8), n_in=n, n_out=n)
        assert module(draw(1, 1, 4, n)).shape == (1, 4, n)
        assert smallest_slope(module, n, 1) >= module.inverse_lipschitz() * (1 - 1e-6)


def test_networks_keep_the_scale_of_their_input():
    # At the start outputs are of order one, or training starts with a jump.
    for network in each_network():
        module = build(network, n_in=10, n_out=40, seeds=range(3))
        spread = module(draw(1, 3, 200, 10)).std(1).mean().item()
        assert 0.05 < spread < 8.0, network
        assert np.isfinite(spread)
