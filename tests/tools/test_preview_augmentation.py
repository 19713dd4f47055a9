"""The sheet of transformations, on made-up slices."""


import dataset_samples
import forked
import numpy as np
import pytest
from PIL import Image

from flexunet.pipelines import dataset_source
from flexunet.pipelines.augmentation.config import (
  PROBABILITIES,
  AugmentationConfig,
  probability_of,
)
from flexunet.tools import preview_augmentation

PALETTE = np.array([[0, 0, 0], [250, 20, 30], [20, 240, 30]], np.uint8)


@pytest.fixture(scope="module")
def blobs(tmp_path_factory):
  """A dataset of three volumes, the second of which holds most foreground."""
  records = []
  for volume in range(3):
    for index in range(2):
      image, label = dataset_samples.blob_slice(24, 32, seed=10 * volume + index)
      if (volume, index) == (1, 1):
        label = np.where(np.indices(label.shape)[1] < 16, 2, label).astype(np.uint8)
      name = f"subject_{volume}"
      records.append(
          {"image": image, "label": label, "subject": name, "volume": name, "slice_index": index}
      )
  folder = tmp_path_factory.mktemp("blobs")
  return dataset_samples.write_dataset(folder, {"train": records, "validation": records[:1]})


def test_every_transformation_is_on_the_sheet():
  shown = {probability_of(name) for name in preview_augmentation._TRANSFORMATIONS}
  assert shown == set(PROBABILITIES)


def test_each_transformation_shows_both_ends_of_its_range():
  image, label = dataset_samples.blob_slice(24, 32, seed=1)
  config = AugmentationConfig(rotation_degrees=20).resolve()
  tiles = preview_augmentation._alone(config, "rotation", image[..., None], label, seed=1)
  assert [caption for caption, _, _ in tiles] == ["rot-20", "rot+20"]
  tiles = preview_augmentation._alone(config, "noise", image[..., None], label, seed=1)
  assert [caption for caption, _, _ in tiles] == ["noise0.020", "noise0.040"]
  assert all((tile != image[..., None]).any() for _, tile, _ in tiles)


def test_the_sheet_holds_image_and_label_of_every_tile():
  image, label = dataset_samples.blob_slice(24, 32, seed=1)
  config = AugmentationConfig().resolve()
  one = preview_augmentation.sheet(config, [(image[..., None], label)], PALETTE, rows=0)
  more = preview_augmentation.sheet(config, [(image[..., None], label)], PALETTE, rows=2)
  assert (one.dtype, one.shape[2]) == (np.uint8, 3)
  assert more.shape[0] > one.shape[0]
  np.testing.assert_array_equal(more[: one.shape[0] - 20], one[: one.shape[0] - 20])
  # The first tile is the original: grey image on the left, its label's colours on the right.
  tile = one[:220, :340]
  for color in PALETTE[1:]:
    assert (tile == color).all(axis=-1).any()


def test_colour_images_are_shown_in_colour():
  label = np.zeros((20, 20), np.uint8)
  image = np.zeros((20, 20, 3), np.uint8)
  image[..., 0] = 200
  sheet = preview_augmentation.sheet(
      AugmentationConfig().resolve(), [(image, label)], PALETTE, rows=0
  )
  assert (sheet == (200, 0, 0)).all(axis=-1).any()


def test_examples_are_the_richest_slices_of_different_volumes(blobs):
  opened = dataset_source.open_dataset(None, blobs)
  examples = preview_augmentation.pick_examples(opened, "train", "image", "label", 4)
  assert len(examples) == 4
  assert (examples[0][1] == 2).mean() > 0.4
  assert {image.shape for image, _ in examples} == {(24, 32, 1)}


@pytest.mark.slow
def test_the_program_writes_a_picture_and_refuses_a_bad_output(blobs, tmp_path):
  command = ["preview_augmentation", f"--data_dir={blobs}"]
  out = tmp_path / "new" / "sheet.png"
  done = forked.command(*command, f"--output={out}", "--rows=1")
  assert done.returncode == 0, done.stderr
  assert Image.open(out).width > 1000
  done = forked.command(*command, f"--output={tmp_path}/a.txt")
  assert done.returncode == 1
  assert done.stderr.startswith("error: --output must be a .png file")
