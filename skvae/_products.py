"""Matrix products in single precision, by the faster of the libraries torch brings.

torch has MKL multiply matrices, whose kernels use half the width of the vector units
of processors that are not Intel's, and are slow where one side is narrow. oneDNN uses
all of it, at some microseconds more per call: it is asked where AVX-512 is there and
the product is large enough to pay for them.

torch multiplies a batch of matrices by oneDNN only where it may round to bfloat16 in
between. Processors without tiles (AMX) have no faster product of that kind, and oneDNN
then computes in single precision throughout, which is checked once. So it is allowed to
round on such processors alone, and only while it multiplies.
"""

from __future__ import annotations

import threading
from functools import cache

import torch
from torch import Tensor

# Multiplications below which a call to oneDNN costs more than it saves, for a pair of
# matrices and for a batch of them.
LEAST_WORK, LEAST_TOGETHER = 1 << 21, 1 << 20
# Columns that a narrower product of a batch costs MKL all the same.
NARROW = 32

HAS_ONEDNN = (
    torch.backends.cpu.get_cpu_capability().startswith("AVX512")
    and torch.backends.mkldnn.is_available()
)
# ``x @ weight.T + bias`` by oneDNN, for one pair of matrices.
KERNEL = getattr(torch.ops.mkldnn, "_linear_pointwise", None) if HAS_ONEDNN else None


class _Allowed:
    """Within the block, oneDNN multiplies batches and may round in between.

    The setting is the process's: the first thread that enters turns it on and the
    last that leaves puts back what was there.
    """

    def __init__(self):
        self.lock, self.depth, self.before = threading.Lock(), 0, "none"

    def __enter__(self):
        with self.lock:
            if self.depth == 0:
                self.before = torch._C._get_fp32_precision_getter("mkldnn", "matmul")
                torch._C._set_fp32_precision_setter("mkldnn", "matmul", "bf16")
            self.depth += 1

    def __exit__(self, *_):
        with self.lock:
            self.depth -= 1
            if self.depth == 0:
                torch._C._set_fp32_precision_setter("mkldnn", "matmul", self.before)


ALLOWED = _Allowed()


@cache
def multiplies_exactly() -> bool:
    """Whether torch's products by oneDNN are of single precision here."""
    known = HAS_ONEDNN and hasattr(torch._C, "_set_fp32_precision_setter")
    if not known or torch.cpu._is_amx_tile_supported():
        return False
    # The products with the identity are exact, but not of bfloat16 or TF32.
    x = torch.full((2, 64, 64), 1.0 + 2.0**-20)
    with ALLOWED:
        return torch.equal(torch.bmm(x, torch.eye(64).expand(2, 64, 64)), x)


def _together(x: Tensor, weight: Tensor, bias: Tensor | None, **out) -> Tensor:
    if bias is None:
        return torch.bmm(x, weight, **out)
    return torch.baddbmm(bias, x, weight, **out)


def _multiply(x: Tensor, weight: Tensor, bias: Tensor | None, **out) -> Tensor:
    with ALLOWED:
        if x.dim() == 3:
            return _together(x, weight, bias, **out)
        if bias is None:
            return torch.mm(x, weight, **out)
        return torch.addmm(bias, x, weight, **out)


# An operation of torch's, so that recorded steps hold it as such.
_LIBRARY = torch.library.Library("skvae", "DEF")
_ARGUMENTS = "Tensor x, Tensor weight, Tensor? bias"
_LIBRARY.define(f"products({_ARGUMENTS}) -> Tensor")
_LIBRARY.define(f"products.out({_ARGUMENTS}, *, Tensor(a!) out) -> Tensor(a!)")
_LIBRARY.impl("products", _multiply, "CPU")
_LIBRARY.impl("products.out", _multiply, "CPU")
PRODUCTS = torch.ops.skvae.products.default
# What recorded steps call, past torch's search for it.
DIRECT = {PRODUCTS: _multiply}


def _plain(x: Tensor, weight: Tensor) -> bool:
    """Whether these are numbers of single precision on the CPU."""
    return (
        x.dtype == weight.dtype == torch.float32
        and x.device.type == weight.device.type == "cpu"
        and not torch.is_autocast_enabled("cpu")
    )


def _pays(x: Tensor, weight: Tensor) -> bool:
    """Whether oneDNN should multiply these matrices."""
    work = len(x) * weight.numel()
    return KERNEL is not None and work >= LEAST_WORK and _plain(x, weight)


def _pays_together(x: Tensor, weight: Tensor, n_in: int, n_out: int) -> bool:
    """Whether oneDNN should multiply these batches, of so many columns each."""
    work = len(weight) * x.shape[1] * n_in * max(n_out, NARROW)
    # Threads shorten the products and not the call.
    return work >= LEAST_TOGETHER * torch.get_num_threads() and _plain(x, weight)


def _dense(weight: Tensor) -> Tensor:
    """`weight`, copied where it has gaps: oneDNN multiplies such with a plain loop."""
    if weight.is_contiguous() or weight.mT.is_contiguous():
        return weight
    return weight.contiguous()


def _asked(node) -> bool:
    """Whether autograd is after what lies behind this node; it cannot tell for leaves.

    It spares its own operations what nobody asked for, as the gradients of the
    decoder's weights where the encoder alone takes a step, but not those of Python.
    """
    if node is None or hasattr(node, "variable"):
        return node is not None
    return torch._C._will_engine_execute_node(node)


class _Product(torch.autograd.Function):
    """``x @ weight + bias`` by oneDNN, of matrices or batches; the bias may be None."""

    @staticmethod
    def forward(ctx, x, weight, bias):
        ctx.save_for_backward(x, weight)
        if x.dim() == 3 and not _pays_together(x, weight, *weight.shape[1:]):
            return _together(x, weight, bias)
        if multiplies_exactly():
            return PRODUCTS(x, weight, bias)
        return KERNEL(x, _dense(weight).t(), bias, "none", [], "")

    @staticmethod
    def backward(ctx, gradient):
        x, weight = ctx.saved_tensors
        batch = x.dim() == 3
        multiply = products if batch else product
        # A missing bias has no node.
        for_x, for_weight, *for_bias = (_asked(n) for n, _ in ctx.next_functions)
        return (
            multiply(gradient, weight.mT) if for_x else None,
            multiply(x.mT, gradient) if for_weight else None,
            gradient.sum(-2, keepdim=batch) if any(for_bias) else None,
        )


def product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``x @ weight + bias`` for x ``(B, n)``, weight ``(n, m)`` and bias ``(m,)``.

    Differentiable any number of times.
    """
    if _pays(x, weight):
        return _Product.apply(x, weight, bias)
    if bias is None:
        return torch.mm(x, weight)
    return torch.addmm(bias, x, weight)


def products(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """The same per replica, for x ``(R or 1, B, n)`` and weight ``(R, n, m)``.

    The bias has shape ``(R, 1, m)``. One replica takes the plain product.
    """
    n_replicas = len(weight)
    if n_replicas == 1:
        bias = None if bias is None else bias.reshape(-1)
        return product(x.squeeze(0), weight.squeeze(0), bias).unsqueeze(0)
    x = x.expand(n_replicas, -1, -1)
    n, m = weight.shape[1:]
    # A narrow layer may pay backwards alone.
    if multiplies_exactly() and (
        _pays_together(x, weight, n, m) or _pays_together(x, weight, m, n)
    ):
        # The products copy weights that have gaps, the transposed ones slowly.
        return _Product.apply(x, _dense(weight), bias)
    return _together(x, weight, bias)


__all__ = ["DIRECT", "PRODUCTS", "product", "products"]
