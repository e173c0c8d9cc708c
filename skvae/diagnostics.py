"""Whether latents collapse, before training and after it."""

from skvae._collapse import (
    CollapseForecast,
    PosteriorCollapseWarning,
    collapse_forecast,
)

__all__ = ["CollapseForecast", "PosteriorCollapseWarning", "collapse_forecast"]
