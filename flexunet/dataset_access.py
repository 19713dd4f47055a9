"""A built dataset from Python: its volumes, and batches for networks of one's own."""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Iterator
from typing import Any

import tensorflow as tf

from flexunet import config
from flexunet.core.errors import unknown_name
from flexunet.evaluation import labelled_volumes
from flexunet.evaluation.labelled_volumes import LabelledVolume
from flexunet.pipelines import batches, dataset_source, order, readers
from flexunet.pipelines.augmentation import augment
from flexunet.pipelines.augmentation.config import AugmentationConfig
from flexunet.pipelines.dataset_source import DatasetSource
from flexunet.pipelines.resizing import Resizing

_KEYS = (
    "image_key", "label_key", "label_values", "subject_key", "volume_key", "slice_key",
    "spacing_key",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Dataset:
  """A built dataset, opened by `open_dataset`.

  Attributes:
    source: What the pipeline reads: features, build report, shards.
  """

  source: DatasetSource

  @property
  def name(self) -> str:
    """dataset/config/version."""
    return self.source.name

  @property
  def splits(self) -> dict[str, dict[str, int]]:
    """Split -> how many subjects, volumes and slices it has; 0 where unknown."""
    return dataset_source.split_counts(self.source)

  @property
  def class_names(self) -> list[str]:
    """Names by class id, background first."""
    return self.source.label_scheme().names

  @property
  def _image_and_label(self) -> tuple[str, str]:
    return self.source.keys.image, self.source.keys.label

  def volumes(self, split: str) -> Iterator[LabelledVolume]:
    """Yields the volumes of a split at native resolution, slices in order, one at a time."""
    return labelled_volumes.read_volumes(
        self.source, readers.slice_table(self.source, split), self._image_and_label
    )

  def batches(
      self,
      split: str = "train",
      *,
      image_size: int | tuple[int, int],
      batch_size: int = 8,
      resize_mode: str = "pad",
      image_channels: int | None = None,
      shuffle: bool = True,
      augmentation: str = "none",
      seed: int = 1,
      num_steps: int | None = None,
  ) -> tf.data.Dataset:
    """Returns a stream of batches {"image": uint8 [B, h, w, C], "label": uint8 [B, h, w], ...}.

    "record" is the row of the split's table, "valid" false where the last batch is filled up.

    Args:
      split: Name of the split.
      image_size: (height, width), or the edge of a square, to which slices are brought.
      batch_size: Slices per batch.
      resize_mode: "pad", "fit" or "stretch".
      image_channels: 3 repeats grey images; by default those that the dataset has.
      shuffle: Draws epochs in random order, whole batches only; otherwise every slice once, in the
        order of the records.
      augmentation: Preset, with `shuffle`: "none", "default", "strong", "contrast". Images are not
        mirrored.
      seed: Decides order and augmentation.
      num_steps: Batches of a shuffled stream; by default one epoch.
    """
    height, width = [image_size] * 2 if isinstance(image_size, int) else image_size
    image_key, label_key = self._image_and_label
    spec = readers.ExampleSpec(
        resizing=Resizing((height, width), resize_mode),
        image_channels=image_channels or len(self.source.channel_names),
        image_key=image_key,
        label_key=label_key,
    )
    table = readers.slice_table(self.source, split)
    batches.check_sizes(table, spec.resizing)
    loader = batches.open_loader(self.source, table, spec)
    if not shuffle:
      return batches.evaluation_batches(loader, batch_size)
    settings = AugmentationConfig(augmentation=augmentation).resolve(mirroring=False)
    separate = len(self.source.channel_names) > 1
    change = functools.partial(augment.augment_example, settings, separate_channels=separate)
    drawn = order.EpochOrder(num_records=loader.num_rows, batch_size=batch_size, seed=seed)
    return batches.training_batches(
        loader, drawn, num_steps=num_steps, augment=change if settings.enabled else None
    )


def open_dataset(
    dataset: str | None = None, data_dir: str | os.PathLike = ".", **keys: Any
) -> Dataset:
  """Opens a built dataset.

  Args:
    dataset: name[/config[/version]] below `data_dir`; None where that is the version folder.
    data_dir: Folder of built datasets, or the version folder of one.
    **keys: Features of a dataset built elsewhere, by the names of the flags: image_key, label_key,
      subject_key, volume_key, slice_key, spacing_key; and label_values, such as (0, 255).
  """
  if unknown := [name for name in keys if name not in _KEYS]:
    raise unknown_name("setting of open_dataset", unknown[0], _KEYS)
  values = tuple(str(value) for value in keys.pop("label_values", ()))
  named = config.DataConfig(label_values=values, **keys).feature_keys
  return Dataset(dataset_source.open_dataset(dataset, data_dir, named))
