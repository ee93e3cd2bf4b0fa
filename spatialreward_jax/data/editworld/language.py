"""The English of EditWorld: names of shapes, references that single one out, and instructions."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from spatialreward_jax.data.editworld.scenes import Scene, Shape

if TYPE_CHECKING:
    from spatialreward_jax.data.editworld.edits import Op

PLACE_WORDS = {
    "top left": ("in the top left corner", "in the upper left corner", "at the top left"),
    "top": ("at the top", "at the top center", "at the top in the middle"),
    "top right": ("in the top right corner", "in the upper right corner", "at the top right"),
    "left": ("on the left", "at the left side", "in the middle of the left side"),
    "center": ("in the center", "in the middle of the picture", "in the middle"),
    "right": ("on the right", "at the right side", "in the middle of the right side"),
    "bottom left": ("in the bottom left corner", "in the lower left corner", "at the bottom left"),
    "bottom": ("at the bottom", "at the bottom center", "at the bottom in the middle"),
    "bottom right": ("in the bottom right corner", "in the lower right corner", "at the bottom right"),
}
GOAL_WORDS = {
    "top left": ("to the top left corner", "to the upper left"),
    "top": ("to the top center", "to the middle of the top edge"),
    "top right": ("to the top right corner", "to the upper right"),
    "left": ("to the middle of the left side", "to the left edge, halfway down"),
    "center": ("to the center", "to the middle of the picture"),
    "right": ("to the middle of the right side", "to the right edge, halfway down"),
    "bottom left": ("to the bottom left corner", "to the lower left"),
    "bottom": ("to the bottom center", "to the middle of the bottom edge"),
    "bottom right": ("to the bottom right corner", "to the lower right"),
}
SIZE_WORDS = {"small": ("small", "little"), "large": ("large", "big")}
COLOR_WORDS = {"teal": ("teal", "turquoise"), "purple": ("purple", "violet")}
TEXTURE_WORDS = {
    "plain": ("plain", "solid"),
    "striped": ("striped", "stripy"),
    "dotted": ("dotted", "polka-dot"),
}
GROUND_WORDS = {
    "sky": ("a bright sky", "a blue sky with clouds"),
    "meadow": ("a green meadow", "grass"),
    "sand": ("sand", "a sandy beach"),
    "stone": ("gray stone", "a stone wall"),
    "night": ("a night sky", "a dark starry night"),
    "sunset": ("a sunset sky", "a sunset"),
    "paper": ("cream paper", "a sheet of paper"),
    "wood": ("wood", "a wooden board"),
}
_TONE_LINES = {
    "warm": ("make the picture warmer", "give the image a warm tone", "warm up the colors of the whole image"),
    "cool": (
        "make the picture cooler",
        "give the image a bluish tone",
        "cool the colors of the whole image down",
    ),
    "dark": ("darken the whole picture", "make the image darker", "turn the brightness down"),
    "bright": ("brighten the whole picture", "make the image brighter and paler", "turn the brightness up"),
    "gray": ("make the picture black and white", "convert the image to grayscale", "remove all color from the image"),
    "sepia": ("give the picture a sepia tone", "make the image look like an old sepia photo", "apply a sepia look"),
}
_LINES = {
    "recolor": (
        "make {it} {color}",
        "recolor {it} to {color}",
        "recolour {it} {color}",
        "change the color of {it} to {color}",
        "turn {it} {color}",
        "paint {it} {color}",
        "{it} should be {color}",
    ),
    "retexture": (
        "make {it} {texture}",
        "give {it} {pattern}",
        "change the pattern of {it} to {texture}",
        "{it} should be {texture}",
    ),
    "remove": (
        "remove {it}",
        "delete {it}",
        "take {it} away",
        "erase {it} from the picture",
        "get rid of {it}",
        "there should be no {bare}",
    ),
    "add": (
        "add {one} {place}",
        "put {one} {place}",
        "place {one} {place}",
        "draw {one} {place}",
        "insert {one} {place}",
        "{place}, add {one}",
    ),
    "move": (
        "move {it} {goal}",
        "shift {it} {goal}",
        "bring {it} {goal}",
        "slide {it} {goal}",
        "relocate {it} {goal}",
    ),
    "large": ("make {it} bigger", "enlarge {it}", "make {it} larger", "increase the size of {it}", "scale {it} up"),
    "small": ("make {it} smaller", "shrink {it}", "reduce the size of {it}", "scale {it} down"),
    "replace": (
        "replace {it} with {one}",
        "swap {it} for {one}",
        "turn {it} into {one}",
        "change {it} into {one}",
        "put {one} in place of {it}",
    ),
    "background": (
        "change the background to {ground}",
        "replace the background with {ground}",
        "put everything on {ground}",
        "set the scene on {ground}",
        "make the background {ground}",
    ),
}
_PATTERNS = {
    "plain": ("a plain fill", "a solid fill"),
    "striped": ("stripes", "diagonal stripes"),
    "dotted": ("dots", "a dotted pattern"),
}


def name(shape: Shape) -> str:
    """The short name of a shape: its colour and kind, in the words of the vocabulary."""
    return f"{shape.color} {shape.kind}"


def _pick(rng: np.random.Generator, options) -> str:
    return str(options[int(rng.integers(len(options)))])


def describe(shape: Shape, fields: tuple[str, ...], rng: np.random.Generator) -> str:
    """Adjectives and noun for the given fields of a shape, in varied words; without "kind" the noun is "shape"."""
    words = []
    if "size" in fields:
        words.append(_pick(rng, SIZE_WORDS[shape.size]))
    if "texture" in fields:
        words.append(_pick(rng, TEXTURE_WORDS[shape.texture]))
    if "color" in fields:
        words.append(_pick(rng, COLOR_WORDS.get(shape.color, (shape.color,))))
    words.append(shape.kind if "kind" in fields else "shape")
    noun = " ".join(words)
    return f"{noun} {_pick(rng, PLACE_WORDS[shape.place])}" if "place" in fields else noun


_REFERENCES = (  # sets of fields that may single a shape out, and how often each is tried first
    (("kind",), 3.0),
    (("color", "kind"), 6.0),
    (("color",), 0.8),
    (("size", "kind"), 1.0),
    (("texture", "kind"), 1.0),
    (("size", "color", "kind"), 1.0),
    (("texture", "color", "kind"), 1.0),
    (("kind", "place"), 1.0),
    (("place",), 0.5),
)


def reference(scene: Scene, index: int, rng: np.random.Generator) -> str:
    """A noun phrase, without article, that fits this shape of the scene and no other."""
    shape = scene.shapes[index]
    weights = np.array([weight for _, weight in _REFERENCES])
    for choice in rng.choice(len(_REFERENCES), len(_REFERENCES), replace=False, p=weights / weights.sum()):
        fields = _REFERENCES[int(choice)][0]
        same = [all(getattr(other, f) == getattr(shape, f) for f in fields) for other in scene.shapes]
        # "the plain circle" is odd English; plainness is mentioned only where it is what sets shapes apart.
        if sum(same) == 1 and not ("texture" in fields and shape.texture == "plain" and len(fields) > 2):
            return describe(shape, fields, rng)
    return describe(shape, ("color", "kind"), rng)  # unique in every scene


def _article(noun: str) -> str:
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


def clause(scene: Scene, op: Op, rng: np.random.Generator) -> str:
    """One operation as an English clause, lower case, without a final stop."""
    if op.kind == "tone":
        return _pick(rng, _TONE_LINES[op.tone])
    words = {}
    if op.target >= 0:
        words["bare"] = reference(scene, op.target, rng)
        words["it"] = f"the {words['bare']}"
    if op.ground is not None:
        words["ground"] = _pick(rng, GROUND_WORDS[op.ground.kind])
    if op.after is not None:
        stated = tuple(field for field in op.stated if field != "place")
        words["one"] = _article(describe(op.after, stated, rng))
        words["color"] = _pick(rng, COLOR_WORDS.get(op.after.color, (op.after.color,)))
        words["texture"] = _pick(rng, TEXTURE_WORDS[op.after.texture])
        words["pattern"] = _pick(rng, _PATTERNS[op.after.texture])
        words["place"] = _pick(rng, PLACE_WORDS[op.after.place])
        words["goal"] = _pick(rng, GOAL_WORDS[op.after.place])
    lines = _LINES[op.after.size if op.kind == "resize" else op.kind]
    return _pick(rng, lines).format(**words)


def instruction(scene: Scene, ops: tuple[Op, ...], rng: np.random.Generator) -> str:
    """The instruction for one or two operations, as a person might type it."""
    parts = [clause(scene, op, rng) for op in ops]
    if len(parts) == 1:
        text = parts[0]
    else:
        joint = _pick(rng, ("{} and {}", "{}, and {}", "{}, then {}", "{} and also {}"))
        text = joint.format(*parts)
    if rng.uniform() < 0.12 and not text.startswith(("the ", "there ", "in ", "at ", "on ")):
        text = f"please {text}"
    text = text[0].upper() + text[1:] if rng.uniform() < 0.85 else text
    return text + "." if rng.uniform() < 0.75 else text
