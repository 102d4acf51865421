"""The networks: one backbone, several heads. Log-ratios are log q/p, target positive, everywhere."""

from torch import nn

from gtl_lightning.networks.adapters.opening import ADAPTERS
from gtl_lightning.networks.backbone import Backbone
from gtl_lightning.networks.block import BackboneConfig, seeded
from gtl_lightning.networks.counted import CountTokenRatio
from gtl_lightning.networks.decoder import Decoder
from gtl_lightning.networks.ensemble import RatioEnsemble
from gtl_lightning.networks.heads import (
    CausalLM,
    Frozen,
    MaskedDenoiser,
    PositionNetwork,
    SequenceRatioNetwork,
    UniformDenoiser,
)
from gtl_lightning.networks.on_denoiser import DifferenceTokenRatio, FeatureTokenRatio, OnDenoiser
from gtl_lightning.networks.plain import Plain
from gtl_lightning.networks.projection import in_parts
from gtl_lightning.networks.ratios import TokenLevel, TokenRatioNetwork
from gtl_lightning.networks.source import Ids, ids_of, likeliest, log_prob_of, log_probs
from gtl_lightning.networks.store import load_network, read_meta, save_network

DENOISERS: tuple[type[nn.Module], ...] = (MaskedDenoiser, *ADAPTERS)
"""What the file of a source may hold; each is a `protocols.Source`."""

__all__ = [
    "ADAPTERS",
    "DENOISERS",
    "Backbone",
    "BackboneConfig",
    "CausalLM",
    "CountTokenRatio",
    "Decoder",
    "DifferenceTokenRatio",
    "FeatureTokenRatio",
    "Frozen",
    "Ids",
    "MaskedDenoiser",
    "OnDenoiser",
    "Plain",
    "PositionNetwork",
    "RatioEnsemble",
    "SequenceRatioNetwork",
    "TokenLevel",
    "TokenRatioNetwork",
    "UniformDenoiser",
    "ids_of",
    "in_parts",
    "likeliest",
    "load_network",
    "log_prob_of",
    "log_probs",
    "read_meta",
    "save_network",
    "seeded",
]
