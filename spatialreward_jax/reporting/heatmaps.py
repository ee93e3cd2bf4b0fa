"""Pictures of attention: heat over the images of an edit, a row for each thing that the judge spoke of."""

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from spatialreward_jax.reporting.overlay import draw_regions
from spatialreward_jax.reward.types import Region

HEIGHT = 224
"""Of every image in a picture, in pixels."""

GAP = 8
TITLE = 16
COLOURS = np.array([(0, 0, 4), (87, 16, 110), (188, 55, 84), (249, 142, 9), (252, 255, 164)], np.float64)
"""From no attention to the most."""


def attention_picture(
    images: Sequence[np.ndarray], names: Sequence[str], maps: Sequence[np.ndarray], boxes: Sequence[Region]
) -> np.ndarray:
    """A row for each query set; in it every image under its heat, with boxes.

    Args:
      images: uint8 [H, W, 3] each, the edited one last.
      names: of the Q query sets.
      maps: attention of the sets to each image's patches, [Q, rows, columns] for each image. A row's images share one
        scale, so that a neglected image stays dark.
      boxes: in pixels of the edited image; drawn at the same place in the sources. A row that speaks of one box shows
        that one alone.

    Returns:
      uint8 [h, w, 3].
    """
    rows = []
    for q, name in enumerate(names):
        top = max(float(part[q].max()) for part in maps)
        mass = [float(part[q].sum()) for part in maps]
        title = f"{name}: attention to " + ", ".join(
            f"{label} {share:.3f}" for label, share in zip(_labels(len(images)), mass)
        )
        shown = [box for box in boxes if name == f"box {box.id}"] or list(boxes)
        panels = [
            _panel(image, part[q] / top if top > 0 else part[q], shown, images[-1].shape)
            for image, part in zip(images, maps, strict=True)
        ]
        rows.append(_titled(panels, title))
    width = max(row.shape[1] for row in rows)
    rows = [np.pad(row, ((0, GAP), (0, width - row.shape[1]), (0, 0)), constant_values=255) for row in rows]
    return np.concatenate(rows)


def heat(image: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """uint8 [H, W, 3] under heat: weights [rows, columns] in 0..1, enlarged smoothly, brightened by a square root."""
    height, width = image.shape[:2]
    sized = Image.fromarray(np.asarray(weights, np.float32)).resize((width, height), Image.Resampling.BILINEAR)
    level = np.sqrt(np.clip(np.asarray(sized, np.float64), 0, 1)) * (len(COLOURS) - 1)
    low = np.minimum(level.astype(int), len(COLOURS) - 2)
    colour = COLOURS[low] + (COLOURS[low + 1] - COLOURS[low]) * (level - low)[..., None]
    grey = image.mean(axis=-1, keepdims=True)
    return np.clip(0.35 * grey + 0.65 * colour, 0, 255).astype(np.uint8)


def _panel(image, weights, boxes, size):
    height, width = HEIGHT, max(1, round(image.shape[1] * HEIGHT / image.shape[0]))
    sized = np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR))
    across, down = width / size[1], height / size[0]
    placed = [
        Region(box.id, box.label, box.bbox_2d, tuple(s * f for s, f in zip(box.box, (across, down) * 2)))
        for box in boxes
    ]
    return draw_regions(heat(sized, weights), placed)


def _titled(panels, title):
    width = sum(panel.shape[1] for panel in panels) + GAP * (len(panels) - 1)
    font = ImageFont.load_default()
    canvas = np.full((HEIGHT + TITLE, max(width, int(font.getlength(title)) + 4), 3), 255, np.uint8)
    left = 0
    for panel in panels:
        canvas[TITLE:, left : left + panel.shape[1]] = panel
        left += panel.shape[1] + GAP
    picture = Image.fromarray(canvas)
    ImageDraw.Draw(picture).text((2, 2), title, fill=(20, 20, 20), font=font)
    return np.asarray(picture)


def _labels(count):
    return ["source", "edited"] if count == 2 else [*(f"source {i}" for i in range(count - 1)), "edited"]
