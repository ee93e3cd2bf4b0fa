"""Sizes of the autoencoder, read from the checkpoint's `config.json`."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from spatialreward_jax.errors import InputError

# Keys that decide nothing here: tiling and casting hints of the PyTorch pipeline.
_IGNORED = ("sample_size", "force_upcast")
# Keys whose other values are other architectures.
_FIXED = {"act_fn": "silu", "latents_mean": None, "latents_std": None, "mid_block_add_attention": True}


@dataclasses.dataclass(frozen=True)
class AutoencoderConfig:
    """Field names are those of diffusers' `config.json` for `AutoencoderKL`; the default values are diffusers' too."""

    in_channels: int = 3
    out_channels: int = 3
    block_out_channels: tuple[int, ...] = (64,)
    layers_per_block: int = 1
    latent_channels: int = 4
    norm_num_groups: int = 32
    use_quant_conv: bool = True
    use_post_quant_conv: bool = True
    scaling_factor: float = 0.18215
    shift_factor: float | None = None

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "AutoencoderConfig":
        """Reads a parsed `config.json`.

        Raises:
          InputError: another architecture, a variant that is not built here, or sizes that contradict each other.
        """
        name = values.get("_class_name", "AutoencoderKL")
        if name != "AutoencoderKL":
            raise InputError(f"this config.json describes {name!r}, want 'AutoencoderKL'")
        given = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items() if not k.startswith("_")}
        levels = len(given.get("block_out_channels", cls.block_out_channels))
        for key, block in (("down_block_types", "DownEncoderBlock2D"), ("up_block_types", "UpDecoderBlock2D")):
            kinds = given.pop(key, (block,) * levels)
            if kinds != (block,) * levels:
                raise InputError(f"autoencoder config.json: {key} is {list(kinds)}, want {levels} times {block!r}")
        for key, want in _FIXED.items():
            if given.pop(key, want) != want:
                raise InputError(f"autoencoder config.json: {key} is {values[key]!r}, only {want!r} is built here")
        given = {k: v for k, v in given.items() if k not in _IGNORED}
        unknown = sorted(set(given) - {f.name for f in dataclasses.fields(cls)})
        if unknown:
            raise InputError(f"autoencoder config.json: unknown keys {unknown}")
        config = cls(**given)
        odd = [c for c in config.block_out_channels if c % config.norm_num_groups]
        if odd:
            raise InputError(
                f"autoencoder config.json: {odd} channels do not divide into {config.norm_num_groups} groups"
            )
        return config

    @property
    def downscale(self) -> int:
        """Pixels of a side for one latent of a side: 8 with four levels."""
        return 2 ** (len(self.block_out_channels) - 1)
