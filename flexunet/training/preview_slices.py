"""Which validation slices are drawn after each validation, whole as prediction sees them."""

from __future__ import annotations

import dataclasses

import numpy as np
import tensorflow as tf

from flexunet import config
from flexunet.pipelines import batches, readers, resizing
from flexunet.pipelines.record_table import RecordTable
from flexunet.training import input_pipeline


@dataclasses.dataclass(frozen=True, eq=False)
class PreviewSlice:
  """A validation slice that is drawn after each validation.

  Attributes:
    image: uint8 [h, w, channels].
    label: Class ids, uint8 [h, w].
    slice_index: Its position in the volume; below 0 where that is not known.
  """

  image: np.ndarray
  label: np.ndarray
  slice_index: int


def choose(
    run_config: config.RunConfig, opened: input_pipeline.TrainingData, count: int
) -> list[PreviewSlice]:
  """Returns validation slices of different subjects, those with most foreground first.

  Returns:
    At most `count`, of the size of the network's input; whole and larger where training takes them
    in tiles.
  """
  table = _whole_slices(opened)
  amount = table.pixels[:, 1:].sum(axis=1) if table.pixels is not None else np.zeros(len(table))
  ranked = np.argsort(-amount, kind="stable")
  # One slice per subject, then second ones, so that a few subjects cannot fill the sheet.
  seen: dict[str, int] = {}
  turns = []
  for row in ranked:
    turns.append(seen.get(table.subject[row], 0))
    seen[table.subject[row]] = turns[-1] + 1
  rows = ranked[np.argsort(np.array(turns), kind="stable")][: min(count, len(table))]
  spec = input_pipeline.example_spec(run_config)
  frames = [spec.resizing] * len(rows)
  if opened.whole_validation is not None:
    least_h, least_w = spec.resizing.image_size
    sizes = zip(table.height[rows].tolist(), table.width[rows].tolist(), strict=True)
    frames = [
        resizing.Resizing((max(least_h, height), max(least_w, width)), "pad")
        for height, width in sizes
    ]
  found = []
  for row, frame in zip(rows, frames, strict=True):
    # Of the whole table, in which a slice has its neighbours.
    own = dataclasses.replace(spec, resizing=frame)
    example = batches.open_loader(opened.source, table, own)(tf.constant(row, tf.int64))
    image = readers.to_channels(example["image"], spec.image_channels)
    label = run_config.dataset_facts.label_scheme.without_ignored(example["label"].numpy())
    found.append(PreviewSlice(image.numpy(), label, int(table.slice_index[row])))
  return found


def _whole_slices(opened: input_pipeline.TrainingData) -> RecordTable:
  """Returns the validation slices, each once, without those that were left out as unreadable."""
  whole = opened.whole_validation
  if whole is None:
    return opened.validation

  def names(table: RecordTable) -> list[tuple[int, int, int]]:
    return list(zip(table.shard, table.offset, table.slice_index, strict=True))

  kept = set(names(opened.validation))
  return whole.take(np.array([i for i, name in enumerate(names(whole)) if name in kept], np.int64))
