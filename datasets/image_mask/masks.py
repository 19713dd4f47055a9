"""From masks to class ids: whether a folder stores colours or ids, and whether its palette fits.

How masks are stored is decided once for a folder (`find_stored_ids`). Two shares measure how far a
colour mask is from its palette. Pixels *between* two palette colours come from interpolation and
decode well to the nearer one. Pixels that are *foreign* lie near no mix of two palette colours:
they mean that the palette is not the mask's.
"""

from __future__ import annotations

import dataclasses
import itertools
import pathlib
from collections.abc import Iterable, Mapping

import numpy as np

from flexunet.core import files
from flexunet.core.errors import InputError, unknown_name
from flexunet.datasets.builder.raw_folder import Notes
from flexunet.datasets.published_palettes import PRESETS
from flexunet.imaging import pictures
from flexunet.imaging.label_scheme import LabelClass, LabelScheme

# Where three classes meet, interpolation mixes three colours; JPEG adds some noise on top.
FOREIGN_DISTANCE = 48.0
# JPEG moves a colour by this much; nearer than this it is the palette's.
JPEG_TOLERANCE = 12
_FITTING_FOREIGN = 0.01
# Share of the painted pixels that may be foreign to the palette before it is refused.
_FOREIGN_LIMIT = 0.05
_FEW_PIXELS = 50
_SHOWN_VALUES = 8


def palette_scheme(preset_or_file: str) -> LabelScheme:
  """Returns a preset by its name, or the scheme in a JSON file {"name": [r, g, b], ...}.

  The first class of the file is the background.
  """
  if preset_or_file in PRESETS:
    return PRESETS[preset_or_file]
  path = pathlib.Path(preset_or_file)
  if path.suffix.lower() != ".json":
    raise unknown_name("palette (or name a .json file)", preset_or_file, PRESETS)
  return scheme_of(files.read_json(path, object_pairs_hook=_pairs), str(path))


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


@dataclasses.dataclass(frozen=True)
class StoredIds:
  """How masks that hold numbers of classes instead of colours are read.

  Attributes:
    class_of: {stored value: class id}.
    reason: Why they are read so, one line for the user.
  """

  class_of: dict[int, int]
  reason: str


def find_stored_ids(paths: Iterable[pathlib.Path], scheme: LabelScheme) -> StoredIds | None:
  """Returns how to read the masks of a folder as class ids; None where they hold colours.

  One mask with colours decides for the whole folder, so that usually only the first is read. Ids
  are what remains where no mask has a colour: values too dark for any, or the indices of images
  whose own palette is another one. A mask that cannot be read decides nothing.

  Raises:
    InputError: The masks fit neither reading.
  """
  first: dict[str, pathlib.Path] = {}
  values: set[int] = set()
  num_masks = 0
  for path in paths:
    try:
      kind, found = _evidence(path, scheme)
    except InputError:
      continue  # Reading its case names it, together with all others.
    num_masks += 1
    if kind == "colors":
      return None
    first.setdefault(kind, path)
    values |= {int(value) for value in found if value}
  if blurred := first.get("blurred"):
    raise InputError(
        f"{blurred}: no mask of the folder has a colour of the palette, and this one, a JPEG, holds"
        f" values 0..{JPEG_TOLERANCE} only. Compression blurs class ids: store them as PNG."
    )
  if not values:
    return None  # All masks are empty, in either reading.
  class_of = _class_of(values, scheme, first["ids"])
  meaning = ", ".join(f"{value} {scheme.names[number]}" for value, number in class_of.items())
  return StoredIds(
      class_of,
      f"The masks are read as class ids ({meaning}): none of the {num_masks} has a colour of the"
      f" palette, the values besides 0 are {_listed(values)}.",
  )


def _evidence(path: pathlib.Path, scheme: LabelScheme) -> tuple[str, np.ndarray]:
  """Returns "colors", "ids", "blurred" or "empty", and the values that may be ids."""
  rgb = pictures.read_rgb(path, "mask")
  nothing = np.zeros(0, np.uint8)
  held = MaskColors(rgb, scheme)
  colors = held.colors
  if all((color == scheme.palette).all(axis=-1).any() for color in colors):
    is_background = len(colors) == 1 and (colors[0] == scheme.palette[0]).all()
    return "empty" if is_background else "colors", nothing
  indexed = pictures.read_indexed(path)
  if indexed is not None:
    used = np.unique(indexed.indices)
    if not _are_ids(indexed.palette, used, held, rgb):
      return "colors", nothing
    return "ids" if used.any() else "empty", used
  if (colors != colors[:, :1]).any():
    return "colors", nothing
  values = colors[:, 0]
  if not values.any():
    return "empty", nothing
  if values.max() >= max(scheme.num_classes, JPEG_TOLERANCE + 1):
    return "colors", nothing
  return "blurred" if _is_lossy(path) else "ids", values


def _are_ids(palette: np.ndarray, used: np.ndarray, held: MaskColors, rgb: np.ndarray) -> bool:
  """Returns whether the indices of a palette image are class ids, rather than its colours."""
  if (palette[used] == used[:, None]).all():
    return True  # Its palette maps each number to the grey of that number.
  if held.has_class_color and held.foreign <= _FITTING_FOREIGN * held.painted:
    return False
  # Colours of its own for the eye, the first the background's; those of a preset are the preset's.
  return held.is_background(palette[0]) and not _fitting_presets(rgb)


def _class_of(values: set[int], scheme: LabelScheme, path: pathlib.Path) -> dict[int, int]:
  """Returns {stored value: class id} for the values besides 0 that occur in a folder."""
  if max(values) < scheme.num_classes:
    return {number: number for number in range(scheme.num_classes)}
  if scheme.num_classes == 2 and len(values) == 1:
    return {0: 0, max(values): 1}
  raise InputError(
      f"{path}: the masks of this folder hold {_listed({0, *values})}, which are neither colours of"
      f" the palette nor ids 0..{scheme.num_classes - 1} of its classes. Name their values as grey"
      ' colours in a --palette file: {"background": [0, 0, 0], "NAME": ['
      + ", ".join([str(max(values))] * 3)
      + "]}."
  )


def _listed(values: set[int]) -> str:
  shown = ", ".join(str(value) for value in sorted(values)[:_SHOWN_VALUES])
  return shown + (", ..." if len(values) > _SHOWN_VALUES else "")


def _is_lossy(path: pathlib.Path) -> bool:
  return path.suffix.lower() in (".jpg", ".jpeg")


class IdReader:
  """Reads masks that hold class ids."""

  def __init__(self, class_of: Mapping[int, int]):
    """Takes {stored value: class id}."""
    self._class_of = dict(class_of)

  def read(self, path: pathlib.Path, notes: Notes) -> np.ndarray:
    """Returns class ids uint8 [H, W].

    Raises:
      InputError: The file holds another value, or colours.
    """
    indexed = pictures.read_indexed(path)
    stored = pictures.read_gray(path, "mask") if indexed is None else indexed.indices
    values, counts = np.unique(stored, return_counts=True)
    if wrong := {int(value) for value in values} - self._class_of.keys():
      raise InputError(
          f"{path}: masks of class ids must hold {_listed(set(self._class_of))}, found"
          f" {_listed(wrong)}."
      )
    notes.count_values("mask_ids", values, counts)
    table = np.zeros(256, np.uint8)
    for value, number in self._class_of.items():
      table[value] = number
    return table[stored]

  def finish(self, volume: str, notes: Notes) -> None:
    """Adds nothing: each mask was judged by itself."""


class ThresholdReader:
  """Reads masks of one structure by their grey levels, as blurred or compressed ones need it."""

  def __init__(self, level: int):
    """Takes the lowest grey level of the foreground."""
    self._level = level

  def read(self, path: pathlib.Path, notes: Notes) -> np.ndarray:
    """Returns class ids uint8 [H, W]: 1 where the mask reaches the level."""
    gray = pictures.read_gray(path, "mask")
    notes.count_values("gray_mask", *np.unique(gray, return_counts=True))
    return (gray >= self._level).astype(np.uint8)

  def finish(self, volume: str, notes: Notes) -> None:
    """Adds nothing: each mask was read by itself."""


class ColorReader:
  """Reads masks painted in the colours of a palette, and judges each and all of a subject."""

  def __init__(self, scheme: LabelScheme, off_palette_limit: float):
    self._scheme, self._limit = scheme, off_palette_limit
    self._off_pixels, self._all_pixels = 0.0, 0
    self._without_class: list[str] = []
    self._with_class = False

  def read(self, path: pathlib.Path, notes: Notes) -> np.ndarray:
    """Returns class ids uint8 [H, W].

    Raises:
      InputError: The file was painted with another palette, or holds ids.
    """
    rgb = pictures.read_rgb(path, "mask")
    label, off_share = self._scheme.decode(rgb)
    found = MaskColors(rgb, self._scheme)
    # JPEG moves every colour a little, which is no sign of another palette.
    far_share = found.far_share if _is_lossy(path) else off_share
    if far_share > self._limit:
      raise InputError(
          f"{path}: {100 * far_share:.1f} % of its pixels are of no palette colour, the limit is"
          f" {100 * self._limit:g} %. {palette_hint(rgb)}"
      )
    if found.foreign > max(_FEW_PIXELS, _FOREIGN_LIMIT * found.painted):
      raise InputError(
          f"{path}: {found.foreign} of its {found.painted} painted pixels are of colours foreign"
          f" to the palette, such as {found.commonest_foreign()}. {palette_hint(rgb)}"
      )
    if found.has_faint_values and not _is_lossy(path):
      raise InputError(
          f"{path}: holds values {_listed(set(map(int, np.unique(rgb))))} only, while other masks"
          " of the folder are painted in colours of the palette. Store all in one form."
      )
    if found.has_class_color:
      self._with_class = True
    elif found.painted > _FEW_PIXELS:
      self._without_class.append(
          f"{path}: no pixel has the colour of a class, though {found.painted} are painted, such"
          f" as {found.commonest_painted()}. {palette_hint(rgb)}"
      )
    _count_gray(rgb, notes)
    self._off_pixels += off_share * label.size
    self._all_pixels += label.size
    return label

  def finish(self, volume: str, notes: Notes) -> None:
    """Judges the masks of a subject together.

    Raises:
      InputError: None of them has the colour of a class, though some are painted.
    """
    # A faint mask may be blurred all over; where all of a subject's are, the palette is wrong.
    if self._without_class and not self._with_class:
      raise InputError(self._without_class[0])
    if self._without_class:
      notes.warnings.append(
          f"{volume}: masks with colours between those of the palette only:"
          f" {len(self._without_class)}."
      )
    notes.facts["off_palette_share"] = round(self._off_pixels / max(self._all_pixels, 1), 6)


def _count_gray(rgb: np.ndarray, notes: Notes) -> None:
  """Notes the values of a grey mask; a colour mask is described by its shares."""
  if (rgb[..., 0] == rgb[..., 1]).all() and (rgb[..., 1] == rgb[..., 2]).all():
    notes.count_values("gray_mask", *np.unique(rgb[..., 0], return_counts=True))


class MaskColors:
  """The distinct colours of one mask, held against a palette.

  Attributes:
    colors: uint8 [colours, 3], sorted.
    painted: How many pixels are not of the background's colour.
    foreign: How many pixels lie near no mix of two palette colours.
    far_share: Share of the pixels farther than JPEG's noise from every palette colour.
    has_class_color: Whether a pixel has the colour of a class other than the background.
    has_faint_values: Whether nothing is painted, but more than a few pixels have some of few values
      just beside the background's colour: ids, for noise has many values.
  """

  def __init__(self, rgb: np.ndarray, scheme: LabelScheme):
    """Takes a mask uint8 [H, W, 3] and the scheme it should be painted in."""
    # One number a colour: a mask of a million pixels holds some thousand colours at most.
    packed = rgb.astype(np.uint32) @ np.array([1 << 16, 1 << 8, 1], np.uint32)
    values, self._counts = np.unique(packed, return_counts=True)
    channels = np.stack([values >> 16, (values >> 8) & 255, values & 255], -1)
    self.colors = channels.astype(np.uint8)
    self._colors = channels.astype(np.float32)
    palette = scheme.palette.astype(np.float32)
    self._background = palette[0]
    distance = np.abs(self._colors[:, None] - palette).max(axis=-1)  # [colours, classes]
    self._is_painted = distance[:, 0] > JPEG_TOLERANCE
    self._is_foreign = _distance_to_mixes(self._colors, palette) > FOREIGN_DISTANCE
    self.painted = int(self._counts[self._is_painted].sum())
    self.foreign = int(self._counts[self._is_foreign].sum())
    far = self._counts[distance.min(axis=-1) > JPEG_TOLERANCE].sum()
    self.far_share = float(far / max(self._counts.sum(), 1))
    self.has_class_color = bool((distance[:, 1:] <= JPEG_TOLERANCE).any())
    is_faint = distance.min(axis=-1) > 0
    self.has_faint_values = (
        not self.painted
        and int(self._counts[is_faint].sum()) > _FEW_PIXELS
        and int(is_faint.sum()) < scheme.num_classes
    )

  def is_background(self, color: np.ndarray) -> bool:
    """Returns whether a colour [3] is the background's, as near as JPEG leaves it."""
    return bool(np.abs(color.astype(np.float32) - self._background).max() <= JPEG_TOLERANCE)

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
  fitting = _fitting_presets(rgb)
  if not fitting:
    return "Is --palette the one of these masks?"
  return f"Its colours fit --palette={min(fitting, key=lambda name: fitting[name])}."


def _fitting_presets(rgb: np.ndarray) -> dict[str, float]:
  """Returns {preset that fits a mask uint8 [H, W, 3]: share of the pixels far off it}."""
  fitting = {}
  for name, scheme in PRESETS.items():
    found = MaskColors(rgb, scheme)
    if found.has_class_color and found.foreign <= _FITTING_FOREIGN * found.painted:
      fitting[name] = found.far_share
  return fitting


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
