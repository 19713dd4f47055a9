"""Predictions lie on their scans: round trips through files, formats, orientations, failures."""

import dataclasses
import itertools

import nibabel as nib
import numpy as np
import pytest
import run_samples
from PIL import Image

from flexunet.core import files as core_files
from flexunet.core.errors import InputError
from flexunet.imaging import nifti
from flexunet.prediction import files, scans
from flexunet.prediction.predictor import Predictor
from flexunet.reporting import sheets

GREYS = np.array([10, 120, 240])
VOXELS = np.arange(60, dtype=np.int16).reshape(3, 4, 5)
NO_WINDOW = {"kind": "none", "low": 0.0, "high": 255.0}
# Every way in which three voxel axes can lie: 6 orders times 8 flips.
ORIENTATIONS = [
    "".join(flips[axis] for axis in order)
    for order in itertools.permutations(range(3))
    for flips in itertools.product("LR", "PA", "IS")
]


def make_config(**facts):
  return run_samples.with_facts(
      run_samples.run_config(), **{"intensity": NO_WINDOW, "spacing_mm": None, **facts}
  )


def predict(path, output_dir, run_config=None, **options):
  run_config = run_config or make_config()
  found = scans.find(path, output_dir, volumes_first=True)
  predictor = Predictor(run_samples.BrightnessNetwork(), run_config)
  return files.predict_all(
      found.scans, predictor, run_config,
      files.Outputs(folder=output_dir, **{"overlay": False, **options}),
      show_progress=False,
  )  # fmt: skip


def make_label(shape=(7, 9, 5)) -> np.ndarray:
  """Returns class ids without any symmetry."""
  return np.random.default_rng(5).integers(0, 3, shape).astype(np.uint8)


def affine_of(codes: str, spacing_mm=(0.7, 1.1, 2.5), oblique: bool = True) -> np.ndarray:
  """Returns an affine of these axis codes, turned by some degrees, with an odd origin."""
  turn = nib.orientations.axcodes2ornt(tuple(codes))
  directions = np.zeros((3, 3))
  for axis, (world, sign) in enumerate(turn):
    directions[int(world), axis] = sign
  if oblique:
    angle = np.deg2rad(12)
    rotation = np.array(
        [[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]]
    )
    directions = rotation @ directions
  affine = np.eye(4)
  affine[:3, :3] = directions * spacing_mm
  affine[:3, 3] = (-31.5, 12.25, 7.0)
  return affine


def test_a_second_program_that_predicts_into_a_folder_is_refused(tmp_path):
  nib.save(nib.Nifti1Image(GREYS[make_label()].astype(np.int16), np.eye(4)), tmp_path / "scan.nii")
  with (
      core_files.locked(tmp_path / "out", "--output_dir"),
      pytest.raises(InputError, match="--output_dir .*must be free.*process"),
  ):
    predict(tmp_path / "scan.nii", tmp_path / "out")
  assert predict(tmp_path / "scan.nii", tmp_path / "out").predicted == 1
  assert [path.name for path in (tmp_path / "out").iterdir()] == ["scan_label.nii"]


@pytest.mark.parametrize("plane", ["axial", "coronal", "sagittal"])
def test_labels_lie_voxel_by_voxel_on_scans_of_every_orientation(tmp_path, plane):
  run_config = make_config(slice_plan={"axes": "LAS", "plane": plane})
  # A third of the orientations for each plane: all 48 are tried.
  offset = ("axial", "coronal", "sagittal").index(plane)
  truths = {}
  for codes in ORIENTATIONS[offset::3]:
    truths[codes] = make_label()
    image = nib.Nifti1Image(GREYS[truths[codes]].astype(np.int16), affine_of(codes))
    nib.save(image, tmp_path / f"{codes}.nii")
  outcome = predict(tmp_path, tmp_path / "out", run_config)
  assert outcome.failures == [] and outcome.predicted == len(truths) == 16
  for codes, truth in truths.items():
    label = nib.load(tmp_path / "out" / f"{codes}_label.nii")
    assert "".join(nib.aff2axcodes(label.affine)) == codes
    assert np.array_equal(np.asarray(label.dataobj), truth), codes
    assert np.allclose(label.affine, affine_of(codes), atol=1e-5)


def test_a_compressed_volume_gives_a_compressed_label(tmp_path):
  truth = make_label()
  scan = nib.Nifti1Image(GREYS[truth].astype(np.float32), affine_of("RAS"))
  nib.save(scan, tmp_path / "a.nii.gz")
  predict(tmp_path / "a.nii.gz", tmp_path / "out")
  written = nifti.read(tmp_path / "out" / "a_label.nii.gz")
  assert np.array_equal(written.voxels, truth)
  assert [path.name for path in (tmp_path / "out").iterdir()] == ["a_label.nii.gz"]


@pytest.mark.parametrize("named", ["scan.hdr", "scan.img"])
def test_an_analyze_pair_gives_a_pair_with_its_fourth_axis(tmp_path, named):
  truth = make_label()
  image = nib.AnalyzeImage(GREYS[truth].astype(np.int16)[..., None], None)
  image.header.set_zooms((0.78, 2.0, 0.78, 1.0))
  nib.save(image, tmp_path / "scan.hdr")
  outcome = predict(tmp_path / named, tmp_path / "out")
  assert outcome.failures == []
  label = nib.load(tmp_path / "out" / "scan_label.hdr")
  assert label.shape == (7, 9, 5, 1)
  assert np.allclose(label.header.get_zooms()[:3], (0.78, 2.0, 0.78))
  assert np.array_equal(np.asarray(label.dataobj)[..., 0], truth)


def test_the_overlay_shows_slices_and_probabilities_keep_the_grid(tmp_path):
  truth = make_label((12, 9, 7))
  nib.save(nib.Nifti1Image(GREYS[truth].astype(np.int16), affine_of("PIR")), tmp_path / "a.nii")
  predict(tmp_path / "a.nii", tmp_path / "out", overlay=True, probabilities=True)
  assert np.asarray(Image.open(tmp_path / "out" / "a_overlay.png")).ndim == 3
  with np.load(tmp_path / "out" / "a_probability.npz") as stored:
    assert stored["classes"].tolist()[0] == "background"
    assert stored["probability"].shape == (12, 9, 7, 3)
    assert np.array_equal(stored["probability"].argmax(axis=-1), truth)
    assert np.isclose(stored["probability"].max(), 0.8, atol=1e-3)


def test_a_dataset_of_another_spacing_is_met_on_its_grid_and_left_again(tmp_path):
  # Blocks of 2 x 2 x 2 voxels of 1 mm: at 2 mm isotropic each is one voxel, so nothing is lost.
  blocks = make_label((6, 8, 5))
  truth = blocks.repeat(2, 0).repeat(2, 1).repeat(2, 2)
  affine = affine_of("LAS", spacing_mm=(1, 1, 1), oblique=False)
  nib.save(nib.Nifti1Image(GREYS[truth].astype(np.int16), affine), tmp_path / "a.nii")
  seen = []

  class Watching(run_samples.BrightnessNetwork):
    def predict_on_batch(self, batch):
      seen.append(np.count_nonzero(batch.max(axis=(0, 3))))
      return super().predict_on_batch(batch)

  run_config = make_config(isotropic_mm=2.0)
  (scan,) = scans.find(tmp_path / "a.nii", tmp_path, volumes_first=True).scans
  outputs = files.Outputs(folder=tmp_path / "out", overlay=False)
  outcome = files.predict_all(
      [scan], Predictor(Watching(), make_config()), run_config, outputs, show_progress=False
  )
  assert outcome.predicted == 1
  assert seen == [6 * 8]  # Five slices in one batch, at 2 mm.
  assert np.array_equal(nifti.read(tmp_path / "out" / "a_label.nii").voxels, truth)


def test_a_picture_gives_class_ids_an_overlay_and_on_wish_colours(tmp_path):
  truth = make_label((20, 26, 1))[..., 0]
  Image.fromarray(GREYS[truth].astype(np.uint8)).save(tmp_path / "a.png")
  predict(tmp_path / "a.png", tmp_path / "out", overlay=True, color_masks=True)
  label = Image.open(tmp_path / "out" / "a_label.png")
  assert label.mode == "L" and np.array_equal(np.asarray(label), truth)
  view = sheets.View.of_scheme(run_samples.SCHEME)
  tile = sheets.slice_tile(GREYS[truth].astype(np.uint8), truth, view, size=512)
  drawn = np.asarray(Image.open(tmp_path / "out" / "a_overlay.png"))
  height, width = tile.image.shape[:2]
  assert np.array_equal(drawn[6 : 6 + height, 6 : 6 + width], tile.image)
  assert all((drawn[6 + height :] == color).all(axis=-1).any() for color in view.palette[1:])
  colors = np.array([entry["color"] for entry in run_samples.CLASSES])
  assert np.array_equal(np.asarray(Image.open(tmp_path / "out" / "a_color.png")), colors[truth])


@pytest.mark.parametrize("channels", [1, 3])
def test_a_colour_image_needs_a_network_of_three_channels(tmp_path, channels):
  pixels = np.zeros((8, 9, 3), np.uint8)
  pixels[2:5] = (250, 60, 50)  # Its mean of 120 is class 1 of the stand-in.
  Image.fromarray(pixels).save(tmp_path / "a.png")
  model = dataclasses.replace(make_config().model, image_channels=channels)
  outcome = predict(tmp_path, tmp_path / "out", dataclasses.replace(make_config(), model=model))
  if channels == 1:
    assert "must be a grey image" in outcome.failures[0]
  else:
    label = np.asarray(Image.open(tmp_path / "out" / "a_label.png"))
    assert np.array_equal(label, (pixels[..., 0] > 0).astype(np.uint8))


def test_a_volume_for_a_run_on_images_is_refused(tmp_path):
  nib.save(nib.Nifti1Image(VOXELS, np.eye(4)), tmp_path / "a.nii")
  outcome = predict(tmp_path, tmp_path / "out", make_config(slice_plan=None))
  assert outcome.predicted == 0
  assert "trained on images" in outcome.failures[0] and "a.nii" in outcome.failures[0]


def test_a_bad_file_does_not_lose_the_others(tmp_path):
  for name in ("a.nii", "c.nii"):
    nib.save(nib.Nifti1Image(VOXELS, np.eye(4)), tmp_path / name)
  whole = (tmp_path / "a.nii").read_bytes()
  (tmp_path / "b.nii").write_bytes(whole[:-7])
  nib.save(nib.Nifti1Image(np.full((3, 4, 5), np.nan), np.eye(4)), tmp_path / "d.nii")
  outcome = predict(tmp_path, tmp_path / "out")
  assert outcome.predicted == 2
  assert len(outcome.failures) == 2 and "b.nii" in outcome.failures[0]
  assert "d.nii: a scan must hold numbers" in outcome.failures[1]
  written = sorted(path.name for path in (tmp_path / "out").iterdir())
  assert written == ["a_label.nii", "c_label.nii"]


def test_voxels_that_are_nan_in_part_are_mentioned(tmp_path):
  voxels = VOXELS.astype(np.float32)
  nib.save(nib.Nifti1Image(voxels, np.eye(4)), tmp_path / "a.nii")
  voxels[0, 0, :2] = np.nan
  nib.save(nib.Nifti1Image(voxels, np.eye(4)), tmp_path / "b.nii")
  outcome = predict(tmp_path, tmp_path / "out")
  assert outcome.predicted == 2
  [line] = [line for line in outcome.warnings if "NaN" in line]
  assert line == (
      f"{tmp_path / 'b.nii'}: 2 of its {voxels.size} voxels are NaN; they count as the lowest"
      " intensity."
  )


def test_output_is_never_replaced_unasked(tmp_path):
  nib.save(nib.Nifti1Image(VOXELS, np.eye(4)), tmp_path / "a.nii")
  target = tmp_path / "out" / "a_label.nii"
  target.parent.mkdir()
  target.write_bytes(b"precious")
  outcome = predict(tmp_path / "a.nii", tmp_path / "out")
  assert "--overwrite" in outcome.failures[0] and target.read_bytes() == b"precious"
  assert predict(tmp_path / "a.nii", tmp_path / "out", overwrite=True).failures == []
  assert nifti.read(target).voxels.shape == (3, 4, 5)


def test_what_is_there_is_skipped_and_no_failure(tmp_path):
  for name in ("a.nii", "b.nii"):
    nib.save(nib.Nifti1Image(VOXELS, np.eye(4)), tmp_path / name)
  assert predict(tmp_path / "a.nii", tmp_path / "out").predicted == 1
  before = (tmp_path / "out" / "a_label.nii").stat()
  outcome = predict(tmp_path, tmp_path / "out", skip_existing=True)
  assert (outcome.predicted, outcome.existing, outcome.failures) == (1, 1, [])
  assert (tmp_path / "out" / "a_label.nii").stat().st_mtime_ns == before.st_mtime_ns
  again = predict(tmp_path, tmp_path / "out", skip_existing=True)
  assert (again.predicted, again.existing, again.failures) == (0, 2, [])


def test_what_a_run_that_was_cut_short_left_is_replaced(tmp_path):
  nib.save(nib.Nifti1Image(VOXELS, np.eye(4)), tmp_path / "a.nii")
  nib.save(nib.AnalyzeImage(VOXELS, None), tmp_path / "b.hdr")
  (tmp_path / "out").mkdir()
  (tmp_path / "out" / "a_overlay.png").write_bytes(b"")
  (tmp_path / "out" / "b_label.hdr").write_bytes(b"")  # Its .img is not there.
  outcome = predict(tmp_path, tmp_path / "out", skip_existing=True, overlay=True)
  assert (outcome.predicted, outcome.existing, outcome.failures) == (2, 0, [])
  assert nifti.read(tmp_path / "out" / "b_label.hdr").voxels.shape == VOXELS.shape
  assert (tmp_path / "out" / "a_overlay.png").stat().st_size > 0


def test_a_label_that_is_there_without_what_is_asked_for_is_kept_and_said(tmp_path):
  nib.save(nib.Nifti1Image(VOXELS, np.eye(4)), tmp_path / "a.nii")
  predict(tmp_path / "a.nii", tmp_path / "out")
  outcome = predict(tmp_path / "a.nii", tmp_path / "out", skip_existing=True, probabilities=True)
  (line,) = outcome.warnings
  assert "1 scan skipped for the label that is there" in line and "a.nii" in line
  assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["a_label.nii"]


def test_keeping_and_replacing_exclude_each_other(tmp_path):
  with pytest.raises(InputError, match="Pass one of the two"):
    files.Outputs(folder=tmp_path, overwrite=True, skip_existing=True)


def test_images_of_several_channels_are_stacked(tmp_path):
  class Second(run_samples.BrightnessNetwork):
    def predict_on_batch(self, batch):
      return super().predict_on_batch(batch[..., 1:2])

  truth = make_label((20, 26, 1))[..., 0]
  (tmp_path / "in").mkdir()
  Image.fromarray(np.zeros_like(truth)).save(tmp_path / "in" / "a_0000.png")
  Image.fromarray(GREYS[truth].astype(np.uint8)).save(tmp_path / "in" / "a_0001.png")
  model = dataclasses.replace(make_config().model, image_channels=2)
  run_config = dataclasses.replace(make_config(channel_names=["T1", "T2"]), model=model)
  outputs = files.Outputs(folder=tmp_path / "out", overlay=False)
  outcome = files.predict_path(
      tmp_path / "in", Predictor(Second(), run_config), run_config, outputs, show_progress=False
  )
  assert outcome.failures == []
  assert np.array_equal(np.asarray(Image.open(tmp_path / "out" / "a_label.png")), truth)
  Image.fromarray(np.zeros((3, 4), np.uint8)).save(tmp_path / "in" / "a_0000.png")
  again = dataclasses.replace(outputs, overwrite=True)
  outcome = files.predict_path(
      tmp_path / "in", Predictor(Second(), run_config), run_config, again, show_progress=False
  )
  assert "a_0000.png has 3x4 pixels, this one 20x26" in outcome.failures[0]


def test_either_file_of_a_pair_protects_both(tmp_path):
  nib.save(nib.AnalyzeImage(VOXELS, None), tmp_path / "a.hdr")
  (tmp_path / "out").mkdir()
  (tmp_path / "out" / "a_label.img").write_bytes(b"precious")
  assert "a_label.img" in predict(tmp_path / "a.hdr", tmp_path / "out").failures[0]


def trained_at_one_mm():
  return make_config(
      pixel_sizes={name: [1.0, 1.0] for name in ("low_mm", "median_mm", "high_mm")}
  )


def test_a_scan_of_other_pixels_is_brought_to_those_of_the_training_and_named(tmp_path):
  # 2 mm in plane: each voxel is two pixels of the network's input, and a voxel again in the label.
  blocks = make_label((3, 4, 5)).repeat(3, 0).repeat(3, 1)
  affine = affine_of("LAS", spacing_mm=(2.0, 2.0, 3.0), oblique=False)
  nib.save(nib.Nifti1Image(GREYS[blocks].astype(np.int16), affine), tmp_path / "a.nii")
  outcome = predict(tmp_path, tmp_path / "out", trained_at_one_mm(), probabilities=True)
  assert outcome.warnings == [] and outcome.failures == []
  (line,) = outcome.resampled
  assert line == f"{tmp_path / 'a.nii'}: pixels of 2 x 2 mm, brought to 1 x 1 mm"
  found = nifti.read(tmp_path / "out" / "a_label.nii").voxels
  assert found.shape == blocks.shape
  assert np.array_equal(found[1::3, 1::3], blocks[1::3, 1::3])
  with np.load(tmp_path / "out" / "a_probability.npz") as stored:
    assert stored["probability"].shape == (*blocks.shape, 3)


def test_a_scan_of_the_pixels_of_the_training_is_not_resampled(tmp_path):
  truth = make_label()
  affine = affine_of("RAS", spacing_mm=(1.0, 1.02, 5.0))
  nib.save(nib.Nifti1Image(GREYS[truth].astype(np.int16), affine), tmp_path / "a.nii")
  outcome = predict(tmp_path, tmp_path / "out", trained_at_one_mm())
  assert outcome.resampled == [] == outcome.warnings
  assert np.array_equal(nifti.read(tmp_path / "out" / "a_label.nii").voxels, truth)


def test_pixel_sizes_that_are_unknown_or_cannot_be_are_warned_of(tmp_path):
  for name, edge in (("a", 30.0), ("b", 1.0)):
    affine = affine_of("LAS", spacing_mm=(edge, edge, 3.0), oblique=False)
    nib.save(nib.Nifti1Image(VOXELS, affine), tmp_path / f"{name}.nii")
  image = nib.AnalyzeImage(VOXELS, None)
  image.header["pixdim"] = 0
  nib.save(image, tmp_path / "c.hdr")
  outcome = predict(tmp_path, tmp_path / "out", trained_at_one_mm())
  assert outcome.failures == [] == outcome.resampled
  far, unknown = outcome.warnings
  assert "a.nii: its header states pixels of 30 x 30 mm" in far and "more than 4 times" in far
  assert "1 volume without a pixel size" in unknown
  # A run that does not know its own says so once.
  (line,) = predict(tmp_path, tmp_path / "again", make_config()).warnings
  assert "the run does not know the pixel size of its training" in line


@pytest.mark.parametrize(
    "name",
    [
        "HFH_001_Hipp_Labels.nii", "12_HGE_Seg.jpg", "3-LesionSeg-T2.nii", "G1_label_deface.nii",
        "masks/12.png", "Labels/a.nii", "a_label.nii.gz", "a_overlay.png", ".hidden.nii", "a.txt",
    ],
)  # fmt: skip
def test_labels_and_strangers_in_a_folder_are_not_scans(tmp_path, name):
  for path in (tmp_path / name, tmp_path / "scan.nii"):
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(b"")
  found = scans.find(tmp_path, tmp_path / "out", volumes_first=False)
  assert [scan.path.name for scan in found.scans] == ["scan.nii"]


def test_a_label_that_is_named_directly_is_predicted(tmp_path):
  (tmp_path / "a_mask.png").write_bytes(b"")
  found = scans.find(tmp_path / "a_mask.png", tmp_path, volumes_first=False)
  assert len(found.scans) == 1


def test_folders_are_mirrored_and_pairs_taken_once(tmp_path):
  for name in ("049/1.png", "050/1.png", "x/a.hdr", "x/a.img", "out/b_scan.png"):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_bytes(b"")
  found = scans.find(tmp_path, tmp_path / "out", volumes_first=False)
  targets = [str(scan.label_path(tmp_path / "out").relative_to(tmp_path)) for scan in found.scans]
  assert targets == ["out/049/1_label.png", "out/050/1_label.png", "out/x/a_label.hdr"]


def test_a_run_on_volumes_leaves_pictures_beside_volumes_alone(tmp_path):
  for name in ("a.nii", "screenshot.png"):
    (tmp_path / name).write_bytes(b"")
  found = scans.find(tmp_path, tmp_path / "out", volumes_first=True)
  assert [scan.path.name for scan in found.scans] == ["a.nii"] and found.images_skipped == 1


def test_an_output_folder_that_is_a_file_is_refused(tmp_path):
  for name in ("a.nii", "out"):
    (tmp_path / name).write_bytes(b"")
  with pytest.raises(InputError, match="--output_dir"):
    scans.find(tmp_path / "a.nii", tmp_path / "out", volumes_first=True)


def test_a_label_that_cannot_be_written_names_its_scan(tmp_path):
  (tmp_path / "in" / "x").mkdir(parents=True)
  nib.save(nib.Nifti1Image(VOXELS, np.eye(4)), tmp_path / "in/x/a.nii")
  (tmp_path / "out").mkdir()
  (tmp_path / "out" / "x").write_bytes(b"a file where the folder should be")
  (line,) = predict(tmp_path / "in", tmp_path / "out").failures
  assert line.startswith(str(tmp_path / "in/x/a.nii"))


@pytest.mark.parametrize("name", ["missing", "notes.txt", "empty"])
def test_nothing_to_predict_is_an_error(tmp_path, name):
  (tmp_path / "notes.txt").write_bytes(b"")
  (tmp_path / "empty").mkdir()
  with pytest.raises(InputError, match="--input"):
    scans.find(tmp_path / name, tmp_path / "out", volumes_first=True)
