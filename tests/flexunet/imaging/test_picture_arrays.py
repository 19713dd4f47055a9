"""Images and masks of NumPy: what is read, and what is refused because it has two meanings."""

import io
import zipfile

import numpy as np
import pytest

from flexunet.core.errors import InputError
from flexunet.imaging import picture_arrays, pictures

GREY = np.random.default_rng(0).integers(0, 256, (4, 6)).astype(np.uint8)
IDS = np.random.default_rng(1).integers(0, 3, (4, 6))
ONE_HOT = np.eye(3)[IDS]
COLOR = np.stack([GREY, GREY // 2, GREY // 3], axis=-1)


def save(path, *arrays, **named):
  (np.save if path.suffix == ".npy" else np.savez_compressed)(path, *arrays, **named)
  return path


@pytest.mark.parametrize("name", ["a.npy", "a.NPZ", "a.npz"])
@pytest.mark.parametrize("wrap", [lambda a: a, lambda a: a[None], lambda a: a[..., None]])
def test_a_grey_image_may_have_axes_of_length_one_around_it(tmp_path, name, wrap):
  path = save(tmp_path / name.lower(), wrap(GREY)).rename(tmp_path / name)
  assert pictures.is_picture(path)
  np.testing.assert_array_equal(pictures.read_gray(path), GREY)
  header = pictures.read_header(path)
  assert (header.height, header.width, header.mode) == (4, 6, "uint8")


def test_three_channels_are_colours_of_an_image_and_classes_of_a_one_hot_mask(tmp_path):
  path = save(tmp_path / "a.npy", COLOR)
  np.testing.assert_array_equal(pictures.read_rgb(path), COLOR)
  np.testing.assert_array_equal(pictures.read_rgb(path, "mask"), COLOR)
  path = save(tmp_path / "b.npy", ONE_HOT)
  np.testing.assert_array_equal(pictures.read_gray(path, "mask"), IDS)


@pytest.mark.parametrize("dtype", [bool, np.int8, np.int64, np.float32])
def test_masks_of_any_type_hold_ids_or_one_hot_classes(tmp_path, dtype):
  ids = (IDS > 0) if dtype is bool else IDS
  for mask in (ids, np.eye(7)[ids.astype(int)]):
    path = save(tmp_path / "a.npz", mask=mask.astype(dtype))
    found = pictures.read_gray(path, "mask")
    np.testing.assert_array_equal(found, ids)
    assert found.dtype == np.uint8


def test_an_archive_of_several_arrays_is_read_by_their_names(tmp_path):
  path = save(tmp_path / "a.npz", image=GREY, mask=ONE_HOT, other=GREY)
  np.testing.assert_array_equal(pictures.read_gray(path), GREY)
  np.testing.assert_array_equal(pictures.read_gray(path, "mask"), IDS)
  assert pictures.read_header(path, "mask").mode == "float64"


def cut(path, num_bytes):
  path.write_bytes(path.read_bytes()[:-num_bytes])
  return path


def flip(path):
  content = bytearray(path.read_bytes())
  content[len(content) // 3] ^= 255
  path.write_bytes(content)
  return path


def declared(path, shape):
  """Writes a header of some shape, and few numbers."""
  buffer = io.BytesIO()
  np.lib.format.write_array_header_1_0(
      buffer, {"descr": "|u1", "fortran_order": False, "shape": shape}
  )
  if path.suffix == ".npy":
    path.write_bytes(buffer.getvalue() + b"123")
  else:
    with zipfile.ZipFile(path, "w") as archive:
      archive.writestr("mask.npy", buffer.getvalue() + b"123")
  return path


@pytest.mark.parametrize(
    ("make", "message"), [
        (lambda d: save(d / "a.npy", GREY + 0.5), "whole numbers of 0..255, found .*not all whole"),
        (lambda d: save(d / "a.npy", np.full((4, 6), np.nan)), "not all whole"),
        (lambda d: save(d / "a.npy", GREY.astype(int) - 300), "found -300"),
        (lambda d: save(d / "a.npy", GREY.astype(np.uint16) * 9), "Window an image"),
        (lambda d: save(d / "a.npy", np.zeros((4, 6, 5), np.uint8)), r"colours, found \[4, 6, 5\]"),
        (lambda d: save(d / "a.npy", np.moveaxis(ONE_HOT, -1, 0)), "first axis is one-hot; move"),
        (lambda d: save(d / "a.npy", np.zeros((9, 4, 6, 3), np.uint8)), "each image in a file"),
        (lambda d: save(d / "a.npy", np.zeros(7)), r"\[rows, columns\].*got \[7\]"),
        (lambda d: save(d / "a.npy", np.zeros((0, 4))), r"got \[0, 4\]"),
        (lambda d: save(d / "a.npy", np.array([["x"]])), "must hold numbers"),
        (lambda d: save(d / "a.npy", np.array([[{}]], object)), "must hold numbers"),
        (lambda d: save(d / "a.npy", np.zeros((2, 2), complex)), "must hold numbers"),
        (lambda d: save(d / "a.npz", first=GREY, second=GREY), "it holds 'first', 'second'"),
        (lambda d: cut(save(d / "a.npy", GREY), 3), "truncated|damaged"),
        (lambda d: cut(save(d / "a.npz", GREY), 30), "damaged"),
        (lambda d: flip(save(d / "a.npz", np.random.default_rng(0).random((4, 6)) > 0.5)),
         "damaged"),
        (lambda d: declared(d / "a.npy", (8000, 8000)), "truncated"),
        (lambda d: declared(d / "a.npz", (8000, 8000)), "truncated"),
        (lambda d: declared(d / "a.npy", (1 << 40, 1 << 40)), "each image in a file"),
        (lambda d: d / "a.npy", "no such file"),
    ],
)  # fmt: skip
def test_what_is_damaged_or_ambiguous_is_refused_in_one_line(tmp_path, make, message):
  path = make(tmp_path)
  with pytest.raises(InputError, match=message) as caught:
    picture_arrays.read(path, "mask")
  assert path.name in str(caught.value) and "\n" not in str(caught.value)
