"""TensorBoard files: scalars and image grids."""

import os
from collections.abc import Mapping, Sequence

import numpy as np
import tensorboardX

from spatialreward_jax.errors import InputError


class TensorBoard:
    """Writer of one run's event files.

    Args:
        folder: where TensorBoard looks.
        start: steps already done: what an interrupted run had logged beyond them is hidden.
    """

    def __init__(self, folder: str | os.PathLike, start: int = 0):
        try:
            self._writer = tensorboardX.SummaryWriter(str(folder), purge_step=start + 1 if start else None)
        except OSError as error:
            raise InputError(f"cannot write event files in {folder}: {error.strerror or error}") from error

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """One point of every curve."""
        for name, value in values.items():
            self._writer.add_scalar(name, float(value), step)

    def image(self, step: int, name: str, image: np.ndarray) -> None:
        """One picture, uint8 [H, W, 3]."""
        self._writer.add_image(name, np.asarray(image), step, dataformats="HWC")

    def close(self) -> None:
        """Writes what is left."""
        self._writer.close()


def image_grid(rows: Sequence[Sequence[np.ndarray]], *, gap: int = 4, fill: int = 255) -> np.ndarray:
    """Pictures of any sizes in rows, e.g. source | edits | boxes: column widths and row heights fit their largest.

    Args:
        rows: rows of uint8 [h, w, 3]; they may differ in length.
        gap: pixels between pictures.
        fill: grey value of what is empty.

    Returns:
        uint8 [H, W, 3].
    """
    if not rows or not any(len(row) for row in rows):
        raise InputError("an image grid needs at least one picture")
    columns = max(len(row) for row in rows)
    heights = [max((picture.shape[0] for picture in row), default=0) for row in rows]
    widths = [max((row[i].shape[1] for row in rows if i < len(row)), default=0) for i in range(columns)]
    grid = np.full((sum(heights) + gap * (len(rows) - 1), sum(widths) + gap * (columns - 1), 3), fill, np.uint8)
    tops, lefts = (np.cumsum([0, *(size + gap for size in sizes)]) for sizes in (heights, widths))
    for top, row in zip(tops, rows):
        for left, picture in zip(lefts, row):
            height, width = picture.shape[:2]
            grid[top : top + height, left : left + width] = picture
    return grid
