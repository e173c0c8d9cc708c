"""Matrix products in single precision, by the faster of the libraries torch brings.

torch has MKL multiply matrices, whose kernels use half the width of the vector units
of processors that are not Intel's, and are slow where one side is narrow. oneDNN uses
all of it, at some microseconds more per call: it is asked where AVX-512 is there and
the product is large enough to pay for them.
"""

from __future__ import annotations

import torch
from torch import Tensor

# Multiplications below which a call to oneDNN costs more than it saves.
LEAST_WORK = 1 << 21


def _kernel():
    """What multiplies by oneDNN, ``x @ weight.T + bias``; None where it cannot."""
    wide = torch.backends.cpu.get_cpu_capability().startswith("AVX512")
    if not (wide and torch.backends.mkldnn.is_available()):
        return None
    return getattr(torch.ops.mkldnn, "_linear_pointwise", None)


KERNEL = _kernel()


def _pays(x: Tensor, weight: Tensor) -> bool:
    """Whether oneDNN should multiply these."""
    return (
        KERNEL is not None
        and len(x) * weight.numel() >= LEAST_WORK
        and x.dtype == weight.dtype == torch.float32
        and x.device.type == weight.device.type == "cpu"
        and not torch.is_autocast_enabled("cpu")
    )


def _dense(weight: Tensor) -> Tensor:
    """`weight`, copied where it has gaps: oneDNN multiplies such with a plain loop."""
    if weight.is_contiguous() or weight.t().is_contiguous():
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
    """``x @ weight + bias`` by oneDNN; the bias may be None."""

    @staticmethod
    def forward(ctx, x, weight, bias):
        ctx.save_for_backward(x, weight)
        return KERNEL(x, _dense(weight).t(), bias, "none", [], "")

    @staticmethod
    def backward(ctx, gradient):
        x, weight = ctx.saved_tensors
        # A missing bias has no node.
        for_x, for_weight, *for_bias = (_asked(n) for n, _ in ctx.next_functions)
        return (
            product(gradient, weight.t()) if for_x else None,
            product(x.t(), gradient) if for_weight else None,
            gradient.sum(0) if any(for_bias) else None,
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

    The bias has shape ``(R, 1, m)``. One replica takes the plain product, and so does
    each of several large ones.
    """
    n_replicas = len(weight)
    if n_replicas == 1:
        bias = None if bias is None else bias.reshape(-1)
        return product(x.squeeze(0), weight.squeeze(0), bias).unsqueeze(0)
    x = x.expand(n_replicas, -1, -1)
    if _pays(x[0], weight[0]):
        rows = [None] * n_replicas if bias is None else bias.squeeze(1).unbind()
        parts = zip(x.unbind(), weight.unbind(), rows, strict=True)
        return torch.stack([product(*part) for part in parts])
    if bias is None:
        return torch.bmm(x, weight)
    return torch.baddbmm(bias, x, weight)


__all__ = ["product", "products"]
