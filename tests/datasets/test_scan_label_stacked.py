"""Channels in the fourth axis of one file, as Medical Segmentation Decathlon stores several."""

import gzip
import json
import shutil

import build_samples
import nibabel as nib
import numpy as np
import pytest
import scan_folders
import tensorflow_datasets as tfds
from scan_label_cases import found_in, refusal

from flexunet.core.errors import InputError
from flexunet.datasets import catalog
from flexunet.imaging import volume_bytes
from flexunet.tools.build import print_files

CHANNELS = ("FLAIR", "T1w", "t1gd")


@pytest.fixture
def separate(tmp_path):
  """A folder with a file for each channel, no two of them alike after their windows."""
  folder = scan_folders.nnunet(tmp_path / "separate", channels=CHANNELS)
  for number in (1, 2):
    for path in folder.rglob(f"*_{number:04d}.nii.gz"):
      values = np.asanyarray(nib.load(path).dataobj)
      scan_folders.save((255 - values if number == 1 else values**2 // 9).astype(np.int16), path)
  return folder


@pytest.fixture
def stacked(separate, tmp_path):
  """The same channels in one file of four axes a case."""
  root = tmp_path / "stacked"
  shutil.copytree(separate, root / separate.name)
  return scan_folders.stack(root / separate.name)


def records(builder):
  """Returns {split: records}, each as {feature: bytes or list}."""
  return {
      split: [
          {key: np.asarray(value).tolist() for key, value in record.items()}
          for record in tfds.as_numpy(builder.as_dataset(split))
      ]
      for split in builder.info.splits
  }


@pytest.mark.parametrize("options", [{}, {"channels": ("t1gd", "FLAIR")}, {"modality": "ct"}])
@pytest.mark.parametrize("form", ["slices", "volumes"])
def test_channels_of_one_file_give_the_records_of_a_file_each(
    form, options, separate, stacked, tmp_path
):
  name = f"scan_label/{form}"
  one = build_samples.build(name, separate.parent, tmp_path / "one", options=options)
  other = build_samples.build(name, stacked.parent, tmp_path / "other", options=options)
  assert records(other) == records(one)
  wanted, found = build_samples.report_of(one), build_samples.report_of(other)
  assert found["channel_names"] == list(options.get("channels", CHANNELS))
  assert found["decided"] == wanted["decided"]
  assert build_samples.rows_of(other) == build_samples.rows_of(one)
  assert "fourth axis" in json.dumps(found) and "fourth axis" not in json.dumps(wanted)


def test_a_file_of_four_axes_is_inflated_once_a_case(stacked, tmp_path, monkeypatch):
  builder = catalog.builder("scan_label", tmp_path / "out", options={"modality": "ct"})
  read = []
  monkeypatch.setattr(
      volume_bytes, "read_exactly",
      lambda path, *args, own=volume_bytes.read_exactly: read.append(path.name) or own(path, *args),
  )  # fmt: skip
  findings = builder.inspect_source(stacked.parent)
  assert read == []
  builder.set_source("", np.dtype(np.int16), builder.decide(findings))
  scans = [name for name in read if name == "case_1000.nii.gz"]
  assert len(scans) <= 2  # The scan for the window, and its label, which has the same name.


def test_a_dry_run_shows_the_fourth_axis(stacked, tmp_path, capsys):
  print_files(catalog.builder("scan_label", tmp_path / "out"), stacked.parent)
  shown = capsys.readouterr().out
  assert "10 x 12 x 6 x 3" in shown and "volumes along the fourth axis of each image" in shown
  assert "4 cases, 4 labelled" in shown


def test_without_names_channels_have_numbers(stacked, tmp_path):
  about = json.loads((stacked / "dataset.json").read_text())
  del about["modality"]
  (stacked / "dataset.json").write_text(json.dumps(about))
  findings = found_in(stacked.parent, tmp_path)
  assert findings.choices["channels"].startswith("channel_1, channel_2, channel_3, ")
  chosen = found_in(stacked.parent, tmp_path, channels=("channel_3",))
  assert [case.details for case in chosen.cases] == [{"components": [2]}] * 4


@pytest.mark.parametrize("names", [["MRI"], ["FLAIR", "T1w"], ["A", "B", "C", "D"]])
def test_a_fourth_axis_of_another_length_than_the_names_is_refused(names, stacked, tmp_path):
  about = json.loads((stacked / "dataset.json").read_text())
  about["modality"] = dict(enumerate(names))
  (stacked / "dataset.json").write_text(json.dumps(about))
  lines = refusal(stacked.parent, tmp_path).splitlines()
  line = next(line for line in lines if "case_1000.nii.gz" in line)
  assert "along its fourth axis" in line and "Found 3" in line


def test_a_scan_of_three_axes_among_those_of_four_is_named(stacked, tmp_path):
  scan_folders.save(scan_folders.voxels(1), stacked / "imagesTr" / "case_1001.nii.gz")
  line = refusal(stacked.parent, tmp_path)
  assert "case_1001.nii.gz" in line and "Found 1" in line and "case_1000" not in line


def test_other_layouts_take_a_fourth_axis_for_time_unless_channels_are_named(stacked, tmp_path):
  (stacked / "dataset.json").unlink()  # What is left is pairs, whose classes nothing names.
  assert "Split the series" in refusal(stacked.parent, tmp_path)
  findings = found_in(stacked.parent, tmp_path, channels=("a", "b", "c"))
  assert findings.choices["channels"].startswith("a, b, c, volumes along the fourth axis")
  assert [case.details for case in findings.cases] == [{"components": [0, 1, 2]}] * 4
  builder = build_samples.build(
      "scan_label", stacked.parent, tmp_path / "built", options={"channels": ("a", "b", "c")}
  )
  report = build_samples.report_of(builder)
  assert report["channel_names"] == ["a", "b", "c"]
  assert report["decided"]["modality"] == "mri"  # By the voxels of the first channel.
  line = refusal(stacked.parent, tmp_path, channels=("a", "b"))
  assert line.startswith("--channels: ") and "has 3 volumes" in line


def test_a_table_names_files_of_four_axes_by_the_channels_given(stacked, tmp_path):
  rows = [
      f"p{number},imagesTr/case_100{number}.nii.gz,labelsTr/case_100{number}.nii.gz"
      for number in range(4)
  ]
  (stacked / "scans.csv").write_text("\n".join(["subject,image,label", *rows]) + "\n")
  assert "Split the series" in refusal(stacked, tmp_path)
  findings = found_in(stacked, tmp_path, channels=("a", "b", "c"))
  assert [case.details for case in findings.cases] == [{"components": [0, 1, 2]}] * 4


def spoil(path, change):
  image = nib.load(path)
  values = np.asanyarray(image.dataobj).astype(np.float32)
  change(values)
  scan_folders.save(values, path)


def test_a_channel_that_shows_nothing_is_named_with_its_volume(stacked, tmp_path):
  path = stacked / "imagesTr" / "case_1002.nii.gz"
  for value, words in ((0, "are zero"), (np.nan, "are NaN"), (np.inf, "must be finite")):
    spoil(path, lambda values, value=value: values[..., 1].fill(value))
    with pytest.raises(InputError, match=f"case_1002.nii.gz, volume 2 of its .*{words}"):
      build_samples.build("scan_label", stacked.parent, tmp_path / "out")


def test_a_damaged_checksum_is_seen_whichever_channel_is_built(stacked, tmp_path):
  path = stacked / "imagesTr" / "case_1002.nii.gz"
  data = bytearray(gzip.compress(gzip.decompress(path.read_bytes()), mtime=0))
  data[-8] ^= 1  # The checksum stands in the last eight bytes.
  path.write_bytes(data)
  with pytest.raises(InputError, match=r"case_1002.nii.gz: cannot be read \(CRC"):
    build_samples.build(
        "scan_label", stacked.parent, tmp_path / "out", options={"channels": ("FLAIR",)}
    )
