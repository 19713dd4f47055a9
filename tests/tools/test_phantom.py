"""Phantom raw data: the quirks of each layout, and the same bytes from the same seed."""

import csv
import hashlib
import pathlib

import forked
import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from flexunet.core.errors import InputError
from flexunet.datasets.brain_ich_ct import ct_ich_patients
from flexunet.tools.phantom import images, layouts

SMALL = {
    "brain_ich_ct": (96, 8),
    "brain_ich_ct/nifti": (64, 8),
    "brain_stroke_ct": (96, 8),
    "full_head_t1w": (32, 36, 40),
    "hippocampus_t1w": (32, 16, 36),
    "image_mask": (48, 3),
    "ms_lesion_mri": (48, 40, 12),
    "scan_label": (24, 10, 24),
    "scan_label/two_channels": (24, 10, 24),
}


def digests(folder: pathlib.Path) -> dict[str, str]:
  return {
      path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
      for path in sorted(folder.rglob("*"))
      if path.is_file()
  }


def voxels(path) -> np.ndarray:
  return np.asanyarray(nib.load(path).dataobj)


@pytest.mark.parametrize("dataset", layouts.LAYOUTS)
def test_the_same_seed_gives_the_same_bytes_and_another_seed_others(tmp_path, dataset):
  for name, seed in (("a", 3), ("b", 3), ("c", 4)):
    layouts.write(dataset, tmp_path / name, 2, seed, SMALL[dataset])
  assert digests(tmp_path / "a") == digests(tmp_path / "b")
  assert digests(tmp_path / "a") != digests(tmp_path / "c")


@pytest.mark.parametrize("dataset", ["full_head_t1w", "brain_stroke_ct", "image_mask"])
def test_a_subject_does_not_depend_on_how_many_there_are(tmp_path, dataset):
  few = digests(layouts.write(dataset, tmp_path / "few", 2, 0, SMALL[dataset]))
  more = digests(layouts.write(dataset, tmp_path / "more", 3, 0, SMALL[dataset]))
  few.pop("Data/Metadata.csv", None)  # The list of subjects is the one file that grows.
  assert few.items() < more.items()


def test_hippocampus_files_have_the_quirks_of_the_published_ones(tmp_path):
  layouts.write("hippocampus_t1w", tmp_path, 5, 0, SMALL["hippocampus_t1w"])
  images = [nib.load(tmp_path / "Train" / f"HFH_{n:03d}.hdr") for n in range(1, 6)]
  assert [image.shape for image in images] == [(32, 16, 36, 1)] * 3 + [(43, 16, 48, 1)] * 2
  assert [image.header.endianness for image in images] == ["<", ">", "<", ">", "<"]
  assert all(image.get_data_dtype().newbyteorder("=") == np.int16 for image in images)
  zooms = images[0].header.get_zooms()
  np.testing.assert_allclose(zooms[:3], (200 / 32, 80 / 16, 200 / 36), rtol=1e-5)
  assert [path.name for path in (tmp_path / "Test").glob("*.hdr")] == ["HFH_006.hdr"]


def test_of_two_channels_neither_alone_shows_the_lesions(tmp_path):
  layouts.write("scan_label/two_channels", tmp_path, 2, 0, (48, 20, 48))
  for label_path in sorted((tmp_path / "labelsTr").glob("*.nii")):
    lesion = voxels(label_path) > 0
    assert 0 < lesion.mean() < 0.1
    scans = [voxels(tmp_path / "imagesTr" / f"{label_path.stem}_000{n}.nii") for n in (0, 1)]
    # Spots are 70 brighter than what is around them: as many bright voxels again are no lesion.
    for scan in scans:
      as_bright = scan >= np.median(scan[lesion])
      assert (as_bright & ~lesion).sum() > 0.5 * (as_bright & lesion).sum()


def test_the_two_hippocampi_lie_left_and_right_and_differ_between_subjects(tmp_path):
  layouts.write("hippocampus_t1w", tmp_path, 3, 0, SMALL["hippocampus_t1w"])
  labels = [voxels(p).squeeze() for p in sorted((tmp_path / "Train" / "Labels").glob("*.hdr"))]
  for label in labels:
    assert set(np.unique(label)) == {0, 1, 2}
    # The first axis runs to the left.
    assert np.argwhere(label == 1)[:, 0].min() > np.argwhere(label == 2)[:, 0].max()
  counts = {(int((label == 1).sum()), int((label == 2).sum())) for label in labels}
  assert len(counts) == 3


def test_haemorrhage_table_and_masks_tell_the_same_but_for_the_planned_gaps(tmp_path):
  root = next(layouts.write("brain_ich_ct", tmp_path, 9, 0, SMALL["brain_ich_ct"]).iterdir())
  raw = (root / "hemorrhage_diagnosis.csv").read_bytes()
  assert raw.startswith(b"\xef\xbb\xbfPatientNumber") and raw.count(b"\r\n") == 1 + 9 * 8
  rows = list(csv.DictReader(raw.decode("utf-8-sig").splitlines()))
  positive = {(int(r["PatientNumber"]), int(r["SliceNumber"]))
              for r in rows if r["No_Hemorrhage"] == "0"}  # fmt: skip
  masked = {(int(path.parts[-3]), int(path.name.split("_")[0]))
            for path in root.rglob("*_HGE_Seg.jpg")}  # fmt: skip
  assert masked < positive
  # The eighth patient has no mask at all, as patient 049 of the real set.
  unlabelled_patient = images.ich_patients(9)[7]
  patients = {patient for patient, _ in positive}
  assert patients - {patient for patient, _ in masked} == {unlabelled_patient}
  assert len(patients) == 6 and patients <= ct_ich_patients.HEMORRHAGE_PATIENTS
  brain = list(root.glob("Patients_CT/*/brain/[0-9]*.jpg"))
  assert len(brain) - len(masked) == 9 * 8
  assert len(list(root.glob("Patients_CT/*/bone/*.jpg"))) == 9 * 8 - 1


def test_six_haemorrhage_subjects_cover_the_three_sides_of_the_split_with_masks():
  patients = images.ich_patients(6)
  sides = [ct_ich_patients.splits()[ct_ich_patients.subject_name(n)] for n in patients]
  # Of three subjects the third is healthy.
  bleeding = [side for index, side in enumerate(sides) if index % 3 != 2]
  assert set(bleeding) == {"train", "validation", "test"}


def test_haemorrhage_masks_are_grey_noisy_and_blood_is_brighter_than_brain(tmp_path):
  root = next(layouts.write("brain_ich_ct", tmp_path, 1, 0, SMALL["brain_ich_ct"]).iterdir())
  path = sorted(root.rglob("*_HGE_Seg.jpg"))[0]
  mask = np.asarray(Image.open(path))
  image = np.asarray(Image.open(path.with_name(path.name.replace("_HGE_Seg", ""))))
  assert image.shape == mask.shape == (96, 96)
  assert set(np.unique(mask)) - {0, 255}
  assert image[mask > 200].mean() > image[(mask < 50) & (image > 60) & (image < 200)].mean() + 30


def test_ct_volumes_hold_hounsfield_units_and_masks_with_rounding_noise(tmp_path):
  layouts.write("brain_ich_ct/nifti", tmp_path, 1, 0, SMALL["brain_ich_ct/nifti"])
  patient = images.ich_patients(1, absent=range(59, 66))[0]
  scan = nib.load(tmp_path / "ct_scans" / f"{patient:03d}.nii")
  mask = voxels(tmp_path / "masks" / f"{patient:03d}.nii")
  assert scan.shape == mask.shape == (64, 64, 8)
  assert "".join(nib.aff2axcodes(scan.affine)) == "LAS"
  assert voxels(scan.get_filename()).min() < -900
  assert not (set(np.unique(mask)) & set(range(10, 245))) and len(np.unique(mask)) > 2


def test_stroke_masks_come_in_every_known_form(tmp_path):
  root = layouts.write("brain_stroke_ct", tmp_path, 8, 0, SMALL["brain_stroke_ct"])
  data = next(root.rglob("data"))
  unmasked = f"{images.bleeding_patients()[2]:03d}"
  bleeding = {p.name for p in data.glob("*/Hemorrhagic/images/*")}
  assert bleeding - {p.name for p in data.glob("*/Hemorrhagic/mask/*")} == {unmasked}
  assert list(data.rglob("*_HGE_Seg.jpg"))
  assert sorted(p.name for p in data.iterdir()) == ["Testing", "Training"]
  values = []
  for subject in sorted(data.glob("*/Ischemic/mask/*")):
    values.append(set().union(*(np.unique(Image.open(p)) for p in subject.iterdir())))
  assert {0, 255} in values and {0, 1, 2, 3, 5} in values and {0, *range(251, 256)} in values


def test_full_head_labels_have_seven_classes_and_the_right_order_of_grey_and_white(tmp_path):
  root = layouts.write("full_head_t1w", tmp_path, 5, 0, SMALL["full_head_t1w"])
  images = sorted(root.rglob("T1-Weighted MRI/*.nii"))
  assert [p.name for p in images][-1] == "NC005.nii" and len(images) == 5
  shapes = set()
  for path in images:
    twin = path.name.replace(".nii", "_label.nii").replace("_deface_label", "_label_deface")
    label = voxels(path.parents[1] / "Full-Head Segmentation" / twin)
    shapes.add(label.ndim)
    image, label = voxels(path), label.squeeze().astype(int)
    assert set(np.unique(label)) == set(range(7))
    mean = [image[label == tissue].mean() for tissue in (3, 2, 4)]
    assert mean == sorted(mean, reverse=True)  # White, grey, fluid on T1.
  assert shapes == {3, 4}


def test_ms_volumes_state_no_geometry_and_modalities_differ_in_shape(tmp_path):
  root = layouts.write("ms_lesion_mri", tmp_path, 1, 0, SMALL["ms_lesion_mri"])
  shapes = set()
  for modality in ("T1", "T2", "Flair"):
    image = nib.load(root / "Patient-1" / f"1-{modality}.nii")
    mask = nib.load(root / "Patient-1" / f"1-LesionSeg-{modality}.nii")
    assert image.get_data_dtype() == mask.get_data_dtype() == np.float64
    assert (int(image.header["qform_code"]), int(image.header["sform_code"])) == (0, 0)
    np.testing.assert_array_equal(image.header["pixdim"][1:4], 1)
    assert image.shape == mask.shape and set(np.unique(mask.dataobj)) == {0, 1}
    shapes.add(image.shape)
  assert shapes == {(48, 40, 12), (54, 45, 12), (48, 40, 14)}
  assert (root / "Supplementary Table 2 for  sequence parameters .xlsx").is_file()


def test_picture_masks_hold_colours_between_those_of_the_palette(tmp_path):
  root = layouts.write("image_mask", tmp_path, 5, 0, SMALL["image_mask"])
  for side, subjects in (("train", 3), ("valid", 1), ("test", 1)):
    assert len(list((root / side / "images").iterdir())) == 3 * subjects
  mask = np.asarray(Image.open(root / "train" / "masks" / "1001_20.png"))
  assert mask.shape == (48, 48, 3)
  assert len(np.unique(mask.reshape(-1, 3), axis=0)) > 7


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"dataset": "hipocampus_t1w"}, "Did you mean 'hippocampus_t1w'"),
        ({"subjects": 0}, "subjects must be 1 to"),
        ({"size": (32, 16, 32, 1)}, "size must be up to 3 numbers"),
        ({"size": (1, 16, 32)}, "size must be up to 3 numbers"),
    ],
)
def test_a_bad_request_is_refused_and_writes_nothing(tmp_path, change, expected):
  request = {"dataset": "hippocampus_t1w", "out_dir": tmp_path / "out", "subjects": 1, **change}
  with pytest.raises(InputError, match=expected):
    layouts.write(**request)
  assert not (tmp_path / "out").exists()


def test_a_folder_with_files_is_refused_and_left_alone(tmp_path):
  (tmp_path / "notes.txt").write_text("mine")
  with pytest.raises(InputError, match="a new or an empty folder"):
    layouts.write("hippocampus_t1w", tmp_path, 1, 0, SMALL["hippocampus_t1w"])
  assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


@pytest.mark.slow
def test_the_command_writes_a_folder_and_refuses_a_bad_size(tmp_path):
  command = ("phantom", "hippocampus_t1w")
  done = forked.command(*command, tmp_path / "a", "--subjects=2", "--size=16,8,12")
  assert done.returncode == 0 and "10 files" in done.stdout  # Two pairs of pairs, one without.
  done = forked.command(*command, tmp_path / "b", "--size=16,x")
  assert done.returncode == 1 and done.stderr.startswith("error: --size must be whole numbers")
  assert not (tmp_path / "b").exists()
