"""Sizes of the OmniGen2 transformer, read from the checkpoint's `config.json`."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from spatialreward_jax.errors import InputError

MAX_REFERENCES = 5
"""Rows of the learned index embedding; the architecture has no config key for it."""

TIME_CHANNELS = 256
"""Channels of the timestep sinusoid."""

THETA = 10000.0


@dataclasses.dataclass(frozen=True)
class OmniGen2Config:
    """Field names are those of diffusers' `config.json` for `OmniGen2Transformer2DModel`."""

    hidden_size: int
    num_layers: int
    num_refiner_layers: int
    num_attention_heads: int
    num_kv_heads: int
    multiple_of: int
    axes_dim_rope: tuple[int, int, int]
    axes_lens: tuple[int, int, int]
    text_feat_dim: int
    patch_size: int = 2
    in_channels: int = 16
    out_channels: int | None = None
    ffn_dim_multiplier: float | None = None
    norm_eps: float = 1e-5
    timestep_scale: float = 1.0

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "OmniGen2Config":
        """Reads a parsed `config.json`; keys that only describe the file (leading underscore) are ignored.

        Raises:
          InputError: another architecture, a missing or unknown key, or sizes that contradict each other.
        """
        name = values.get("_class_name", "OmniGen2Transformer2DModel")
        if name != "OmniGen2Transformer2DModel":
            raise InputError(f"this config.json describes {name!r}, want 'OmniGen2Transformer2DModel'")
        fields = {f.name: f for f in dataclasses.fields(cls)}
        given = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items() if not k.startswith("_")}
        required = [k for k, f in fields.items() if f.default is dataclasses.MISSING]
        missing, unknown = sorted(set(required) - set(given)), sorted(set(given) - set(fields))
        if missing or unknown:
            raise InputError(f"OmniGen2 config.json: missing keys {missing}, unknown keys {unknown}")
        config = cls(**given)
        config._check()
        return config

    def _check(self):
        if self.num_attention_heads < 1 or self.hidden_size % self.num_attention_heads:
            raise InputError(f"hidden_size {self.hidden_size} is no multiple of {self.num_attention_heads} heads")
        if self.num_kv_heads < 1 or self.num_attention_heads % self.num_kv_heads:
            raise InputError(f"{self.num_attention_heads} heads are no multiple of num_kv_heads {self.num_kv_heads}")
        if sum(self.axes_dim_rope) != self.head_dim or any(d % 2 for d in self.axes_dim_rope):
            raise InputError(f"axes_dim_rope {self.axes_dim_rope}: want even numbers of sum {self.head_dim}")

    @property
    def head_dim(self) -> int:
        """Channels of one attention head."""
        return self.hidden_size // self.num_attention_heads

    @property
    def mlp_dim(self) -> int:
        """Inner width of the SwiGLU: 4 * hidden (times the multiplier), rounded up to `multiple_of`."""
        width = 4 * self.hidden_size
        if self.ffn_dim_multiplier is not None:
            width = int(self.ffn_dim_multiplier * width)
        return -(-width // self.multiple_of) * self.multiple_of

    @property
    def time_dim(self) -> int:
        """Width of the time embedding that modulates every block."""
        return min(self.hidden_size, 1024)

    @property
    def token_channels(self) -> int:
        """Channels of a packed input token."""
        return self.patch_size**2 * self.in_channels

    @property
    def output_channels(self) -> int:
        """Channels of a packed velocity token."""
        return self.patch_size**2 * (self.out_channels or self.in_channels)
