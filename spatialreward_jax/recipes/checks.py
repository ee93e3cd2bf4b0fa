"""What several recipes refuse from their settings and data alone, before anything is loaded."""

from collections.abc import Sequence

import jax.numpy as jnp

from spatialreward_jax.data.requests import EditRequest
from spatialreward_jax.errors import InputError
from spatialreward_jax.io.peft import LoRASpec
from spatialreward_jax.models.omnigen2 import MAX_REFERENCES


def check_dtype(field: str, name: str) -> None:
    """Raises InputError unless `name` is a floating-point type, such as "bfloat16"."""
    try:
        real = jnp.issubdtype(jnp.dtype(name), jnp.floating)
    except TypeError:
        real = False
    if not real:
        raise InputError(f"{field}={name!r} is no type of numbers: use bfloat16, float16 or float32")


def check_adapter(adapter: str, lora: LoRASpec | None) -> None:
    """Raises InputError for an adapter to start from where all parameters are trained."""
    if adapter and lora is None:
        raise InputError("training all parameters starts without an adapter: drop --config.adapter, or set lora.rank")


def check_references(requests: Sequence[EditRequest]) -> None:
    """Raises InputError for a request with more source images than an editor takes."""
    for request in requests:
        if len(request.images) > MAX_REFERENCES:
            raise InputError(f"{request.where}: {len(request.images)} input_images, use at most {MAX_REFERENCES}")
