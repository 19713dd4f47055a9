"""How bright each class is in each subject, and who lies outside of what training shows.

A network cannot know tissue in a brightness that no training subject has: pictures that were
exported by different hands differ so, and their Dice on such subjects is near 0.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from flexunet.datasets.built_dataset import BuiltDataset
from flexunet.reporting import html_parts

# (split, subject) -> int64 [classes, 2]: pixels, and the sum of their 8-bit intensities.
Totals = Mapping[tuple[str, str], np.ndarray]
_TRAINING = "train"
_FEWEST_SUBJECTS = 3  # Of fewer, the range says nothing.
_FEWEST_PIXELS = 20
_LEAST_MARGIN = 25.0  # A tenth of 8 bits: volumes with windows of their own differ by less.
_NAMED = 5
_SHOWN = 500


def means(totals: np.ndarray) -> np.ndarray:
  """Returns the mean intensity of each class of a subject, float64 [classes].

  NaN where it has fewer than 20 pixels of a class.
  """
  pixels, sums = totals.T
  return np.where(pixels >= _FEWEST_PIXELS, sums / np.maximum(pixels, 1), np.nan)


def outside_of_training(dataset: BuiltDataset, totals: Totals) -> list[str]:
  """Returns a sentence for each split and class with subjects unlike those of training.

  That is a mean intensity below the least or above the greatest of the training subjects by more
  than their standard deviation and more than 25 of 255.

  Args:
    dataset: Names its splits and classes.
    totals: From one pass over the records.
  """
  found = []
  seen = {key: means(one) for key, one in totals.items()}
  splits = [name for name in dataset.splits if name not in (_TRAINING, "unlabeled")]
  for label, name in list(enumerate(dataset.scheme.names))[1:]:
    known = _of_split(seen, _TRAINING, label)
    if len(known) < _FEWEST_SUBJECTS:
      continue
    values = np.array(list(known.values()))
    margin, least, most = max(_LEAST_MARGIN, values.std()), values.min(), values.max()
    for split in splits:
      here = _of_split(seen, split, label)
      far = {
          subject: mean
          for subject, mean in here.items()
          if mean < least - margin or mean > most + margin
      }
      if far:
        named = ", ".join(f"{subject} ({mean:.0f})" for subject, mean in list(far.items())[:_NAMED])
        more = f" and {len(far) - _NAMED} more" if len(far) > _NAMED else ""
        found.append(
            f"{split}: {name} is darker or brighter in {len(far)} of {len(here)} subjects than in"
            f" any of training, where its mean intensity is {least:.0f} to {most:.0f}:"
            f" {named}{more}. The network will not have seen such pictures."
        )
  return found


def section(dataset: BuiltDataset, totals: Totals) -> str:
  """Returns a table of the mean intensity of each class in each labelled subject, as HTML."""
  seen = {key: means(one) for key, one in sorted(totals.items(), key=lambda item: item[0][1])}
  shown = [
      label
      for label in range(1, dataset.scheme.num_classes)
      if any(np.isfinite(values[label]) for values in seen.values())
  ]
  rows = [
      [
          html_parts.text(subject), html_parts.text(split),
          *(html_parts.number(values[label], 0) for label in shown),
      ]
      for wanted in dataset.splits
      for (split, subject), values in seen.items()
      if split == wanted
  ][:_SHOWN]  # fmt: skip
  if not shown or not rows:
    return ""
  names = [html_parts.words(dataset.scheme.names[label]) for label in shown]
  table = html_parts.table(["Subject", "Split", *names], rows, texts=(0, 1))
  more = f", the first {_SHOWN}" if len(seen) > _SHOWN else ""
  return (
      f"<details><summary>Mean intensity of each class, 0 to 255{more}</summary>{table}</details>"
  )


def _of_split(
    seen: Mapping[tuple[str, str], np.ndarray], split: str, label: int
) -> dict[str, float]:
  """Returns subject -> mean intensity of a class, of the subjects that have it."""
  return {
      subject: float(values[label])
      for (own, subject), values in seen.items()
      if own == split and np.isfinite(values[label])
  }
