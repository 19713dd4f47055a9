"""From colour masks to class ids: the palette, and whether a mask was painted with it.

Two shares tell how far a mask is from its palette. Pixels *between* two palette colours come from
interpolation and decode well to the nearer one. Pixels that are *foreign* lie near no mix of two
palette colours: they mean that the palette is not the mask's.
"""

from __future__ import annotations

import json
import pathlib

import numpy as np

from flexunet.datasets.errors import InputError, unknown_name
from flexunet.datasets.label_scheme import LabelClass, LabelScheme
from flexunet.datasets.published_palettes import PRESETS

# Where three classes meet, interpolation mixes three colours; JPEG adds some noise on top.
FOREIGN_DISTANCE = 48.0
# JPEG moves a colour by this much; nearer than this it is the palette's.
JPEG_TOLERANCE = 12


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


def far_share(rgb: np.ndarray, scheme: LabelScheme) -> float:
  """Returns the share of pixels farther than JPEG's noise from every palette colour."""
  colors, counts = _distinct(rgb)
  palette = scheme.palette.astype(np.float32)
  distance = np.abs(colors[:, None] - palette).max(axis=-1).min(axis=-1)
  return float(counts[distance > JPEG_TOLERANCE].sum() / max(counts.sum(), 1))


def foreign_pixels(rgb: np.ndarray, scheme: LabelScheme) -> tuple[int, int]:
  """Returns how many pixels are foreign, and how many are painted: not the background colour.

  Args:
    rgb: uint8 [H, W, 3].
    scheme: The palette the mask should have.
  """
  colors, counts = _distinct(rgb)
  return int(counts[_foreign(colors, scheme)].sum()), int(counts[_painted(colors, scheme)].sum())


def commonest_foreign(rgb: np.ndarray, scheme: LabelScheme) -> tuple[int, int, int]:
  """Returns the foreign colour that most pixels have."""
  colors, counts = _distinct(rgb)
  return _commonest(colors, counts * _foreign(colors, scheme))


def commonest_painted(rgb: np.ndarray, scheme: LabelScheme) -> tuple[int, int, int]:
  """Returns the colour other than the background's that most pixels have."""
  colors, counts = _distinct(rgb)
  return _commonest(colors, counts * _painted(colors, scheme))


def has_class_color(rgb: np.ndarray, scheme: LabelScheme) -> bool:
  """Tells whether a pixel has the colour of a class, but for the background's."""
  colors, _ = _distinct(rgb)
  classes = scheme.palette[1:].astype(np.float32)
  distance = np.abs(colors[:, None] - classes).max(axis=-1)
  return bool((distance <= JPEG_TOLERANCE).any())


def _distinct(rgb: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """Returns the distinct colours, float32 [N, 3], and how many pixels have each."""
  # One number a colour: a mask of a million pixels holds some thousand colours at most.
  packed = rgb.astype(np.uint32) @ np.array([1 << 16, 1 << 8, 1], np.uint32)
  values, counts = np.unique(packed, return_counts=True)
  return np.stack([values >> 16, (values >> 8) & 255, values & 255], -1).astype(np.float32), counts


def _commonest(colors: np.ndarray, counts: np.ndarray) -> tuple[int, int, int]:
  red, green, blue = (int(channel) for channel in colors[int(counts.argmax())])
  return red, green, blue


def _painted(colors: np.ndarray, scheme: LabelScheme) -> np.ndarray:
  return np.abs(colors - scheme.palette[0].astype(np.float32)).max(axis=1) > JPEG_TOLERANCE


def _foreign(colors: np.ndarray, scheme: LabelScheme) -> np.ndarray:
  palette = scheme.palette.astype(np.float32)
  nearest = np.full(len(colors), np.inf, np.float32)
  for first in range(len(palette)):
    for second in range(first + 1, len(palette)):
      nearest = np.minimum(nearest, _distance_to_mix(colors, palette[first], palette[second]))
  return nearest > FOREIGN_DISTANCE


def _distance_to_mix(colors: np.ndarray, first: np.ndarray, second: np.ndarray) -> np.ndarray:
  """Distance of each colour [N, 3] from the straight line between two palette colours."""
  along = second - first
  share = ((colors - first) @ along / (along @ along)).clip(0, 1)
  return np.linalg.norm(colors - first - share[:, None] * along, axis=1)
