"""Pixel policies: how large an image reaches the judge. Part of a score's identity, since sizes move scores.

eval    the checkpoint's own limits, as in the official benchmark programs (default)
server  a first resize to multiples of 28, then the checkpoint's limits, as in the official reward server
sft     at most 262144 pixels, as in the official supervised training
rl      at most 401408 pixels, as in the official reinforcement learning of the judge
"""

import dataclasses

import numpy as np
from PIL import Image

from spatialreward_jax.errors import InputError

MAX_ASPECT = 200
"""Longest side over shortest side that the image processor takes."""


@dataclasses.dataclass(frozen=True)
class PixelPolicy:
    """A named way to bound image sizes.

    Attributes:
        name: one of the module's names.
        max_pixels: upper bound that takes the place of the checkpoint's, or None.
        first_multiple: sides of a first resize (bicubic), before the checkpoint's own, or None.
    """

    name: str
    max_pixels: int | None = None
    first_multiple: int | None = None

    def limits(self, shortest_edge: int, longest_edge: int) -> dict[str, int]:
        """The checkpoint's pixel counts (least, most) -> the `size` setting of the image processor."""
        most = self.max_pixels or longest_edge
        return {"shortest_edge": min(shortest_edge, most), "longest_edge": most}

    def first_size(self, height: int, width: int) -> tuple[int, int]:
        """(height, width) after the first resize. Raises InputError for aspect ratios over 200."""
        if max(height, width) > MAX_ASPECT * min(height, width):
            raise InputError(f"image {width}x{height} is too narrow: the judge takes aspect ratios up to {MAX_ASPECT}")
        if self.first_multiple is None:
            return height, width
        from spatialreward_jax.io.huggingface import smart_resize  # here: who only names policies need not wait for it

        m = self.first_multiple
        return smart_resize(height, width, factor=m, min_pixels=4 * m * m, max_pixels=16384 * m * m)

    def first_resize(self, image: np.ndarray) -> np.ndarray:
        """uint8 [H, W, 3] -> uint8 [h, w, 3]; the image itself where the policy has no first resize."""
        height, width = self.first_size(*image.shape[:2])
        if (height, width) == image.shape[:2]:
            return image
        return np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BICUBIC))


POLICIES = {
    policy.name: policy
    for policy in (
        PixelPolicy("eval"),
        PixelPolicy("server", first_multiple=28),
        PixelPolicy("sft", max_pixels=262144),
        PixelPolicy("rl", max_pixels=401408),
    )
}


def pixel_policy(name: str) -> PixelPolicy:
    """The policy of that name. Raises InputError naming the known ones."""
    if name not in POLICIES:
        raise InputError(f"pixel policy {name!r} is unknown: choose one of {', '.join(POLICIES)}")
    return POLICIES[name]
