"""Scans of scan_label in every form, their spacing and intensities, agree with their files."""

import pathlib
import shutil

import build_samples
import nibabel as nib
import numpy as np
import pytest
import scan_folders
from scan_label_cases import builder_of, slices_of, turned

from flexunet.core.errors import InputError
from flexunet.datasets import catalog
from flexunet.datasets.builder.raw_folder import Notes


def test_slices_agree_with_the_files_voxel_for_voxel(tmp_path):
  root = scan_folders.pairs(tmp_path / "raw", names=("anna",))
  image, label, spacings = slices_of(root, tmp_path)["anna"]
  # Axes L, A, S with 3 mm between slices: axial, rows run to the back, columns to the left.
  expected = scan_folders.label_of(0)[:, ::-1].transpose(2, 1, 0)
  np.testing.assert_array_equal(label, expected)
  assert spacings[0] == (1.0, 1.0, 3.0)
  scan = scan_folders.voxels(0)[:, ::-1].transpose(2, 1, 0).astype(float)
  inside = (image > 0) & (image < 255)
  assert np.corrcoef(scan[inside], image[inside])[0, 1] > 0.999


@pytest.mark.parametrize("codes", ["LAS", "RAS", "LPS", "RPI", "ASL", "SPR", "PIR", "ILA"])
def test_eight_orientations_of_a_scan_give_equal_records(codes, tmp_path):
  plain = slices_of(scan_folders.pairs(tmp_path / "plain", names=("a",)), tmp_path)["a"]
  for kind, array in (("images", scan_folders.voxels(0)), ("labels", scan_folders.label_of(0))):
    voxels, affine = turned(array, scan_folders.LAS, codes)
    scan_folders.save(voxels, tmp_path / "turned" / kind / "a.nii.gz", affine)
  for own, wanted in zip(slices_of(tmp_path / "turned", tmp_path)["a"], plain, strict=True):
    np.testing.assert_array_equal(own, wanted)


def written(kind: str, path, array):
  """Writes a scan in an odd but equal form."""
  path.parent.mkdir(parents=True, exist_ok=True)
  if kind == "big_endian":
    header = nib.Nifti1Header(endianness=">")
    header.set_data_dtype(array.dtype.newbyteorder(">"))
    nib.save(nib.Nifti1Image(array, scan_folders.LAS, header), path)
  elif kind == "singleton":
    nib.save(nib.Nifti1Image(array[..., None], scan_folders.LAS), path)
  elif kind == "slope":
    image = nib.Nifti1Image((array * 2).astype(np.int16), scan_folders.LAS)
    image.header.set_slope_inter(0.5, 0.0)
    nib.save(image, path)
    stored = bytearray(path.read_bytes())
    stored[112:120] = np.array([0.5, 0.0], "<f4").tobytes()  # scl_slope, scl_inter
    path.write_bytes(stored)
  elif kind == "float":
    nib.save(nib.Nifti1Image(array.astype(np.float32), scan_folders.LAS), path)
  else:
    nib.save(nib.Nifti1Image(array.astype(np.uint8), scan_folders.LAS), path)


@pytest.mark.parametrize("kind", ["big_endian", "singleton", "slope", "float", "uint8"])
def test_odd_forms_of_a_scan_give_equal_records(kind, tmp_path):
  plain = slices_of(scan_folders.pairs(tmp_path / "plain", names=("a",)), tmp_path)["a"]
  written(kind, tmp_path / "odd" / "images" / "a.nii", scan_folders.voxels(0))
  # Labels are also written with a slope, as floats and on a trailing axis.
  label = scan_folders.label_of(0).astype(np.int16)
  written(kind, tmp_path / "odd" / "labels" / "a.nii", label)
  for own, wanted in zip(slices_of(tmp_path / "odd", tmp_path)["a"], plain, strict=True):
    np.testing.assert_array_equal(own, wanted)


def test_an_oblique_scan_keeps_its_own_grid(tmp_path):
  plain = slices_of(scan_folders.pairs(tmp_path / "plain", names=("a",)), tmp_path)["a"]
  angle = np.radians(12)
  turn = np.eye(4)
  turn[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
  for kind, array in (("images", scan_folders.voxels(0)), ("labels", scan_folders.label_of(0))):
    scan_folders.save(array, tmp_path / "odd" / kind / "a.nii.gz", turn @ scan_folders.LAS)
  image, label, spacings = slices_of(tmp_path / "odd", tmp_path)["a"]
  np.testing.assert_array_equal(image, plain[0])
  np.testing.assert_array_equal(label, plain[1])
  np.testing.assert_allclose(spacings, plain[2])


@pytest.mark.parametrize("what", ["shape", "affine", "values"])
def test_a_label_that_does_not_fit_its_scan_is_one_line(what, tmp_path):
  root = scan_folders.pairs(tmp_path / "raw", names=("anna",))
  label, affine = scan_folders.label_of(0), scan_folders.LAS.copy()
  if what == "shape":
    label = label[:-1]
  elif what == "affine":
    affine[0, 3] = 5.0
  else:
    label = label.astype(np.float32) + 0.5
  scan_folders.save(label, root / "labels" / "anna.nii.gz", affine)
  with pytest.raises(InputError) as error:
    slices_of(root, tmp_path)
  assert "labels/anna.nii.gz" in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("spacing", "expected"),
    [((1, 1, 3), "axial"), ((1, 2, 1), "coronal"), ((3, 1, 1), "sagittal"), ((1, 1, 1), "axial"),
     ((0.5, 0.5, 0.4), "axial"), ((1, 2, 3), "axial"), ((1, 3, 2), "coronal")],
)  # fmt: skip
def test_the_plane_is_that_of_the_finest_equal_spacing(spacing, expected, tmp_path):
  affine = np.diag([-spacing[0], spacing[1], spacing[2], 1.0])
  shape = (12, 12, 12)
  for kind, array in (("images", scan_folders.voxels(0, shape)),
                      ("labels", scan_folders.label_of(0, shape))):  # fmt: skip
    scan_folders.save(array, tmp_path / "raw" / kind / "a.nii.gz", affine)
  builder = builder_of(tmp_path)
  assert builder.decide(builder.inspect_source(tmp_path / "raw"))["plane"] == expected


def mixed_spacing(root) -> pathlib.Path:
  for seed, mm in enumerate((1.0, 1.0, 2.0)):
    affine = np.diag([-mm, mm, 5.0, 1.0])
    name = f"s{seed}.nii.gz"
    scan_folders.save(scan_folders.voxels(seed), root / "images" / name, affine)
    scan_folders.save(scan_folders.label_of(seed), root / "labels" / name, affine)
  return root


def test_mixed_spacings_become_their_median(tmp_path):
  cut = slices_of(mixed_spacing(tmp_path / "raw"), tmp_path)
  # Ten columns and twelve rows of 2 mm are twenty and twenty-four of 1 mm.
  assert {key: image.shape for key, (image, _, _) in cut.items()} == {
      "s0": (6, 12, 10), "s1": (6, 12, 10), "s2": (6, 24, 20),
  }  # fmt: skip
  assert {spacing for _, _, spacings in cut.values() for spacing in spacings} == {(1.0, 1.0, 5.0)}
  assert set(np.unique(cut["s2"][1])) == {0, 1, 2}


def test_spacings_are_kept_or_given_where_asked_for(tmp_path):
  root = mixed_spacing(tmp_path / "raw")
  kept = slices_of(root, tmp_path, spacing_mm="keep")
  assert kept["s2"][0].shape == (6, 12, 10) and kept["s2"][2][0] == (2.0, 2.0, 5.0)
  given = slices_of(root, tmp_path, spacing_mm="2,0.5")
  assert given["s0"][0].shape == (6, 6, 20) and given["s0"][2][0] == (2.0, 0.5, 5.0)
  with pytest.raises(InputError, match="spacing_mm must be auto, keep, or ROW,COLUMN"):
    builder_of(tmp_path, spacing_mm="fine")


def test_ct_gets_one_window_from_the_foreground_of_the_training_split(tmp_path):
  folder = scan_folders.msd(tmp_path / "raw", modality="CT", count=6)
  for path in folder.glob("imagesTr/toy*"):
    scan = np.asanyarray(nib.load(path).dataobj).copy()
    label = np.asanyarray(nib.load(folder / "labelsTr" / path.name).dataobj)
    scan[label == 0] = -1000
    scan[label == 1], scan[label == 2] = 40, 80
    scan_folders.save(scan, path)
  builder = builder_of(tmp_path)
  findings = builder.inspect_source(tmp_path / "raw")
  decided = builder.decide(findings)
  # The labels hold nothing but 40 and 80.
  assert decided["intensity"] == {"kind": "window", "low": 40.0, "high": 80.0}
  assert "labelled voxels of the training split" in findings.choices["intensities"]
  # What the user leaves out of the training split has no say: subject 0 alone is brighter.
  bright = folder / "imagesTr" / "toy_0000.nii.gz"
  scan_folders.save(np.asanyarray(nib.load(bright).dataobj) + np.int16(500), bright)
  (tmp_path / "test.txt").write_text("toy_0000\n")
  held_out = builder_of(tmp_path, holdout=str(tmp_path / "test.txt"))
  decided = held_out.decide(held_out.inspect_source(tmp_path / "raw"))
  assert decided["intensity"] == {"kind": "window", "low": 40.0, "high": 80.0}
  given = builder_of(tmp_path, modality="mri")
  decided = given.decide(given.inspect_source(tmp_path / "raw"))
  assert decided["intensity"]["kind"] == "percentile"


def test_hounsfield_units_are_recognised_by_their_air(tmp_path):
  root = scan_folders.pairs(tmp_path / "raw")
  scan = scan_folders.voxels(0)
  scan[0] = -1024
  scan_folders.save(scan, root / "images" / "anna.nii.gz")
  builder = builder_of(tmp_path)
  assert builder.decide(builder.inspect_source(root))["modality"] == "ct"


@pytest.mark.slow
def test_a_build_is_reported_and_read_again(tmp_path):
  root = mixed_spacing(scan_folders.pairs(tmp_path / "raw"))
  builder = build_samples.build("scan_label", root, tmp_path / "out", workers=2)
  report = build_samples.report_of(builder)
  assert report["in_plane_mm"] == [1.0, 1.0] and report["channel_names"] == ["image"]
  assert report["choices"]["layout"].startswith("pairs") and report["decided"]["plane"] == "axial"
  again = catalog.builder("scan_label", tmp_path / "out")
  assert again.info.features["label"].names == ["background", "class_1", "class_2"]
  assert again.label_scheme().names == ["background", "class_1", "class_2"]


@pytest.mark.realdata
@pytest.mark.slow
def test_the_scans_of_hippocampus_t1w_give_the_same_slices(realdata_tree, tmp_path):
  raw = realdata_tree("hippocampus_t1w", subjects=3)
  mine = tmp_path / "mine"
  for path in sorted(raw.rglob("HFH_*")):
    kind = "labels" if "Labels" in path.name else "images"
    (mine / kind).mkdir(parents=True, exist_ok=True)
    shutil.copy(path, mine / kind / path.name.replace("_Hipp_Labels", "_label"))
  theirs = catalog.builder("hippocampus_t1w/left_right", tmp_path / "out")
  found = theirs.inspect_source(raw)
  ours = slices_of_labelled(mine, tmp_path)
  assert ours
  for case in (case for case in found.cases if case.labelled):
    for one, (image, label) in zip(
        theirs.slices_of(case, Notes()), ours[case.key.upper()], strict=True
    ):
      np.testing.assert_array_equal(one.image, image)
      np.testing.assert_array_equal(one.label, label)


def slices_of_labelled(root, tmp_path):
  """Returns {case key: (image, label) of each slice} of the labelled scans."""
  builder = builder_of(tmp_path)
  findings = builder.inspect_source(root)
  builder.set_source("", np.dtype(np.int16), builder.decide(findings))
  return {
      case.key: [(one.image, one.label) for one in builder.slices_of(case, Notes())]
      for case in findings.cases if case.labelled
  }  # fmt: skip


@pytest.mark.realdata
@pytest.mark.slow
@pytest.mark.parametrize("layout", ["pairs", "msd", "nnunet", "bids"])
def test_real_layouts_agree_with_nibabel_voxel_for_voxel(layout, realdata_tree, tmp_path):
  raw = realdata_tree(layout, subjects=2)
  builder = catalog.builder("scan_label", tmp_path / "out", options={"plane": "coronal"})
  findings = builder.inspect_source(raw)
  builder.set_source("", np.dtype(np.int16), builder.decide(findings))
  labelled = [case for case in findings.cases if case.labelled]
  assert len(labelled) == 1 and len(findings.cases) == 2
  label = np.asanyarray(nib.load(labelled[0].files["label"]).dataobj)
  cut = np.stack([one.label for one in builder.slices_of(labelled[0], Notes())], axis=1)
  # LAS scans: rows of a coronal slice run downwards, columns to the left.
  np.testing.assert_array_equal(cut[::-1].transpose(2, 1, 0), label)
