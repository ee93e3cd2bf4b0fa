"""Pictures of a verdict: source and edited image side by side, the judge's boxes and labels on the edited one."""

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from spatialreward_jax.reward.types import Region, Score

COLOURS = ((230, 60, 50), (40, 120, 230), (30, 160, 80), (230, 150, 20), (150, 70, 200), (20, 170, 180))
"""Of boxes, by region id."""

GAP = 8
LEAST_SIDE = 256


def overlay(
    sources: Sequence[np.ndarray], edited: np.ndarray, regions: Sequence[Region], caption: str = ""
) -> np.ndarray:
    """Side by side: sources | edited with boxes and labels, `caption` on a strip below.

    Args:
        sources: uint8 [H, W, 3] each, resized to the edited image's height.
        edited: uint8 [H, W, 3]; boxes are in its pixels.
        regions: what to draw.
        caption: one line or several.

    Returns:
        uint8 [h, w, 3]. Images lower than 256 pixels are enlarged by a whole factor so that labels can be read.
    """
    scale = max(1, -(-LEAST_SIDE // min(edited.shape[:2])))
    height = edited.shape[0] * scale
    panels = [_to_height(image, height) for image in sources]
    panels.append(draw_regions(_enlarge(edited, scale), regions, scale=scale))
    width = sum(panel.shape[1] for panel in panels) + GAP * (len(panels) - 1)
    lines = _lines(caption, width)
    strip = (len(lines) * _line_height() + GAP) if lines else 0
    canvas = np.full((height + strip, width, 3), 255, np.uint8)
    left = 0
    for panel in panels:
        canvas[:height, left : left + panel.shape[1]] = panel
        left += panel.shape[1] + GAP
    if not lines:
        return canvas
    picture = Image.fromarray(canvas)
    draw = ImageDraw.Draw(picture)
    for row, line in enumerate(lines):
        draw.text((GAP // 2, height + GAP // 2 + row * _line_height()), line, fill=(20, 20, 20), font=_font())
    return np.asarray(picture)


def draw_regions(image: np.ndarray, regions: Sequence[Region], *, scale: float = 1) -> np.ndarray:
    """uint8 [H, W, 3] with boxes and labels, coordinates multiplied by `scale`; labels stay inside the image."""
    picture = Image.fromarray(image)
    draw = ImageDraw.Draw(picture)
    height, width = image.shape[:2]
    for region in regions:
        left, top, right, bottom = (side * scale for side in region.box)
        colour = COLOURS[region.id % len(COLOURS)]
        draw.rectangle((left, top, max(right - 1, left), max(bottom - 1, top)), outline=colour, width=2)
        text = _printable(f"{region.id}: {region.label}")
        box = draw.textbbox((0, 0), text, font=_font())
        x = max(0, min(left, width - box[2] - 4))
        y = top - box[3] - 4 if top >= box[3] + 4 else min(top, height - box[3] - 4)
        draw.rectangle((x, y, x + box[2] + 4, y + box[3] + 4), fill=colour)
        draw.text((x + 2, y + 2), text, fill=(255, 255, 255), font=_font())
    return np.asarray(picture)


def score_overlay(sources: Sequence[np.ndarray], edited: np.ndarray, score: Score) -> np.ndarray:
    """`overlay` with what a score says: overall and the four sub-scores, or why it is invalid."""
    if not score.valid:
        return overlay(sources, edited, score.regions, "invalid: " + "; ".join(score.errors))
    parts = ("success", "no_overedit", "naturalness", "artifact_free")
    caption = f"overall {score.overall:.2f} of 10   " + "   ".join(f"{p} {getattr(score, p):g}/25" for p in parts)
    return overlay(sources, edited, score.regions, caption)


def _font() -> ImageFont.ImageFont | ImageFont.FreeTypeFont:
    return ImageFont.load_default()


def _line_height() -> int:
    return int(_font().getbbox("Ag")[3]) + 3


def _lines(caption: str, width: int) -> list[str]:
    """Wraps at words to the canvas; a word longer than a line is cut there."""
    lines: list[str] = []
    for word in _printable(caption).split():
        longer = f"{lines[-1]} {word}" if lines else word
        if lines and _font().getlength(longer) <= width - GAP:
            lines[-1] = longer
        else:
            lines.append(word)
    return lines


def _printable(text: str) -> str:
    """One line that every font can draw or replace: no controls, no lone surrogates."""
    text = text.encode("utf-8", "replace").decode("utf-8")
    return "".join(letter if letter.isprintable() else " " for letter in text)


def _enlarge(image: np.ndarray, scale: int) -> np.ndarray:
    return image.repeat(scale, 0).repeat(scale, 1)


def _to_height(image: np.ndarray, height: int) -> np.ndarray:
    if image.shape[0] == height:
        return image
    if height % image.shape[0] == 0:
        return _enlarge(image, height // image.shape[0])
    width = max(1, round(image.shape[1] * height / image.shape[0]))
    return np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.LANCZOS))
