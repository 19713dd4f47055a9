"""Records cut to the boxes of their volumes: the same pixels for training as for prediction."""

import dataclasses

import dataset_samples
import numpy as np
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds

from flexunet.core.errors import InputError
from flexunet.datasets import catalog
from flexunet.evaluation import labelled_volumes
from flexunet.pipelines import (
  batches,
  cache,
  foreground_boxes,
  foreground_crop,
  readers,
  record_table,
  resizing,
)
from flexunet.pipelines.dataset_source import open_dataset
from flexunet.tools.phantom import layouts

FRAME = (40, 60)
# Volume -> (top, left) of its head of 20x24 pixels.
HEADS = {"a_one": (4, 30), "a_two": (15, 3), "b_one": (18, 20)}


def head_slices(volume, outside=0):
  """Returns records of a head with a lesion; of it `outside` pixels lie in the air."""
  top, left = HEADS[volume]
  made = []
  for index in range(3):
    image, label = np.zeros((2, *FRAME), np.uint8)
    # A cone: slice 1 is the largest, and the box is that of all.
    rim = 4 * abs(index - 1)
    image[top + rim : top + 20 - rim, left + rim : left + 24 - rim] = 120 + 10 * index
    label[top + 9 : top + 12, left + 9 : left + 12] = 1 + index % 2
    label[0, : outside if index == 1 else 0] = 2
    made.append({"image": image, "label": label, "subject": volume[0], "volume": volume,
                 "slice_index": index, "fold": "ab".index(volume[0])})  # fmt: skip
  return made


def write(folder, outside=0, mixed=True):
  train = [*head_slices("a_one", outside), *head_slices("a_two")]
  if mixed:
    train = train[::2] + train[1::2]  # As in a shard, the slices of a volume lie apart.
  return open_dataset(
    None, dataset_samples.write_dataset(folder, {"train": train, "test": head_slices("b_one")})
  )


@pytest.fixture(scope="module")
def source(tmp_path_factory):
  return write(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def cropped(source):
  return foreground_boxes.crop_tables(
    source, [readers.slice_table(source, "train"), readers.slice_table(source, "test")]
  )


def test_every_slice_of_a_volume_has_the_box_of_all_of_them(cropped):
  for table in cropped.tables:
    for volume, box in zip(table.volume, table.boxes, strict=True):
      top, left = HEADS[str(volume)]
      # Margins: 3 % of the frame are 1 and 2 pixels, and 2 are the least.
      assert box.tolist() == [top - 2, left - 2, 24, 28]
    assert (table.height == 24).all() and (table.width == 28).all()
  assert cropped.frame_pixels == 9 * 40 * 60 and cropped.kept_pixels == 9 * 24 * 28
  assert cropped.messages() == ["--crop_foreground keeps 28 % of the pixels."]


def test_prediction_finds_the_box_that_training_found(source, cropped):
  table = readers.slice_table(source, "train")
  wanted = dict(zip(table.volume, cropped.tables[0].boxes.tolist(), strict=True))
  volumes = list(labelled_volumes.read_volumes(source, table))
  assert len(volumes) == 2
  for volume in volumes:
    assert (foreground_crop.volume_boxes(volume.images) == wanted[volume.volume]).all()


def test_pixels_are_counted_inside_the_boxes(source, cropped):
  before, after = readers.slice_table(source, "train").pixels, cropped.tables[0].pixels
  np.testing.assert_array_equal(after[:, 1:], before[:, 1:])
  assert (after.sum(axis=1) == 24 * 28).all() and (before.sum(axis=1) == 40 * 60).all()


@pytest.mark.parametrize("context", [0, 1])
def test_a_loaded_example_is_the_box_of_image_neighbours_and_label(source, cropped, context):
  table = cropped.tables[0]
  spec = readers.ExampleSpec(
    resizing=resizing.Resizing((24, 28), "pad"),
    context_slices=context,
    image_channels=2 * context + 1,
  )
  loader = batches.open_loader(source, table, spec)
  by_place = {
    (record["volume"], record["slice_index"]): record
    for volume in HEADS
    for record in head_slices(volume)
  }
  for row in range(len(table)):
    name, index, box = str(table.volume[row]), int(table.slice_index[row]), table.boxes[row]
    found = loader(tf.constant(row, tf.int64))
    label = by_place[name, index]["label"]
    np.testing.assert_array_equal(found["label"], foreground_crop.crop(label, box))
    near = [min(max(index + step, 0), 2) for step in range(-context, context + 1)]
    wanted = [foreground_crop.crop(by_place[name, other]["image"], box) for other in near]
    np.testing.assert_array_equal(found["image"], np.stack(wanted, axis=-1))


def test_a_part_of_a_table_and_folds_put_together_keep_their_boxes(cropped):
  both = record_table.concatenate(cropped.tables)
  rows = np.array([8, 0])
  np.testing.assert_array_equal(
    both.take(rows).boxes, [cropped.tables[1].boxes[2], cropped.tables[0].boxes[0]]
  )


def test_padding_is_refused_by_the_cropped_size(source, cropped):
  batches.check_sizes(cropped.tables[0], resizing.Resizing((24, 28), "pad"))
  with pytest.raises(InputError, match="40x60 pixels do not fit"):
    batches.check_sizes(readers.slice_table(source, "train"), resizing.Resizing((24, 28), "pad"))
  with pytest.raises(InputError, match="24x28 pixels do not fit"):
    batches.check_sizes(cropped.tables[0], resizing.Resizing((24, 27), "pad"))


def test_a_cache_of_other_boxes_is_another_cache(source, cropped):
  spec = readers.ExampleSpec(resizing=resizing.Resizing(FRAME, "pad"))
  tables = [readers.slice_table(source, "train"), cropped.tables[0]]
  moved = cropped.tables[0].take(np.arange(6))
  moved.boxes[0, 0] += 1
  keys = {
    cache.key_of("f", batches.open_loader(source, table, spec), table.offset)
    for table in (*tables, moved)
  }
  assert len(keys) == 3


def test_labelled_pixels_outside_a_box_are_told_by_volume(tmp_path, monkeypatch):
  other = write(tmp_path, outside=7)
  found = foreground_boxes.crop_tables(
    other, [readers.slice_table(other, "train"), readers.slice_table(other, "test")]
  )
  # Nine labelled pixels in each of nine slices, and those in the air.
  assert found.lost == {"a/a_one": 7} and found.labelled_pixels == 9 * 9 + 7
  with pytest.raises(InputError, match=r"all but 0.1 % .* 7 of 88 .* a/a_one \(7 pixels\)"):
    found.messages()
  monkeypatch.setattr(foreground_boxes, "MAX_LOST_SHARE", 0.1)
  _, warning = found.messages()
  assert "Warning" in warning and "7 of 88 labelled pixels (8 %): a/a_one" in warning
  table = found.tables[0]
  row = np.flatnonzero((table.volume == "a_one") & (table.slice_index == 1))
  # The lesion of slice 1 has class 2; its background is the rest of the box.
  assert table.pixels[row].tolist() == [[24 * 28 - 9, 0, 9]]


def test_slices_that_the_build_left_out_are_told(source):
  left_out = {"a_one": {"no labelled pixel": 3, "too few": 1}, "c_one": {"no labelled pixel": 9}}
  sparse = dataclasses.replace(source, report={**source.report, "slices_left_out": left_out})
  found = foreground_boxes.crop_tables(
    sparse, [readers.slice_table(sparse, "train"), readers.slice_table(sparse, "test")]
  )
  # There are no slices of c_one in these tables.
  _, warning = found.messages()
  assert "4 slices were left out" in warning and "--empty_slices=keep" in warning


def test_a_record_that_cannot_be_read_takes_nothing_from_the_others(tmp_path):
  other = write(tmp_path)
  shard = next(other.path.glob("*train*"))
  data = bytearray(shard.read_bytes())
  start = data.index(b"\x89PNG")
  data[start + 8 : start + 40] = bytes(32)
  shard.write_bytes(data)
  (table,) = foreground_boxes.crop_tables(other, [readers.slice_table(other, "train")]).tables
  spec = readers.ExampleSpec(resizing=resizing.Resizing(FRAME, "pad"))
  assert batches.open_loader(other, table, spec).find_corrupt() == [0]
  assert (table.boxes[:, 2:] == (24, 28)).all()  # The largest slices are whole.


def test_images_without_a_volume_are_volumes_of_their_own(tmp_path):
  features = tfds.features.FeaturesDict(
    {
      "scan": tfds.features.Image(shape=(None, None, 3)),
      "mask": tfds.features.Image(shape=(None, None, 1)),
    }
  )

  def generate():
    for record in head_slices("a_one"):
      scan = np.repeat(record["image"][..., None], 3, axis=-1)
      yield {"scan": scan, "mask": record["label"][..., None]}

  signature = {
    "scan": tf.TensorSpec((None, None, 3), tf.uint8),
    "mask": tf.TensorSpec((None, None, 1), tf.uint8),
  }
  images = tf.data.Dataset.from_generator(generate, output_signature=signature)
  builder = tfds.dataset_builders.store_as_tfds_dataset(
      name="images", version="1.0.0", data_dir=tmp_path, features=features,
      split_datasets={"train": images}, disable_shuffling=True,
  )  # fmt: skip
  other = open_dataset(None, builder.data_dir)
  (table,) = foreground_boxes.crop_tables(
    other, [readers.slice_table(other, "train")], "scan", "mask"
  ).tables
  top, left = HEADS["a_one"]
  assert table.boxes.tolist() == [
      [top + 2, left + 2, 16, 20], [top - 2, left - 2, 24, 28], [top + 2, left + 2, 16, 20]
  ]  # fmt: skip
  # Sizes and pixels are those of the boxes; nine pixels of each slice are labelled.
  assert table.height.tolist() == [16, 24, 16]
  assert table.pixels.sum(axis=1).tolist() == [16 * 20, 24 * 28, 16 * 20]
  assert table.pixels[:, 1:].sum(axis=1).tolist() == [9, 9, 9]
  with pytest.raises(InputError, match="scan"):
    foreground_boxes.crop_tables(other, [readers.slice_table(other, "train")], "scans", "mask")


def test_volumes_are_cropped_as_their_slices_are(tmp_path):
  layouts.write("hippocampus_t1w", tmp_path / "raw", subjects=4, seed=2, size=(32, 16, 32))
  found = []
  for name in ("left_right", "volumes"):
    builder = catalog.builder(f"hippocampus_t1w/{name}", data_dir=tmp_path / "data")
    builder.num_workers = 1
    builder.download_and_prepare(
      download_config=tfds.download.DownloadConfig(manual_dir=tmp_path / "raw")
    )
    opened = open_dataset(f"hippocampus_t1w/{name}", tmp_path / "data")
    (table,) = foreground_boxes.crop_tables(opened, [readers.slice_table(opened, "train")]).tables
    spec = readers.ExampleSpec(resizing=resizing.Resizing((32, 32), "pad"))
    loader = batches.open_loader(opened, table, spec)
    order = np.lexsort((table.slice_index, table.volume))
    loaded = [loader(tf.constant(row, tf.int64)) for row in order[:12]]
    found.append((
        table.boxes[order], table.pixels[order],
        np.stack([one["image"] for one in loaded]), np.stack([one["label"] for one in loaded]),
    ))  # fmt: skip
  for one, other in zip(*found, strict=True):
    np.testing.assert_array_equal(one, other)
  assert (found[0][0][:, 2:] < 32).any()
