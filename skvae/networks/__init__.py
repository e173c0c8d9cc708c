"""Encoders and decoders: a specification and its torch module side by side."""

from skvae.networks._flow import SplineFlow
from skvae.networks.anchored import Anchored
from skvae.networks.brenier import Brenier
from skvae.networks.conv import ConvDecoder, ConvEncoder, ResNetEncoder
from skvae.networks.injective_flow import InjectiveFlow, Inverse
from skvae.networks.mlp import MLP
from skvae.networks.pixelcnn import PixelCNN
from skvae.networks.skip import Skip

# The names estimators accept in place of a specification.
NETWORKS = {
    "mlp": MLP,
    "skip": Skip,
    "brenier": Brenier,
    "anchored": Anchored,
    "flow": InjectiveFlow,
}

# Those that read rows as images, in one direction or the other.
IMAGE_ENCODERS = {"conv": ConvEncoder, "resnet": ResNetEncoder}
IMAGE_DECODERS = {"conv": ConvDecoder, "pixelcnn": PixelCNN}

ENCODERS = {"mlp": MLP, "inverse": Inverse, **IMAGE_ENCODERS}
DECODERS = {**NETWORKS, **IMAGE_DECODERS}

FLOWS = {"spline": SplineFlow}

INJECTIVE = {"brenier": Brenier, "anchored": Anchored}

__all__ = [
    "MLP",
    "Anchored",
    "Brenier",
    "ConvDecoder",
    "ConvEncoder",
    "InjectiveFlow",
    "Inverse",
    "PixelCNN",
    "ResNetEncoder",
    "Skip",
    "SplineFlow",
]
