"""Whether a run trains on patches of its slices, how large, how many a step: the only place.

A patch holds one structure and what lies around it, where a whole slice is mostly air and tissue
that a network knows after a hundred steps. The rule of `auto`:

- The foreground fills less than `_LARGEST_FOREGROUND` of the slices that hold any (median).
- The edge is `_STRUCTURES_WIDE` times the diameter of a disc of a structure's area, and at least
  `_BOTTLENECK` pixels of the deepest stage, so that something is left there to see.
- The patch is at most `_LARGEST_SHARE` of the slice; otherwise little would be gained.

A step takes so many patches that they have `_PIXELS_SHARE` of the pixels that a batch of whole
slices would have: less work a step, and so more steps a minute, although more structures.
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np

from flexunet.config import DataConfig
from flexunet.core.errors import InputError
from flexunet.network.architecture import ModelConfig
from flexunet.pipelines.record_table import RecordTable

FOREGROUND_SHARE = 0.5
_LARGEST_FOREGROUND = 0.05
_STRUCTURES_WIDE = 3.0
_BOTTLENECK = 4
_LARGEST_SHARE = 0.5
_PIXELS_SHARE = 0.5
_FEWEST = 8  # Patches a step: fewer hold too few structures for a batch's Dice.
_BATCH_MULTIPLE = 4  # So that several devices can share a batch.


def choose(model: ModelConfig, table: RecordTable) -> tuple[tuple[int, int] | None, str]:
  """Decides on patches by the rule of `auto`.

  Args:
    model: With its input size and stages.
    table: The training slices.

  Returns:
    ((height, width) of the patches; None: whole slices, why).
  """
  if model.image_size is None:
    raise ValueError("Patches are planned once the input size is.")
  if table.pixels is None or not len(table.foreground):
    return None, "whole slices: it is not listed how much foreground the slices hold"
  pixels = table.pixels[table.foreground]
  areas = pixels.sum(axis=1)
  share = float(np.median(pixels[:, 1:].sum(axis=1) / np.maximum(areas, 1)))
  filled = f"foreground fills {100 * share:.2g} % of a slice that holds some (median)"
  if share > _LARGEST_FOREGROUND:
    return None, f"whole slices: {filled}"
  frame, multiple = model.image_size, model.multiple
  diameter = _diameter(pixels, areas, math.prod(frame))
  wanted = max(_STRUCTURES_WIDE * diameter, _BOTTLENECK * multiple)
  edges = [min(math.ceil(wanted / multiple), -(-edge // multiple)) * multiple for edge in frame]
  size = (edges[0], edges[1])
  shown = "x".join(map(str, size))
  what = f"{filled}, structures are about {diameter:.0f} pixels wide"
  if math.prod(size) > _LARGEST_SHARE * math.prod(frame):
    return None, f"whole slices: {what}, and patches of {shown} would be hardly smaller"
  return size, f"{what}: the rest of a slice would teach little more"


def _diameter(pixels: np.ndarray, areas: np.ndarray, frame_area: int) -> float:
  """Returns that of a disc of the largest class's median area, in pixels of the frame."""
  widest = 0.0
  for column in range(1, pixels.shape[1]):
    rows = pixels[:, column] > 0
    if rows.any():
      # Slices are scaled down to the frame where they are larger, not up.
      scale = min(1.0, frame_area / max(1.0, float(np.median(areas[rows]))))
      widest = max(widest, float(np.median(pixels[rows, column])) * scale)
  return math.sqrt(4 * widest / math.pi)


def complete(
    model: ModelConfig, data: DataConfig, table: RecordTable
) -> tuple[DataConfig, dict[str, str]]:
  """Fills in the size of the patches and the share around foreground.

  Args:
    model: With its input size and stages.
    data: With "auto" and None where a choice is left open.
    table: The training slices.

  Returns:
    (the data config, a reason for each of the two).

  Raises:
    InputError: Patches whose size does not suit the network, or a share of patches where there are
      none.
  """
  size, why = data.patch_hw, "given"
  if data.patch_size == "auto":
    size, why = choose(model, table)
  share, share_why = data.patch_foreground_share, "given"
  if size:
    _check(model, size)
    if share is None:
      share, share_why = FOREGROUND_SHARE, "the others show what is no foreground"
  elif share:
    raise InputError(
        "--patch_foreground_share is of patches, but this run is to train on whole slices. Leave"
        " it out, or give the patches a size, e.g. --patch_size=96,96."
    )
  else:
    share, share_why = 0.0, "whole slices are trained on"
  text = ",".join(map(str, size)) if size else "none"
  chosen = dataclasses.replace(data, patch_size=text, patch_foreground_share=share)
  return chosen, {"patch_size": why, "patch_foreground_share": share_why}


def _check(model: ModelConfig, patch_hw: tuple[int, int]) -> None:
  """Raises InputError for patches that the network would have to pad at one side."""
  multiple = model.multiple
  if any(edge % multiple for edge in patch_hw):
    near = ",".join(str(max(1, round(edge / multiple)) * multiple) for edge in patch_hw)
    raise InputError(
        f"--patch_size must be multiples of {multiple} for {model.num_layers} stages. Got:"
        f" {','.join(map(str, patch_hw))}. Take {near}."
    )


def batch_size(whole: int, share_of_slice: float) -> tuple[int, str]:
  """Returns how many patches a step takes in the place of so many whole slices, and why.

  Args:
    whole: The slices.
    share_of_slice: Pixels of a patch, as a share of a slice's.
  """
  fitting = math.floor(_PIXELS_SHARE * whole / share_of_slice / _BATCH_MULTIPLE) * _BATCH_MULTIPLE
  count = max(_FEWEST, fitting)
  percent = 100 * count * share_of_slice / whole
  return count, f"about {percent:.0f} % of the pixels of {whole} slices, so that a step is short"
