"""Reading 8-bit images."""

import random
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


def animated(folder, suffix):
  path = folder / f"a.{suffix}"
  Image.fromarray(GREY).save(path, save_all=True, append_images=[Image.fromarray(255 - GREY)])
  return path


def turned(folder, suffix, orientation=6):
  exif = Image.Exif()
  exif[0x0112] = orientation
  path = folder / f"a.{suffix}"
  Image.fromarray(GREY).save(path, exif=exif)
  return path


def with_wrong_checksum(folder):
  """Writes a PNG whose last checksum of pixels, right before the 12 bytes of IEND, is wrong."""
  path = save(folder / "a.png", GREY)
  content = bytearray(path.read_bytes())
  content[-13] ^= 1
  path.write_bytes(content)
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
        (with_wrong_checksum, "checksum of its chunk 'IDAT'"),
        (lambda d: animated(d, "png"), "single image, got 2 frames"),
        (lambda d: animated(d, "gif"), "another kind"),
        (lambda d: turned(d, "png"), "EXIF orientation must be 1, got 6"),
        (lambda d: turned(d, "jpg", 3), "EXIF orientation must be 1, got 3"),
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


def test_an_upright_image_with_exif_is_read(tmp_path):
  np.testing.assert_array_equal(pictures.read_gray(turned(tmp_path, "png", 1)), GREY)


def test_a_palette_image_gives_its_numbers(tmp_path):
  image = Image.fromarray(GREY % 2)
  image.putpalette([0, 0, 0, 9, 8, 7])
  image.save(tmp_path / "a.png")
  found = pictures.read_indexed(tmp_path / "a.png")
  np.testing.assert_array_equal(found.indices, GREY % 2)
  assert found.palette[:3].tolist() == [[0, 0, 0], [9, 8, 7], [0, 0, 0]]
  assert pictures.read_indexed(save(tmp_path / "grey.png", GREY)) is None


@pytest.mark.slow
def test_no_flipped_bit_of_a_png_changes_pixels_silently(tmp_path):
  content = save(tmp_path / "whole.png", GREY).read_bytes()
  path, generator, caught = tmp_path / "a.png", random.Random(0), 0
  for bit in generator.sample(range(8 * len(content)), 200):
    damaged = bytearray(content)
    damaged[bit // 8] ^= 1 << bit % 8
    path.write_bytes(damaged)
    try:
      np.testing.assert_array_equal(pictures.read_gray(path), GREY)
    except InputError:
      caught += 1
  assert caught == 200  # Each byte is under a checksum, or is one.
