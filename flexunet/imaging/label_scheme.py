"""What the ids of a label mean: class names and colours, in one place.

A label is uint8; its values are positions in `LabelScheme.classes`, and 0 is background. Pixels
that neither loss nor scores count are `IGNORED`, where the scheme says that there are some. Colours
are RGB, 0..255. They serve the eye only: nothing is trained on them.
"""

from __future__ import annotations

import colorsys
import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from flexunet.core.errors import InputError

_MAX_CLASSES = 256  # A label is uint8.
IGNORED = 255
_IGNORED_NAME, _IGNORED_COLOR = "ignore", (128, 128, 128)


@dataclasses.dataclass(frozen=True)
class LabelClass:
  """One class: its name (snake_case) and its display colour (red, green, blue)."""

  name: str
  color: tuple[int, int, int]

  def __post_init__(self):
    color = tuple(int(channel) for channel in self.color)
    if len(color) != 3 or not all(0 <= channel <= 255 for channel in color):
      raise InputError(f"Class {self.name!r}: a colour is three numbers 0..255, got {self.color}.")
    object.__setattr__(self, "color", color)


@dataclasses.dataclass(frozen=True)
class LabelScheme:
  """The classes of a dataset, in the order of their ids.

  Attributes:
    classes: The first one is the background.
    named: Whether the names come from the dataset. Made-up ones, class_1 and class_2, mean nothing.
    ignores: Whether labels hold pixels that are not counted, as `IGNORED`.
  """

  classes: tuple[LabelClass, ...]
  named: bool = True
  ignores: bool = False

  def __post_init__(self):
    object.__setattr__(self, "classes", tuple(self.classes))
    names = self.names
    if self.ignores and (len(names) > IGNORED or _IGNORED_NAME in names):
      raise InputError(
          f"With an ignored label there are at most {IGNORED} classes, none called"
          f" {_IGNORED_NAME!r}. Got {len(names)}: {names[:8]}."
      )
    if not 2 <= len(names) <= _MAX_CLASSES:
      raise InputError(
          f"A label scheme needs the background and 1 to {_MAX_CLASSES - 1} classes, got {names}."
      )
    if repeated := sorted({name for name in names if names.count(name) > 1}):
      raise InputError(f"Class names must differ. Repeated: {repeated}.")

  @property
  def names(self) -> list[str]:
    """Names of the classes."""
    return [label_class.name for label_class in self.classes]

  @property
  def palette(self) -> np.ndarray:
    """uint8 [classes, 3]."""
    return np.array([label_class.color for label_class in self.classes], np.uint8)

  @property
  def num_classes(self) -> int:
    """Number of classes, the background included."""
    return len(self.classes)

  def colorize(self, label: np.ndarray) -> np.ndarray:
    """Paints label ids [H, W] with the palette, ignored pixels grey: uint8 [H, W, 3]."""
    label = np.asarray(label)
    if self.ignores:
      painted = self.palette[self.without_ignored(label)]
      painted[label == IGNORED] = _IGNORED_COLOR
      return painted
    if label.size and (label.min() < 0 or label.max() >= self.num_classes):
      raise ValueError(
          f"Label ids must lie in 0..{self.num_classes - 1}, got {label.min()}..{label.max()}."
      )
    return self.palette[label]

  def without_ignored(self, label: np.ndarray) -> np.ndarray:
    """Returns a label of any shape whose ignored pixels are background; of others, itself."""
    return np.where(label == IGNORED, 0, label).astype(label.dtype) if self.ignores else label

  def count(self, label: np.ndarray) -> np.ndarray:
    """Returns the pixels of each class, int64 [classes], ignored ones left out.

    Ids beyond the classes, where there are some, are counted behind them.
    """
    ids = np.asarray(label).ravel()
    if self.ignores:
      ids = ids[ids != IGNORED]
    return np.bincount(ids, minlength=self.num_classes)

  def decode(self, rgb: np.ndarray) -> tuple[np.ndarray, float]:
    """Returns the class of the nearest palette colour of each pixel, and how many were off.

    Masks that were resized with interpolation hold in-between colours, hence nearest.

    Args:
      rgb: uint8 [H, W, 3].

    Returns:
      label: uint8 [H, W]; of two equally near classes the lower id wins.
      off_palette_share: Share of pixels, 0..1, whose colour is no palette colour exactly.
    """
    rgb = np.asarray(rgb)
    if rgb.ndim != 3 or rgb.shape[-1] != 3 or rgb.dtype != np.uint8:
      raise ValueError(f"A colour mask is uint8 [H, W, 3], got {rgb.dtype} {rgb.shape}.")
    if not rgb.size:
      return np.zeros(rgb.shape[:2], np.uint8), 0.0
    # One number a colour: a mask of a million pixels holds a few hundred colours at most.
    packed = rgb.astype(np.uint32) @ np.array([1 << 16, 1 << 8, 1], np.uint32)
    colors, inverse = np.unique(packed, return_inverse=True)
    channels = np.stack([colors >> 16, (colors >> 8) & 255, colors & 255], -1).astype(np.int32)
    nearest = np.empty(len(colors), np.uint8)
    exact = np.empty(len(colors), bool)
    palette = self.palette.astype(np.int32)
    for start in range(0, len(colors), 65536):  # A noisy photograph has millions of colours.
      block = slice(start, start + 65536)
      distance = ((channels[block, None] - palette) ** 2).sum(-1)
      nearest[block] = distance.argmin(-1)
      exact[block] = distance.min(-1) == 0
    inverse = inverse.reshape(rgb.shape[:2])
    return nearest[inverse], float(1.0 - exact[inverse].mean())

  def to_json(self) -> list[dict]:
    """Returns [{"name": ..., "color": [r, g, b]}, ...] in the order of the ids.

    A last entry with an "id" stands for ignored pixels.
    """
    classes: list[dict] = [{"name": c.name, "color": list(c.color)} for c in self.classes]
    ignored = {"name": _IGNORED_NAME, "color": list(_IGNORED_COLOR), "id": IGNORED}
    return [*classes, ignored] if self.ignores else classes

  @classmethod
  def from_json(cls, classes: Sequence[Mapping]) -> LabelScheme:
    """Reads what `to_json` wrote."""
    try:
      counted = [c for c in classes if c.get("id") != IGNORED]
      made = cls(
          tuple(LabelClass(c["name"], tuple(c["color"])) for c in counted),
          ignores=len(counted) < len(classes),
      )
      if not all(isinstance(name, str) and name for name in made.names):
        raise TypeError("a name is no text")
      return made
    except InputError:
      raise
    except (KeyError, TypeError, ValueError, OverflowError, AttributeError) as error:
      raise InputError(
          'A label scheme is a list of {"name": ..., "color": [red, green, blue]},'
          f" got {str(classes)[:200]}."
      ) from error

  @classmethod
  def from_names(cls, names: Sequence[str]) -> LabelScheme:
    """Gives colours to bare names, the first the background: for data built elsewhere."""
    # The golden ratio spreads any number of hues far apart.
    hues = [(index * 0.618034) % 1.0 for index in range(len(names) - 1)]
    colors = [(0, 0, 0), *(colorsys.hsv_to_rgb(hue, 0.85, 0.95) for hue in hues)]
    return cls(
        tuple(
            LabelClass(name, tuple(round(255 * channel) for channel in color))  # type: ignore[arg-type]
            for name, color in zip(names, colors)
        )
    )

  @classmethod
  def numbered(cls, num_classes: int) -> LabelScheme:
    """Makes up names for the classes of a dataset that names none: background, class_1, ...

    Args:
      num_classes: The background included; 1 counts as 2.
    """
    names = ["background", *(f"class_{index}" for index in range(1, max(2, num_classes)))]
    return dataclasses.replace(cls.from_names(names), named=False)


def presence_warnings(names: Sequence[str], pixels: Mapping[str, np.ndarray]) -> list[str]:
  """Returns a sentence for each split without any foreground, and each class that a split lacks.

  Args:
    names: Of the classes, background first.
    pixels: Split -> pixels of each class in each of its labels, int [labels, classes].
  """
  found = []
  counts: dict[str, np.ndarray] = {}
  for split, of_labels in pixels.items():
    total = np.asarray(of_labels, np.int64)[:, : len(names)].sum(axis=0)
    if total[1:].any():
      counts[split] = total
    else:
      found.append(
          f"Split {split} has no foreground: all {len(of_labels)} labels are {names[0]}. No score"
          " can come of it."
      )
  for index, name in enumerate(names):
    lacking = [split for split, total in counts.items() if not total[index]]
    having = [split for split in counts if split not in lacking]
    if index and having and lacking:
      found.append(f"Class {name} occurs in {', '.join(having)}, but not in {', '.join(lacking)}.")
  return found
