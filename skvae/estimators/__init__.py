"""One published method, one file, which is read when its name is first used."""

from importlib import import_module

# The module of each estimator: those for tables of numbers, those for documents.
_FOR_TABLES = {
    "VAE": "vae",
    "SkipVAE": "skip_vae",
    "LIDVAE": "lidvae",
    "iVAE": "ivae",
    "iFlow": "iflow",
    "IdentifiableVAE": "identifiable_vae",
    "MixtureVAE": "mixture_vae",
    "LIDMVAE": "lidmvae",
}
_FOR_DOCUMENTS = {
    "SequenceVAE": "sequence_vae",
    "SkipSequenceVAE": "skip_sequence_vae",
    "LIDSVAE": "lidsvae",
}
_HOME = {**_FOR_TABLES, **_FOR_DOCUMENTS, "TCL": "tcl"}

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


def __getattr__(name):
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)


def __dir__():
    return sorted([*globals(), *__all__])


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
    return [__getattr__(name) for name in _FOR_TABLES]


def sequence_estimators():
    """Return the estimator classes for token matrices, and so for documents."""
    return [__getattr__(name) for name in _FOR_DOCUMENTS]
