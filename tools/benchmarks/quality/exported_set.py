"""A built dataset as systems beside ours get it: a file per case, and the list of the cases.

The images are those that our network sees, 8 bits, upright; the splits are ours; labels of the test
split stay here. Classes of which the training split has no pixel are left out and the others
numbered anew, as a user of these systems would: a network finds a few pixels of what nothing has
taught it. `peer_task` describes the form.
"""

from __future__ import annotations

import dataclasses
import json
import pathlib
import shutil
from typing import Any

import numpy as np

from flexunet.core import files
from flexunet.core.errors import InputError
from flexunet.evaluation import labelled_volumes
from flexunet.evaluation.labelled_volumes import LabelledVolume
from flexunet.pipelines import laterality, readers
from flexunet.pipelines.dataset_source import DatasetSource
from flexunet.pipelines.record_table import RecordTable
from flexunet.tools.benchmarks.quality.jobs import SPLITS

# Of the cases and their list; raised whenever these change, so that earlier ones are not taken.
FORM = 2
_LIST = "set.json"


@dataclasses.dataclass(frozen=True, eq=False)
class TestVolume:
  """A volume of the test split.

  Attributes:
    volume: Truth and images.
    files: The cases that hold its slices, in order: one, or one per slice.
  """

  volume: LabelledVolume
  files: list[str]


def read_test_volumes(source: DatasetSource) -> list[TestVolume]:
  """Returns the volumes of the test split, in the order and with the files of `export`."""
  separate = not _is_of_volumes(source)
  found, number = [], 0
  for volume in _volumes(source, "test"):
    count = len(volume.labels) if separate else 1
    found.append(TestVolume(volume, [_file("test", number + n) for n in range(count)]))
    number += count
  if not found:
    raise InputError(f"{source.name} must have a test split with labels.")
  return found


def export(source: DatasetSource, folder: pathlib.Path) -> None:
  """Writes the cases of a dataset; a folder with a list is complete and stays as it is.

  Args:
    source: The opened dataset.
    folder: Made where it is missing.

  Raises:
    InputError: The dataset has pixels that are not counted, which not every system can leave out.
  """
  if (folder / _LIST).is_file():
    return
  if source.ignores:
    raise InputError(
        f"{source.name} has ignored pixels, which systems other than flexunet would learn as"
        " background. Compare on a dataset without."
    )
  shutil.rmtree(folder, ignore_errors=True)
  folder.mkdir(parents=True)
  separate = not _is_of_volumes(source)
  names = source.label_scheme(source.keys.label).names
  kept = _learnt_classes(source)
  renumbered = np.zeros(256, np.uint8)
  renumbered[kept] = np.arange(len(kept))
  cases: list[dict[str, Any]] = []
  for split in SPLITS:
    first = len(cases)
    for volume in _volumes(source, split):
      for part in _parts(volume, separate):
        name = _file(split, len(cases) - first)
        cases.append({
            "file": name,
            "split": split,
            "subject": volume.subject,
            "spacing_mm": _known([volume.slice_spacing_mm, *volume.spacing_mm]),
        })
        arrays: dict[str, Any] = {"image": np.moveaxis(np.stack(volume.images[part]), -1, 0)}
        if split != "test":
          arrays["label"] = renumbered[np.stack(volume.labels[part])]
        np.savez(folder / name, **arrays)
  files.write_json(folder / _LIST, {
      "name": source.name,
      "classes": [names[number] for number in kept],
      "class_ids": kept,
      "channels": _channels(source, arrays["image"].shape[0]),
      "dimensions": 2 if separate else 3,
      "mirroring": _may_be_mirrored(source, names),
      "cases": cases,
  })  # fmt: skip


def class_ids(folder: pathlib.Path) -> list[int]:
  """Returns our id of each class of an exported set, by its id there."""
  return list(json.loads((folder / _LIST).read_text(encoding="utf-8"))["class_ids"])


def dimensions_of(folder: pathlib.Path) -> int:
  """Returns 3 where the cases of an exported set are volumes, 2 where they are images."""
  return int(json.loads((folder / _LIST).read_text(encoding="utf-8"))["dimensions"])


def _file(split: str, number: int) -> str:
  return f"{split}_{number:05}.npz"


def _volumes(source: DatasetSource, split: str) -> Any:
  keys = (source.keys.image, source.keys.label)
  return labelled_volumes.read_volumes(source, readers.slice_table(source, split), keys)


def _learnt_classes(source: DatasetSource) -> list[int]:
  """Returns the ids of the background and of the classes with a pixel in the training split."""
  found = {0}
  for volume in _volumes(source, "train"):
    for label in volume.labels:
      found.update(np.unique(label).tolist())
  return sorted(found)


def _is_of_volumes(source: DatasetSource) -> bool:
  """Returns whether each volume of each split has all its slices, in one size, and several."""
  return all(_is_solid(readers.slice_table(source, split)) for split in SPLITS)


def _is_solid(table: RecordTable) -> bool:
  rows, names = labelled_volumes.volume_order(table)
  by_volume: dict[tuple[str, str], list[int]] = {}
  for row, name in zip(rows.tolist(), names, strict=True):
    by_volume.setdefault(name, []).append(row)
  for own in by_volume.values():
    sizes = set(zip(table.height[own].tolist(), table.width[own].tolist(), strict=True))
    if len(own) < 2 or len(sizes) > 1 or set(np.diff(table.slice_index[own]).tolist()) != {1}:
      return False
  return True


def _channels(source: DatasetSource, count: int) -> list[str]:
  names = list(source.channel_names)
  return names if len(names) == count else [f"{names[0]}_{n}" for n in range(count)]


def _parts(volume: LabelledVolume, separate: bool) -> list[slice]:
  if not separate:
    return [slice(None)]
  return [slice(place, place + 1) for place in range(len(volume.labels))]


def _known(spacing_mm: list[float]) -> list[float | None]:
  return [float(value) if np.isfinite(value) else None for value in spacing_mm]


def _may_be_mirrored(source: DatasetSource, names: list[str]) -> bool:
  table = readers.slice_table(source, "train")
  return laterality.decide_for(
      source, table, names, image_key=source.keys.image, label_key=source.keys.label
  ).mirroring
