"""Encoders and decoders: a specification and its torch module side by side."""

from skvae.networks.anchored import Anchored
from skvae.networks.brenier import Brenier
from skvae.networks.flow import SplineFlow
from skvae.networks.mlp import MLP
from skvae.networks.skip import Skip

# The names estimators accept in place of a specification.
NETWORKS = {"mlp": MLP, "skip": Skip, "brenier": Brenier, "anchored": Anchored}

INJECTIVE = {"brenier": Brenier, "anchored": Anchored}

__all__ = ["MLP", "Anchored", "Brenier", "Skip", "SplineFlow"]
