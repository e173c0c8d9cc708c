"""Did it collapse, and could that have been known before training?"""

from skvae._collapse import (
    CollapseForecast,
    PosteriorCollapseWarning,
    collapse_forecast,
)

__all__ = ["CollapseForecast", "PosteriorCollapseWarning", "collapse_forecast"]
