"""Draws a sheet of every transformation at its strength: the image, and the label beside it.

  flexunet preview_augmentation --dataset=NAME --data_dir=DATA --output=FILE.png

The upper part shows each transformation alone, at both ends of its range; what moves pixels is
shown on an image with lines drawn in. The lower part shows --rows of examples as training would
see them under the settings given. All augmentation flags apply: what a flag makes stronger is
stronger on the sheet.
"""

from __future__ import annotations

import dataclasses
import functools
import pathlib
import types
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from flexunet.core import command_line, files, flags, progress
from flexunet.core.errors import InputError
from flexunet.imaging.label_scheme import IGNORED
from flexunet.pipelines import dataset_source, laterality
from flexunet.pipelines.augmentation.config import (
  PROBABILITIES,
  AugmentationConfig,
  probability_of,
)
from flexunet.pipelines.dataset_source import DatasetSource
from flexunet.pipelines.feature_keys import FeatureFlags
from flexunet.reporting import overlay

_PROGRAM = flags.Program(__doc__, first=("dataset", "data_dir", "output"))
_DATASET = _PROGRAM.string(
    "dataset", None, "Built dataset as name[/config[/version]] below --data_dir."
)
_DATA_DIR = _PROGRAM.string(
    "data_dir", "~/tensorflow_datasets", "Folder of built datasets, or the version folder of one."
)
_SPLIT = _PROGRAM.string("split", "train", "Split the examples are taken from.")
_OUTPUT = _PROGRAM.string("output", None, "PNG file to write.", required=True)
_ROWS = _PROGRAM.integer("rows", 3, "Rows of random draws.", lower_bound=0, upper_bound=50)
_SEED = _PROGRAM.integer("seed", 1, "Seed of the random draws.", lower_bound=0)
_FEATURES = _PROGRAM.fields(FeatureFlags)
_SETTINGS = _PROGRAM.fields(AugmentationConfig, group="Augmentation")
# Tiles in a row.
COLUMNS = 6
_TILE = 160  # Pixels of the longer edge of an image; its label takes as many.
_CAPTION = 20
_GAP = 8
_LINES = 8  # Across an image, to make movements visible.
# What is shown of each transformation: the parameters that are set to one end of their range.
_TRANSFORMATIONS = {
  "flip_horizontal": ("flip_horizontal",),
  "flip_vertical": ("flip_vertical",),
  "right_angle": ("quarter_turns",),
  "rotation": ("rotation",),
  "scale": ("scale",),
  "shear": ("shear_y", "shear_x"),
  "translation": ("translation_y", "translation_x"),
  "elastic": ("elastic",),
  "distortion": ("distortion",),
  "barrel": ("barrel", "lens_y"),
  "pincushion": ("pincushion", "lens_x"),
  "brightness": ("brightness", "brightness_shift"),
  "contrast": ("contrast",),
  "gamma": ("gamma",),
  "bias_field": ("bias_field",),
  "blur": ("blur",),
  "sharpening": ("sharpening",),
  "low_resolution": ("low_resolution",),
  "noise": ("noise",),
  "synthetic": ("synthetic", "synthetic_by_class", "synthetic_texture"),
}
# (caption, image uint8 [H, W, C], label uint8 [H, W])
Tile = tuple[str, np.ndarray, np.ndarray]


@functools.cache
def _library() -> types.SimpleNamespace:
  """Returns the modules `augment`, `draws` and `readers`."""
  # They load TensorFlow, which --help and a wrong flag must not wait for.
  from flexunet.pipelines import readers
  from flexunet.pipelines.augmentation import augment, draws

  return types.SimpleNamespace(augment=augment, draws=draws, readers=readers)


def sheet(
  config: AugmentationConfig,
  examples: Sequence[tuple[np.ndarray, np.ndarray]],
  palette: np.ndarray,
  rows: int = 3,
  seed: int = 1,
) -> np.ndarray:
  """Returns the sheet as uint8 [height, width, 3].

  Args:
    config: A resolved config.
    examples: (image uint8 [H, W, C], label uint8 [H, W]); the first is shown under each
      transformation alone, all of them in turn under random draws.
    palette: uint8 [classes, 3].
    rows: Of random draws.
    seed: Decides those draws and the random fields.
  """
  moving = _library().draws.STAGES["warp"]
  image, label = examples[0]
  tiles: list[Tile | None] = [("original", image, label)]
  for name, moved in _TRANSFORMATIONS.items():
    shown = _with_lines(image) if moved[0] in moving else image
    tiles.extend(_alone(config, name, shown, label, seed))
  # The random draws begin on a row of their own.
  tiles.extend([None] * (-len(tiles) % COLUMNS))
  for number in range(rows * COLUMNS):
    tiles.append(_at_random(config, *examples[number % len(examples)], (seed, number)))
  return _arranged(tiles, palette)


def _alone(
  config: AugmentationConfig, name: str, image: np.ndarray, label: np.ndarray, seed: int
) -> list[Tile]:
  """Returns the tiles of one transformation at the ends of its range."""
  augment, draws = _library().augment, _library().draws
  changes: dict[str, Any] = dict.fromkeys(PROBABILITIES, 0.0)
  certain = dataclasses.replace(config, **{**changes, probability_of(name): 1.0})
  table = draws.parameters(certain, square=image.shape[0] == image.shape[1])
  ends = []
  for end in ("low", "high"):
    amounts = {p: getattr(table[p], end) for p in _TRANSFORMATIONS[name]}
    # The first end of a one-sided range is nothing: half the strength is shown instead.
    amounts = {p: v or table[p].high / 2 for p, v in amounts.items()}
    if amounts not in ends and any(amounts.values()):
      ends.append(amounts)
  tiles = {}
  for number, amounts in enumerate(ends):
    seeds = np.array([[seed, number]], np.int32)
    out = augment.apply(certain, draws.by_hand(**amounts), image[None], label[None], seeds)
    tiles[draws.describe(amounts)] = (out[0][0].numpy(), out[1][0].numpy())
  if not tiles:
    return [(f"{name} of no strength", image, label)]
  return [(caption, *pair) for caption, pair in tiles.items()]


def _at_random(
  config: AugmentationConfig, image: np.ndarray, label: np.ndarray, seed: tuple[int, int]
) -> Tile:
  """Returns the tile of an example as training would see it."""
  augment, draws = _library().augment, _library().draws
  seeds = np.array([seed], np.int32)
  draw = draws.draw(config, image.shape[:2], seeds)
  images, labels = augment.apply(config, draw, image[None], label[None], seeds)
  amounts = dict(zip(draw.names, draw.values[0].numpy(), strict=True))
  return draws.describe(amounts), images[0].numpy(), labels[0].numpy()


def _arranged(tiles: Sequence[Tile | None], palette: np.ndarray) -> np.ndarray:
  """Lays out tiles with their captions, row by row, on a dark sheet."""
  rows = -(-len(tiles) // COLUMNS)
  step_x, step_y = 2 * _TILE + _GAP, _TILE + 2 * _CAPTION + _GAP
  size = (COLUMNS * step_x + _GAP, rows * step_y + _GAP)
  canvas = Image.new("RGB", size, (32, 32, 32))
  pen = ImageDraw.Draw(canvas)
  for position, tile in enumerate(tiles):
    if tile is None:
      continue
    caption, image, label = tile
    row, column = divmod(position, COLUMNS)
    left, top = _GAP + column * step_x, _GAP + row * step_y
    _write(pen, caption, left, top)
    grey = image if image.shape[-1] == 3 else overlay.to_rgb(image[..., 0])
    ways = (Image.Resampling.BICUBIC, Image.Resampling.NEAREST)
    for number, (pixels, way) in enumerate(zip((grey, palette[label]), ways)):
      part = Image.fromarray(pixels)
      scale = _TILE / max(part.size)
      wanted = (max(1, round(part.width * scale)), max(1, round(part.height * scale)))
      place = (left + number * (wanted[0] + 1), top + 2 * _CAPTION)
      canvas.paste(part.resize(wanted, way), place)
  return np.asarray(canvas)


def _with_lines(image: np.ndarray) -> np.ndarray:
  """Returns a copy of the image with lines across it."""
  lined = image.copy()
  width = max(1, max(image.shape) // 256)
  for axis in (0, 1):
    edge = image.shape[axis]
    for number in range(1, _LINES):
      start = number * edge // _LINES
      where = [slice(None)] * 3
      where[axis] = slice(start, start + width)
      lined[tuple(where)] = 200
  return lined


def _write(pen: ImageDraw.ImageDraw, caption: str, left: int, top: int) -> None:
  """Writes a caption over a tile, in one line or two; what does not fit is cut off."""
  font = _font()

  def fits(text: str) -> bool:
    return pen.textlength(text, font=font) <= 2 * _TILE

  lines = [""]
  for word in caption.split("_"):
    longer = f"{lines[-1]} {word}".strip()
    if fits(longer):
      lines[-1] = longer
    elif len(lines) == 1:
      lines.append(word)
    else:
      lines[-1] += " ..."
      break
  for number, line in enumerate(lines):
    y = top + (2 - len(lines) + number) * _CAPTION
    pen.text((left, y), line, fill=(235, 235, 235), font=font)


@functools.cache
def _font() -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
  return ImageFont.load_default(size=14)


def pick_examples(
  source: DatasetSource, split: str, image_key: str, label_key: str, count: int
) -> list[tuple[np.ndarray, np.ndarray]]:
  """Returns (image, label) of the slices with most foreground, of different volumes first."""
  readers = _library().readers
  table = readers.slice_table(source, split)
  order = np.arange(len(table))
  if table.pixels is not None:
    order = np.argsort(-table.pixels[:, 1:].sum(axis=1), kind="stable")
  _, first = np.unique(table.volume[order], return_index=True)
  first = np.sort(first)
  order = np.concatenate([order[first], np.delete(order, first)])
  keys = source.image_keys(image_key)
  reader = readers.RecordReader(source.info.features, table, keys, label_key)
  examples = []
  for row in order[:count]:
    with readers.named_record(table, int(row)):
      decoded = reader.decode(reader.serialized(np.int64(row)))
      image, label = decoded["image"].numpy(), decoded["label"].numpy()[..., 0]
    # Three channels of a scan are no colours: the first one is shown.
    shown = image[..., :1] if len(keys) > 1 else image
    examples.append((shown, np.where(label == IGNORED, 0, label) if source.ignores else label))
  return examples


def main(argv: Sequence[str]) -> None:
  command_line.no_words(argv)
  settings = flags.read(AugmentationConfig, _SETTINGS)
  output = pathlib.Path(_OUTPUT.value).expanduser()
  if output.suffix.lower() != ".png" or output.is_dir():
    raise InputError(f"--output must be a .png file. Got: {output}.")
  files.check_writable(output, "--output")
  dataset_source.check_folder(_DATASET.value, _DATA_DIR.value, [_SPLIT.value])
  progress.say("Loading TensorFlow ...")
  command_line.load_tensorflow()

  named = flags.read(FeatureFlags, _FEATURES).feature_keys
  opened = dataset_source.open_dataset(_DATASET.value, _DATA_DIR.value, named)
  image_key, label_key = opened.keys.image, opened.keys.label
  scheme = opened.label_scheme(label_key)
  decided = laterality.decide_for(
      opened,
      _library().readers.slice_table(opened, _SPLIT.value),
      scheme.names,
      requested=settings.flip_horizontal_probability,
      image_key=image_key,
      label_key=label_key,
  )
  config = settings.resolve(mirroring=decided.mirroring)
  examples = pick_examples(opened, _SPLIT.value, image_key, label_key, COLUMNS)
  drawn = sheet(config, examples, scheme.palette, _ROWS.value, _SEED.value)
  files.write_bytes(output, overlay.encode_png(drawn))
  print(f"{output}: each transformation alone, then {_ROWS.value * COLUMNS} random draws.")


def run() -> None:
  command_line.run(main, _PROGRAM)


if __name__ == "__main__":
  run()
