"""Rows of slices larger than the network's input become rows of tiles."""

import dataclasses

import dataset_samples
import numpy as np
import pytest

from flexunet.pipelines import batches, readers, tile_rows
from flexunet.pipelines.dataset_source import open_dataset
from flexunet.pipelines.resizing import Resizing


@pytest.fixture(scope="module")
def opened(tmp_path_factory):
  sizes = [(20, 30), (40, 70), (33, 16)]
  records = []
  for index, size in enumerate(sizes):
    image, label = dataset_samples.blob_slice(*size, seed=index)
    if index == 1:
      label[:] = 0
      label[3:9, 60:65], label[34:38, 2:7] = 1, 2
      image = np.array([10, 120, 240], np.uint8)[label]
    records.append({"image": image, "label": label, "subject": "a", "volume": "a_scan",
                    "slice_index": index})  # fmt: skip
  folder = dataset_samples.write_dataset(tmp_path_factory.mktemp("data"), {"train": records})
  source = open_dataset(None, folder)
  return source, readers.slice_table(source, "train"), records


def test_tiles_reach_from_end_to_end_and_count_their_own_pixels(opened):
  source, table, records = opened
  cut = tile_rows.cut_rows(source, table, (32, 32))
  assert cut.boxes.tolist() == [
      [0, 0, 20, 30],
      [0, 0, 32, 32], [0, 19, 32, 32], [0, 38, 32, 32],
      [8, 0, 32, 32], [8, 19, 32, 32], [8, 38, 32, 32],
      [0, 0, 32, 16], [1, 0, 32, 16],
  ]  # fmt: skip
  assert cut.slice_index.tolist() == [0, *[1] * 6, 2, 2]
  for row, (top, left, height, width) in enumerate(cut.boxes):
    label = records[cut.slice_index[row]]["label"][top : top + height, left : left + width]
    assert cut.pixels[row].tolist() == np.bincount(label.ravel(), minlength=3).tolist()
    assert (cut.height[row], cut.width[row]) == (height, width)


def test_examples_are_the_tiles_with_image_on_label(opened):
  source, table, records = opened
  cut = tile_rows.cut_rows(source, table, (32, 32))
  loader = batches.open_loader(source, cut, readers.ExampleSpec(resizing=Resizing((32, 32), "pad")))
  example = loader(np.int64(6))
  assert np.array_equal(example["label"], records[1]["label"][8:, 38:])
  assert np.array_equal(example["image"][..., 0], records[1]["image"][8:, 38:])


def test_neighbours_of_a_tile_are_the_same_part_of_other_slices(opened):
  source, table, _ = opened
  cut = tile_rows.cut_rows(source, table.take(np.array([1, 1, 1])), (32, 32))
  cut = dataclasses.replace(cut, slice_index=np.repeat(np.arange(3, dtype=np.int32), 6))
  rows = readers.neighbour_rows(cut, 1)
  assert (cut.slice_index[rows[6:12]] == [0, 1, 2]).all()
  assert (cut.slice_index[rows[:6]] == [0, 0, 1]).all()


def test_boxes_are_cut_within_and_a_table_that_fits_stays_as_it_is(opened):
  source, table, _ = opened
  assert tile_rows.cut_rows(source, table, (40, 70)) is table
  boxes = np.array([[0, 0, 20, 30], [4, 10, 20, 50], [0, 0, 33, 16]], np.int32)
  boxed = dataclasses.replace(table, boxes=boxes, height=boxes[:, 2], width=boxes[:, 3])
  cut = tile_rows.cut_rows(source, boxed, (40, 40))
  assert cut.boxes.tolist() == [
      [0, 0, 20, 30], [4, 10, 20, 40], [4, 20, 20, 40], [0, 0, 33, 16]
  ]  # fmt: skip
