"""Data sets with known latents, and loaders for the images of the literature."""

from skvae.datasets._images import fetch_fashion_mnist, fetch_mnist, fetch_omniglot
from skvae.datasets._nonlinear_ica import make_nonlinear_ica
from skvae.datasets._synthetic import make_linear_gaussian, make_pinwheel

__all__ = [
    "fetch_fashion_mnist",
    "fetch_mnist",
    "fetch_omniglot",
    "make_linear_gaussian",
    "make_nonlinear_ica",
    "make_pinwheel",
]
