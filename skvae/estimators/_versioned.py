"""Fitted estimators remember the version that made them."""

from __future__ import annotations

import warnings

from sklearn.exceptions import InconsistentVersionWarning

from skvae import __version__


class Versioned:
    """Mixin that warns when the state of another version is loaded."""

    def __setstate__(self, state):
        version = state.get("_skvae_version", __version__)
        if version != __version__:
            warnings.warn(
                InconsistentVersionWarning(
                    estimator_name=type(self).__name__,
                    current_sklearn_version=__version__,
                    original_sklearn_version=version,
                ),
                stacklevel=2,
            )
        super().__setstate__(state)
