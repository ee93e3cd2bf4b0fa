"""Text decoding: sampling rules and a batched loop, for any net with a cache."""

from spatialreward_jax.generate.decode import Answer, Decode, ModelStep, begin, bucket, generate, text_of
from spatialreward_jax.generate.sampling import (
    Picked,
    RepetitionPenalty,
    Sampler,
    Temperature,
    TopKTopP,
    make_sampler,
)

__all__ = [
    "Answer",
    "Decode",
    "ModelStep",
    "Picked",
    "RepetitionPenalty",
    "Sampler",
    "Temperature",
    "TopKTopP",
    "begin",
    "bucket",
    "generate",
    "make_sampler",
    "text_of",
]
