"""Variational autoencoders whose latents do not collapse and mean something.

The public names are loaded on first use, so that ``skvae.metrics`` and
``skvae.datasets`` work without importing torch.
"""

from importlib import import_module

__version__ = "0.1.0"

_HOME = {
    "VAE": "skvae.estimators",
    "SkipVAE": "skvae.estimators",
    "LIDVAE": "skvae.estimators",
    "iVAE": "skvae.estimators",
    "iFlow": "skvae.estimators",
    "TCL": "skvae.estimators",
    "IdentifiableVAE": "skvae.estimators",
    "MixtureVAE": "skvae.estimators",
    "LIDMVAE": "skvae.estimators",
    "SequenceVAE": "skvae.estimators",
    "SkipSequenceVAE": "skvae.estimators",
    "LIDSVAE": "skvae.estimators",
    "Tokenizer": "skvae.text",
    "all_estimators": "skvae.estimators",
    "collapse_forecast": "skvae.diagnostics",
    "identifiability_report": "skvae.diagnostics",
    "PosteriorCollapseWarning": "skvae.diagnostics",
    "BatchedGridSearchCV": "skvae.model_selection",
    "save": "skvae.persistence",
    "load": "skvae.persistence",
}

__all__ = [
    "LIDMVAE",
    "LIDSVAE",
    "LIDVAE",
    "TCL",
    "VAE",
    "BatchedGridSearchCV",
    "IdentifiableVAE",
    "MixtureVAE",
    "PosteriorCollapseWarning",
    "SequenceVAE",
    "SkipSequenceVAE",
    "SkipVAE",
    "Tokenizer",
    "all_estimators",
    "collapse_forecast",
    "iFlow",
    "iVAE",
    "identifiability_report",
    "load",
    "save",
]


def __getattr__(name):
    if name not in _HOME:
        raise AttributeError(f"module 'skvae' has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)


def __dir__():
    return sorted([*globals(), *__all__])
