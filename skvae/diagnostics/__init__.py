"""Whether latents collapse and whether they are reproducible, before and after fit."""

from skvae._collapse import (
    CollapseForecast,
    PosteriorCollapseWarning,
    collapse_forecast,
)
from skvae.diagnostics._identifiability import identifiability_report
from skvae.diagnostics._intervals import Estimate
from skvae.diagnostics._report import IdentifiabilityReport, PermutedNull

__all__ = [
    "CollapseForecast",
    "Estimate",
    "IdentifiabilityReport",
    "PermutedNull",
    "PosteriorCollapseWarning",
    "collapse_forecast",
    "identifiability_report",
]
