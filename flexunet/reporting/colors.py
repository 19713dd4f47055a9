"""Colours that stay apart on a grey scan, for readers with and without colour vision deficiency.

Colours are uint8 RGB. Distances are those of CIELAB (CIE 1976), of what three readers see: one with
usual colour vision, one without the pigment for green (deuteranopia), one without that for red
(protanopia), simulated after Machado, Oliveira and Fernandes 2009.
"""

from __future__ import annotations

import colorsys
import functools
import itertools
from collections.abc import Sequence

import numpy as np

# What errors are painted with; the three stay apart for all readers.
MISSED, FALSE, WRONG_CLASS = (86, 180, 233), (213, 94, 0), (240, 228, 66)
# Less than this is hard to tell apart as thin lines.
CLEAR_DISTANCE = 25.0
# Found by a search for eight colours on grey that are farthest apart for the three readers.
_STAND_INS = (
    (255, 146, 73),
    (182, 0, 146),
    (146, 219, 255),
    (219, 255, 0),
    (146, 255, 182),
    (146, 109, 255),
    (182, 36, 36),
    (109, 0, 255),
)
_MIN_SATURATION = 0.25
_MIN_BRIGHTNESS = 0.35
# Machado et al. 2009, severity 1, of linear RGB.
_DEUTERANOPIA = (
    (0.367322, 0.860646, -0.227968), (0.280085, 0.672501, 0.047413), (-0.011820, 0.042940, 0.968881)
)  # fmt: skip
_PROTANOPIA = (
    (0.152286, 1.052583, -0.204868), (0.114503, 0.786281, 0.099216),
    (-0.003882, -0.048116, 1.051998),
)  # fmt: skip
_TO_XYZ = ((0.4124, 0.3576, 0.1805), (0.2126, 0.7152, 0.0722), (0.0193, 0.1192, 0.9505))
_WHITE_XYZ = (0.9505, 1.0, 1.089)  # D65.


def display_palette(palette: np.ndarray) -> np.ndarray:
  """Returns `palette` [classes, 3] with foreground colours that stay apart on a grey scan.

  A colour is kept where it has a hue and is clearly apart from those kept before it. The others are
  replaced, each by a colour that is far from all in use.
  """
  shown = np.array(palette, np.uint8, copy=True)
  kept = [index for index in range(1, len(shown)) if _has_hue(shown[index])]
  used: list[int] = []
  for index in kept:
    if not used or distances(shown[index], shown[used]).min() >= CLEAR_DISTANCE:
      used.append(index)
  for index in sorted(set(range(1, len(shown))) - set(used)):
    shown[index] = _farthest(shown[used])
    used.append(index)
  return shown


def distances(color: Sequence[int] | np.ndarray, others: np.ndarray) -> np.ndarray:
  """Returns how far a colour is from others [n, 3], for the reader to whom it is nearest: [n]."""
  own, far = seen(np.asarray(color)[None]), seen(others)
  return np.linalg.norm(own - far, axis=-1).min(axis=0)


def seen(rgb: np.ndarray) -> np.ndarray:
  """Returns colours [n, 3] as the three readers see them, CIELAB, float64 [3, n, 3]."""
  share = np.asarray(rgb, np.float64) / 255
  linear = np.where(share > 0.04045, ((share + 0.055) / 1.055) ** 2.4, share / 12.92)
  views = [linear, *(linear @ np.array(view).T for view in (_DEUTERANOPIA, _PROTANOPIA))]
  xyz = np.clip(np.stack(views), 0, 1) @ np.array(_TO_XYZ).T / _WHITE_XYZ
  x, y, z = np.moveaxis(np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116), -1, 0)
  return np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], axis=-1)


def _has_hue(rgb: np.ndarray) -> bool:
  """Returns whether a colour would not be lost on a grey scan, as white, grey and black are."""
  _, saturation, brightness = colorsys.rgb_to_hsv(*(rgb / 255.0))
  return saturation >= _MIN_SATURATION and brightness >= _MIN_BRIGHTNESS


def _farthest(used: np.ndarray) -> np.ndarray:
  """Returns the first stand-in that is clearly apart from the colours in use [n, 3].

  Where none is, the colour of a coarse grid that is farthest from them.
  """
  if not len(used):
    return np.array(_STAND_INS[0], np.uint8)
  for color in _STAND_INS:
    if distances(color, used).min() >= CLEAR_DISTANCE:
      return np.array(color, np.uint8)
  grid = _grid()
  nearest = np.min([distances(one, grid) for one in used], axis=0)
  return grid[int(np.argmax(nearest))]


@functools.cache
def _grid() -> np.ndarray:
  """Returns colours with a hue for all readers, neither dark nor pale, uint8 [n, 3]."""
  colors = np.array(list(itertools.product(range(0, 256, 51), repeat=3)), np.uint8)
  colors = colors[[_has_hue(color) for color in colors]]
  lightness, *_ = np.moveaxis(seen(colors)[0], -1, 0)
  chroma = np.linalg.norm(seen(colors)[..., 1:], axis=-1).min(axis=0)
  return colors[(chroma > 20) & (lightness > 42) & (lightness < 95)]
