"""Guidance by text and by reference images: three velocity branches, each with its own conditioning and length."""

import dataclasses
from typing import Any, NamedTuple

import jax.numpy as jnp

from spatialreward_jax.errors import InputError


@dataclasses.dataclass(frozen=True)
class Guidance:
    """Scales of text (a) and reference images (b), and the range of step fractions i / N where guidance is on."""

    text: float
    image: float
    range: tuple[float, float] = (0.0, 1.0)

    def __post_init__(self):
        if not 0 <= self.range[0] <= self.range[1] <= 1:
            raise InputError(f"guidance range {self.range}: use two fractions 0 <= low <= high <= 1")

    @property
    def active(self) -> bool:
        """Whether anything but the full branch is ever used (a > 1)."""
        return self.text > 1

    @property
    def uses_references(self) -> bool:
        """Whether the branch with negative text and references is used (a > 1 and b > 1)."""
        return self.active and self.image > 1


class Branches(NamedTuple):
    """Conditioning of the three branches; every array leads with the samples' first axis.

    full: instruction and references. ref: negative text and references. uncond: negative text alone.
    A branch that the guidance does not use may be None.
    """

    full: Any
    ref: Any = None
    uncond: Any = None


def guided(velocity, x, t, branches: Branches, guidance: Guidance):
    """Guided velocity -> [..., T, C] float32. velocity(x [..., T, C], t [...], conditioning) -> [..., T, C].

    a > 1, b > 1: v_uncond + b (v_ref - v_uncond) + a (v_full - v_ref); a > 1 >= b: v_uncond + a (v_full - v_uncond),
    with v_uncond without references; a <= 1: v_full. As in `pipeline_omnigen2.py` of the reference.
    Raises InputError where a branch that is needed is missing.
    """
    check_branches(branches, guidance)
    run = lambda conditioning: velocity(x, t, conditioning).astype(jnp.float32)
    full = run(branches.full)
    if not guidance.active:
        return full
    uncond = run(branches.uncond)
    if not guidance.uses_references:
        return uncond + guidance.text * (full - uncond)
    ref = run(branches.ref)
    return uncond + guidance.image * (ref - uncond) + guidance.text * (full - ref)


def check_branches(branches: Branches, guidance: Guidance) -> None:
    """Raise InputError when a branch that the guidance uses is missing."""
    missing = [
        name
        for name, used in (("uncond", guidance.active), ("ref", guidance.uses_references))
        if used and getattr(branches, name) is None
    ]
    if missing:
        raise InputError(
            f"guidance text={guidance.text} image={guidance.image} needs the branch {' and '.join(missing)}: "
            "give its conditioning, or use scales of at most 1"
        )
