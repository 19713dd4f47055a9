"""A run whose slices are larger than its network's input is trained, drawn and scored in tiles."""

import csv
import json

import dataset_samples
import numpy as np
import pytest
from PIL import Image

from flexunet import dataset_access, library
from flexunet.core.errors import InputError

SETTINGS = {
    "image_size": 32, "base_filters": 4, "num_layers": 2, "batch_size": 4, "augmentation": "none",
    "learning_rate": 0.02, "schedule": "constant", "warmup_steps": 0, "previews": 2,
    "max_minutes": 0.0,
}  # fmt: skip


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
  splits = {"train": "abcd", "validation": "ef", "test": "g"}
  records = {}
  for split, subjects in splits.items():
    records[split] = []
    for subject in subjects:
      for index in range(2):
        label = np.zeros((45, 70), np.uint8)
        label[4 : 24 + index, 5:30], label[18:42, ord(subject) - 60 :] = 1, 2
        image = np.array([10, 120, 240], np.uint8)[label]
        records[split].append({"image": image, "label": label, "subject": subject,
                               "volume": f"{subject}_scan", "slice_index": index})  # fmt: skip
  return dataset_samples.write_dataset(tmp_path_factory.mktemp("large"), records)


@pytest.mark.slow
def test_slices_larger_than_the_input_are_trained_on_in_tiles(data_dir, tmp_path, capsys):
  run = library.fit(
      tmp_path / "run", data_dir=str(data_dir), resize_mode="pad", epochs=5, **SETTINGS
  )
  said = capsys.readouterr().err
  # Two rows of three tiles each.
  assert "8 training slices become 48 tiles, 4 validation slices become 24 tiles" in said
  with open(run.folder.history_csv, newline="") as stream:
    last = list(csv.DictReader(stream))[-1]
  assert float(last["val_foreground_dice"]) > 0.5
  # Previews show whole slices: image, truth, prediction, of two slices in a row.
  with Image.open(sorted((tmp_path / "run" / "previews").glob("*.png"))[-1]) as sheet:
    assert sheet.width > 5 * 256
  figures = run.evaluate("test", tile=32, overlap=8, show_progress=False)["test"]
  whole = run.evaluate("test", show_progress=False)["test"]
  assert figures["foreground_dice"]["mean"] > 0.5
  gap = figures["foreground_dice"]["mean"] - whole["foreground_dice"]["mean"]
  assert abs(gap) < 0.1
  (line,) = figures["evaluated"]["passes"]
  assert "slices of 45x70 pixels in 2 x 3 tiles of 32x32 that overlap by 8" in line
  assert whole["evaluated"]["passes"] == []
  assert "in 2 x 3 tiles" not in run.folder.report_html.read_text()
  resumed = library.fit(
      tmp_path / "run", resume=True, data_dir=str(data_dir), resize_mode="pad", epochs=6,
      **SETTINGS,
  )  # fmt: skip
  assert json.loads(resumed.folder.manifest_json.read_text())


@pytest.mark.slow
def test_previews_of_large_slices_are_those_of_the_predictor(data_dir, tmp_path):
  from flexunet.network import model
  from flexunet.prediction.predictor import Predictor
  from flexunet.prediction.tiles import TileOptions, Tiler
  from flexunet.training import input_pipeline, monitoring, preview_slices

  parts = library.settings_of({"data_dir": str(data_dir), "resize_mode": "pad", **SETTINGS})
  opened = input_pipeline.open_data(parts.data, parts.model.image_size)
  run_config = library.trainer.complete(parts, opened)
  slices = preview_slices.choose(run_config, opened, 2)
  assert [one.label.shape for one in slices] == [(45, 70)] * 2
  network = model.build_model(run_config.model)
  options = TileOptions.of(32)
  free, tiler = model.accept_any_size(network), Tiler(run_config.model, options, None)
  found = monitoring.predict_labels(free, [one.image for one in slices], tiler)
  expected = Predictor(network, run_config, tiles=options).labels(
      [one.image[..., 0] for one in slices]
  )
  assert np.mean(np.stack(found) == np.stack(expected)) > 0.999  # Up to rounding at ties.


def test_a_planned_input_that_is_too_small_still_names_what_to_do(data_dir):
  from flexunet.pipelines import batches, readers
  from flexunet.pipelines.resizing import Resizing

  source = dataset_access.open_dataset(None, data_dir).source
  with pytest.raises(InputError, match="45x70 pixels do not fit.*name --image_size"):
    batches.check_sizes(readers.slice_table(source, "train"), Resizing((32, 32), "pad"))
