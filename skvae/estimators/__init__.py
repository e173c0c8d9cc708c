"""One published method, one file."""

from skvae.estimators.identifiable_vae import IdentifiableVAE
from skvae.estimators.ivae import iVAE
from skvae.estimators.lidvae import LIDVAE
from skvae.estimators.skip_vae import SkipVAE
from skvae.estimators.vae import VAE

__all__ = ["LIDVAE", "VAE", "IdentifiableVAE", "SkipVAE", "all_estimators", "iVAE"]


def all_estimators():
    """Return the estimator classes of the package.

    Returns
    -------
    estimators : list of type
        Classes, in the order in which the documentation presents them.

    Examples
    --------
    >>> from skvae import all_estimators
    >>> [cls.__name__ for cls in all_estimators()]
    ['VAE', 'SkipVAE', 'LIDVAE', 'iVAE', 'IdentifiableVAE']
    """
    return [VAE, SkipVAE, LIDVAE, iVAE, IdentifiableVAE]
