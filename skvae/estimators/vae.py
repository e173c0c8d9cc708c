"""The variational autoencoder (Kingma and Welling 2014), and with beta the beta-VAE."""

from __future__ import annotations

from skvae.estimators._base import BaseVAE


class VAE(BaseVAE):
    """Variational autoencoder."""
