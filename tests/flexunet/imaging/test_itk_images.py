"""MetaImage and NRRD: geometry, compressed and detached voxels, and files that lie."""

import gzip
import zlib

import nibabel as nib
import numpy as np
import pytest

from flexunet.core.errors import InputError
from flexunet.imaging import itk_images, scan_files

pytestmark = pytest.mark.needs_extra("itk")

SHAPE = (3, 5, 7)  # No two axes alike, so that a transposition cannot pass.
VOXELS = np.random.default_rng(0).integers(-900, 900, SHAPE).astype(np.int16)
VOXEL_BYTES = VOXELS.tobytes(order="F")
# Columns of the direction: where i, j and k run, in LPS; i runs to posterior, j to the left.
DIRECTION = np.array([[0, 1, 0], [1, 0, 0], [0, 0, 1]], float)
SPACING, ORIGIN = (1.5, 2.0, 3.0), (10.0, -20.0, 5.0)
# By hand: LPS is mirrored into RAS in its first two rows.
AFFINE = np.array([[0, -2.0, 0, -10], [-1.5, 0, 0, 20], [0, 0, 3.0, 5], [0, 0, 0, 1]])


def save(path, voxels=VOXELS, compressed=False):
  import SimpleITK

  image = SimpleITK.GetImageFromArray(np.ascontiguousarray(voxels.T))
  image.SetSpacing(SPACING)
  image.SetOrigin(ORIGIN)
  image.SetDirection(DIRECTION.ravel())
  SimpleITK.WriteImage(image, str(path), useCompression=compressed)
  return path


@pytest.mark.parametrize("name", ["a.mha", "a.mhd", "a.nrrd", "a.nhdr"])
@pytest.mark.parametrize("compressed", [False, True])
def test_a_volume_lies_where_its_header_puts_it(tmp_path, name, compressed):
  path = save(tmp_path / name, compressed=compressed)
  stored, slope, inter = scan_files.read_stored(path)
  np.testing.assert_array_equal(stored.voxels, VOXELS)
  assert stored.voxels.dtype == np.int16 and (slope, inter) == (1, 0)
  np.testing.assert_allclose(stored.affine, AFFINE, atol=1e-12)
  assert stored.oriented and stored.axis_codes == "PLS"
  header = scan_files.read_header(path)
  assert (header.shape, header.dtype, header.axis_codes) == (SHAPE, np.int16, "PLS")
  np.testing.assert_allclose(header.spacing_mm, SPACING)


@pytest.mark.parametrize(("name", "data"), [("a.mhd", "a.zraw"), ("a.nhdr", "a.raw.gz")])
def test_voxels_beside_their_header_belong_to_the_scan(tmp_path, name, data):
  path = save(tmp_path / name, compressed=True)
  assert scan_files.files_of(path) == (path, tmp_path / data)
  found = scan_files.gather(tmp_path.iterdir())
  assert [scan.path for scan in found.scans] == [path] and found.not_read == {}
  (tmp_path / data).unlink()
  with pytest.raises(InputError, match=f"{name}: its voxels should be in '{data}', .*missing"):
    scan_files.read_stored(path)


@pytest.mark.parametrize("dtype", [np.uint8, np.int8, np.uint16, np.int32, np.float32, np.float64])
@pytest.mark.parametrize("name", ["a.mha", "a.nrrd"])
def test_every_type_of_number_is_read(tmp_path, name, dtype):
  voxels = (VOXELS % 100).astype(dtype)
  stored = scan_files.read(save(tmp_path / name, voxels))
  np.testing.assert_array_equal(stored.voxels, voxels)
  assert stored.voxels.dtype == dtype


def of_text(path, text, data=VOXEL_BYTES):
  path.write_bytes(text.encode() + data)
  return path


META = (
    "ObjectType = Image\nNDims = 3\nDimSize = 3 5 7\nElementType = MET_SHORT\n{}"
    "ElementDataFile = LOCAL\n"
)
NRRD = "NRRD0004\ntype: short\ndimension: 3\nsizes: 3 5 7\nendian: little\nencoding: raw\n{}\n"


@pytest.mark.parametrize(
    ("name", "text", "spacing_mm"), [
        ("a.mha", META.format("ElementSpacing = 1 2 3\n"), [1, 2, 3]),
        ("a.mha", META.format(""), [np.nan] * 3),
        ("a.nrrd", NRRD.format("spacings: 1 2 3\n"), [1, 2, 3]),
        ("a.nrrd", NRRD.format(""), [np.nan] * 3),
    ],
)  # fmt: skip
def test_nothing_is_claimed_that_a_header_does_not_state(tmp_path, name, text, spacing_mm):
  volume = scan_files.read(of_text(tmp_path / name, text))
  np.testing.assert_array_equal(volume.voxels, VOXELS)
  assert not volume.oriented
  np.testing.assert_array_equal(volume.spacing_mm, spacing_mm)


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("name", ["a.mha", "a.nrrd"])
def test_big_endian_voxels_are_read(tmp_path, name, compressed):
  data = VOXELS.astype(">i2").tobytes(order="F")
  if name == "a.mha":
    fields = f"BinaryDataByteOrderMSB = True\nCompressedData = {compressed}\n"
    text, data = META.format(fields), zlib.compress(data) if compressed else data
  else:
    text = NRRD.format("").replace("little", "big")
    text = text.replace("raw", "gzip") if compressed else text
    data = gzip.compress(data) if compressed else data
  np.testing.assert_array_equal(
      scan_files.read(of_text(tmp_path / name, text, data)).voxels, VOXELS
  )


def test_directions_of_another_space_are_brought_to_ras(tmp_path):
  space = "space: right-anterior-superior\nspace directions: (0,2,0) (-1.5,0,0) (0,0,3)\n" \
          "space origin: (1,2,3)\n"  # fmt: skip
  volume = scan_files.read(of_text(tmp_path / "a.nrrd", NRRD.format(space)))
  expected = [[0, -1.5, 0, 1], [2, 0, 0, 2], [0, 0, 3, 3], [0, 0, 0, 1]]
  np.testing.assert_allclose(volume.affine, expected)


def test_a_list_of_slices_is_one_volume(tmp_path):
  names = [f"slice{k}.raw" for k in range(7)]
  for k, name in enumerate(names):
    (tmp_path / name).write_bytes(VOXELS[:, :, k].tobytes(order="F"))
  text = META.format("").replace("LOCAL\n", "LIST\n" + "\n".join(names) + "\n")
  path = of_text(tmp_path / "a.mhd", text, b"")
  np.testing.assert_array_equal(scan_files.read(path).voxels, VOXELS)
  path = of_text(tmp_path / "b.mhd", META.format("").replace("LOCAL", "slice%d.raw 0 6 1"), b"")
  np.testing.assert_array_equal(scan_files.read(path).voxels, VOXELS)
  assert len(scan_files.files_of(path)) == 8


def save_vectors(path):
  import SimpleITK

  SimpleITK.WriteImage(SimpleITK.Image([3, 5, 7], SimpleITK.sitkVectorUInt8, 2), str(path))
  return path


def cut(path, num_bytes, compressed):
  save(path, compressed=compressed)
  path.write_bytes(path.read_bytes()[:-num_bytes])
  return path


def flip(path, position):
  save(path, compressed=True)
  content = bytearray(path.read_bytes())
  content[position] ^= 1
  path.write_bytes(content)
  return path


@pytest.mark.parametrize(
    ("make", "message"), [
        (lambda d: save_vectors(d / "a.mha"), "one number, this file has 2"),
        (lambda d: save_vectors(d / "a.nrrd"), "one number, this file has 2"),
        (lambda d: cut(d / "a.mha", 1, False), "truncated"),
        (lambda d: cut(d / "a.nrrd", 1, False), "truncated"),
        (lambda d: cut(d / "a.mha", 9, True), "breaks off|CompressedDataSize"),
        (lambda d: cut(d / "a.nrrd", 9, True), "breaks off"),
        (lambda d: flip(d / "a.mha", -2), "incorrect data check"),
        (lambda d: of_text(d / "a.mha", META.format("").replace("3 5 7", "3 5 6")), "holds more"),
        (lambda d: of_text(d / "a.nrrd", NRRD.format("").replace("3 5 7", "3 5 6")), "holds more"),
        (lambda d: of_text(d / "a.mha", META.format("").replace("DimSize", "dimSize")),
         "must be called DimSize"),
        (lambda d: of_text(d / "a.mha", META.format(
            "CompressedData = True\nCompressedDataSize = 9\n")), "CompressedDataSize is 9"),
        (lambda d: flip(d / "a.nrrd", -6), "incorrect data check"),
        (lambda d: of_text(d / "a.mha", META.format("").replace("3 5 7", "2000 2000 1000")),
         "declares 8000000000 bytes"),
        (lambda d: of_text(d / "a.mha", META.format("").replace("3 5 7", "9e9 5 7")), "header"),
        (lambda d: of_text(d / "a.mha", META.format("").replace("3 5 7", "3 -5 7")), "no voxel"),
        (lambda d: of_text(d / "a.mha", META.format("").replace("NDims = 3", "NDims = 2")),
         "NDims is 2"),
        (lambda d: of_text(d / "a.mha", META.format("").replace("MET_SHORT", "MET_OTHER")),
         "numbers of at most 64 bits, got 'MET_OTHER'"),
        (lambda d: of_text(d / "a.mha", "ObjectType = Image\n", b""), "ElementDataFile is missing"),
        (lambda d: of_text(d / "a.mha", META.format("BinaryData = False\n")), "must be binary"),
        (lambda d: of_text(d / "a.mha", META.format("").replace("LOCAL", "../b.raw")),
         "same folder or below"),
        (lambda d: of_text(d / "a.mha", META.format("").replace("LOCAL", "%d.raw 0 99999 1")),
         "too many files"),
        (lambda d: of_text(d / "a.nrrd", NRRD.format("").replace("3 5 7", "900000 90000 9000")),
         "declares"),
        (lambda d: of_text(d / "a.nrrd", NRRD.format("").replace("raw", "bzip2")), "raw or gzip"),
        (lambda d: of_text(d / "a.nrrd", NRRD.format("").replace("NRRD", "NERD")), "no NRRD"),
        (lambda d: of_text(d / "a.nrrd", NRRD.format("").replace("sizes: 3 5 7\n", "")),
         "sizes is missing"),
        (lambda d: of_text(d / "a.nrrd", NRRD.format("")[:-1], b""), "no end"),
        (lambda d: of_text(d / "a.nrrd", NRRD.format(
            "space: left-posterior-superior\nspace directions: (1,0,0) (1,0,0) (0,0,1)\n")),
         "singular|cannot be read"),
        (lambda d: save(d / "a.nrrd", np.zeros_like(VOXELS)), "all its voxels are zero"),
        (lambda d: d / "none.mha", "no such file"),
    ],
)  # fmt: skip
def test_a_file_that_cannot_be_right_is_refused_in_one_line(tmp_path, make, message, capfd):
  path = make(tmp_path)
  with pytest.raises(InputError, match=message) as caught:
    scan_files.read_stored(path)
  assert path.name in str(caught.value) and "\n" not in str(caught.value)
  assert capfd.readouterr().err == ""


@pytest.mark.slow
@pytest.mark.parametrize("name", ["a.mha", "a.nrrd"])
def test_no_flipped_bit_of_the_voxels_of_a_compressed_scan_is_read_silently(tmp_path, name):
  path = save(tmp_path / name, compressed=True)
  content = path.read_bytes()
  start = itk_images._open(path).data_offset
  silent = []
  for bit in np.random.default_rng(0).choice(8 * (len(content) - start), 200, replace=False):
    damaged = bytearray(content)
    damaged[start + bit // 8] ^= 1 << bit % 8
    path.write_bytes(damaged)
    try:
      volume = scan_files.read(path)
    except InputError:
      continue
    if not np.array_equal(volume.voxels, VOXELS):
      silent.append(int(bit))
  assert silent == []


@pytest.mark.parametrize(
    ("name", "target"), [("a.mha", "b.mha"), ("a.mhd", "b.mha"), ("a.nrrd", "b.nrrd"),
                         ("a.nhdr", "b.nrrd"), ("a.nrrd", "b.nii.gz")],
)  # fmt: skip
def test_a_label_lies_on_the_grid_of_its_scan(tmp_path, name, target):
  scan = save(tmp_path / name)
  assert scan_files.label_ending(scan.suffix) == (".mha" if "m" in scan.suffix else ".nrrd")
  label = (VOXELS > 0).astype(np.uint8) * 3
  scan_files.write_label_like(scan, label, tmp_path / target)
  if target.endswith("gz"):
    found = nib.load(tmp_path / target)
    np.testing.assert_array_equal(np.asanyarray(found.dataobj), label)
    np.testing.assert_allclose(found.affine, AFFINE)
    return
  import SimpleITK

  source, found = SimpleITK.ReadImage(str(scan)), SimpleITK.ReadImage(str(tmp_path / target))
  np.testing.assert_array_equal(SimpleITK.GetArrayFromImage(found).T, label)
  for geometry in ("GetOrigin", "GetSpacing", "GetDirection", "GetSize"):
    assert getattr(found, geometry)() == getattr(source, geometry)()


@pytest.mark.parametrize(
    ("name", "text"), [
        ("a.mha", META.format("Comment = SMITH\nAnatomicalOrientation = SMITH\n")),
        ("a.nrrd", NRRD.format("# SMITH\ncontent: SMITH\nPatient:=SMITH\n")),
    ],
)  # fmt: skip
def test_text_of_a_header_reaches_no_label_and_no_orientation_is_invented(tmp_path, name, text):
  scan = of_text(tmp_path / name, text)
  target = tmp_path / f"out{scan.suffix}"
  scan_files.write_label_like(scan, np.ones(SHAPE, np.uint8), target)
  content = target.read_bytes()
  assert b"SMITH" not in content
  voxels = content[itk_images._open(target).data_offset :]
  unpacked = zlib.decompress(voxels) if scan.suffix == ".mha" else gzip.decompress(voxels)
  assert unpacked == bytes([1]) * 105
  assert not scan_files.read_header(target).oriented


def test_without_the_package_one_line_names_the_extra(tmp_path, monkeypatch):
  path = save(tmp_path / "a.mha")
  found = itk_images.importlib.import_module

  def missing(name, *rest):
    if name == "SimpleITK":
      raise ImportError(name)
    return found(name, *rest)

  monkeypatch.setattr(itk_images.importlib, "import_module", missing)
  with pytest.raises(InputError, match=r'pip install "flexunet\[itk\]"'):
    scan_files.read_stored(path)
