"""Text decoding: sampling rules and a batched loop, for any net with a cache; answers under a grammar."""

from spatialreward_jax.generate.constrained import (
    ModelExtend,
    Progress,
    check_room,
    generate_constrained,
    under_grammar,
)
from spatialreward_jax.generate.decode import (
    Answer,
    Decode,
    ModelStep,
    answers,
    begin,
    bucket,
    generate,
    insert,
    text_of,
)
from spatialreward_jax.generate.grammar import Grammar, Number
from spatialreward_jax.generate.sampling import (
    Picked,
    RepetitionPenalty,
    Sampler,
    Temperature,
    TopKTopP,
    make_sampler,
)
from spatialreward_jax.generate.token_tables import Tables, compile_grammar

__all__ = [
    "Answer",
    "Decode",
    "Grammar",
    "ModelExtend",
    "ModelStep",
    "Number",
    "Picked",
    "Progress",
    "RepetitionPenalty",
    "Sampler",
    "Tables",
    "Temperature",
    "TopKTopP",
    "answers",
    "begin",
    "bucket",
    "check_room",
    "compile_grammar",
    "generate",
    "generate_constrained",
    "insert",
    "make_sampler",
    "text_of",
    "under_grammar",
]
