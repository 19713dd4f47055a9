"""Whether a run trains on patches of its slices, how large, how many a step: the only place.

A step on patches sees more slices, of more subjects, for the same work. That helps small structures
most, but whole-brain tissues as well (see `flexunet/presets/README.md`). The rule of `auto`:

- The edge is `_EDGE` pixels, or `_SHARE_OF_EDGE` of the longer edge of the input where that is
  more, and at least `_BOTTLENECK` pixels of the deepest stage, so that something is left there.
- Where each image is standardized by its own pixels, whole slices: those of a patch are others.
- The patch is at most `_LARGEST_SHARE` of the slice; otherwise little would be gained.

A step takes so many patches that they have `_STEP_PIXELS` pixels.
"""

from __future__ import annotations

import dataclasses
import math

from flexunet.config import DataConfig
from flexunet.core.errors import InputError
from flexunet.network.architecture import ModelConfig
from flexunet.pipelines.record_table import RecordTable

FOREGROUND_SHARE = 0.5
_EDGE = 64
_SHARE_OF_EDGE = 0.25
_BOTTLENECK = 2
_LARGEST_SHARE = 0.5
_STEP_PIXELS = 32 * 64 * 64
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
  if model.input_normalization == "per_image":
    return None, "whole slices: each is standardized by its own pixels, and a patch has others"
  frame, multiple = model.image_size, model.multiple
  wanted = max(_EDGE, _SHARE_OF_EDGE * max(frame), _BOTTLENECK * multiple)
  edges = [min(math.ceil(wanted / multiple), -(-edge // multiple)) * multiple for edge in frame]
  size = (edges[0], edges[1])
  shown = "x".join(map(str, size))
  if math.prod(size) > _LARGEST_SHARE * math.prod(frame):
    return None, f"whole slices: patches of {shown} would be hardly smaller"
  return size, "more slices of more subjects in a step of the same work"


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
  if size and model.input_normalization == "per_image":
    raise InputError(
        "--patch_size needs --input_normalization=unit: per_image standardizes by the pixels that"
        " the network is given, those of a patch in training and of a whole slice later. Leave one"
        " of the two out."
    )
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


def batch_size(patch_hw: tuple[int, int]) -> tuple[int, str]:
  """Returns how many patches a step takes, and why."""
  fitting = _STEP_PIXELS // math.prod(patch_hw) // _BATCH_MULTIPLE * _BATCH_MULTIPLE
  return max(_FEWEST, fitting), "the same pixels a step, whatever the size of the patches"
