"""Scans of several channels: their order, their grids, and what is kept of each."""


import build_samples
import nibabel as nib
import numpy as np
import pytest
import scan_folders
import tensorflow_datasets as tfds
from scan_label_cases import builder_of, found_in, refusal, turned

from flexunet.core.errors import InputError
from flexunet.datasets.builder.raw_folder import Notes
from flexunet.imaging.slice_recipe import SliceRecipe


def channels_of(root, tmp_path, **options):
  """Returns [(image of each channel, label) of each slice] of the first case."""
  builder = builder_of(tmp_path, **options)
  findings = builder.inspect_source(root)
  builder.set_source("", np.dtype(np.int16), builder.decide(findings))
  notes = Notes()
  slices = list(builder.slices_of(findings.cases[0], notes))
  return [((one.image, *one.others), one.label) for one in slices], notes


def test_channels_are_features_of_their_own_with_a_window_each(tmp_path):
  scan_folders.nnunet(tmp_path / "raw", channels=("FLAIR", "T1", "T2"))
  slices, _ = channels_of(tmp_path / "raw", tmp_path)
  assert len(slices) == 6 and {len(images) for images, _ in slices} == {3}
  # The channels differ by 7 and by 14, which a window of percentiles takes away.
  for images, _ in slices:
    np.testing.assert_array_equal(images[0], images[1])
  builder = build_samples.build("scan_label", tmp_path / "raw", tmp_path / "out")
  report = build_samples.report_of(builder)
  assert report["channel_names"] == ["FLAIR", "T1", "T2"]
  assert len(report["other_intensities"]) == 2
  record = next(iter(tfds.as_numpy(builder.as_dataset("train"))))
  assert {key: record[key].shape for key in record if key.startswith("image")} == {
      "image": (12, 10, 1), "image_2": (12, 10, 1), "image_3": (12, 10, 1),
  }  # fmt: skip


def test_channels_are_chosen_by_name_and_in_order(tmp_path):
  folder = scan_folders.nnunet(tmp_path / "raw", channels=("FLAIR", "T1", "T2"))
  cases = found_in(tmp_path / "raw", tmp_path, channels=("T2", "FLAIR")).cases
  assert cases[0].files["image"] == folder / "imagesTr" / "case_1000_0002.nii.gz"
  assert cases[0].files["image_2"] == folder / "imagesTr" / "case_1000_0000.nii.gz"
  assert "no PD" in refusal(tmp_path / "raw", tmp_path, channels=("PD",))


def test_a_case_that_lacks_a_channel_is_named(tmp_path):
  folder = scan_folders.nnunet(tmp_path / "raw", channels=("FLAIR", "T1"))
  (folder / "imagesTr" / "case_1002_0001.nii.gz").unlink()
  assert "scan case_1002 lacks the channel T1" in refusal(tmp_path / "raw", tmp_path)


def test_scans_beside_one_label_are_its_channels(tmp_path):
  for seed in range(3):
    folder = tmp_path / "raw" / f"BraTS_{seed}"
    for name in ("flair", "t1", "t1ce"):
      scan_folders.save(scan_folders.voxels(seed), folder / f"BraTS_{seed}_{name}.nii.gz")
    scan_folders.save(scan_folders.label_of(seed), folder / f"BraTS_{seed}_seg.nii.gz")
  findings = found_in(tmp_path / "raw", tmp_path)
  assert findings.choices["channels"] == "flair, t1, t1ce"
  assert [case.key for case in findings.cases] == ["BraTS_0", "BraTS_1", "BraTS_2"]


def test_channels_on_other_grids_are_refused_or_resampled(tmp_path):
  folder = scan_folders.nnunet(tmp_path / "raw", channels=("T1", "T2"))
  # The second channel of the first case: every second column, each twice as wide.
  coarse = scan_folders.LAS.copy()
  coarse[0, 0] = -2.0
  other = folder / "imagesTr" / "case_1000_0001.nii.gz"
  ramp = np.broadcast_to(10 + 20 * np.arange(5)[:, None, None], (5, 12, 6)).astype(np.int16)
  scan_folders.save(ramp, other, coarse)
  with pytest.raises(InputError) as error:
    channels_of(tmp_path / "raw", tmp_path)
  for words in (str(other), "case_1000_0000.nii.gz", "5 x 12 x 6", "--resample_channels"):
    assert words in str(error.value)
  slices, notes = channels_of(tmp_path / "raw", tmp_path, resample_channels=True)
  assert notes.facts["resampled_channels"] == ["T2"]
  row = slices[0][0][1][0].astype(int)
  # A ramp stays a ramp between the centres of its voxels, columns 0 to 8 of the fine grid.
  assert row.shape == (10,) and (np.diff(row[1:8]) > 0).all()
  assert np.ptp(np.diff(row[1:8])) <= 1


def test_a_channel_whose_axes_run_another_way_is_turned(tmp_path):
  folder = scan_folders.nnunet(tmp_path / "raw", channels=("T1", "T2"))
  plain, _ = channels_of(tmp_path / "raw", tmp_path)
  other = folder / "imagesTr" / "case_1000_0001.nii.gz"
  scan_folders.save(*turned_to(other, "RPI"))
  found, notes = channels_of(tmp_path / "raw", tmp_path)
  assert "resampled_channels" not in notes.facts
  for (images, _), (wanted, _) in zip(found, plain, strict=True):
    np.testing.assert_array_equal(images[1], wanted[1])


def turned_to(path, codes):
  """Returns (voxels, path, affine) of a scan with its axes running another way."""
  image = nib.load(path)
  voxels, affine = turned(np.asanyarray(image.dataobj), image.affine, codes)
  return voxels, path, affine


def test_whole_volumes_hold_every_channel_and_are_cut_the_same(tmp_path):
  scan_folders.nnunet(tmp_path / "raw", channels=("T1", "T2"))
  slices, _ = channels_of(tmp_path / "raw", tmp_path)
  builder = build_samples.build("scan_label/volumes", tmp_path / "raw", tmp_path / "out")
  recipe = SliceRecipe.of_report(build_samples.report_of(builder))
  records = [r for split in builder.info.splits for r in tfds.as_numpy(builder.as_dataset(split))]
  record = next(r for r in records if r["subject"] == b"case_1000")
  images = recipe.cut_record(record).images()
  for own, (wanted, _) in zip(images, slices, strict=True):
    np.testing.assert_array_equal(np.moveaxis(own, -1, 0), np.stack(wanted))
