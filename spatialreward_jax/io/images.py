"""Image files in and out: size limits checked before decoding, orientation, transparency, and the editor's resize."""

import contextlib
import io
import os
import pathlib
import warnings

import numpy as np
import PIL.Image
import PIL.ImageOps

from spatialreward_jax.errors import InputError

MAX_PIXELS = 64 * 2**20
"""Largest image that is decoded: 64 Mi pixels, 192 MiB as RGB."""

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF")
"""Formats that are opened. Others are refused: some of Pillow's plugins start outside programs."""

ImageLike = str | os.PathLike | bytes | PIL.Image.Image | np.ndarray


def read_image(source: ImageLike, *, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """Reads an image as RGB: turned upright by its EXIF tag, transparency laid on white, first frame of an animation.

    Args:
        source: path, encoded bytes, PIL image, or array uint8 [H, W], [H, W, 1], [H, W, 3] or [H, W, 4].
        max_pixels: larger images are refused by their header, before any pixel is decoded.

    Returns:
        uint8 [H, W, 3].

    Raises:
        InputError: missing, broken, too large or of another format.
    """
    if isinstance(source, np.ndarray):
        return _from_array(source, max_pixels)
    if isinstance(source, PIL.Image.Image):
        _check_size(source.size, "image", max_pixels)
        return _decode(source, "image")
    name = _name(source)
    with _open(source, name) as image:
        _check_size(image.size, name, max_pixels)
        return _decode(image, name)


def image_size(source: str | os.PathLike | bytes, *, max_pixels: int = MAX_PIXELS) -> tuple[int, int]:
    """(height, width) of the upright image, from its header alone. Raises InputError like `read_image`."""
    name = _name(source)
    with _open(source, name) as image:
        _check_size(image.size, name, max_pixels)
        width, height = image.size
        try:
            # the base class's method: PNG's own decodes the whole image to find a tag behind the pixels
            turned = PIL.Image.Image.getexif(image).get(0x0112, 1) in (5, 6, 7, 8)
        except Exception as error:
            raise _broken(name, error) from error
    return (width, height) if turned else (height, width)


def png_bytes(image: np.ndarray) -> bytes:
    """Encodes uint8 [H, W, 3] (or [H, W]) losslessly as PNG."""
    image = np.asarray(image)
    if image.dtype != np.uint8 or not (image.ndim == 2 or (image.ndim == 3 and image.shape[-1] == 3)):
        raise InputError(f"a PNG needs uint8 [H, W, 3] or [H, W], got {image.dtype} {list(image.shape)}")
    buffer = io.BytesIO()
    PIL.Image.fromarray(image).save(buffer, "PNG")
    return buffer.getvalue()


def write_png(path: str | os.PathLike, image: np.ndarray) -> None:
    """Writes uint8 [H, W, 3] as PNG, making the folder; a reader never sees half a file. Raises InputError."""
    path, data = pathlib.Path(path), png_bytes(image)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part.write_bytes(data)
        part.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            part.unlink()
        raise InputError(f"cannot write {path}: {error.strerror or error}") from error


def editor_size(
    height: int, width: int, *, max_pixels: int = 262144, max_side: int = 2048, multiple: int = 16
) -> tuple[int, int]:
    """(height, width) that the editor works at: aspect kept, never enlarged, sides floored to `multiple`.

    Source of the rule: OmniGen2 `image_processor.py`. Raises InputError when a side would be 0.
    """
    ratio = min((max_pixels / (height * width)) ** 0.5, max_side / max(height, width), 1.0)
    size = tuple(int(side * ratio) // multiple * multiple for side in (height, width))
    if 0 in size:
        raise InputError(
            f"image of {width} x {height} pixels is too small or too thin for the editor: after the resize"
            f" each side needs at least {multiple} pixels"
        )
    return size


def resize_for_editor(
    image: np.ndarray, max_pixels: int = 262144, max_side: int = 2048, multiple: int = 16
) -> np.ndarray:
    """uint8 [H, W, 3] -> uint8 [h, w, 3] at `editor_size`, Lanczos: bit-exact to OmniGen2's own preprocessing."""
    height, width = editor_size(*image.shape[:2], max_pixels=max_pixels, max_side=max_side, multiple=multiple)
    return resize(image, height, width)


def resize(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """uint8 [H, W, 3] -> uint8 [height, width, 3] by Pillow's Lanczos filter; the same array if nothing changes."""
    if image.shape[:2] == (height, width):
        return image
    return np.asarray(PIL.Image.fromarray(image).resize((width, height), PIL.Image.Resampling.LANCZOS))


def _name(source):
    return "image bytes" if isinstance(source, bytes) else f"image {os.fspath(source)}"


def _open(source, name):
    # Pillow warns about sizes that _check_size refuses anyway; users should see the one line of the refusal.
    warnings.filterwarnings("ignore", category=PIL.Image.DecompressionBombWarning)
    if not isinstance(source, bytes):
        path = pathlib.Path(source)
        if not path.exists():
            raise InputError(f"{name} does not exist")
        if not path.is_file():
            raise InputError(f"{name} is not a file")
    try:
        return PIL.Image.open(io.BytesIO(source) if isinstance(source, bytes) else path, formats=FORMATS)
    except PIL.Image.DecompressionBombError as error:
        raise InputError(f"{name} is too large: over {MAX_PIXELS / 1e6:.0f} megapixels; scale it down first") from error
    except PIL.UnidentifiedImageError as error:
        raise InputError(f"{name} is broken or none of {', '.join(FORMATS)}") from error
    except Exception as error:  # a crafted header can raise almost anything in a decoder
        raise _broken(name, error) from error


def _check_size(size, name, max_pixels):
    width, height = size
    if width * height > max_pixels:
        raise InputError(
            f"{name} is too large: {width} x {height} = {width * height / 1e6:.0f} megapixels,"
            f" the limit is {max_pixels / 1e6:.0f}; scale it down first"
        )
    if width * height == 0:
        raise InputError(f"{name} has no pixels: {width} x {height}")


def _broken(name, error):
    return InputError(f"{name} is broken: {str(error).splitlines()[0] if str(error) else type(error).__name__}")


def _decode(image, name):
    try:
        return _to_rgb(PIL.ImageOps.exif_transpose(image), name)
    except InputError:
        raise
    except Exception as error:  # see _open
        raise _broken(name, error) from error


def _to_rgb(image, name):
    if image.mode == "F":
        raise InputError(f"{name} holds floating-point pixels; convert it to 8 bits a channel")
    if image.mode.startswith("I"):  # 16-bit grey, which Pillow's own conversion would clip to white
        return np.repeat((np.asarray(image).astype(np.int64) >> 8).clip(0, 255).astype(np.uint8)[..., None], 3, axis=-1)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = PIL.Image.new("RGBA", image.size, "white")
        image = PIL.Image.alpha_composite(white, image)
    return np.array(image.convert("RGB"))


def _from_array(array, max_pixels):
    if array.dtype != np.uint8 or array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[-1] not in (1, 3, 4)):
        raise InputError(f"an image array must be uint8 [H, W, 3], got {array.dtype} {list(array.shape)}")
    _check_size(array.shape[1::-1], "image array", max_pixels)
    if array.ndim == 3 and array.shape[-1] == 3:
        return np.ascontiguousarray(array)
    grey = array.ndim == 2 or array.shape[-1] == 1
    return _to_rgb(PIL.Image.fromarray(array.reshape(array.shape[:2]) if grey else array), "image array")
