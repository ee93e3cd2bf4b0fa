"""Questions to arrays: tokenizer and chat template of the checkpoint, its image processor, image placeholders expanded.

Everything goes through `transformers` without torch. Source of the conventions: `transformers processing_qwen3_vl.py`.
"""

import dataclasses
import hashlib
import os
import pathlib
from collections.abc import Sequence

import numpy as np
from PIL import Image

from spatialreward_jax.errors import InputError
from spatialreward_jax.generate import bucket
from spatialreward_jax.io.huggingface import Qwen2VLImageProcessorPil, load_tokenizer, smart_resize
from spatialreward_jax.io.pretrained import read_json
from spatialreward_jax.reward.pixels import PixelPolicy, pixel_policy

IMAGE_PAD = "<|image_pad|>"


def patch_bucket(patches: int) -> int:
    """Patches to which images are padded, eight buckets from one power of two to the next."""
    return bucket(patches, parts=8)


@dataclasses.dataclass(frozen=True)
class Patches:
    """One image as the vision tower takes it.

    Attributes:
        values: float32 [P, C], merge windows first (row-major over windows, then inside a window), C = 3 * temporal
            patch * patch * patch.
        grid: (rows, columns) in patches; rows * columns = P.
    """

    values: np.ndarray
    grid: tuple[int, int]


class Processor:
    """Tokenizer, chat template and image processor of one checkpoint folder under one pixel policy.

    Attributes:
        tokenizer: the `transformers` tokenizer. image_pad: id of the image placeholder. policy: the pixel policy.
        patch_size, merge_size, temporal_patch_size: from `preprocessor_config.json`.
    """

    def __init__(self, folder: str | os.PathLike, policy: str | PixelPolicy = "eval"):
        """Reads the folder. Raises InputError naming what is missing."""
        folder = pathlib.Path(folder)
        self.policy = pixel_policy(policy) if isinstance(policy, str) else policy
        settings = read_json(folder / "preprocessor_config.json")
        self.tokenizer = load_tokenizer(folder)
        self.image_pad = self.tokenizer.convert_tokens_to_ids(IMAGE_PAD)
        if self.image_pad is None or self.tokenizer.convert_ids_to_tokens(self.image_pad) != IMAGE_PAD:
            raise InputError(f"the tokenizer in {folder} has no token {IMAGE_PAD}: it is not a Qwen-VL tokenizer")
        size = settings.get("size") or {}
        least = settings.get("min_pixels") or size.get("shortest_edge") or 56 * 56
        most = settings.get("max_pixels") or size.get("longest_edge") or 28 * 28 * 1280
        self._images = Qwen2VLImageProcessorPil(
            size=self.policy.limits(least, most),
            **{name: settings[name] for name in _IMAGE_SETTINGS if settings.get(name) is not None},
        )
        self.patch_size, self.merge_size = self._images.patch_size, self._images.merge_size
        self.temporal_patch_size = self._images.temporal_patch_size

    def patches(self, image: np.ndarray) -> Patches:
        """uint8 [H, W, 3] -> `Patches`. Raises InputError for aspect ratios over 200."""
        sized = self.policy.first_resize(image)
        out = self._images.preprocess([Image.fromarray(sized)], return_tensors="np")
        _, rows, columns = (int(n) for n in out["image_grid_thw"][0])
        return Patches(np.asarray(out["pixel_values"], np.float32), (rows, columns))

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """(rows, columns) of an image's patches, from its size alone."""
        size = self._images.size
        height, width = smart_resize(
            *self.policy.first_size(height, width),
            factor=self.patch_size * self.merge_size,
            min_pixels=size["shortest_edge"],
            max_pixels=size["longest_edge"],
        )
        return height // self.patch_size, width // self.patch_size

    def chat(self, text: str, num_images: int) -> str:
        """The prompt as the checkpoint's chat template writes it: images first, text last, answer turn opened."""
        content = [{"type": "image"}] * num_images + [{"type": "text", "text": text}]
        messages = [{"role": "user", "content": content}]
        return self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)

    def tokens(self, text: str, grids: Sequence[tuple[int, int]]) -> np.ndarray:
        """Question text and the patch grids of its images, in order -> int32 [T], placeholders expanded.

        Raises InputError when the text itself holds a token that the checkpoint reserves.
        """
        for reserved in self.tokenizer.all_special_tokens:
            if reserved in text:
                raise InputError(f"the text holds {reserved}, which the tokenizer reserves: take it out")
        ids = self.tokenizer(self.chat(text, len(grids)), add_special_tokens=False)["input_ids"]
        ids = np.asarray(ids, np.int32)
        return np.repeat(ids, self.repeats(ids, grids))

    def repeats(self, ids: np.ndarray, grids: Sequence[tuple[int, int]]) -> np.ndarray:
        """int64 [T]: how often each token of a prompt stands once its image placeholders are expanded, 1 for text.

        Raises InputError when the placeholders are not as many as the images.
        """
        is_pad = ids == self.image_pad
        if is_pad.sum() != len(grids):
            raise InputError(f"the prompt holds {is_pad.sum()} image placeholders for {len(grids)} images")
        repeats = np.ones(len(ids), np.int64)
        repeats[is_pad] = [rows * columns // self.merge_size**2 for rows, columns in grids]
        return repeats

    def decode(self, ids: Sequence[int]) -> str:
        """Token ids -> text without special tokens, stripped."""
        return self.tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False).strip()


_IMAGE_SETTINGS = (
    "patch_size",
    "temporal_patch_size",
    "merge_size",
    "image_mean",
    "image_std",
    "resample",
    "do_resize",
    "do_rescale",
    "rescale_factor",
    "do_normalize",
    "do_convert_rgb",
)


def image_key(image: np.ndarray) -> str:
    """Hash of an image's size and pixels; equal keys mean equal patches."""
    digest = hashlib.blake2b(repr(image.shape).encode(), digest_size=16)
    digest.update(np.ascontiguousarray(image))
    return digest.hexdigest()
