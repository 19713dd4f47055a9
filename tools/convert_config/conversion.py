"""A published `train_eval_infer.config` as flags of the trainer."""

from __future__ import annotations

import configparser
import dataclasses
import difflib
import pathlib
from collections.abc import Collection
from typing import Any

from flexunet.core.errors import InputError
from flexunet.tools.convert_config import augmentor
from flexunet.tools.convert_config.keys import KEYS

# Where the file is silent; the project's own recipe would plan otherwise.
_PUBLISHED_DEFAULTS: dict[str, Any] = {
    "image_channels": 3,
    "base_filters": 16,
    "base_kernels": 3,
    "num_layers": 6,
    "dropout_rate": "0.1",
    "dilation": 1,
    "optimizer": "adam",
    "learning_rate": "0.0001",
    "clipvalue": "0.2",
    "loss": "cross_entropy",
    "metrics": "dice_coef_multiclass",
    "epochs": 100,
    "batch_size": 4,
    "early_stopping_patience": 10,
    "reduce_lr_factor": "0.4",
    "reduce_lr_patience": 4,
    "previews": 6,
}
_PUBLISHED_EDGE = 512
# What the published trainer does unasked.
_PUBLISHED_RECIPE: dict[str, Any] = {
    "augmentation": "none",
    "resize_mode": "stretch",
    "schedule": "constant",
    "warmup_steps": 0,
    "monitor": "loss",
    "validation_epochs": 1,
    "foreground_fraction": 0,
    "class_balance": False,
    "epoch_passes": 1,
    "class_prior": False,
    "ema_momentum": 0.0,
    "stem": "full",
    "decoder_convolutions": 2,
    "patch_size": "none",
}


@dataclasses.dataclass(frozen=True)
class ConvertedConfig:
  """A published config as flags.

  Attributes:
    flags: Name -> value as text; True and False for switches.
    notes: What was read and needs no flag, or is done otherwise, one line each.
    unknown: One line per section or key that nothing is known about.
  """

  flags: dict[str, Any]
  notes: list[str]
  unknown: list[str]

  def text(self, source: str) -> str:
    """Returns the flagfile."""
    lines = [f"# Converted from {source} by flexunet convert_config."]
    for name, value in self.flags.items():
      if isinstance(value, bool):
        lines.append(f"--{name}" if value else f"--no{name}")
      else:
        lines.append(f"--{name}={value}")
    lines += ["", *(f"# {note}" for note in self.notes)]
    lines += [f"# Unknown and left out: {entry}" for entry in self.unknown]
    return "\n".join(lines).rstrip() + "\n"


def convert(path: pathlib.Path) -> ConvertedConfig:
  """Reads a published config.

  Raises:
    InputError: The file is unreadable, a value is no literal or out of its kind, or it is of
      another network.
  """
  sections = _read(path)
  if "model" not in sections:
    raise InputError(
        f"{path.name} must be a published train_eval_infer.config with a section [model]. It has:"
        f" {', '.join(f'[{name}]' for name in sections) or 'no sections'}."
    )
  found: dict[str, Any] = {}
  held: dict[str, tuple[Any, str]] = {}
  notes: list[str] = []
  unknown: list[str] = []
  for section, values in sections.items():
    if section not in KEYS:
      unknown.append(f"[{section}]{_nearest(section, KEYS)}")
      continue
    for key, text in values.items():
      reader = KEYS[section].get(key)
      if reader is None:
        unknown.append(f"[{section}] {key}{_nearest(key, KEYS[section])}")
        continue
      outcome = reader(text, f"{path.name} [{section}] {key}")
      if outcome.note:
        notes.append(f"[{section}] {key}: {outcome.note}")
      found |= outcome.flags
      held |= outcome.held
  return ConvertedConfig(_joined(found, held, path.name, notes), notes, unknown)


def _read(path: pathlib.Path) -> dict[str, dict[str, str]]:
  parser = configparser.ConfigParser(interpolation=None)
  try:
    parser.read_string(path.read_text(encoding="utf-8-sig"), source=path.name)
  except OSError as error:
    raise InputError(f"{path} cannot be read: {error.strerror}.") from error
  except (configparser.Error, UnicodeDecodeError) as error:
    reason = " ".join(str(error).split())
    raise InputError(f"{path.name} must be an ini file with sections: {reason}") from error
  return {name: dict(parser[name]) for name in parser.sections()}


def _nearest(name: str, known: Collection[str]) -> str:
  near = difflib.get_close_matches(name, known, n=1)
  return f" (a misspelt {near[0]}?)" if near else ""


def _joined(
    found: dict[str, Any], held: dict[str, tuple[Any, str]], name: str, notes: list[str]
) -> dict[str, Any]:
  """Returns all flags: those found, what takes more than one key, and what goes unsaid there.

  Args:
    found: Flags of single keys.
    held: What more than one key decides.
    name: Of the file.
    notes: Lines are added to it.
  """

  def value(key: str, default: Any) -> Any:
    return held[key][0] if key in held else default

  size_hw = _size(held, name)
  joined = {**_PUBLISHED_DEFAULTS, **found, "image_size": f"{size_hw[0]},{size_hw[1]}"}
  if "normalization" not in joined:
    joined["normalization"] = "batch" if value("batch_norm", False) else "none"
  elif "batch_norm" in held:
    notes.append("[model] batch_norm: normalization goes before it")
  if not value("reducer", False):
    joined["reduce_lr_patience"] = 0
    joined.pop("reduce_lr_factor", None)
  if not value("previewed", True):
    joined["previews"] = 0
  if "rgb_map" in held:
    notes.append(_palette(*held["rgb_map"], joined.get("num_classes")))
  notes += _threshold(held)
  joined |= _PUBLISHED_RECIPE
  if value("generator", False) and value("generator_augmentation", True):
    made = augmentor.convert(held, size_hw, joined["image_channels"])
    joined |= made.flags
    notes += made.notes
  else:
    key = "[generator] augmentation" if value("generator", False) else "[model] generator"
    notes += augmentor.unused(held, f"as {key} is False")
  return joined


def _size(held: dict[str, tuple[Any, str]], name: str) -> tuple[int, int]:
  """Returns (height, width) of the network's input."""
  edges = [held.get(edge, (None, ""))[0] for edge in ("height", "width")]
  if edges == [None, None]:
    return _PUBLISHED_EDGE, _PUBLISHED_EDGE
  for edge, length in zip(("height", "width"), edges, strict=True):
    if isinstance(length, bool) or not isinstance(length, int) or length < 1:
      raise InputError(
          f"{name} [model] image_{edge} must be a whole number, beside the other edge. Got:"
          f" {length!r}."
      )
  return edges[0], edges[1]


def _threshold(held: dict[str, tuple[Any, str]]) -> list[str]:
  """Returns how a build reads the masks as the published programs binarize them."""
  level, where = held.get("threshold", (None, ""))
  if held.get("binarize", (False, ""))[0]:
    if level is None:
      return ["[mask] binarize: flexunet build image_mask --mask_threshold=LEVEL; none is given"]
    if isinstance(level, bool) or not isinstance(level, int) or not 1 <= level <= 255:
      raise InputError(f"{where} must be a grey level from 1 to 255. Got: {level!r}.")
    return [f"[mask] binarize, threshold: flexunet build image_mask --mask_threshold={level}"]
  notes = []
  if "binarize" in held:
    notes.append("[mask] binarize: masks are read by their colours")
  if "threshold" in held:
    notes.append("[mask] threshold: read with binarize alone, there too")
  return notes


def _palette(value: Any, where: str, num_classes: int | None) -> str:
  good = isinstance(value, dict) and all(
      isinstance(color, tuple) and len(color) == 3 and isinstance(class_id, int)
      for color, class_id in value.items()
  )
  if not good or sorted(value.values()) != list(range(len(value))):
    raise InputError(
        f"{where} must map colours to the class ids 0, 1, 2, ..., e.g. {{(0,0,0):0,"
        f" (255,0,0):1}}. Got: {value!r}."
    )
  if num_classes not in (None, 1, len(value)):
    raise InputError(
        f"{where} must have one colour per class of num_classes={num_classes}. Got: {len(value)}."
    )
  ordered = sorted(value, key=value.get)
  others = ", ".join(f'"class_{n}": {list(color)}' for n, color in enumerate(ordered) if n)
  return (
      f'{where.split(" ", 1)[1]}: as a palette file for flexunet build image_mask --palette:'
      f' {{"background": {list(ordered[0])}, {others}}}'
  )
