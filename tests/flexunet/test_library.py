"""What `import flexunet` offers, on a tiny dataset and a network that needs no training."""

import nibabel as nib
import numpy as np
import pytest
import run_samples
from PIL import Image

import flexunet
from flexunet import library, run_folder
from flexunet.core.errors import InputError

PLAN = ["Data", "Network", "Time", "Training", "More"]
CONFIG = {"model", "data", "training", "augmentation", "dataset_facts", "laterality", "reasons"}


@pytest.fixture
def run(monkeypatch, tmp_path):
  made = run_samples.evaluated_run(tmp_path / "run")
  network = run_samples.BrightnessNetwork()
  monkeypatch.setattr(library.predictors, "load_model", lambda folder: network)
  return flexunet.load(made.path)


def test_a_run_names_its_classes_and_predicts_arrays(run):
  assert run.class_names == run_samples.SCHEME.names
  # Below 60 is background, below 180 the first class, above it the second.
  slices = np.stack([np.full((20, 28), grey, np.uint8) for grey in (10, 100, 250)])
  labels = run.predict(slices)
  assert labels.dtype == np.uint8 and labels.shape == slices.shape
  assert [np.unique(label).tolist() for label in labels] == [[0], [1], [2]]
  assert (run.predict(slices[1]) == 1).all()


@pytest.mark.parametrize(
    "array", [np.zeros((4, 4), np.float32), np.zeros((2, 4, 4, 1), np.uint8)]
)
def test_an_array_of_another_form_is_refused(run, array):
  with pytest.raises(InputError, match=r"must be uint8 \[H, W\] or \[slices, H, W\]"):
    run.predict(array)


def test_a_folder_that_is_no_run_is_refused(tmp_path):
  with pytest.raises(InputError, match="has no config.json"):
    flexunet.load(tmp_path)


def test_a_dataset_gives_batches_and_volumes(blob_data):
  dataset = flexunet.open_dataset(None, blob_data)
  assert dataset.class_names[0] == "background"
  # Nine subjects of four slices; two of them validate.
  assert dataset.splits["train"] == {"subjects": 9, "volumes": 9, "slices": 36}
  assert len(dataset.batches("train", image_size=(32, 48), batch_size=4)) == 9
  (batch,) = dataset.batches("train", image_size=32, batch_size=4, num_steps=1)
  assert batch["image"].shape == (4, 32, 32, 1) and batch["label"].shape == (4, 32, 32)
  ordered = dataset.batches("validation", image_size=32, batch_size=3, shuffle=False)
  rows = np.concatenate([batch["record"][batch["valid"]] for batch in ordered])
  assert rows.tolist() == list(range(8))
  assert sorted(volume.subject for volume in dataset.volumes("validation")) == ["j", "k"]


def test_a_plan_is_complete_and_a_misspelt_setting_gets_its_nearest_name(blob_data):
  planned = flexunet.plan(data_dir=str(blob_data), epochs=2, base_filters=4)
  assert [line.split()[0] for line in planned.lines] == PLAN
  assert planned.expected.steps > 0 and set(planned.to_json()) == CONFIG
  assert planned.model.base_filters == 4 and planned.training.epochs == 2
  assert planned.model.num_layers and planned.reasons["num_layers"]
  sizes = planned.dataset_facts.pixel_sizes
  # Padded: the input has the pixels of the slices.
  assert sizes.low_mm == sizes.median_mm == sizes.high_mm == (1.0, 2.0)
  halved = flexunet.plan(data_dir=str(blob_data), image_size=(16, 14), resize_mode="fit")
  # 20 x 28 pixels become 10 x 14: each is two wide and two high.
  assert halved.dataset_facts.pixel_sizes.median_mm == (2.0, 4.0)
  assert halved.dataset_facts.spacing_mm == (1.0, 2.0)
  with pytest.raises(InputError, match="Did you mean 'base_filters'"):
    flexunet.plan(data_dir=str(blob_data), base_filter=4)


def make_runs(tmp_path, monkeypatch, networks, **facts):
  """Writes a run for each network, which is known by the name of its folder."""
  for name in networks:
    made = run_samples.evaluated_run(tmp_path / name)
    made.write_config(run_samples.with_facts(made.read_config(), **facts))
    made.model_keras.write_bytes(name.encode())
  for module in (library.opening, library.predictors):
    monkeypatch.setattr(module, "load_model", lambda folder: networks[folder.path.name])
  return [tmp_path / name for name in networks]


class Background(run_samples.BrightnessNetwork):
  """Is surer of the background than the other network is of anything."""

  def predict_on_batch(self, batch):
    return np.broadcast_to(np.float32([0.9, 0.05, 0.05]), (*batch.shape[:3], 3))


NO_WINDOW = {"kind": "none", "low": 0.0, "high": 255.0}


def test_several_runs_answer_as_one(tmp_path, monkeypatch):
  networks = {"a": run_samples.BrightnessNetwork(), "b": Background()}
  folders = make_runs(tmp_path, monkeypatch, networks, intensity=NO_WINDOW)
  slices = np.stack([np.full((20, 28), grey, np.uint8) for grey in (10, 100, 250)])
  both = flexunet.load(folders)
  assert both.class_names == run_samples.SCHEME.names and (both.predict(slices) == 0).all()
  # 0.8 * 0.8 + 0.2 * 0.05 against 0.8 * 0.1 + 0.2 * 0.9.
  sure = flexunet.load(folders, weights="4,1")
  assert [np.unique(label).tolist() for label in sure.predict(slices)] == [[0], [1], [2]]
  assert np.array_equal(flexunet.load([folders[0]] * 3).predict(slices),
                        flexunet.load(folders[0]).predict(slices))  # fmt: skip
  with pytest.raises(InputError, match="--weights is for several runs"):
    flexunet.load(folders[0], weights="equal")


def test_runs_of_several_planes_predict_files_in_the_geometry_of_the_scan(tmp_path, monkeypatch):
  networks = {name: run_samples.BrightnessNetwork() for name in "abc"}
  folders = make_runs(tmp_path / "runs", monkeypatch, networks, intensity=NO_WINDOW)
  for folder, plane in zip(folders[1:], ("coronal", "sagittal"), strict=True):
    run = run_folder.RunFolder(folder)
    plan = {"axes": "LAS", "plane": plane}
    run.write_config(run_samples.with_facts(run.read_config(), slice_plan=plan))
  truth = np.random.default_rng(4).integers(0, 3, (7, 9, 5)).astype(np.uint8)
  affine = np.array([[0, 0, 2.0, 3], [-1.0, 0, 0, 4], [0, 1.5, 0, 5], [0, 0, 0, 1]])
  scan = tmp_path / "scan.nii.gz"
  nib.save(nib.Nifti1Image(np.array([10, 120, 240], np.int16)[truth], affine), scan)
  outcome = flexunet.load(tmp_path / "runs").predict_files(
      scan, tmp_path / "out", probabilities=True
  )
  assert outcome.predicted == 1 and not outcome.failures
  label = nib.load(tmp_path / "out" / "scan_label.nii.gz")
  assert np.array_equal(np.asarray(label.dataobj), truth)
  assert np.array_equal(label.affine, affine)
  stored = np.load(tmp_path / "out" / "scan_probability.npz")["probability"]
  assert stored.shape == (7, 9, 5, 3) and np.array_equal(stored.argmax(axis=-1), truth)


def test_runs_on_images_are_averaged_too(tmp_path, monkeypatch):
  networks = {"a": run_samples.BrightnessNetwork(), "b": run_samples.BrightnessNetwork()}
  folders = make_runs(tmp_path, monkeypatch, networks, slice_plan=None, intensity=None)
  image = np.array([10, 120, 240], np.uint8)[np.random.default_rng(4).integers(0, 3, (20, 28))]
  Image.fromarray(image).save(tmp_path / "image.png")
  both = flexunet.load(folders)
  assert both.predict_files(tmp_path / "image.png", tmp_path / "out").predicted == 1
  found = np.asarray(Image.open(tmp_path / "out" / "image_label.png"))
  assert np.array_equal(found, np.digitize(image, [60, 180]))
  assert np.array_equal(both.predict(tmp_path / "image.png"), found)


def test_tiles_and_views_have_the_names_of_the_flags(run):
  slices = np.full((2, 32, 80), 100, np.uint8)
  slices[:, 5:20, 50:70] = 250
  whole = run.predict(slices)
  assert np.array_equal(run.predict(slices, tile=32, overlap=8, tta="mirror"), whole)
  chosen = run.predictor(tile=(32, 16), tta=["mirror", "rotations"])
  chosen.labels(list(slices))
  cut, turned, views = chosen.pass_lines()
  assert "slices of 32x80 pixels in 1 x 9 tiles of 32x16 that overlap by 8" in cut
  assert "slices of 80x32 pixels in 3 x 3 tiles" in turned and "each slice 8 times" in views
  with pytest.raises(InputError, match="Did you mean 'tile'"):
    run.predictor(tiles=32)
  with pytest.raises(InputError, match="tta must be one of"):
    run.predict(slices, tta="mirrors")
