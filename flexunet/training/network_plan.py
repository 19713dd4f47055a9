"""The network that suits the slices and the device: stages, width, input size, batch size."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from flexunet import config
from flexunet.network import inspection, knobs
from flexunet.pipelines.record_table import RecordTable

# Above this edge a slice is scaled down: on a CPU a step at 512x512 takes over a second.
_LARGEST_EDGE = {"cpu": 256, "gpu": 512}
_BATCH_SIZE = 8
_SMALLEST_BOTTLENECK = 4  # Pixels along the shorter edge; fewer hold no shape.
# Besides the estimate: work space of convolutions, the framework itself, other programs.
_MEMORY_SHARE = 0.6
_FROM_START = ("base_filters", "base_kernels", "num_layers", "normalization")


@dataclasses.dataclass(frozen=True)
class Facts:
  """What planning knows of the data and the machine.

  Attributes:
    train, validation: Records of the two splits.
    class_names: Of the dataset, background first.
    device: "cpu" or "gpu".
    cpu_cores: That training may use.
    memory_bytes: Free memory of the device; None where unknown.
    spacing_mm: Median (row, column) spacing of the slices; None where unknown.
    plane: Of the slices; None for pictures.
    start: The network that training starts from, if any.
    one_sided: Classes that are labelled on one side of the picture in every subject.
  """

  train: RecordTable
  validation: RecordTable
  class_names: Sequence[str]
  device: str = "cpu"
  cpu_cores: int = 1
  memory_bytes: int | None = None
  spacing_mm: Sequence[float] | None = None
  plane: str | None = None
  start: knobs.Knobs | None = None
  one_sided: Sequence[str] = ()


class Choices:
  """Configs in the making: `choose` fills in a field that is None and notes why."""

  def __init__(self, **parts):
    self.parts = parts
    self.reasons: dict[str, str] = {}

  def choose(self, part: str, name: str, value: Any, why: str) -> None:
    if getattr(self.parts[part], name) is not None:
      self.reasons.setdefault(name, "given")
      return
    self.reasons[name] = why
    self.parts[part] = dataclasses.replace(self.parts[part], **{name: value})


def plan_network(made: Choices, facts: Facts) -> None:
  device = facts.device
  made.choose(
      "model", "num_classes", len(facts.class_names), "classes of the dataset, background included"
  )
  if facts.start is not None:
    for name in _FROM_START:
      made.choose("model", name, getattr(facts.start, name), "as in the network to start from")
  layers, why = _num_layers(made.parts["model"], facts)
  made.choose("model", "num_layers", layers, why)
  made.choose(
      "model", "base_filters", 16 if device == "cpu" else 32, f"affordable on a {device}"
  )
  made.choose("model", "base_kernels", 3, "the usual small kernel; others were not compared")
  made.choose("model", "dropout_rate", 0.02, "light: patients, not pixels, are scarce")
  made.choose("model", "normalization", "batch", "usual for batches; others were not compared")
  _plan_size(made, facts)


def _largest_slice(facts: Facts) -> tuple[int, int] | None:
  heights = np.concatenate([facts.train.height, facts.validation.height])
  widths = np.concatenate([facts.train.width, facts.validation.width])
  known = len(heights) and heights.max() > 0
  return (int(heights.max()), int(widths.max())) if known else None


def _num_layers(model: config.ModelConfig, facts: Facts) -> tuple[int, str]:
  largest = _LARGEST_EDGE[facts.device]
  height, width = model.image_size or _largest_slice(facts) or (largest, largest)
  scale = 1.0 if model.image_size else min(1.0, largest / max(height, width))
  edge = scale * min(height, width)
  layers = 1 + int(math.log2(max(1.0, edge / _SMALLEST_BOTTLENECK)))
  if layers < 5:
    return max(2, layers), f"more stages would leave nothing of an edge of {round(edge)} pixels"
  shape = dataclasses.replace(
      knobs.Knobs(base_kernels=model.base_kernels or 3, dilation=model.dilation, num_layers=5),
      dropout_rate=0.0,
  )
  seen = inspection.receptive_fields(shape)[0].decoder
  return 5, f"five stages see {seen} pixels around each pixel"


def _plan_size(made: Choices, facts: Facts) -> None:
  multiple = 2 ** (made.parts["model"].num_layers - 1)
  largest = _LARGEST_EDGE[facts.device]
  height, width = _largest_slice(facts) or (largest, largest)
  known = _largest_slice(facts) is not None
  # Sizes in the table are then those of the boxes.
  cropped = " cropped to its foreground" if facts.train.boxes is not None else ""
  if known and max(height, width) <= largest:
    size = tuple(math.ceil(edge / multiple) * multiple for edge in (height, width))
    why = f"holds the largest slice{cropped}, {height}x{width}, as it is; multiple of {multiple}"
  else:
    scale = largest / max(height, width)
    size = tuple(math.ceil(edge * scale / multiple) * multiple for edge in (height, width))
    why = f"slices{cropped} up to {height}x{width}, scaled to at most {largest}"
    why += f" (affordable on a {facts.device})"
    if facts.spacing_mm is not None and known:
      coarse = max(facts.spacing_mm)
      why += f", a pixel of {coarse:.2f} mm becoming {coarse / scale:.2f}"
  made.choose("model", "image_size", size, why)
  image_size = made.parts["model"].image_size
  holds = known and height <= image_size[0] and width <= image_size[1]
  made.choose(
      "data", "resize_mode", "pad" if holds else "fit",
      "every slice fits as it is" if holds else "slices are larger than the input; aspect kept",
  )


def plan_batch(made: Choices, facts: Facts) -> None:
  shape = knobs.Knobs(**dataclasses.asdict(made.parts["model"]))
  size, why = _BATCH_SIZE, "smooth gradients at an affordable step"
  if facts.memory_bytes is not None:
    while size > 1 and inspection.training_bytes(shape, size) > _MEMORY_SHARE * facts.memory_bytes:
      size //= 2
    if size < _BATCH_SIZE:
      needed, there = inspection.training_bytes(shape, 2 * size) / 1e9, facts.memory_bytes / 1e9
      why = f"{2 * size} would need about {needed:.1f} GB, and {there:.1f} GB are free"
  made.choose("training", "batch_size", size, why)


def memory_warning(
    model: config.ModelConfig,
    training: config.TrainingConfig,
    memory_bytes: int | None,
    num_sharing: int = 1,
) -> str | None:
  """Returns a line for the user when a training step is estimated to need more than is free.

  A CPU's kernel ends a process that runs out of memory without a word, so it is said before.

  Args:
    model, training: Complete.
    memory_bytes: Free on each device; None where unknown.
    num_sharing: Devices that share a batch.
  """
  shape = knobs.Knobs(**dataclasses.asdict(model))
  number = 2 if training.precision.startswith("mixed") else 4

  def needed(batch_size: int) -> int:
    share = math.ceil(batch_size / num_sharing)
    return inspection.training_bytes(shape, share, bytes_per_number=number)

  size = training.batch_size
  if memory_bytes is None or needed(size) <= memory_bytes:
    return None
  fits = next((n for n in range(size - 1, 0, -1) if needed(n) <= memory_bytes), None)
  would = f"{fits} would fit" if fits else "not even 1 would fit"
  return (
      f"Warning: a training step needs about {needed(size) / 1e9:.1f} GB by the estimate of"
      f" flexunet.tools.inspect_model, but {memory_bytes / 1e9:.1f} GB are free: the system may end"
      f" the run without a word. Lower --batch_size (now {size}; {would}), --image_size (now"
      f" {','.join(map(str, model.image_size))}) or --base_filters (now {model.base_filters})."
  )
