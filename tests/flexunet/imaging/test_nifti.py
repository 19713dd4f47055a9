"""Reading and writing volumes: formats, byte orders, scale factors, and files that lie."""

import gzip
import random

import nibabel as nib
import numpy as np
import pytest

from flexunet.core.errors import InputError
from flexunet.imaging import nifti

SHAPE = (3, 5, 7)  # No two axes alike, so that a transposition cannot pass.
AFFINE = np.array([[0, -2.0, 0, 10], [1.5, 0, 0, -20], [0, 0, 3.0, 5], [0, 0, 0, 1]])
VOXELS = np.random.default_rng(0).integers(-900, 900, SHAPE).astype(np.int16)


def save_nifti(path, voxels=VOXELS, affine=AFFINE, order="<", slope=None, image=nib.Nifti1Image):
  header = image.header_class(endianness=order)
  header.set_data_dtype(voxels.dtype)
  made = image(voxels, affine, header)
  if slope is not None:
    made.header.set_slope_inter(*slope)
  made.to_filename(path)
  return path


def save_analyze(path, voxels=VOXELS, order="<"):
  header = nib.AnalyzeHeader(endianness=order)
  header.set_data_dtype(voxels.dtype)
  image = nib.AnalyzeImage(voxels[..., None], None, header)
  image.header.set_zooms((1.0, 2.0, 0.5, 1.0))
  image.to_filename(path)
  return path


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz", "A.NII.GZ"])
@pytest.mark.parametrize("order", ["<", ">"])
def test_nifti_comes_back_as_it_was_saved(tmp_path, name, order):
  made = save_nifti(tmp_path / name.lower(), order=order)
  path = made.rename(tmp_path / name)
  volume = nifti.read(path)
  np.testing.assert_array_equal(volume.voxels, VOXELS)
  assert volume.voxels.dtype == np.int16 and volume.voxels.dtype.isnative
  np.testing.assert_allclose(volume.affine, AFFINE)
  assert volume.oriented and volume.axis_codes == "ALS"
  np.testing.assert_allclose(volume.spacing_mm, [1.5, 2.0, 3.0])


@pytest.mark.parametrize("image", [nib.Nifti2Image, nib.Nifti1Pair])
def test_nifti_2_and_nifti_pairs_are_read(tmp_path, image):
  path = save_nifti(tmp_path / ("a.nii" if image is nib.Nifti2Image else "a.hdr"), image=image)
  np.testing.assert_array_equal(nifti.read(path).voxels, VOXELS)


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("asked", ["a.hdr", "a.img"])
def test_analyze_is_squeezed_and_states_no_orientation(tmp_path, order, asked):
  save_analyze(tmp_path / "a.hdr", order=order)
  volume = nifti.read(tmp_path / asked)
  np.testing.assert_array_equal(volume.voxels, VOXELS)
  assert not volume.oriented
  np.testing.assert_allclose(volume.spacing_mm, [1.0, 2.0, 0.5])
  header = nifti.read_header(tmp_path / asked)
  assert header.shape == SHAPE and header.dtype == np.int16 and header.axis_codes == ""


def test_the_twin_of_a_pair_is_found_in_another_case_and_compressed(tmp_path):
  save_analyze(tmp_path / "a.hdr")
  (tmp_path / "a.IMG.GZ").write_bytes(gzip.compress((tmp_path / "a.img").read_bytes()))
  (tmp_path / "a.img").unlink()
  np.testing.assert_array_equal(nifti.read(tmp_path / "a.hdr").voxels, VOXELS)


def test_nifti_without_codes_states_no_orientation(tmp_path):
  image = nib.Nifti1Image(VOXELS, None)
  image.header.set_zooms((1.0, 2.0, 3.0))
  image.to_filename(tmp_path / "a.nii")
  volume = nifti.read(tmp_path / "a.nii")
  assert not volume.oriented
  np.testing.assert_allclose(volume.spacing_mm, [1, 2, 3])


def test_scale_factors_are_applied_and_the_stored_numbers_stay_available(tmp_path):
  path = save_nifti(tmp_path / "a.nii", slope=(0.5, -3.0))
  volume = nifti.read(path)
  np.testing.assert_allclose(volume.voxels, VOXELS * 0.5 - 3.0)
  np.testing.assert_allclose(volume.voxels, nib.load(path).get_fdata())
  assert volume.voxels.dtype == np.float32
  stored, slope, inter = nifti.read_stored(path)
  assert stored.voxels.dtype == np.int16 and (slope, inter) == (0.5, -3.0)
  np.testing.assert_array_equal(stored.voxels, VOXELS)


def test_only_trailing_axes_of_length_one_are_dropped(tmp_path):
  save_nifti(tmp_path / "four.nii", VOXELS[..., None, None])
  assert nifti.read(tmp_path / "four.nii").voxels.shape == SHAPE
  save_nifti(tmp_path / "thin.nii", VOXELS[:1])
  assert nifti.read(tmp_path / "thin.nii").voxels.shape == (1, 5, 7)
  save_nifti(tmp_path / "series.nii", np.stack([VOXELS, VOXELS], -1))
  with pytest.raises(InputError, match=r"three axes.*\(3, 5, 7, 2\)"):
    nifti.read(tmp_path / "series.nii")


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
@pytest.mark.parametrize("order", ["<", ">"])
def test_volumes_along_a_fourth_axis_are_read_where_they_are_named(tmp_path, name, order):
  every = np.stack([VOXELS, VOXELS + 1000, VOXELS + 2000], -1).astype(f"{order}i2")
  header = nib.Nifti1Header(endianness=order)
  nib.save(nib.Nifti1Image(every, np.eye(4), header, dtype=f"{order}i2"), tmp_path / name)
  assert nifti.num_volumes(tmp_path / name) == 3
  assert nifti.read_header(tmp_path / name, 2).shape == SHAPE
  volumes, slope, inter = nifti.read_components(tmp_path / name, [2, 0])
  assert (slope, inter) == (1.0, 0.0)
  assert all(volume.voxels.dtype == np.int16 for volume in volumes)  # In native byte order.
  np.testing.assert_array_equal(volumes[0].voxels, every[..., 2])
  np.testing.assert_array_equal(volumes[1].voxels, every[..., 0])
  with pytest.raises(InputError, match="volume 4 along a fourth axis was asked for"):
    nifti.read_components(tmp_path / name, [3])
  nifti.write_like(tmp_path / name, np.ones(SHAPE, np.uint8), tmp_path / f"label_{name}", 0)
  label = nib.load(tmp_path / f"label_{name}")
  assert label.shape == SHAPE and label.header["dim"].tolist() == [3, *SHAPE, 1, 1, 1, 1]


def test_a_file_of_one_volume_has_no_components(tmp_path):
  path = save_nifti(tmp_path / "a.nii")
  assert nifti.num_volumes(path) == 1
  with pytest.raises(InputError, match=r"volume 1 along a fourth axis .* \(3, 5, 7\)"):
    nifti.read_header(path, 0)


def test_a_short_file_of_four_axes_is_truncated(tmp_path):
  path = save_nifti(tmp_path / "a.nii", np.stack([VOXELS, VOXELS], -1))
  path.write_bytes(path.read_bytes()[:-1])
  with pytest.raises(InputError, match="truncated"):
    nifti.read_components(path, [0])


def test_an_unfilled_pixel_size_is_unknown_and_not_zero(tmp_path):
  save_analyze(tmp_path / "a.hdr")
  header = bytearray((tmp_path / "a.hdr").read_bytes())
  header[80:92] = np.zeros(3, "<f4").tobytes()  # pixdim[1:4]
  (tmp_path / "a.hdr").write_bytes(header)
  assert np.isnan(nifti.read(tmp_path / "a.hdr").spacing_mm).all()


def flip_bit(path, position):
  content = bytearray(path.read_bytes())
  content[position] ^= 1
  path.write_bytes(content)


def declare_shape(path, shape):
  content = bytearray(path.read_bytes())
  content[40:56] = np.array([3, *shape, 1, 1, 1, 1], "<i2").tobytes()
  path.write_bytes(content)


def break_crc(folder):
  path = save_nifti(folder / "a.nii.gz")
  flip_bit(path, -6)  # The last 8 bytes are checksum and length.
  return path


def truncate_gz(folder):
  path = save_nifti(folder / "a.nii.gz")
  path.write_bytes(path.read_bytes()[:-20])
  return path


def truncate_img(folder):
  save_analyze(folder / "a.hdr")
  path = folder / "a.img"
  path.write_bytes(path.read_bytes()[:-1])
  return folder / "a.hdr"


def remove_img(folder):
  save_analyze(folder / "a.hdr")
  (folder / "a.img").unlink()
  return folder / "a.hdr"


def declare_8_gb(folder):
  path = save_nifti(folder / "a.nii")
  declare_shape(path, (2000, 2000, 1000))
  return path


def declare_8_gb_compressed(folder):
  path = declare_8_gb(folder)
  (folder / "b.nii.gz").write_bytes(gzip.compress(path.read_bytes()))
  return folder / "b.nii.gz"


def declare_negative(folder):
  path = save_nifti(folder / "a.nii")
  declare_shape(path, (3, -5, 7))
  return path


def write_noise(folder):
  (folder / "a.nii").write_bytes(np.random.default_rng(0).bytes(1000))
  return folder / "a.nii"


def write_too_little(folder):
  (folder / "a.nii.gz").write_bytes(gzip.compress(b"abc"))
  return folder / "a.nii.gz"


def save_complex(folder):
  return save_nifti(folder / "a.nii", VOXELS.astype(np.complex64))


def singular_affine(folder):
  path = save_nifti(folder / "a.nii")
  content = bytearray(path.read_bytes())
  content[280:328] = bytes(48)  # srow_x, srow_y, srow_z
  path.write_bytes(content)
  return path


@pytest.mark.parametrize(
    ("make", "message"), [
        (break_crc, "CRC"),
        (truncate_gz, "truncated.*promises 210 bytes"),
        (truncate_img, "truncated.*promises 210 bytes.*209"),
        (remove_img, "twin a.img is missing"),
        (declare_8_gb, "declares 8000000000 bytes"),
        (declare_8_gb_compressed, "declares 8000000000 bytes"),
        (declare_negative, "header"),
        (write_noise, "no NIfTI"),
        (write_too_little, "truncated: expected 348 bytes, found 3"),
        (save_complex, "real numbers"),
        (singular_affine, "singular"),
        (lambda folder: folder / "none.nii", "no such file"),
        (lambda folder: folder / "a.png", "not a volume"),
    ],
)
def test_a_file_that_cannot_be_right_is_refused_in_one_line(tmp_path, make, message):
  path = make(tmp_path)
  with pytest.raises(InputError, match=message) as caught:
    nifti.read(path)
  assert path.stem.split(".")[0] in str(caught.value)
  assert "\n" not in str(caught.value)


def of_floats(value):
  def make(folder):
    voxels = VOXELS.astype(np.float32)
    if value == "constant":
      voxels[:] = 7
    elif value == "one infinite":
      voxels[1, 2, 3] = np.inf
    else:
      voxels[:] = value
    return save_nifti(folder / "a.nii", voxels)

  return make


@pytest.mark.parametrize(
    ("make", "message"), [
        (of_floats(np.nan), "all its voxels are NaN"),
        (of_floats(np.inf), "must be finite .* found inf to inf"),
        (of_floats("one infinite"), r"must be finite .* found -8\d\d to inf"),
        (of_floats("constant"), "all its voxels are the same number, 7"),
        (of_floats(0), "all its voxels are zero"),
        (of_floats(1e30), "found 1e"),
        (lambda folder: save_nifti(folder / "a.nii", slope=(3e38, 0)), r"after the slope 3e\+38"),
    ],
)  # fmt: skip
def test_a_scan_that_shows_nothing_is_refused_in_one_line(tmp_path, make, message):
  path = make(tmp_path)
  with pytest.raises(InputError, match=message) as caught:
    nifti.read_stored(path)
  assert "a.nii: " in str(caught.value) and "\n" not in str(caught.value)


def test_a_scan_may_be_nan_outside_of_the_head_and_a_label_may_be_empty(tmp_path):
  voxels = VOXELS.astype(np.float32)
  voxels[0] = np.nan
  stored, _, _ = nifti.read_stored(save_nifti(tmp_path / "scan.nii", voxels))
  np.testing.assert_array_equal(stored.voxels, voxels)
  empty = save_nifti(tmp_path / "label.nii", np.zeros(SHAPE, np.uint8))
  assert not nifti.read(empty).voxels.any()


def set_field(path, position, value):
  """Overwrites a float32 of the header."""
  content = bytearray(path.read_bytes())
  content[position : position + 4] = np.array(value, "<f4").tobytes()
  path.write_bytes(content)
  return path


def huge_spacing(folder):
  return save_nifti(folder / "a.nii", affine=np.diag([1e30, 1, 1, 1]))


def huge_spacing_of_a_pair(folder):
  save_analyze(folder / "a.hdr")
  return set_field(folder / "a.hdr", 80, 1e30)  # pixdim[1]


@pytest.mark.parametrize(
    ("make", "message"), [
        (lambda d: set_field(save_nifti(d / "a.nii"), 108, np.inf), "header"),  # vox_offset
        (lambda d: set_field(save_nifti(d / "a.nii"), 108, -352), "header"),
        (lambda d: set_field(save_nifti(d / "a.nii"), 108, 1e30), "truncated"),
        (lambda d: set_field(save_nifti(d / "a.nii"), 112, np.inf), "slope is infinite"),
        (huge_spacing, "edges of a voxel must lie in .* found 1e"),
        (huge_spacing_of_a_pair, "edges of a voxel must lie in .* found 1e"),
    ],
)  # fmt: skip
def test_numbers_of_a_header_that_cannot_be_are_refused_in_one_line(tmp_path, make, message):
  path = make(tmp_path)
  with pytest.raises(InputError, match=message) as caught:
    nifti.read_stored(path)
  assert path.name in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.slow
def test_no_flipped_bit_of_a_compressed_scan_changes_voxels_silently(tmp_path):
  scan = save_nifti(tmp_path / "whole.nii.gz")
  content, whole = scan.read_bytes(), nifti.read(scan)
  path, generator = tmp_path / "a.nii.gz", random.Random(0)
  silent = []
  for bit in generator.sample(range(8 * len(content)), 200):
    damaged = bytearray(content)
    damaged[bit // 8] ^= 1 << bit % 8
    path.write_bytes(damaged)
    try:
      volume = nifti.read(path)
    except InputError:
      continue
    if not np.array_equal(volume.voxels, VOXELS) or (volume.affine != whole.affine).any():
      silent.append(bit)
  assert silent == []


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
@pytest.mark.parametrize("order", ["<", ">"])
def test_a_label_keeps_grid_and_header_geometry_of_a_nifti_scan(tmp_path, name, order):
  scan = save_nifti(tmp_path / "scan.nii", VOXELS[..., None], order=order, slope=(2.0, 1.0))
  label = (VOXELS > 0).astype(np.uint8)
  nifti.write_like(scan, label, tmp_path / name)
  written, source = nib.load(tmp_path / name), nib.load(scan)
  np.testing.assert_array_equal(np.asanyarray(written.dataobj)[..., 0], label)
  assert written.shape == (*SHAPE, 1)
  assert written.get_data_dtype() == np.uint8
  np.testing.assert_array_equal(written.affine, source.affine)
  for field in ("qform_code", "sform_code", "pixdim", "srow_x", "quatern_b", "xyzt_units"):
    np.testing.assert_array_equal(written.header[field], source.header[field])
  np.testing.assert_array_equal(nifti.read(tmp_path / name).voxels, label)


@pytest.mark.parametrize("suffix", [".hdr", ".img", ".hdr.gz"])
def test_a_label_of_an_analyze_scan_is_a_pair_of_the_same_shape(tmp_path, suffix):
  save_analyze(tmp_path / "scan.hdr", order=">")
  label = (VOXELS > 0).astype(np.uint8) * 2
  nifti.write_like(tmp_path / "scan.hdr", label, tmp_path / f"out{suffix}")
  written = nifti.read(tmp_path / f"out{suffix}")
  np.testing.assert_array_equal(written.voxels, label)
  np.testing.assert_allclose(written.spacing_mm, [1.0, 2.0, 0.5])
  hdr = tmp_path / ("out.hdr.gz" if suffix.endswith(".gz") else "out.hdr")
  assert nib.load(hdr).shape == (*SHAPE, 1)


HEADERS = {
    "ANALYZE": (nib.AnalyzeImage, "scan.hdr", ".hdr"),
    "ANALYZE of SPM": (nib.Spm2AnalyzeImage, "scan.hdr", ".hdr.gz"),
    "NIfTI-1": (nib.Nifti1Image, "scan.nii", ".nii.gz"),
    "NIfTI-1 pair": (nib.Nifti1Pair, "scan.hdr", ".hdr"),
    "NIfTI-2": (nib.Nifti2Image, "scan.nii", ".nii"),
    "NIfTI-2 pair": (nib.nifti2.Nifti2Pair, "scan.hdr", ".hdr.gz"),
}
# How the voxels lie; everything else of a header is filled with a name below.
GEOMETRY = {
    "sizeof_hdr", "magic", "eol_check", "dim", "pixdim", "datatype", "bitpix", "vox_offset",
    "scl_slope", "scl_inter", "xyzt_units", "dim_info", "qform_code", "sform_code", "quatern_b",
    "quatern_c", "quatern_d", "qoffset_x", "qoffset_y", "qoffset_z", "srow_x", "srow_y", "srow_z",
}  # fmt: skip


@pytest.mark.parametrize("kind", HEADERS)
def test_a_label_takes_from_a_header_only_how_the_voxels_lie(tmp_path, kind):
  """Every byte that is no geometry says SMITH; the label is that of a header that says nothing."""
  image, name, suffix = HEADERS[kind]
  scan = tmp_path / name
  made = image(VOXELS, AFFINE if "NIfTI" in kind else None)
  made.header.set_zooms((1.5, 2.0, 3.0))
  made.to_filename(scan)
  label = (VOXELS > 0).astype(np.uint8)
  nifti.write_like(scan, label, tmp_path / f"clean{suffix}")
  block = np.frombuffer(bytearray(scan.read_bytes()[: made.header.sizeof_hdr]), np.uint8).copy()
  for field, (dtype, start) in made.header.template_dtype.fields.items():
    if field not in GEOMETRY and field != "session_error":
      block[start : start + dtype.itemsize] = np.resize(list(b"SMITH"), dtype.itemsize)
  if made.header.template_dtype.fields.get("pixdim"):
    dtype, start = made.header.template_dtype.fields["pixdim"]
    block[start + dtype.itemsize // 2 : start + dtype.itemsize] = np.resize(
        list(b"SMITH"), dtype.itemsize // 2)
  content = scan.read_bytes()
  if suffix.startswith(".nii"):  # An extension says who it is too.
    text = b"PatientName=SMITH".ljust(24, b"\0")
    extension = b"\1\0\0\0" + np.array([32, 6], "<i4").tobytes() + text
    offset = int(made.header["vox_offset"]) or made.header.sizeof_hdr + 4
    field = made.header.template_dtype.fields["vox_offset"]
    moved = np.array([offset + 32], field[0].newbyteorder("<")).tobytes()
    block[field[1] : field[1] + len(moved)] = list(moved)
    scan.write_bytes(block.tobytes() + extension + content[offset:])
  else:
    scan.write_bytes(block.tobytes())
  nifti.write_like(scan, label, tmp_path / f"smith{suffix}")
  for path in sorted(tmp_path.glob("clean.*")):
    other = path.with_name(path.name.replace("clean", "smith"))
    clean, smith = path.read_bytes(), other.read_bytes()
    if path.suffix == ".gz":
      assert smith[3:8] == bytes(5)  # No file name, no comment, no time stamp.
      clean, smith = gzip.decompress(clean), gzip.decompress(smith)
    assert smith == clean and b"SMIT" not in smith
  np.testing.assert_array_equal(nifti.read(tmp_path / f"smith{suffix}").voxels, label)


def test_the_origin_that_spm_writes_stays_and_a_name_in_its_place_does_not(tmp_path):
  image = nib.Spm2AnalyzeImage(VOXELS, None)
  for origin, kept in (([2, 3, 4, 0, 0], [2, 3, 4, 0, 0]), (np.frombuffer(b"DR SMITH  ", "<i2"),
                                                            [0] * 5)):  # fmt: skip
    image.header["origin"] = origin
    image.to_filename(tmp_path / "scan.hdr")
    nifti.write_like(tmp_path / "scan.hdr", np.zeros(SHAPE, np.uint8), tmp_path / "out.hdr")
    written = nib.Spm2AnalyzeHeader((tmp_path / "out.hdr").read_bytes(), check=False)
    assert written["origin"].tolist() == kept


def test_a_label_off_the_grid_or_of_another_format_is_refused_and_nothing_written(tmp_path):
  scan = save_nifti(tmp_path / "scan.nii")
  with pytest.raises(InputError, match="grid"):
    nifti.write_like(scan, np.zeros((5, 3, 7), np.uint8), tmp_path / "out.nii")
  with pytest.raises(InputError, match=r"must end in \.nii"):
    nifti.write_like(scan, np.zeros(SHAPE, np.uint8), tmp_path / "out.img")
  assert [path.name for path in tmp_path.iterdir()] == ["scan.nii"]
