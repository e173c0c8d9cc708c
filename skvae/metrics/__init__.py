"""Numbers that tell whether latents collapsed, are identified and mean something.

Every function takes arrays, returns Python floats, arrays or a
:class:`~sklearn.utils.Bunch` of them, and needs no torch. Information is in nats.
"""

from skvae.metrics._collapse import (
    active_units,
    importance_weighted_log_likelihood,
    kl_per_unit,
    mutual_information,
)
from skvae.metrics._disentanglement import (
    dci_score,
    mutual_information_gap,
    sap_score,
)
from skvae.metrics._identifiability import (
    linear_r2_score,
    match_components,
    mean_correlation_score,
)

__all__ = [
    "active_units",
    "dci_score",
    "importance_weighted_log_likelihood",
    "kl_per_unit",
    "linear_r2_score",
    "match_components",
    "mean_correlation_score",
    "mutual_information",
    "mutual_information_gap",
    "sap_score",
]
