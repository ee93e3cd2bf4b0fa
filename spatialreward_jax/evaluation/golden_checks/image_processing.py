"""image_processing.npz: the judge's patches under given pixel limits, and the editor's resize."""

import dataclasses

import numpy as np

from spatialreward_jax.evaluation.golden_checks.case import Case
from spatialreward_jax.evaluation.golden_checks.nets import Goldens
from spatialreward_jax.io.images import resize_for_editor
from spatialreward_jax.reward.pixels import PixelPolicy
from spatialreward_jax.reward.processor import Processor


@dataclasses.dataclass(frozen=True)
class GivenLimits(PixelPolicy):
    """Pixel limits that come with the goldens."""

    least: int = 0

    def limits(self, shortest_edge: int, longest_edge: int) -> dict[str, int]:
        """The given limits, whatever the checkpoint says."""
        return {"shortest_edge": self.least, "longest_edge": self.max_pixels or longest_edge}


def check(case: Case, goldens: Goldens) -> None:
    """Checks every image under every pair of limits."""
    images = {name.removeprefix("image_"): case.input(name) for name in case.numbered("image_")}
    for setting, (least, most) in enumerate(case.input("pixel_limits").tolist()):
        processor = Processor(goldens.folder / "spatialreward", GivenLimits("given", max_pixels=most, least=least))
        for number, image in images.items():
            patches = processor.patches(image)
            case.compare(f"pixel_values_s{setting}_{number}", patches.values)
            case.compare(f"grid_thw_s{setting}_{number}", np.array([[1, *patches.grid]]))
    for number, image in images.items():
        case.compare(f"omnigen2_resized_{number}", resize_for_editor(image))
