"""DICOM series as volumes: order, geometry, scales, and series that are no volume."""

import dicom_samples
import numpy as np
import pytest
from dicom_samples import write_multi_frame, write_series

from flexunet.core.errors import InputError
from flexunet.imaging import dicom, dicom_files, scan_files

pytestmark = pytest.mark.needs_extra("dicom")

SHAPE = (5, 3, 4)  # Columns, rows, slices: no two alike, so that a transposition cannot pass.
VOXELS = np.random.default_rng(0).integers(-900, 900, SHAPE).astype(np.int16)
# Columns lie 0.75 mm apart towards the left, rows 0.5 mm towards the back; LPS mirrored into RAS.
AFFINE = np.array([[-0.75, 0, 0, -10], [0, -0.5, 0, 20], [0, 0, 2, 5], [0, 0, 0, 1]])


def test_slices_lie_in_the_order_of_their_positions_whatever_their_names(tmp_path):
  paths = write_series(tmp_path / "case", VOXELS)
  for path, name in zip(paths, ("d.dcm", "b.dcm", "a.dcm", "c.dcm"), strict=True):
    path.rename(path.with_name(name))
  for name in ("a.dcm", "c.dcm"):  # Any file stands for its series.
    stored, slope, inter = scan_files.read_stored(tmp_path / "case" / name)
    np.testing.assert_array_equal(stored.voxels, VOXELS)
    np.testing.assert_allclose(stored.affine, AFFINE)
  assert stored.voxels.dtype == np.int16 and (slope, inter) == (1, 0)
  assert stored.oriented and stored.axis_codes == "LPS"
  header = scan_files.read_header(tmp_path / "case" / "a.dcm")
  assert (header.shape, header.dtype) == (SHAPE, np.int16)
  np.testing.assert_allclose(header.spacing_mm, (0.75, 0.5, 2))


def test_an_oblique_series_keeps_its_rounded_positions(tmp_path):
  angle = np.deg2rad(12)
  orientation = (1, 0, 0, 0, np.cos(angle), np.sin(angle))
  normal = np.array([0, -np.sin(angle), np.cos(angle)])
  positions = [np.round(k * 7 * normal, 1) for k in range(4)]  # As some scanners write them.
  [path, *_] = write_series(tmp_path, VOXELS, orientation=orientation, positions=positions)
  affine = scan_files.read_header(path).affine
  expected = np.diag([-1.0, -1, 1]) @ np.stack([
      np.array([1.0, 0, 0]) * 0.75,
      np.array([0, np.cos(angle), np.sin(angle)]) * 0.5,
      np.subtract(positions[3], positions[0]) / 3,
  ], axis=1)  # fmt: skip
  np.testing.assert_allclose(affine[:3, :3], expected, atol=1e-6)
  np.testing.assert_allclose(affine[:3, 3], 0, atol=1e-6)


@pytest.mark.parametrize(
    ("orientation", "codes"),
    [((0, 1, 0, 0, 0, -1), "PIR"), ((1, 0, 0, 0, 0, -1), "LIP"), ((-1, 0, 0, 0, 1, 0), "RPI")],
)
def test_every_plane_is_brought_to_ras(tmp_path, orientation, codes):
  # Sagittal: rows run down and columns back; their normal, back x down, points right (LPS -x).
  [path, *_] = write_series(tmp_path, VOXELS, orientation=orientation)
  volume = scan_files.read(path)
  np.testing.assert_array_equal(volume.voxels, VOXELS)
  assert volume.axis_codes == codes


def test_one_scale_stays_beside_the_stored_numbers_and_several_are_applied(tmp_path):
  [path, *_] = write_series(tmp_path / "one", VOXELS, scales=[(2, -1024)] * 4)
  stored, slope, inter = scan_files.read_stored(path)
  assert (stored.voxels.dtype, slope, inter) == (np.int16, 2, -1024)
  np.testing.assert_array_equal(scan_files.read(path).voxels, VOXELS * 2.0 - 1024)
  scales = [(1, 0), (2, 1), (0.5, 0), (4, -3)]
  [path, *_] = write_series(tmp_path / "each", VOXELS, scales=scales)
  stored, slope, inter = scan_files.read_stored(path)
  assert (stored.voxels.dtype, slope, inter) == (np.float32, 1, 0)
  for k, (own_slope, own_inter) in enumerate(scales):
    np.testing.assert_array_equal(stored.voxels[:, :, k], VOXELS[:, :, k] * own_slope + own_inter)
  assert scan_files.read_header(path).dtype == np.float32


@pytest.mark.parametrize("dtype", [np.uint8, np.int8, np.uint16, np.int16, np.int32])
def test_every_type_of_pixel_is_read(tmp_path, dtype):
  voxels = (VOXELS % 100).astype(dtype)
  [path, *_] = write_series(tmp_path, voxels)
  volume = scan_files.read(path)
  np.testing.assert_array_equal(volume.voxels, voxels)
  assert volume.voxels.dtype == dtype


def test_bits_beyond_those_stored_do_not_count(tmp_path):
  def as_12_bits(made, k):
    pixels = np.abs(VOXELS[:, :, k].T).astype(np.uint16) | 0xF000  # An overlay above 12 bits.
    dicom_samples.set_pixels(made, pixels, bits_stored=12)

  [path, *_] = write_series(tmp_path, VOXELS, change=as_12_bits)
  np.testing.assert_array_equal(scan_files.read(path).voxels, np.abs(VOXELS))


@pytest.mark.parametrize("uid", ["1.2.840.10008.1.2", "1.2.840.10008.1.2.2"])
def test_implicit_and_big_endian_files_are_read(tmp_path, uid):
  def swap(made, k):
    if uid.endswith(".2.2"):
      made.PixelData = VOXELS[:, :, k].T.astype(">i2").tobytes()

  [path, *_] = write_series(tmp_path, VOXELS, transfer_syntax=uid, change=swap)
  volume = scan_files.read(path)
  np.testing.assert_array_equal(volume.voxels, VOXELS)
  assert volume.voxels.dtype.isnative


@pytest.mark.parametrize("uid", ["1.2.840.10008.1.2.5", "1.2.840.10008.1.2.4.80"])
def test_compressed_series_are_decoded(tmp_path, uid):  # RLE, JPEG-LS
  large = np.kron(VOXELS, np.ones((8, 8, 1), np.int16))  # Coders need some pixels to work on.
  [path, *_] = write_series(tmp_path, large, change=lambda made, k: made.compress(uid))
  np.testing.assert_array_equal(scan_files.read(path).voxels, large)


def test_lossless_jpeg_is_decoded(tmp_path):
  gdcm = pytest.importorskip("gdcm")
  large = np.kron(VOXELS, np.ones((8, 8, 1), np.int16))
  for path in (paths := write_series(tmp_path, large)):
    reader = gdcm.ImageReader()
    reader.SetFileName(str(path))
    assert reader.Read()
    change = gdcm.ImageChangeTransferSyntax()
    change.SetTransferSyntax(gdcm.TransferSyntax(gdcm.TransferSyntax.JPEGLosslessProcess14_1))
    change.SetInput(reader.GetImage())
    assert change.Change()
    writer = gdcm.ImageWriter()
    writer.SetFile(reader.GetFile())
    writer.SetImage(change.GetOutput())
    writer.SetFileName(str(path))
    assert writer.Write()
  assert dicom_files.read_file(paths[0]).transfer_syntax == "1.2.840.10008.1.2.4.70"
  np.testing.assert_array_equal(scan_files.read(paths[0]).voxels, large)


def test_a_multi_frame_file_is_a_scan_of_its_own_in_the_order_of_its_positions(tmp_path):
  scales = [(1, 0), (2, 1), (0.5, 0), (4, -3)]
  path = write_multi_frame(tmp_path / "a.dcm", VOXELS, order=(2, 0, 3, 1), scales=scales)
  write_multi_frame(tmp_path / "b.dcm", VOXELS + 1, order=(0, 1, 2, 3))
  stored, _, _ = scan_files.read_stored(path)
  for k, (slope, inter) in enumerate(scales):
    np.testing.assert_array_equal(stored.voxels[:, :, k], VOXELS[:, :, k] * slope + inter)
  np.testing.assert_allclose(stored.affine, AFFINE)
  np.testing.assert_array_equal(scan_files.read(tmp_path / "b.dcm").voxels, VOXELS + 1)
  assert [scan.stem for scan in scan_files.gather(tmp_path.iterdir()).scans] == ["a", "b"]


def test_a_file_without_ending_is_known_by_its_content(tmp_path):
  paths = write_series(tmp_path / "case", VOXELS, names="IM{:04d}")
  (tmp_path / "case" / "README").write_text("notes")
  assert scan_files.is_scan(paths[0]) and not scan_files.is_scan(tmp_path / "case" / "README")
  np.testing.assert_array_equal(scan_files.read(paths[0]).voxels, VOXELS)
  assert dicom_files.is_dicom("1.2.3.4") is False  # No such file.


def write_report(path):
  made = dicom_samples.dataset("1.2.840.10008.5.1.4.1.1.88.11", instance="9")
  return dicom_samples.save(made, path)


def test_a_folder_is_grouped_into_series_and_what_is_no_scan_is_named(tmp_path):
  write_series(tmp_path / "one", VOXELS)
  write_report(tmp_path / "one" / "report.dcm")
  write_series(tmp_path / "two", VOXELS, number=3)
  write_series(tmp_path / "two", VOXELS[:, :, :2], number=8, series="1.2.3.8", names="S8{}.dcm")
  found = scan_files.gather(path for path in tmp_path.rglob("*") if path.is_file())
  assert [(scan.stem, scan.ending, len(scan.files)) for scan in found.scans] == [
      ("one", ".dcm", 4), ("two_series3", ".dcm", 4), ("two_series8", ".dcm", 2),
  ]  # fmt: skip
  assert list(found.not_read.values()) == ["a DICOM report"]


def test_series_of_one_number_are_told_apart_by_their_files(tmp_path):
  write_series(tmp_path / "case", VOXELS, number=2)
  write_series(tmp_path / "case", VOXELS, number=2, series="1.2.3.8", names="S{}.dcm")
  found = scan_files.gather((tmp_path / "case").iterdir())
  assert [scan.stem for scan in found.scans] == ["case_series2_IM0001", "case_series2_S1"]


@pytest.mark.parametrize("series", ["8", "1.2.3.8", "2.3.8"])
def test_one_of_several_series_is_chosen_by_number_or_end_of_its_uid(tmp_path, series):
  write_series(tmp_path, VOXELS, number=3)
  [wanted, _] = write_series(
      tmp_path, VOXELS[:, :, :2], number=8, series="1.2.3.8", names="S8{}.dcm"
  )
  found = scan_files.gather(tmp_path.iterdir(), series)
  assert [scan.path for scan in found.scans] == [wanted]
  assert found.scans[0].stem == tmp_path.name
  assert len(found.not_read) == 4 and all("not chosen" in why for why in found.not_read.values())
  assert scan_files.resolve(tmp_path, series) == wanted


def test_several_series_are_listed_without_text_of_their_headers(tmp_path):
  write_series(tmp_path, VOXELS, number=3)
  write_series(tmp_path, VOXELS[:, :, :2], number=8, series="1.2.3.8", names="S8{}.dcm")
  with pytest.raises(InputError, match=r"holds 2 series: series 3 \(CT, slices: 4, .*series 8 "
                     r"\(CT, slices: 2, .*--series=NUMBER") as caught:
    scan_files.resolve(tmp_path)
  assert "SMITH" not in str(caught.value)
  with pytest.raises(InputError, match="no DICOM images of series 5"):
    scan_files.resolve(tmp_path, "5")


def series_without(folder, *left_out):
  for k, path in enumerate(write_series(folder, VOXELS)):
    if k in left_out:
      path.unlink()
  return folder


def doubled(folder):
  [path, *_] = write_series(folder, VOXELS)
  (folder / "copy.dcm").write_bytes(path.read_bytes())
  return folder


def two_times(folder):
  write_series(folder, VOXELS)
  write_series(folder, VOXELS, names="T2_{}.dcm")
  return folder


def placed(positions):
  return lambda folder: write_series(folder, VOXELS, positions=positions)[0].parent


def changed(change):
  def make(folder):
    write_series(folder, VOXELS, change=lambda made, k: change(made) if k == 2 else None)
    return folder

  return make


def overwritten(edit):
  def make(folder):
    path = write_series(folder, VOXELS)[2]
    path.write_bytes(edit(path.read_bytes()))
    return folder

  return make


def resized(made):
  dicom_samples.set_pixels(made, np.zeros((4, 5), np.int16))


def without(*tags):
  def make(folder):
    def change(made, k):
      for tag in tags:
        delattr(made, tag)

    write_series(folder, VOXELS, change=change)
    return folder

  return make


@pytest.mark.parametrize(
    ("make", "message"), [
        (lambda d: series_without(d, 2), "slices are missing: 1, between IM0002.* and IM0004"),
        (lambda d: series_without(d, 1, 2), None),  # Two slices 6 mm apart: nothing shows it.
        (doubled, "slices are doubled: IM0001.dcm and copy.dcm|copy.dcm and IM0001.dcm"),
        (two_times, "8 slices lie at 4 positions: several volumes"),
        (placed([(10, -20, z) for z in (5, 7, 9, 12)]), "equal distances; they are 2 to 3 mm"),
        (placed([(10, -20 + k, 5 + 2 * k) for k in range(4)]), "sheared by 3.0 mm.*26.6 degrees"),
        (changed(lambda made: setattr(made, "ImageOrientationPatient", [0, 1, 0, 0, 0, -1])),
         "parallel; this series has about 2 orientations"),
        (changed(lambda made: setattr(made, "PixelSpacing", [1, 1])), "one pixel spacing, found 2"),
        (changed(resized), r"one size; this is \(4, 5\), IM0001.dcm \(3, 5\)"),
        (changed(lambda made: setattr(made, "FrameOfReferenceUID", "1.2")), "frame of reference"),
        (changed(lambda made: setattr(made, "RescaleSlope", 0)), "slope must be finite and not 0"),
        (changed(lambda made: setattr(made, "SamplesPerPixel", 3)), r"got 3 \(colour\)"),
        (changed(lambda made: setattr(made, "PhotometricInterpretation", "PALETTE COLOR")), "grey"),
        (changed(lambda made: setattr(made, "ImageType", ["A", "B", "MOSAIC"])), "dcm2niix"),
        (changed(lambda made: setattr(made, "NumberOfFrames", 3)), "truncated|state no positions"),
        (without("ImagePositionPatient"), "positions of the slices are not stated.*dcm2niix"),
        (without("PixelSpacing"), "pixel spacings of the slices are not stated"),
        (overwritten(lambda data: data[:-7]), "truncated|cannot be decoded"),
        (overwritten(lambda data: data[: len(data) // 2]), "IM0003.dcm: .*truncated"),
        (overwritten(lambda data: b"no DICOM at all"), "IM0003.dcm: states no kind"),
        (overwritten(lambda data: data.replace(b"2.840.10008.1.2.1\0", b"2.840.10008.1.2.1.99")),
         "deflated"),
    ],
)  # fmt: skip
def test_a_series_that_is_no_volume_is_refused_in_one_line(tmp_path, make, message):
  make(tmp_path)
  path = tmp_path / "IM0001.dcm"
  if message is None:
    assert scan_files.read_header(path).spacing_mm[2] == 6
    return
  with pytest.raises(InputError, match=message) as caught:
    scan_files.read_stored(path)
  assert "\n" not in str(caught.value) and "SMITH" not in str(caught.value)


def test_a_broken_file_is_named_by_whatever_scan_is_asked_for(tmp_path):
  overwritten(lambda data: b"no DICOM at all")(tmp_path)
  [scan] = scan_files.gather(tmp_path.iterdir()).scans
  with pytest.raises(InputError, match="IM0003.dcm"):
    scan_files.read_header(scan.path)


def test_one_image_without_a_place_is_a_slice_without_orientation(tmp_path):
  tags = ("ImagePositionPatient", "ImageOrientationPatient", "SliceThickness")

  def change(made, k):
    for tag in tags:
      delattr(made, tag)

  [path] = write_series(tmp_path, VOXELS[:, :, :1], change=change)
  volume = scan_files.read(path)
  assert volume.voxels.shape == (5, 3, 1) and not volume.oriented
  np.testing.assert_array_equal(volume.spacing_mm, [0.75, 0.5, np.nan])


def test_a_compression_without_decoder_is_named(tmp_path):
  def claim(made, k):
    made.compress("1.2.840.10008.1.2.5")
    made.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2.4.70"

  [path, *_] = write_series(tmp_path, VOXELS, change=claim)
  with pytest.raises(InputError, match=r"compressed as JPEG Lossless.*gdcmconv|damaged, or of"):
    scan_files.read(path)


def test_without_the_package_one_line_names_the_extra(tmp_path, monkeypatch):
  [path, *_] = write_series(tmp_path, VOXELS)

  def missing(name):
    raise ImportError(name)

  monkeypatch.setattr(dicom_files.importlib, "import_module", missing)
  with pytest.raises(InputError, match=r'pip install "flexunet\[dicom\]"'):
    scan_files.read_header(path)


@pytest.mark.slow
def test_no_flipped_bit_of_a_header_ends_in_a_traceback(tmp_path):
  path = write_series(tmp_path, VOXELS)[1]
  content = path.read_bytes()
  outcomes = {"refused": 0, "read": 0}
  for bit in np.random.default_rng(0).choice(8 * len(content), 300, replace=False):
    damaged = bytearray(content)
    damaged[bit // 8] ^= 1 << bit % 8
    path.write_bytes(damaged)
    try:
      scan_files.read_stored(path)
      outcomes["read"] += 1
    except InputError as error:
      assert "\n" not in str(error) and "SMITH" not in str(error)
      outcomes["refused"] += 1
  assert min(outcomes.values()) > 0  # DICOM has no checksum: pixels may change in silence.


def test_series_are_described_by_numbers_alone():
  assert dicom.is_chosen(dicom_files.DicomFile("a", "", series="1.2.34"), "34")
  assert not dicom.is_chosen(dicom_files.DicomFile("a", "", series="1.2.34"), "4")
