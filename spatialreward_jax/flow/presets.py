"""Named sampler settings: what users of the reference programs get under the same name."""

import dataclasses

from spatialreward_jax.errors import InputError
from spatialreward_jax.flow.guidance import Guidance


@dataclasses.dataclass(frozen=True)
class SamplerPreset:
    """steps; guidance; base: pixels of the time shift; coef: noise coefficient, 0 = ODE; negative: which negative text.

    negative is "long" (the pipeline's long negative text), "empty" (an empty user turn under the pipeline's system
    sentence) or "default" (an empty user turn under the tokenizer's own default system sentence, as RL uses it).
    """

    steps: int
    guidance: Guidance
    base: int
    coef: float
    negative: str


PRESETS = {
    "omnigen2": SamplerPreset(50, Guidance(5.0, 2.0, (0.0, 1.0)), 320, 0.0, "long"),
    "rl-eval": SamplerPreset(50, Guidance(5.0, 1.5, (0.0, 1.0)), 168, 0.0, "empty"),
    "rl": SamplerPreset(20, Guidance(4.0, 2.0, (0.0, 0.6)), 168, 0.7, "default"),
}


def sampler_preset(name: str) -> SamplerPreset:
    """The preset called `name`; raises InputError that lists the known ones."""
    if name not in PRESETS:
        raise InputError(f"sampler preset {name!r} is unknown; choose one of {', '.join(PRESETS)}")
    return PRESETS[name]
