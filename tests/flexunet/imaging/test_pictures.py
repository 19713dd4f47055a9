"""Reading 8-bit pictures."""

import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from flexunet.core.errors import InputError
from flexunet.imaging import pictures

GREY = np.random.default_rng(0).integers(0, 256, (40, 60)).astype(np.uint8)


def save(path, pixels, mode=None):
  image = Image.fromarray(pixels)
  (image.convert(mode) if mode else image).save(path)
  return path


def png_of_declared_size(path, width, height):
  def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

  header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
  path.write_bytes(
      b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(1000)))
      + chunk(b"IEND", b"")
  )
  return path


def damaged_png(folder):
  path = save(folder / "a.png", GREY)
  content = bytearray(path.read_bytes())
  content[len(content) // 2] ^= 255
  path.write_bytes(content)
  return path


def truncated(folder, name):
  path = save(folder / name, GREY)
  path.write_bytes(path.read_bytes()[:-100])
  return path


@pytest.mark.parametrize("name", ["a.png", "a.bmp", "A.PNG"])
@pytest.mark.parametrize("mode", [None, "RGB"])
def test_grey_pictures_come_back_exactly_also_when_stored_as_colour(tmp_path, name, mode):
  path = save(tmp_path / name, GREY, mode)
  np.testing.assert_array_equal(pictures.read_gray(path), GREY)
  header = pictures.read_header(path)
  assert (header.height, header.width) == (40, 60)


def test_colour_pictures_keep_their_channels_and_palettes_are_looked_up(tmp_path):
  rgb = np.zeros((4, 5, 3), np.uint8)
  rgb[1, 2] = (10, 180, 10)
  np.testing.assert_array_equal(pictures.read_rgb(save(tmp_path / "a.png", rgb)), rgb)
  Image.fromarray(rgb).quantize(4).save(tmp_path / "p.png")
  np.testing.assert_array_equal(pictures.read_rgb(tmp_path / "p.png"), rgb)


@pytest.mark.parametrize(
    ("make", "message"), [
        (lambda d: save(d / "a.png", GREY.astype(np.uint16) * 200), "8-bit grey or RGB"),
        (lambda d: save(d / "a.png", GREY, "RGBA"), "8-bit grey or RGB"),
        (lambda d: save(d / "a.png", GREY, "LA"), "8-bit grey or RGB"),
        (lambda d: png_of_declared_size(d / "a.png", 20000, 20000), "pixels"),
        (lambda d: png_of_declared_size(d / "a.png", 9000, 9000), "pixels"),
        (damaged_png, "damaged"),
        (lambda d: truncated(d, "a.png"), "damaged"),
        (lambda d: truncated(d, "a.jpg"), "damaged"),
        (lambda d: d / "none.png", "no such file"),
    ],
)
def test_a_picture_that_cannot_be_a_slice_is_refused_in_one_line(tmp_path, make, message):
  path = make(tmp_path)
  with pytest.raises(InputError, match=message) as caught:
    pictures.read_gray(path)
  assert path.name in str(caught.value) and "\n" not in str(caught.value)


def test_a_colour_picture_is_no_grey_picture(tmp_path):
  rgb = np.zeros((4, 5, 3), np.uint8)
  rgb[..., 0] = 255
  with pytest.raises(InputError, match="grey"):
    pictures.read_gray(save(tmp_path / "a.png", rgb))
