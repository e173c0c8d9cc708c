"""The variational autoencoder, and with `beta` the beta-VAE.

z ~ N(0, I),  x | z ~ likelihood(decoder(z)),  q(z|x) = N(mu(x), diag s(x)^2),
trained on E_q log p(x|z) - beta KL(q(z|x) || p(z)).
"""

from __future__ import annotations

from skvae.estimators._base import BaseVAE
from skvae.estimators._docs import documented


@documented(decoder='{"mlp", "conv", "pixelcnn"} or specification, default="mlp"')
class VAE(BaseVAE):
    """Variational autoencoder; a beta-VAE when `beta` is not one.

    The baseline: nothing in it keeps latents from collapsing or makes them
    identifiable. What it did is in `kl_per_component_` and `active_components_`.

    Parameters
    ----------
    n_components : int, default=2
        Number of latent variables.
    [shared parameters]

    Attributes
    ----------
    [shared attributes]

    See Also
    --------
    SkipVAE : A decoder that reads z at every layer.
    LIDVAE : A decoder that is injective, with a certificate.
    collapse_forecast : Predicts before training which components live.

    Notes
    -----
    Minimised, in nats per row:
    ``-E_q log p(x|z) + beta KL(q(z|x) || N(0, I))``.

    References
    ----------
    Kingma, Welling, "Auto-Encoding Variational Bayes", ICLR 2014, arXiv:1312.6114.

    Higgins et al., "beta-VAE: Learning Basic Visual Concepts with a Constrained
    Variational Framework", ICLR 2017.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from skvae import VAE
    >>> X = load_iris().data
    >>> vae = VAE(n_components=2, width=32, max_iter=50, random_state=0)
    >>> vae.fit_transform(X).shape
    (150, 2)
    >>> bool(vae.kl_per_component_[0] > 1.0)  # nats
    True
    """
