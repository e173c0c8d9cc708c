"""One published method, one file."""

from skvae.estimators.vae import VAE

__all__ = ["VAE"]
