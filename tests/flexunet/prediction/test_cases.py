"""The files of a case are joined, and what is no scan of the run is counted."""

import json

import pytest

from flexunet.core.errors import InputError
from flexunet.prediction import cases, scans

CHANNELS = ("FLAIR", "T1")


def touch(folder, *names):
  for name in names:
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(b"")


def find(folder, channel_names=(), output="out"):
  return scans.find(
      folder, folder.parent / output, volumes_first=True, channel_names=channel_names
  )


def cases_of(found, folder):
  """Returns {label as it will be written: files of the case}, relative to `folder`."""
  return {
      str(scan.label_path(folder).relative_to(folder)): [
          str(path.relative_to(folder)) for path in (scan.path, *scan.others)
      ]
      for scan in found.scans
  }


def test_an_msd_root_gives_its_scans_and_neither_labels_nor_leftovers(tmp_path):
  root = tmp_path / "Task04"
  touch(root, "imagesTr/a.nii.gz", "imagesTr/._a.nii.gz", "labelsTr/a.nii.gz",
        "labelsTr/._a.nii.gz", "imagesTs/b.nii.gz", ".DS_Store")  # fmt: skip
  (root / "dataset.json").write_text(json.dumps({"modality": {"0": "MRI"}}))
  found = find(root)
  assert cases_of(found, root) == {
      "imagesTr/a_label.nii.gz": ["imagesTr/a.nii.gz"],
      "imagesTs/b_label.nii.gz": ["imagesTs/b.nii.gz"],
  }
  assert found.labels_skipped == 1 and found.not_scans == {".json": 1}


def test_an_nnunet_root_of_one_channel_gives_labels_named_after_cases(tmp_path):
  root = tmp_path / "Dataset901"
  touch(root, "imagesTr/C_1_0000.nii.gz", "labelsTr/C_1.nii.gz", "imagesTs/C_2_0000.nii.gz",
        "labelsTs/C_2.nii.gz")  # fmt: skip
  wanted = {
      "imagesTr/C_1_label.nii.gz": ["imagesTr/C_1_0000.nii.gz"],
      "imagesTs/C_2_label.nii.gz": ["imagesTs/C_2_0000.nii.gz"],
  }
  assert cases_of(find(root), root) == wanted
  # As the set names its channel makes no difference where there is only one.
  (root / "dataset.json").write_text(json.dumps({"channel_names": {"0": "MRI"}}))
  assert cases_of(find(root, ("image",)), root) == wanted


def test_a_number_that_is_no_channel_stays_in_the_name(tmp_path):
  touch(tmp_path / "slices", "a_0000.nii", "a_0001.nii", "b_0000.nii")
  found = find(tmp_path / "slices", ("T1",))
  assert [scan.stem for scan in found.scans] == ["a_0000", "a_0001", "b_0000"]


def test_of_several_channels_a_run_of_one_takes_its_own(tmp_path):
  touch(tmp_path / "d", *(f"imagesTr/C_{number:04d}.nii" for number in range(3)))
  names = {"0": "FLAIR", "1": "T1", "2": "T2"}
  (tmp_path / "d" / "dataset.json").write_text(json.dumps({"channel_names": names}))
  found = find(tmp_path / "d", ("t1",))
  assert cases_of(found, tmp_path / "d") == {"imagesTr/C_label.nii": ["imagesTr/C_0001.nii"]}
  assert found.channels_skipped == 2
  # Which channel a run knows that names none is not known: each file is a scan.
  assert len(find(tmp_path / "d").scans) == 3


def test_a_bids_root_gives_anatomy_of_the_contrast_of_the_run(tmp_path):
  root = tmp_path / "bids"
  touch(root, "sub-1/anat/sub-1_T1w.nii.gz", "sub-1/anat/sub-1_T1w.json",
        "sub-1/anat/sub-1_T2w.nii.gz", "sub-1/func/sub-1_task-rest_bold.nii.gz",
        "sub-2/ses-a/anat/sub-2_ses-a_T1w.nii.gz", "sub-2/ses-a/dwi/sub-2_ses-a_dwi.nii.gz",
        "derivatives/manual/sub-1/anat/sub-1_desc-x_dseg.nii.gz", "sourcedata/1/1.nii",
        "derivatives/prep/sub-1/anat/sub-1_desc-preproc_T1w.nii.gz",
        "dataset_description.json", "participants.tsv")  # fmt: skip
  found = find(root, ("T1w",))
  assert [scan.path.name for scan in found.scans] == [
      "sub-1_T1w.nii.gz", "sub-2_ses-a_T1w.nii.gz"]  # fmt: skip
  # Function, diffusion, source data, and T2w; the latter stays for a run that names no contrast.
  assert found.channels_skipped == 4 and find(root).channels_skipped == 3
  assert found.labels_skipped == 2 and found.not_scans == {".json": 2, ".tsv": 1}
  # What is named directly is predicted, derivatives or not.
  assert len(find(root / "derivatives" / "prep").scans) == 1


def test_a_folder_of_labels_is_predicted_only_where_it_is_named_itself(tmp_path):
  touch(tmp_path / "d", "labelsTr/a.nii", "Masks-train/b.nii")
  with pytest.raises(InputError, match="2 files were taken for labels. Name a file or their fold"):
    find(tmp_path / "d")
  assert [scan.path.name for scan in find(tmp_path / "d" / "labelsTr").scans] == ["a.nii"]


@pytest.mark.parametrize(
    ("files", "label"),
    [
        (("imagesTr/C_0000.nii.gz", "imagesTr/C_0001.nii.gz"), "imagesTr/C_label.nii.gz"),
        (("C_0000.nii.gz", "C_0001.nii"), "C_label.nii.gz"),
        (("2/2-Flair.nii", "2/2-T1.nii"), "2/2_label.nii"),
        (("sub-1/anat/sub-1_FLAIR.nii", "sub-1/anat/sub-1_T1.nii"), "sub-1/anat/sub-1_label.nii"),
        (("Patient 7/FLAIR.nii", "Patient 7/T1.nii"), "Patient 7/Patient 7_label.nii"),
    ],
)
def test_the_channels_of_a_case_are_joined_in_the_order_of_the_run(tmp_path, files, label):
  touch(tmp_path / "d", *files, "x/stranger.nii")
  found = find(tmp_path / "d", CHANNELS)
  assert cases_of(found, tmp_path / "d") == {label: list(files)}
  assert found.problems == [] and found.channels_skipped == 1


def test_numbers_stand_for_what_dataset_json_says(tmp_path):
  touch(tmp_path / "d", *(f"imagesTs/C_{number:04d}.nii" for number in range(3)))
  names = {"0": "T2", "1": "t1", "2": "flair"}
  (tmp_path / "d" / "dataset.json").write_text(json.dumps({"channel_names": names}))
  found = find(tmp_path / "d", CHANNELS)
  assert cases_of(found, tmp_path / "d") == {
      "imagesTs/C_label.nii": ["imagesTs/C_0002.nii", "imagesTs/C_0001.nii"]
  }
  assert found.channels_skipped == 1


@pytest.mark.parametrize(
    "text", ["", "[1]", '{"channel_names": [1]}', '{"channel_names": {"a": 1}}']
)
def test_a_dataset_json_that_names_no_channels_is_no_hindrance(tmp_path, text):
  touch(tmp_path / "d", "C_0000.nii", "C_0001.nii")
  (tmp_path / "d" / "dataset.json").write_text(text)
  assert len(find(tmp_path / "d", CHANNELS).scans) == 1


def test_a_case_without_all_channels_is_named_with_what_is_missing(tmp_path):
  touch(tmp_path / "d", "a/1_FLAIR.nii", "a/2_FLAIR.nii", "a/2_T1.nii")
  found = find(tmp_path / "d", CHANNELS)
  assert [scan.stem for scan in found.scans] == ["2"]
  (line,) = found.problems
  assert line.startswith("a/1: a case must have the channels FLAIR, T1")
  assert "Missing: T1 (number 0001)" in line and str(tmp_path / "d" / "a" / "1_FLAIR.nii") in line


def test_two_files_for_one_channel_are_refused(tmp_path):
  touch(tmp_path / "d", "1_FLAIR.nii", "1-flair.nii", "1_T1.nii")
  with pytest.raises(InputError, match="are both the channel FLAIR of the case 1"):
    find(tmp_path / "d", CHANNELS)


def test_a_file_that_is_named_directly_brings_the_other_channels_of_its_case(tmp_path):
  touch(tmp_path, "1_FLAIR.nii", "1_T1.nii", "2_T1.nii", "2_T1_label.nii", "note.nii")
  (scan,) = find(tmp_path / "1_T1.nii", CHANNELS).scans
  assert [path.name for path in (scan.path, *scan.others)] == ["1_FLAIR.nii", "1_T1.nii"]
  with pytest.raises(InputError, match=r"2: a case must have .* Missing: FLAIR"):
    find(tmp_path / "2_T1.nii", CHANNELS)
  with pytest.raises(InputError, match="must be a channel of a whole case"):
    find(tmp_path / "note.nii", CHANNELS)


def test_nothing_but_strangers_names_the_channels_of_the_run(tmp_path):
  touch(tmp_path / "d", "a.nii", "b.nii")
  with pytest.raises(InputError, match=r"2 files are none of the channels .* \(FLAIR, T1\)"):
    find(tmp_path / "d", CHANNELS)


@pytest.mark.parametrize(("stated", "run", "count", "wanted"), [
    ((), "FLAIR,T1", 2, (0, 1)),  # Nothing names the volumes: in order.
    ((), "FLAIR,T1", 3, ()),
    ((), "channel_3,channel_1", 3, (2, 0)),  # As a build calls volumes without names.
    (("T1", "PD", "FLAIR"), "FLAIR,T1", 3, (2, 0)),
    (("t1 gd", "FLAIR"), "FLAIR,T1_gd", 2, (1, 0)),  # A dataset has no spaces in names.
    (("MRI",), "FLAIR,T1", 2, (0, 1)),  # It knows none of the run's.
    (("T1", "T2"), "FLAIR,T1", 2, ()),  # FLAIR is missing, whatever the order.
    (("FLAIR", "T1"), "FLAIR,T1", 3, ()),  # It does not describe this file.
])  # fmt: skip
def test_volumes_of_a_fourth_axis_go_by_name_or_in_order(stated, run, count, wanted, tmp_path):
  if stated:
    names = {str(number): name for number, name in enumerate(stated)}
    (tmp_path / "dataset.json").write_text(json.dumps({"modality": names}))
  assert cases.components(tmp_path / "a.nii.gz", count, run.split(",")) == wanted
