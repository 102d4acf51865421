"""The networks: one backbone, several heads. Log-ratios are log q/p, target positive, everywhere."""

from gtl_lightning.networks.backbone import Backbone
from gtl_lightning.networks.block import BackboneConfig, seeded
from gtl_lightning.networks.ensemble import RatioEnsemble
from gtl_lightning.networks.heads import (
    CausalLM,
    Frozen,
    MaskedDenoiser,
    PositionNetwork,
    SequenceRatioNetwork,
    UniformDenoiser,
    copy_of,
)
from gtl_lightning.networks.on_denoiser import DifferenceTokenRatio, FeatureTokenRatio, OnDenoiser
from gtl_lightning.networks.projection import in_parts
from gtl_lightning.networks.ratios import TokenLevel, TokenRatioNetwork
from gtl_lightning.networks.store import load_network, read_meta, save_network

__all__ = [
    "Backbone",
    "BackboneConfig",
    "CausalLM",
    "DifferenceTokenRatio",
    "FeatureTokenRatio",
    "Frozen",
    "MaskedDenoiser",
    "OnDenoiser",
    "PositionNetwork",
    "RatioEnsemble",
    "SequenceRatioNetwork",
    "TokenLevel",
    "TokenRatioNetwork",
    "UniformDenoiser",
    "copy_of",
    "in_parts",
    "load_network",
    "read_meta",
    "save_network",
    "seeded",
]
