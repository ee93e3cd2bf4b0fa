import io
import struct
import zlib

import numpy as np
import PIL.Image
import pytest

from spatialreward_jax.errors import InputError
from spatialreward_jax.io import images


def _png_header(width, height):
    """A PNG that claims a size and holds almost no data: what a decompression bomb looks like."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"\0" * 64)) + chunk(b"IEND", b"")


def _encode(image, kind="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


@pytest.fixture
def picture():
    return np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)


@pytest.mark.parametrize("index", [0, 2])
def test_editor_resize_equals_the_reference(goldens, index):
    arrays = np.load(goldens / "image_processing.npz")
    got = images.resize_for_editor(arrays[f"image_{index}"])
    np.testing.assert_array_equal(got, arrays[f"omnigen2_resized_{index}"])


def test_editor_size_is_never_larger_and_respects_the_longest_side():
    assert images.editor_size(613, 487) == (560, 448) and images.editor_size(701, 633) == (528, 480)
    assert images.editor_size(100, 40) == (96, 32)
    assert images.editor_size(4096, 64, max_pixels=10**9) == (2048, 32)
    assert images.editor_size(512, 512) == (512, 512)
    with pytest.raises(InputError, match="too thin"):
        images.editor_size(15, 400)


def test_round_trip_by_path_bytes_pil_and_array(tmp_path, picture):
    path = tmp_path / "new" / "a.png"
    images.write_png(path, picture)
    assert not list(path.parent.glob(".*"))
    for source in (path, str(path), path.read_bytes(), PIL.Image.open(path), picture):
        np.testing.assert_array_equal(images.read_image(source), picture)
    assert images.image_size(path) == (20, 30)


def test_transparency_is_laid_on_white():
    rgba = np.zeros((4, 4, 4), np.uint8)
    rgba[:2, :, 0], rgba[:2, :, 3] = 200, 255
    for source in (rgba, _encode(PIL.Image.fromarray(rgba))):
        got = images.read_image(source)
        assert (got[:2] == (200, 0, 0)).all() and (got[2:] == 255).all()
    palette = PIL.Image.new("P", (2, 2), 1)
    palette.putpalette([255, 0, 0, 0, 0, 255])
    assert (images.read_image(_encode(palette, transparency=1)) == 255).all()


def test_grey_and_sixteen_bits():
    grey = np.arange(16, dtype=np.uint8).reshape(4, 4)
    for source in (grey, grey[..., None], _encode(PIL.Image.fromarray(grey))):
        np.testing.assert_array_equal(images.read_image(source), np.repeat(grey[..., None], 3, -1))
    deep = PIL.Image.fromarray(np.full((3, 3), 40000, np.uint16))
    assert (images.read_image(_encode(deep)) == 40000 >> 8).all()


def test_exif_orientation(picture):
    exif = PIL.Image.Exif()
    exif[0x0112] = 6
    data = _encode(PIL.Image.fromarray(picture), exif=exif)
    assert images.image_size(data) == (30, 20)
    np.testing.assert_array_equal(images.read_image(data), np.rot90(picture, -1))


@pytest.mark.parametrize("size", [(10_000, 10_000), (65_000, 65_000)])
@pytest.mark.parametrize("read", [images.read_image, images.image_size])
def test_bombs_are_refused_by_their_header(tmp_path, size, read, recwarn):
    path = tmp_path / "bomb.png"
    path.write_bytes(_png_header(*size))
    with pytest.raises(InputError, match=r"bomb\.png is too large: .*megapixels") as caught:
        read(path)
    assert len(str(caught.value).splitlines()) == 1 and not recwarn.list


def test_hundred_megapixels_in_memory():
    with pytest.raises(InputError, match="too large: 10000 x 10000"):
        images.read_image(PIL.Image.new("1", (10_000, 10_000)))


def test_broken_files(tmp_path, picture):
    whole = _encode(PIL.Image.fromarray(picture))
    damaged = bytearray(whole)
    damaged[len(whole) // 2] ^= 0xFF
    eps = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n"
    cases = {"cut": whole[: len(whole) // 2], "flip": bytes(damaged), "text": b"not an image", "empty": b"", "eps": eps}
    cases["jpeg"] = _encode(PIL.Image.fromarray(picture), "JPEG")[:300]
    for name, data in cases.items():
        path = tmp_path / name
        path.write_bytes(data)
        for source in (path, data):
            with pytest.raises(InputError, match="broken") as caught:
                images.read_image(source)
            assert len(str(caught.value).splitlines()) == 1
    for read in (images.read_image, images.image_size):
        with pytest.raises(InputError, match="does not exist"):
            read(tmp_path / "none.png")
        with pytest.raises(InputError, match="not a file"):
            read(tmp_path)


def test_wrong_arrays(picture):
    for array in (picture.astype(np.float32), picture[..., :2], np.zeros((0, 3, 3), np.uint8), picture[None]):
        with pytest.raises(InputError):
            images.read_image(array)
    with pytest.raises(InputError, match="uint8"):
        images.png_bytes(picture / 255)


def test_write_failure_is_one_line(tmp_path, picture):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot write"):
        images.write_png(tmp_path / "file" / "a.png", picture)
