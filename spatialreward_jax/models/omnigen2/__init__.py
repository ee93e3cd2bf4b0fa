"""The OmniGen2 image editor's transformer."""

from spatialreward_jax.models.omnigen2.config import MAX_REFERENCES, OmniGen2Config
from spatialreward_jax.models.omnigen2.model import OmniGen2Transformer
from spatialreward_jax.models.omnigen2.packing import pack, pack_images, pack_references, unpack, zero_padding
from spatialreward_jax.models.omnigen2.types import Conditioning
from spatialreward_jax.models.omnigen2.weights import ENTRIES, SHARDING, STEM

__all__ = [
    "ENTRIES",
    "MAX_REFERENCES",
    "SHARDING",
    "STEM",
    "Conditioning",
    "OmniGen2Config",
    "OmniGen2Transformer",
    "pack",
    "pack_images",
    "pack_references",
    "unpack",
    "zero_padding",
]
