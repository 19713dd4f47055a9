"""A run with --crop_foreground sees the box of the tissue and answers on the full frame."""

import csv
import dataclasses
import json

import dataset_samples
import flagged
import forked
import nibabel as nib
import numpy as np
import pytest
import run_samples

from flexunet import config
from flexunet.core.errors import InputError
from flexunet.evaluation import evaluate
from flexunet.evaluation.scores import label_scores
from flexunet.imaging import nifti, slicing
from flexunet.prediction import files, scans
from flexunet.prediction.predictor import Predictor, load_model, to_label
from flexunet.training import resuming, trainer

GREYS = np.array([0, 120, 240], np.uint8)
NO_WINDOW = {"kind": "none", "low": 0.0, "high": 255.0}
# Below 32, so that a head fits into the network's input and its frame does not.
HEAD = (24, 26)


def truth(count=3, frame=(50, 61), top=9, left=30) -> np.ndarray:
  """Returns labels uint8 [count, H, W]: tissue, a lesion in it, air around it."""
  label = np.zeros((count, *frame), np.uint8)
  label[:, top : top + HEAD[0], left : left + HEAD[1]] = 1
  for index in range(count):
    label[index, top + 5 + index : top + 12, left + 4 : left + 9 + index] = 2
  return label


def cropping_config(mode="pad", **model) -> config.RunConfig:
  made = run_samples.with_facts(
      run_samples.run_config(resize_mode=mode, **model), intensity=NO_WINDOW, spacing_mm=None
  )
  return dataclasses.replace(made, data=dataclasses.replace(made.data, crop_foreground=True))


def test_padded_slices_come_back_pixel_by_pixel_from_their_box():
  network = run_samples.BrightnessNetwork()
  label = truth()
  answers = list(Predictor(network, cropping_config()).probabilities(GREYS[label]))
  # With margins the box is 28 x 30: without cropping the input would have grown to 50 x 61.
  assert network.shapes == [(4, 32, 32, 1)]
  for probability, wanted in zip(answers, label, strict=True):
    np.testing.assert_array_equal(to_label(probability), wanted)
    air = np.ones(wanted.shape, bool)
    air[7:35, 28:58] = False
    assert (probability[air] == (1, 0, 0)).all() and (probability[~air] != 1).all()


@pytest.mark.parametrize("mode", ["fit", "stretch"])
def test_scaled_slices_come_back_to_their_place(mode):
  label = truth(frame=(90, 90))
  network = run_samples.BrightnessNetwork()
  found = Predictor(network, cropping_config(mode)).labels(GREYS[label])
  assert network.shapes == [(4, 32, 32, 1)]
  # The box is scaled up a little, 28 to 32: only borders of structures may move.
  assert (np.stack(found) != label).mean() < 0.01


def test_outside_the_box_a_sigmoid_says_background():
  class Sigmoid(run_samples.NumpyNetwork):
    num_classes = 1

    def predict_on_batch(self, batch):
      return np.full((*batch.shape[:3], 1), 0.75, np.float32)

  chosen = Predictor(Sigmoid(), cropping_config(num_classes=1))
  probability = next(chosen.probabilities(GREYS[truth()]))
  assert probability[0, 0].tolist() == [1, 0] and probability[20, 40].tolist() == [0.25, 0.75]


def test_neighbours_are_cut_by_one_box():
  class Watching(run_samples.BrightnessNetwork):
    def predict_on_batch(self, batch):
      self.batch = batch
      return super().predict_on_batch(batch)

  network = Watching()
  made = cropping_config(image_channels=3)
  made = dataclasses.replace(made, data=dataclasses.replace(made.data, context_slices=1))
  slices = GREYS[truth()]
  slices[0, :40] = 0  # Most of its head is gone: alone it would have a smaller box or none.
  list(Predictor(network, made).probabilities(slices))
  middle = network.batch[1]
  for channel in range(3):
    # The box of 28 x 30 lies in the middle of the padded input.
    np.testing.assert_array_equal(middle[2:30, 1:31, channel], slices[channel, 7:35, 28:58])


def test_images_of_different_sizes_are_not_cropped():
  labels = [truth(1)[0], truth(1, frame=(44, 60))[0]]
  chosen = Predictor(run_samples.BrightnessNetwork(), cropping_config("fit"))
  assert [one.shape for one in chosen.labels([GREYS[one] for one in labels])] == [
      (50, 61), (44, 60)
  ]  # fmt: skip


def test_a_run_from_before_the_flag_is_not_cropped():
  values = run_samples.run_config().to_json()
  del values["data"]["crop_foreground"]
  assert config.RunConfig.from_json(values).data.crop_foreground is False


@pytest.mark.parametrize("before", [True, False])
def test_a_resumed_run_stays_cropped_as_it_began(before):
  saved, now = cropping_config(), run_samples.run_config()
  now = dataclasses.replace(now, dataset_facts=saved.dataset_facts)
  if not before:
    saved, now = now, saved
  message = f"--crop_foreground was {before}, now it is {not before}"
  with pytest.raises(InputError, match=message):
    resuming.merge(saved, now)


# Scans of a head in one corner, as files and as the dataset that would be built from them.
AFFINE = np.diag([1.0, 1.0, 2.0, 1.0])
PLAN = slicing.SlicePlan(axes="LAS", plane="axial")


def write_scans(folder):
  """Writes a dataset of five subjects and the scan of the last one, who is for testing."""
  splits = {"train": "abc", "validation": "d", "test": "e"}
  records = {split: [] for split in splits}
  for split, subjects in splits.items():
    for subject in subjects:
      place = ord(subject) - ord("a")
      label = np.moveaxis(truth(4, (50, 61), top=3 + 5 * place, left=4 * place), 0, -1)
      scan, mask = folder / f"{subject}.nii.gz", folder / f"{subject}_label.nii.gz"
      nib.save(nib.Nifti1Image(GREYS[label], AFFINE), scan)
      nib.save(nib.Nifti1Image(label, AFFINE), mask)
      images, labels = (PLAN.extract(nifti.read(path)).pixels for path in (scan, mask))
      records[split] += [
          {"image": images[..., index], "label": labels[..., index].astype(np.uint8),
           "subject": subject, "volume": f"{subject}_scan", "slice_index": index,
           "spacing_mm": (1.0, 1.0), "slice_spacing_mm": 2.0}
          for index in range(4)
      ]  # fmt: skip
  return dataset_samples.write_dataset(folder / "data", records)


@pytest.mark.slow
def test_trained_evaluated_and_predicted_with_cropping(tmp_path, capsys):
  data_dir = write_scans(tmp_path)
  flags = ("--crop_foreground", "--schedule=constant", "--learning_rate=0.02", "--warmup_steps=0")
  made = flagged.setup(data_dir, *flags, "--epochs=8")
  stderr = capsys.readouterr().err
  assert "--crop_foreground keeps" in stderr and "Warning" not in stderr
  # A head of 24 x 26 with its margins; upright, rows and columns change places.
  assert made.config.model.image_size == (30, 28) and made.config.data.resize_mode == "pad"
  assert "cropped to its foreground" in made.config.reasons["image_size"]
  trainer.fit(made.config, tmp_path / "run", made.data)
  longer = flagged.setup(data_dir, *flags, "--epochs=12")
  run, rows = trainer.fit(longer.config, tmp_path / "run", longer.data, resume=True)
  assert len(rows) == 12 and run.report_html.is_file()

  figures = evaluate.evaluate(run, ["test"], tolerances_mm=[1.0], show_progress=False)
  predictor = Predictor(load_model(run), run.read_config())
  found = scans.find(tmp_path / "e.nii.gz", tmp_path / "out", volumes_first=True)
  outputs = files.Outputs(folder=tmp_path / "out", probabilities=True)
  done = files.predict_all(
      found.scans, predictor, run.read_config(), outputs, show_progress=False
  )
  assert done.predicted == 1 and not done.failures
  wanted = np.asarray(nib.load(tmp_path / "e_label.nii.gz").dataobj)
  label = np.asarray(nib.load(tmp_path / "out" / "e_label.nii.gz").dataobj)
  assert label.shape == wanted.shape == (50, 61, 4)
  # What evaluation says of the full frame is what the files say.
  names = dataset_samples.NAMES
  expected = label_scores(wanted, label, names, (1.0, 1.0, 2.0), [1.0])
  with open(run.cases_csv, newline="") as stream:
    cases = {row["class"]: row for row in csv.DictReader(stream)}
  for row in expected:
    for score in ("dice", "hd95_mm"):
      assert float(cases[row["class"]][score]) == pytest.approx(row[score], nan_ok=True)
  assert figures["test"]["foreground_dice"]["mean"] > 0.5
  probability = np.load(tmp_path / "out" / "e_probability.npz")["probability"]
  head = np.zeros(wanted.shape, bool)
  head[21:51, 14:44] = True  # Around the head of subject e, whose corner is at 23 and 16.
  assert (probability[~head] == (1, 0, 0)).all() and (probability[head] != (1, 0, 0)).any()

  done = forked.command(
      "export", f"--run_dir={run.path}", "--output=network", f"--output_dir={tmp_path / 'export'}"
  )
  assert done.returncode == 0, done.stderr
  about = json.loads((tmp_path / "export" / "export.json").read_text())
  assert about["crop_foreground"] is True and about["resize_mode"] == "pad"
