"""What lies in a folder is predicted or named: nothing is skipped without a word."""

import os

import pytest

from flexunet import predict
from flexunet.core.errors import InputError
from flexunet.prediction import scans


def touch(folder, *names):
  for name in names:
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(b"")


def find(folder, **kwargs):
  return scans.find(folder, folder / "out", **{"volumes_first": False, **kwargs})


def names_of(found):
  return [scan.path.name for scan in found.scans]


@pytest.mark.parametrize(
    "pair, output", [(("a.nii", "a.nii.gz"), "a_overlay"), (("a.png", "a.jpg"), "a_overlay"),
                     (("x/a.hdr", "x/a.nii"), "x/a_overlay")],
)  # fmt: skip
def test_two_inputs_for_one_output_are_named_and_the_others_predicted(tmp_path, pair, output):
  touch(tmp_path, *pair, "b.nii", *(["x/a.img"] if "x/a.hdr" in pair else []))
  found = find(tmp_path)
  assert names_of(found) == ["b.nii"]
  [problem] = found.problems
  assert all(str(tmp_path / name) in problem for name in pair) and f"written to {output}" in problem
  (tmp_path / "b.nii").unlink()
  with pytest.raises(InputError, match="both be written to"):
    find(tmp_path)


@pytest.mark.parametrize("target", ["nowhere", "itself"])
def test_dead_links_are_named_and_the_others_predicted(tmp_path, target):
  touch(tmp_path, "b.nii")
  for name in ("a.nii", "subject", "notes.txt", "b_label.nii", ".hidden.nii"):
    (tmp_path / name).symlink_to(name if target == "itself" else "nowhere")
  found = find(tmp_path)
  assert names_of(found) == ["b.nii"]
  assert [line.split(":")[0] for line in found.problems] == [
      str(tmp_path / "a.nii"), str(tmp_path / "subject")]  # fmt: skip
  assert all("the link leads to no file" in line for line in found.problems)


def test_linked_folders_are_searched_once(tmp_path):
  touch(tmp_path, "in/b/1.nii", "elsewhere/2.nii")
  (tmp_path / "in" / "a").symlink_to(tmp_path / "in" / "b")
  (tmp_path / "in" / "b" / "round").symlink_to(tmp_path / "in")
  (tmp_path / "in" / "c").symlink_to(tmp_path / "elsewhere")
  found = scans.find(tmp_path / "in", tmp_path / "out", volumes_first=True)
  assert [str(scan.path.relative_to(tmp_path / "in")) for scan in found.scans] == [
      "b/1.nii", "c/2.nii"]  # fmt: skip
  assert found.problems == []


def test_a_folder_that_cannot_be_read_is_named(tmp_path, monkeypatch):
  touch(tmp_path, "a.nii", "closed/b.nii")
  scandir = os.scandir

  def refused(path):  # As the system does to all but its administrator.
    if str(path).endswith("closed"):
      raise PermissionError(13, "Permission denied", str(path))
    return scandir(path)

  monkeypatch.setattr(os, "scandir", refused)
  found = find(tmp_path)
  assert names_of(found) == ["a.nii"]
  assert found.problems == [
      f"{tmp_path / 'closed'}: the folder cannot be read (Permission denied)."]  # fmt: skip


def test_formats_that_are_not_read_are_counted_by_ending(tmp_path):
  touch(tmp_path, "a.nii", "b.mif", "c.MIF", "d.mif.gz", "e.par", "notes.txt", "x/f.mif")
  found = find(tmp_path)
  assert found.not_read == {".mif": 3, ".mif.gz": 1, ".par": 1}
  counts = {"predicted": 1, "existing": 2, "failed": 0, "resampled": 0, "labels_skipped": 0,
            "images_skipped": 0, "channels_skipped": 5, "not_read": found.not_read,
            "not_scans": found.not_scans, "dicom_skipped": {"a DICOM report": 2}}  # fmt: skip
  text = predict.outcome_text(counts, tmp_path)
  assert "2 skipped, whose label is there already" in text
  assert "5 files skipped, of channels or modalities that the run does not know" in text
  assert "1 file skipped, no scans: 1 .txt" in text
  assert "3 .mif files skipped: an MRtrix scan, which is not read; mrconvert (MRtrix3)" in text
  assert "2 DICOM files skipped: a DICOM report" in text


def test_a_folder_of_formats_that_are_not_read_is_named_so(tmp_path):
  touch(tmp_path, "b.mif", "c.mif")
  with pytest.raises(InputError, match=r"None was found; 2 \.mif \(an MRtrix scan"):
    find(tmp_path)
