"""What publishing must know of the records themselves: texts in them, and faces in the scans."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np

from flexunet.core import progress
from flexunet.datasets.builder import subject_names
from flexunet.datasets.built_dataset import BuiltDataset
from flexunet.imaging.channels import channel_suffixes
from flexunet.imaging.slice_recipe import SliceRecipe
from flexunet.imaging.slicing import SlicePlan
from flexunet.tools.publish import faces

_LONGEST_WORD = 40
_UNKNOWN_MM = (float("nan"),) * 3


@dataclasses.dataclass(frozen=True)
class Contents:
  """What one pass over the records found.

  Attributes:
    faces: {word of `faces`: volumes of which it is said, a channel after a slash}.
    free_text: {feature: an example of what no code would say}.
  """

  faces: dict[str, list[str]]
  free_text: dict[str, str]


def gather(dataset: BuiltDataset, show_progress: bool = False) -> Contents:
  """Reads all records, one volume at a time.

  Raises:
    InputError: A record is damaged.
  """
  seen: dict[str, list[str]] = collections.defaultdict(list)
  texts: dict[str, str] = {}
  volumes = _rows_by_volume(dataset)
  bar = progress.bar(volumes.items(), unit=" volume", disable=not show_progress, leave=False)
  for name, rows in bar:
    examples = [dataset.decode(dataset.payload(row)) for row in rows]
    for example in examples:
      texts |= _free_text(example)
    for channel, scan in enumerate(_scans(dataset, rows, examples)):
      title = name if not channel else f"{name}/{dataset.channel_names[channel]}"
      seen[faces.judge(*scan)].append(title)
  return Contents(dict(seen), texts)


def _rows_by_volume(dataset: BuiltDataset) -> dict[str, list[dict[str, str]]]:
  """Returns the rows of each volume by slice; images that belong to none stand together."""
  volumes: dict[str, list[dict[str, str]]] = collections.defaultdict(list)
  for row in dataset.rows:
    volumes[row["volume"] or row["key"]].append(row)
  for rows in volumes.values():
    rows.sort(key=lambda row: int(row["slice_index"] or 0))
  return dict(volumes)


def _scans(
    dataset: BuiltDataset, rows: list[dict[str, str]], examples: list[dict[str, Any]]
) -> Iterator[tuple[np.ndarray, str | None, tuple[float, float, float]]]:
  """Yields of each channel what `faces.judge` takes."""
  plan = dataset.report.get("slice_plan")
  axes = SlicePlan(**plan).display_axes if plan else None
  if "affine" in examples[0]:
    recipe = SliceRecipe.of_report(dataset.report)
    if recipe is None:
      return
    cut = recipe.cut_record(examples[0])
    mm = (*cut.slices.spacing_mm, cut.slices.slice_spacing_mm)
    for pixels in (cut.slices.pixels, *cut.others):
      yield np.moveaxis(pixels, 2, 0), axes, mm
    return
  indices = [int(row["slice_index"] or -1) for row in rows]
  in_order = min(indices) >= 0 and len(set(indices)) == len(indices)
  spacing = _spacing(examples[0]) if in_order else _UNKNOWN_MM
  for suffix in channel_suffixes(len(dataset.channel_names)):
    images = [_grey(np.asarray(example[f"image{suffix}"])) for example in examples]
    if len({image.shape for image in images}) > 1:  # Images of several sizes are no volume.
      spacing = _UNKNOWN_MM
      images = [image for image in images if image.shape == images[len(images) // 2].shape]
    elif in_order:
      images = _without_gaps(images, indices)
    yield np.stack(images), axes, spacing


def _without_gaps(images: list[np.ndarray], indices: list[int]) -> list[np.ndarray]:
  """Returns a slice for each index from the first to the last; a missing one is the one below."""
  wanted = np.arange(indices[0], indices[-1] + 1)
  below = np.searchsorted(indices, wanted, side="right") - 1
  return [images[place] for place in below]


def _spacing(example: dict[str, Any]) -> tuple[float, float, float]:
  row, column = (float(mm) for mm in np.asarray(example["spacing_mm"]).ravel()[:2])
  return row, column, float(example["slice_spacing_mm"])


def _grey(image: np.ndarray) -> np.ndarray:
  if image.shape[-1] == 1:
    return image[..., 0]
  return image.mean(axis=-1).astype(np.uint8)


def _free_text(example: dict[str, Any]) -> dict[str, str]:
  """Returns {feature: text} of what is longer than a code, holds a blank, or a date."""
  return {
      name: value
      for name, value in example.items()
      if isinstance(value, str)
      and (" " in value.strip() or len(value) > _LONGEST_WORD or subject_names.has_date(value))
  }
