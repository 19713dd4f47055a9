"""Figures of a built dataset: from its table, and from one pass over its records."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np

from flexunet.core import progress
from flexunet.core.errors import InputError
from flexunet.datasets.built_dataset import BuiltDataset
from flexunet.imaging.slice_recipe import SliceRecipe

SHEET_COLUMNS = 6


@dataclasses.dataclass(frozen=True)
class Sample:
  """One upright slice.

  Attributes:
    row: Its record's row of the table.
    image: uint8 [H, W] or [H, W, 3].
    label: uint8 [H, W].
    aspect: Height of a pixel over its width; 1 where unknown.
  """

  row: dict[str, str]
  image: np.ndarray
  label: np.ndarray
  aspect: float


@dataclasses.dataclass(frozen=True)
class Statistics:
  """What the report shows.

  Attributes:
    intensities: int64 [classes, 256], pixels of each class by 8-bit intensity.
    grey_totals: (split, subject) -> int64 [classes, 2], pixels and the sum of their intensities.
    sizes: (height, width) -> slices.
    spacing_mm: float64 [volumes, 2 or 3] of (row, column, slice); NaN where unknown.
    samples: Class name, "negative" or "unlabeled" -> slices of it.
  """

  intensities: np.ndarray
  grey_totals: dict[tuple[str, str], np.ndarray]
  sizes: dict[tuple[int, int], int]
  spacing_mm: np.ndarray
  samples: dict[str, list[Sample]]


def pixels(row: dict[str, str], names: list[str]) -> list[int]:
  """Returns how many pixels of a record each of the classes has."""
  return [int(row[f"pixels_{name}"]) for name in names]


def chosen_rows(dataset: BuiltDataset) -> dict[str, list[dict[str, str]]]:
  """Returns the rows for the contact sheets: class name, "negative" or "unlabeled" -> rows.

  Per class they are those with most of it, of as many subjects as there are.
  """
  names = dataset.scheme.names
  labelled = [row for row in dataset.rows if row["split"] != "unlabeled"]
  groups = {}
  for name in names[1:]:
    column = f"pixels_{name}"
    ranked = sorted((row for row in labelled if int(row[column])), key=lambda r: -int(r[column]))
    groups[name] = _spread(ranked)
  negative = [row for row in labelled if not any(pixels(row, names)[1:])]
  groups["negative"] = _spread(_from_the_middle(negative))
  unlabelled = [row for row in dataset.rows if row["split"] == "unlabeled"]
  groups["unlabeled"] = _spread(_from_the_middle(unlabelled))
  return {name: rows for name, rows in groups.items() if rows}


def _from_the_middle(rows: list[dict[str, str]]) -> list[dict[str, str]]:
  """Orders rows by how near they stand to the middle of their volume."""
  by_volume: dict[str, list[dict[str, str]]] = {}
  for row in rows:
    by_volume.setdefault(row["volume"], []).append(row)
  ranked = []
  for volume_rows in by_volume.values():
    volume_rows.sort(key=lambda row: int(row["slice_index"] or 0))
    middle = (len(volume_rows) - 1) / 2
    ranked += [(abs(n - middle), row["key"], row) for n, row in enumerate(volume_rows)]
  return [row for _, _, row in sorted(ranked, key=lambda entry: entry[:2])]


def _spread(ranked: list[dict[str, str]]) -> list[dict[str, str]]:
  """Takes the first of each subject, then the second of each, and so on."""
  by_subject: dict[str, list[dict[str, str]]] = {}
  for row in ranked:
    by_subject.setdefault(row["subject"], []).append(row)
  turns = max((len(rows) for rows in by_subject.values()), default=0)
  spread = [rows[turn] for turn in range(turns) for rows in by_subject.values() if turn < len(rows)]
  return spread[:SHEET_COLUMNS]


def gather(dataset: BuiltDataset, show_progress: bool = False) -> Statistics:
  """Returns the figures of a dataset; reads every record once.

  Args:
    dataset: A dataset of slices or of volumes.
    show_progress: Draws a bar on standard error.
  """
  num_classes = dataset.scheme.num_classes
  groups = chosen_rows(dataset)
  wanted = {row["key"] for rows in groups.values() for row in rows}
  intensities = np.zeros((num_classes, 256), np.int64)
  grey_totals: dict[tuple[str, str], np.ndarray] = {}
  sizes: dict[tuple[int, int], int] = {}
  spacing: dict[str, np.ndarray] = {}
  kept: dict[str, tuple[tuple[int, float], Sample]] = {}
  records = progress.bar(
      dataset.records(), total=len(dataset.rows), unit="record", disable=not show_progress,
      leave=False,
  )  # fmt: skip
  for row, example in records:
    spacing[row["volume"]] = _spacing(example)
    slices = list(_slices(dataset, example))
    for position, (image, label, aspect) in enumerate(slices):
      grey = image if image.ndim == 2 else image.mean(axis=-1).astype(np.uint8)
      if row["split"] != "unlabeled":
        joint = label.astype(np.int64).ravel() * 256 + grey.ravel()
        joint = joint[joint < num_classes * 256]  # Ignored pixels are of no class.
        counts = np.bincount(joint, minlength=num_classes * 256).reshape(num_classes, 256)
        intensities += counts
        own = grey_totals.setdefault(
            (row["split"], row["subject"]), np.zeros((num_classes, 2), np.int64)
        )
        own += np.stack([counts.sum(axis=1), counts @ np.arange(256)], axis=1)
      label = dataset.scheme.without_ignored(label)
      sizes[label.shape] = sizes.get(label.shape, 0) + 1
      if row["key"] in wanted:
        # A whole volume is shown by its slice with most foreground; without any, the middle one.
        rank = (int(np.count_nonzero(label)), -abs(position - len(slices) / 2))
        if row["key"] not in kept or rank > kept[row["key"]][0]:
          kept[row["key"]] = (rank, Sample(row, image, label, aspect))
  width = max((len(mm) for mm in spacing.values()), default=0)
  return Statistics(
      intensities=intensities,
      grey_totals=grey_totals,
      sizes=sizes,
      spacing_mm=np.array([mm for mm in spacing.values() if len(mm) == width]).reshape(-1, width),
      samples={name: [kept[row["key"]][1] for row in rows] for name, rows in groups.items()},
  )


def _spacing(example: dict[str, Any]) -> np.ndarray:
  mm = np.asarray(example["spacing_mm"], np.float64)
  if "slice_spacing_mm" in example:
    mm = np.append(mm, float(example["slice_spacing_mm"]))
  return mm


def _slices(
    dataset: BuiltDataset, example: dict[str, Any]
) -> Iterator[tuple[np.ndarray, np.ndarray, float]]:
  """Yields (image, label, pixel height over width) of each slice of a record."""
  image, label = np.asarray(example["image"]), np.asarray(example["label"])
  if "affine" not in example:
    mm = np.asarray(example["spacing_mm"], np.float64)
    aspect = float(mm[0] / mm[1]) if np.isfinite(mm).all() and (mm > 0).all() else 1.0
    yield (image[..., 0] if image.shape[-1] == 1 else image), label[..., 0], aspect
    return
  recipe = SliceRecipe.of_report(dataset.report)
  if recipe is None:
    raise InputError(f"{dataset.path}: build_report.json must state slice_plan and intensity.")
  cut = recipe.cut_record(example)
  row_mm, column_mm = cut.slices.spacing_mm
  aspect = row_mm / column_mm if np.isfinite([row_mm, column_mm]).all() else 1.0
  if cut.label is None:
    raise ValueError("A record of whole volumes has a label.")
  for k in range(cut.label.shape[-1]):
    yield cut.slices.pixels[..., k], cut.label[..., k], float(aspect)


def shows_progress() -> bool:
  """Returns whether someone watches: standard error is a terminal."""
  return sys.stderr.isatty()
