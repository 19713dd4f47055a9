"""DICOM-SEG: written so that other readers find it, and read onto the grid of its scan."""

import nibabel as nib
import numpy as np
import pytest
from dicom_samples import write_multi_frame, write_series

from flexunet.core.errors import InputError
from flexunet.imaging import dicom_segmentation, scan_files

pytestmark = pytest.mark.needs_extra("dicom")

SHAPE = (5, 3, 4)  # A frame has 15 bits, no whole number of bytes.
VOXELS = np.random.default_rng(0).integers(-900, 900, SHAPE).astype(np.int16)
NAMES = ["background", "tumour", "edema", "never seen"]
LABEL = np.random.default_rng(1).integers(0, 3, SHAPE).astype(np.uint8)
LABEL[:, :, 1] = 0  # A slice without any segment gets no frame.


def written(tmp_path, label=LABEL, names=NAMES, **series):
  """Writes a series and its segmentation; returns (a file of the series, segmentation)."""
  [path, *_] = write_series(tmp_path / "scan", VOXELS, **series)
  scan_files.write_label_like(path, label, tmp_path / "label.dcm", names)
  return path, tmp_path / "label.dcm"


def test_a_label_comes_back_with_its_names(tmp_path):
  path, target = written(tmp_path)
  scan = scan_files.read(path)
  for scan_path in (path, None):  # By reference, and by position alone.
    label, names = scan_files.read_label(target, scan, scan_path)
    np.testing.assert_array_equal(label.voxels, LABEL)
    np.testing.assert_array_equal(label.affine, scan.affine)
    assert names == {1: "tumour", 2: "edema", 3: "never seen"} == scan_files.label_names(target)
  header = scan_files.read_header(path)
  assert scan_files.label_shape(target, header) == SHAPE


def test_other_readers_find_segments_references_and_geometry(tmp_path):
  import highdicom
  import pydicom

  path, target = written(tmp_path)
  seen = highdicom.seg.segread(target)
  source = pydicom.dcmread(path)
  assert [one.segment_label for one in seen.SegmentSequence] == NAMES[1:]
  assert seen.FrameOfReferenceUID == source.FrameOfReferenceUID
  assert seen.StudyInstanceUID == source.StudyInstanceUID
  assert seen.SeriesInstanceUID != source.SeriesInstanceUID
  assert (seen.Manufacturer, seen.PatientID) == ("FlexUNet", "PATIENT-7")
  instances = [pydicom.dcmread(tmp_path / "scan" / f"IM{k:04d}.dcm").SOPInstanceUID
               for k in range(1, 5)]  # fmt: skip
  pixels = seen.get_pixels_by_source_instance(
      instances, combine_segments=True, assert_missing_frames_are_empty=True
  )
  np.testing.assert_array_equal(pixels, LABEL.transpose(2, 1, 0))
  affine = seen.get_volume(combine_segments=True).affine  # Of (slice, row, column), in LPS.
  np.testing.assert_allclose(np.linalg.norm(affine[:3, :3], axis=0), [2, 0.5, 0.75])
  plain = pydicom.dcmread(target)
  assert plain.pixel_array.shape == (plain.NumberOfFrames, 3, 5)
  places = {own.PlanePositionSequence[0].ImagePositionPatient[2]
            for own in plain.PerFrameFunctionalGroupsSequence}  # fmt: skip
  assert places == {5, 9, 11}  # The slices of 2 mm from 5 mm on, but for the second.


def test_a_label_without_any_segment_and_one_of_a_multi_frame_scan_come_back(tmp_path):
  path, target = written(tmp_path, np.zeros(SHAPE, np.uint8))
  label, _ = scan_files.read_label(target, scan_files.read(path), path)
  assert not label.voxels.any()
  scan = write_multi_frame(tmp_path / "multi.dcm", VOXELS, order=(2, 0, 3, 1))
  scan_files.write_label_like(scan, LABEL, target, NAMES)
  label, _ = scan_files.read_label(target, scan_files.read(scan), scan)
  np.testing.assert_array_equal(label.voxels, LABEL)


@pytest.mark.parametrize("codes", ["LPS", "RAS", "SPL", "AIR"])
def test_a_segmentation_is_placed_on_a_nifti_of_its_series(tmp_path, codes):
  path, target = written(tmp_path)
  scan = scan_files.read(path)
  turn = nib.orientations.ornt_transform(
      nib.orientations.axcodes2ornt("LPS"), nib.orientations.axcodes2ornt(codes)
  )
  truth = nib.Nifti1Image(LABEL, scan.affine).as_reoriented(turn)
  truth.to_filename(tmp_path / "scan.nii.gz")
  converted = scan_files.read(tmp_path / "scan.nii.gz")
  label, _ = scan_files.read_label(target, converted, tmp_path / "scan.nii.gz")
  np.testing.assert_array_equal(label.voxels, np.asanyarray(truth.dataobj))
  header = scan_files.read_header(tmp_path / "scan.nii.gz")
  assert scan_files.label_shape(target, header) == header.shape


def test_a_label_map_is_read(tmp_path):
  import highdicom
  import pydicom

  path, target = written(tmp_path)
  seen = highdicom.seg.segread(target)
  sources = [pydicom.dcmread(one) for one in sorted((tmp_path / "scan").iterdir())]
  made = highdicom.seg.Segmentation(
      sources, LABEL.transpose(2, 1, 0).copy(), "LABELMAP", list(seen.segment_descriptions)
      if hasattr(seen, "segment_descriptions") else [
          seen.get_segment_description(number) for number in (1, 2, 3)
      ],
      highdicom.UID(), 1, highdicom.UID(), 1, "Other", "Other", "1", "1",
  )  # fmt: skip
  made.save_as(target)
  label, names = scan_files.read_label(target, scan_files.read(path), path)
  np.testing.assert_array_equal(label.voxels, LABEL)
  assert names == {1: "tumour", 2: "edema", 3: "never seen"}


def edit(change):
  """Returns a function that writes a segmentation and changes its data set."""

  def make(tmp_path):
    import pydicom

    path, target = written(tmp_path)
    made = pydicom.dcmread(target)
    change(made)
    made.save_as(target)
    return path, target

  return make


def overlap(made):
  frames = made.PerFrameFunctionalGroupsSequence
  # The frames of tumour and edema on one slice; both are given the pixels of the first.
  import pydicom.pixels.utils as pixels_utils

  pixels = made.pixel_array.copy()
  pixels[:] = 1
  made.PixelData = pixels_utils.pack_bits(pixels.ravel(), pad=True)
  assert len(frames) > 3  # So two of them lie on one slice.


def fractional(made):
  pixels = made.pixel_array
  made.SegmentationType, made.MaximumFractionalValue = "FRACTIONAL", 255
  made.BitsAllocated = made.BitsStored = 8
  made.HighBit = 7
  data = (pixels * 100).astype(np.uint8).tobytes()
  made.PixelData = data + b"\0" * (len(data) % 2)


def moved(made):
  plane = made.PerFrameFunctionalGroupsSequence[0].PlanePositionSequence[0]
  plane.ImagePositionPatient = [10, -20, 5 + 1.0]


def swapped(made):
  first, *_, last = made.PerFrameFunctionalGroupsSequence
  one, other = first.PlanePositionSequence[0], last.PlanePositionSequence[0]
  one.ImagePositionPatient, other.ImagePositionPatient = (
      other.ImagePositionPatient, one.ImagePositionPatient
  )  # fmt: skip


def undescribed(made):
  made.SegmentSequence = made.SegmentSequence[:1]


def rescaled(made):
  shared = made.SharedFunctionalGroupsSequence[0]
  shared.PixelMeasuresSequence[0].PixelSpacing = [1, 1]


@pytest.mark.parametrize(
    ("change", "message"), [
        (overlap, "segments 1 and 2 overlap on slice [0-3];"),
        (fractional, "fractional"),
        (moved, "frame 1 lies on no slice of the scan.*slice 0.50"),
        (swapped, "lies on slice 0, but refers to slice 3|lies on slice 3, but refers to slice 0"),
        (undescribed, "segment 2, which is not described"),
        (rescaled, "other pixels"),
        (lambda made: setattr(made, "FrameOfReferenceUID", "1.2"), "frame of reference"),
        (lambda made: delattr(made, "SegmentSequence"), r"cannot be read .*\(AttributeError\)"),
        (lambda made: setattr(made, "NumberOfFrames", 99), "cannot be read|truncated"),
        (lambda made: made.SegmentSequence[0].__setattr__("SegmentNumber", 300), "at most 255"),
    ],
)  # fmt: skip
def test_a_segmentation_that_does_not_fit_is_refused_in_one_line(tmp_path, change, message):
  path, target = edit(change)(tmp_path)
  with pytest.raises(InputError, match=message) as caught:
    scan_files.read_label(target, scan_files.read(path), path)
  assert target.name in str(caught.value) and "\n" not in str(caught.value)


def test_a_truncated_segmentation_is_refused(tmp_path):
  path, target = written(tmp_path)
  content = target.read_bytes()
  for end in (len(content) - 9, len(content) // 2, 200):
    target.write_bytes(content[:end])
    with pytest.raises(InputError, match="label.dcm"):
      scan_files.read_label(target, scan_files.read(path), path)


def test_a_scan_is_no_segmentation_and_a_segmentation_no_scan(tmp_path):
  path, target = written(tmp_path)
  assert dicom_segmentation.is_segmentation(target)
  assert not dicom_segmentation.is_segmentation(path)
  with pytest.raises(InputError, match="not a volume, but a DICOM segmentation"):
    scan_files.read(target)
  target.rename(path.with_name("seg.dcm"))
  found = scan_files.gather((tmp_path / "scan").iterdir())
  assert len(found.scans) == 1 and list(found.not_read.values()) == ["a DICOM segmentation"]
  found = scan_files.gather((tmp_path / "scan").iterdir(), labels=True)
  assert [scan.stem for scan in found.scans] == ["scan", "seg"]


def test_a_series_that_states_too_little_gets_no_segmentation_but_a_nifti(tmp_path):
  def change(made, k):
    del made.FrameOfReferenceUID

  [path, *_] = write_series(tmp_path / "scan", VOXELS, change=change)
  with pytest.raises(InputError, match="frame of reference.*--output_format=nifti"):
    scan_files.write_label_like(path, LABEL, tmp_path / "label.dcm", NAMES)
  assert [one.name for one in tmp_path.iterdir()] == ["scan"]
  scan_files.write_label_like(path, LABEL, tmp_path / "label.nii.gz", NAMES)
  found = nib.load(tmp_path / "label.nii.gz")
  np.testing.assert_array_equal(np.asanyarray(found.dataobj), LABEL)
  np.testing.assert_allclose(found.affine, scan_files.read_header(path).affine)


def test_names_too_long_for_dicom_are_cut_and_a_label_without_names_is_numbered(tmp_path):
  path, target = written(tmp_path, names=["background", "a" * 100, "b"])
  assert scan_files.label_names(target) == {1: "a" * 64, 2: "b"}
  scan_files.write_label_like(path, LABEL, target)
  assert scan_files.label_names(target) == {1: "class 1", 2: "class 2"}


def test_the_format_of_a_label_follows_from_that_of_its_scan():
  assert scan_files.label_ending(".dcm") == ".dcm" == scan_files.label_ending(".IMA", "dicom_seg")
  assert scan_files.label_ending(".dcm", "nifti") == ".nii.gz"
  with pytest.raises(InputError, match=r"the scan is \.nii"):
    scan_files.label_ending(".nii", "dicom_seg")
  with pytest.raises(InputError, match="output format 'nifty'"):
    scan_files.label_ending(".nii", "nifty")
