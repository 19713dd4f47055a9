"""From colour masks to class ids: the palette, and whether a mask was painted with it.

Two shares measure how far a mask is from its palette. Pixels *between* two palette colours come
from interpolation and decode well to the nearer one. Pixels that are *foreign* lie near no mix of
two palette colours: they mean that the palette is not the mask's.
"""

from __future__ import annotations

import itertools
import json
import pathlib

import numpy as np

from flexunet.core.errors import InputError, unknown_name
from flexunet.datasets.published_palettes import PRESETS
from flexunet.imaging.label_scheme import LabelClass, LabelScheme

# Where three classes meet, interpolation mixes three colours; JPEG adds some noise on top.
FOREIGN_DISTANCE = 48.0
# JPEG moves a colour by this much; nearer than this it is the palette's.
JPEG_TOLERANCE = 12
_FITTING_FOREIGN = 0.01


def palette_scheme(preset_or_file: str) -> LabelScheme:
  """Returns a preset by its name, or the scheme in a JSON file {"name": [r, g, b], ...}.

  The first class of the file is the background.
  """
  if preset_or_file in PRESETS:
    return PRESETS[preset_or_file]
  path = pathlib.Path(preset_or_file)
  if path.suffix.lower() != ".json":
    raise unknown_name("palette (or name a .json file)", preset_or_file, PRESETS)
  try:
    colors = json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=_pairs)
  except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
    raise InputError(f"{path}: a palette must be a readable JSON file: {error}.") from error
  return scheme_of(colors, str(path))


def _pairs(pairs: list[tuple[str, object]]) -> dict[str, object]:
  names = [name for name, _ in pairs]
  if repeated := sorted({name for name in names if names.count(name) > 1}):
    raise InputError(f"A palette names each class once. Repeated: {', '.join(repeated)}.")
  return dict(pairs)


def scheme_of(colors: object, source: str) -> LabelScheme:
  """Returns the scheme of {"background": [0, 0, 0], "tumour": [255, 0, 0], ...}."""
  valid = isinstance(colors, dict) and all(
      isinstance(color, (list, tuple))
      and len(color) == 3
      and all(isinstance(channel, int) for channel in color)
      for color in colors.values()
  )
  if not isinstance(colors, dict) or not valid:
    raise InputError(
        f'{source}: a palette must be {{"background": [0, 0, 0], "tumour": [255, 0, 0], ...}},'
        f" three whole numbers a class. Got: {str(colors)[:120]}."
    )
  scheme = LabelScheme(tuple(LabelClass(name, tuple(color)) for name, color in colors.items()))
  if len(np.unique(scheme.palette, axis=0)) < scheme.num_classes:
    raise InputError(f"{source}: two classes of a palette must not share a colour.")
  return scheme


class MaskColors:
  """The distinct colours of one mask, held against a palette.

  Attributes:
    painted: How many pixels are not of the background's colour.
    foreign: How many pixels lie near no mix of two palette colours.
    far_share: Share of the pixels farther than JPEG's noise from every palette colour.
    has_class_color: Whether a pixel has the colour of a class other than the background.
  """

  def __init__(self, rgb: np.ndarray, scheme: LabelScheme):
    """Takes a mask uint8 [H, W, 3] and the scheme it should be painted in."""
    # One number a colour: a mask of a million pixels holds some thousand colours at most.
    packed = rgb.astype(np.uint32) @ np.array([1 << 16, 1 << 8, 1], np.uint32)
    values, self._counts = np.unique(packed, return_counts=True)
    channels = np.stack([values >> 16, (values >> 8) & 255, values & 255], -1)
    self._colors = channels.astype(np.float32)
    palette = scheme.palette.astype(np.float32)
    distance = np.abs(self._colors[:, None] - palette).max(axis=-1)  # [colours, classes]
    self._is_painted = distance[:, 0] > JPEG_TOLERANCE
    self._is_foreign = _distance_to_mixes(self._colors, palette) > FOREIGN_DISTANCE
    self.painted = int(self._counts[self._is_painted].sum())
    self.foreign = int(self._counts[self._is_foreign].sum())
    far = self._counts[distance.min(axis=-1) > JPEG_TOLERANCE].sum()
    self.far_share = float(far / max(self._counts.sum(), 1))
    self.has_class_color = bool((distance[:, 1:] <= JPEG_TOLERANCE).any())

  def commonest_foreign(self) -> tuple[int, int, int]:
    """Returns the foreign colour that most pixels have."""
    return self._commonest(self._is_foreign)

  def commonest_painted(self) -> tuple[int, int, int]:
    """Returns the colour other than the background's that most pixels have."""
    return self._commonest(self._is_painted)

  def _commonest(self, among: np.ndarray) -> tuple[int, int, int]:
    red, green, blue = self._colors[int((self._counts * among).argmax())]
    return int(red), int(green), int(blue)


def palette_hint(rgb: np.ndarray) -> str:
  """Returns what to do about a mask uint8 [H, W, 3] that was painted with another palette."""
  fitting = {}
  for name, scheme in PRESETS.items():
    found = MaskColors(rgb, scheme)
    if found.has_class_color and found.foreign <= _FITTING_FOREIGN * found.painted:
      fitting[name] = found.far_share
  if not fitting:
    return "Is --palette the one of these masks?"
  return f"Its colours fit --palette={min(fitting, key=lambda name: fitting[name])}."


def _distance_to_mixes(colors: np.ndarray, palette: np.ndarray) -> np.ndarray:
  """Distance of each colour [N, 3] from the nearest straight line between two palette colours."""
  nearest = np.full(len(colors), np.inf, np.float32)
  for first, second in itertools.combinations(palette, 2):
    nearest = np.minimum(nearest, _distance_to_mix(colors, first, second))
  return nearest


def _distance_to_mix(colors: np.ndarray, first: np.ndarray, second: np.ndarray) -> np.ndarray:
  """Distance of each colour [N, 3] from the straight line between two palette colours."""
  along = second - first
  share = ((colors - first) @ along / (along @ along)).clip(0, 1)
  return np.linalg.norm(colors - first - share[:, None] * along, axis=1)
