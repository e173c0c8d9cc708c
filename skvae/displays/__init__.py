"""Pictures of fitted estimators: training, collapse, traversals, latents.

The arrays of a picture are computed by ``from_estimator`` and kept as attributes;
``plot`` draws them. matplotlib is needed for drawing only.
"""

from skvae.displays._latents import LatentScatterDisplay, LatentTraversalDisplay
from skvae.displays._training import KLDisplay, LossCurveDisplay, forecast_for

__all__ = [
    "KLDisplay",
    "LatentScatterDisplay",
    "LatentTraversalDisplay",
    "LossCurveDisplay",
    "forecast_for",
]
