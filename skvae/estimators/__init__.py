"""One published method, one file."""

from skvae.estimators.identifiable_vae import IdentifiableVAE
from skvae.estimators.iflow import iFlow
from skvae.estimators.ivae import iVAE
from skvae.estimators.lidmvae import LIDMVAE
from skvae.estimators.lidsvae import LIDSVAE
from skvae.estimators.lidvae import LIDVAE
from skvae.estimators.mixture_vae import MixtureVAE
from skvae.estimators.sequence_vae import SequenceVAE
from skvae.estimators.skip_sequence_vae import SkipSequenceVAE
from skvae.estimators.skip_vae import SkipVAE
from skvae.estimators.tcl import TCL
from skvae.estimators.vae import VAE

__all__ = [
    "LIDMVAE",
    "LIDSVAE",
    "LIDVAE",
    "TCL",
    "VAE",
    "IdentifiableVAE",
    "MixtureVAE",
    "SequenceVAE",
    "SkipSequenceVAE",
    "SkipVAE",
    "all_estimators",
    "iFlow",
    "iVAE",
]


def all_estimators():
    """Return the estimator classes for tables of numbers.

    Returns
    -------
    estimators : list of type
        Classes, in the order in which the documentation presents them. Those for
        documents are not among them.

    Examples
    --------
    >>> from skvae import all_estimators
    >>> [cls.__name__ for cls in all_estimators()][:4]
    ['VAE', 'SkipVAE', 'LIDVAE', 'iVAE']
    """
    return [
        VAE,
        SkipVAE,
        LIDVAE,
        iVAE,
        iFlow,
        IdentifiableVAE,
        MixtureVAE,
        LIDMVAE,
    ]


def sequence_estimators():
    """Return the estimator classes for token matrices, and so for documents."""
    return [SequenceVAE, SkipSequenceVAE, LIDSVAE]
