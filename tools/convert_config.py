"""Turns a published `train_eval_infer.config` into a file of flags for `flexunet train`.

  flexunet convert_config train_eval_infer.config --output=recipe.flags
  flexunet train --flagfile=recipe.flags --data_dir=DATA --run_dir=RUN

The file is an ini file whose values are Python literals; they are parsed as literals, never
evaluated. Keys that need no flag are noted in the output; unknown ones are named there and on
standard error, or are an error with --strict.
"""

from __future__ import annotations

import ast
import configparser
import dataclasses
import difflib
import pathlib
import sys
from collections.abc import Callable, Sequence
from typing import Any

from flexunet.core import command_line, files, flags
from flexunet.core.errors import InputError

# What becomes of a key: {flag: value}, or, where no flag is needed, the sentence that says why.
Outcome = dict[str, Any] | str
# Takes (value, where it stands); a value of another kind is an InputError.
Reader = Callable[[Any, str], Outcome]
_LOSSES = {
    "categorical_crossentropy": "cross_entropy",
    "sparse_categorical_crossentropy": "cross_entropy",
    "binary_crossentropy": "cross_entropy",
    "dice_loss": "dice",
    "iou_loss": "iou",
    "bce_dice_loss": "bce_dice",
    "bce_iou_loss": "bce_iou",
    "basnet_hybrid_loss": "basnet_hybrid",
    "categorical_focal_loss": "focal",
    "focal_loss": "focal",
    "tversky_loss": "tversky",
}
_METRICS = {
    "dice_coef_multiclass": "dice_coef_multiclass",
    "dice_coef_foreground": "dice",
    "dice_coef": "dice",
    "iou_coef": "iou",
    "sensitivity": "sensitivity",
    "specificity": "specificity",
}
_OPTIMIZERS = {"adam": "adam", "adamw": "adamw", "sgd": "sgd"}
_NETWORK = "TensorFlowFlexUNet"
# Where the file is silent; the project's own recipe would plan otherwise.
_PUBLISHED_DEFAULTS = {"optimizer": "adam", "normalization": "none", "loss": "cross_entropy"}
_PROGRAM = flags.Program(__doc__, usage="flexunet convert_config FILE [--output=FLAGFILE]")
_OUTPUT = _PROGRAM.string("output", None, "File to write. Default: standard output.")
_STRICT = _PROGRAM.boolean("strict", False, "Makes unknown keys an error.")


def whole(flag: str) -> Reader:
  """Returns the reader of a whole number of at least 0 that becomes `flag`."""

  def read(value: Any, where: str) -> Outcome:
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
      raise InputError(f"{where} must be a whole number. Got: {value!r}.")
    return {flag: value}

  return read


def number(flag: str) -> Reader:
  """Returns the reader of a number of at least 0 that becomes `flag`."""

  def read(value: Any, where: str) -> Outcome:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or value < 0:
      raise InputError(f"{where} must be a number of at least 0. Got: {value!r}.")
    return {flag: format(value, "g")}

  return read


def edge(flag: str) -> Reader:
  """Returns the reader of a pair of equal numbers, as published kernels and dilations are."""

  def read(value: Any, where: str) -> Outcome:
    pair = value if isinstance(value, (tuple, list)) else (value,)
    whole_numbers = all(type(number) is int for number in pair)
    if not pair or not whole_numbers or any(number != pair[0] for number in pair):
      raise InputError(
          f"{where} must be a pair of equal whole numbers, e.g. (11,11). Got: {value!r}."
      )
    return {flag: pair[0]}

  return read


def switch(on: Outcome, off: Outcome) -> Reader:
  """Returns the reader of True or False, which become `on` or `off`."""

  def read(value: Any, where: str) -> Outcome:
    if not isinstance(value, bool):
      raise InputError(f"{where} must be True or False. Got: {value!r}.")
    return on if value else off

  return read


def choice(flag: str, known: dict[str, str]) -> Reader:
  """Returns the reader of a name among `known`, published -> ours, that becomes `flag`."""
  lowered = {name.lower(): mine for name, mine in known.items()}

  def read(value: Any, where: str) -> Outcome:
    found = lowered.get(value.lower()) if isinstance(value, str) else None
    if found is None:
      near = difflib.get_close_matches(str(value).lower(), lowered, n=1)
      hint = f" The nearest is {near[0]!r}." if near else ""
      raise InputError(f"{where} must be one of {', '.join(known)}. Got: {value!r}.{hint}")
    return {flag: found}

  return read


def noted(sentence: str) -> Reader:
  """Returns the reader of a value that needs no flag, for the reason given."""
  return lambda value, where: sentence


def held(name: str) -> Reader:
  """Returns the reader that keeps a value under `_name`, for what more than one key decides."""

  def read(value: Any, where: str) -> Outcome:
    return {f"_{name}": (value, where)}

  return read


def literal(text: str, where: str) -> Any:
  """Returns the Python literal that `text` is; InputError where it is none."""
  try:
    return ast.literal_eval(text.strip())
  except (ValueError, SyntaxError, MemoryError, RecursionError):
    raise InputError(
        f'{where} must be a Python literal such as 0.5, True, "text" or (3,3). Got: {text!r}.'
    ) from None


@dataclasses.dataclass(frozen=True)
class Converted:
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


def convert(path: pathlib.Path) -> Converted:
  """Reads a published config.

  Raises:
    InputError: The file is unreadable, a value is no literal or out of its kind, or it is of
      another network.
  """
  sections = _read(path)
  flags: dict[str, Any] = {}
  notes: list[str] = []
  unknown: list[str] = []
  if "model" not in sections:
    raise InputError(
        f"{path.name} must be a published train_eval_infer.config with a section [model]. It has:"
        f" {', '.join(f'[{name}]' for name in sections) or 'no sections'}."
    )
  for section, values in sections.items():
    if section not in _KEYS:
      unknown.append(f"[{section}]{_nearest(section, _KEYS)}")
      continue
    for key, text in values.items():
      reader = _KEYS[section].get(key)
      if reader is None:
        unknown.append(f"[{section}] {key}{_nearest(key, _KEYS[section])}")
        continue
      where = f"{path.name} [{section}] {key}"
      outcome = reader(literal(text, where), where)
      if isinstance(outcome, str):
        notes.append(f"[{section}] {key}: {outcome}")
      else:
        flags.update(outcome)
  _join(flags, sections, path, notes)
  return Converted(flags, notes, unknown)


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


def _nearest(name: str, known) -> str:
  near = difflib.get_close_matches(name, known, n=1)
  return f" (a misspelt {near[0]}?)" if near else ""


def _metrics(value: Any, where: str) -> Outcome:
  if not isinstance(value, (list, tuple)) or not all(isinstance(name, str) for name in value):
    raise InputError(f"{where} must be a list of names. Got: {value!r}.")
  plain = list(dict.fromkeys(name.removeprefix("val_") for name in value))
  if strange := [name for name in plain if name not in _METRICS]:
    raise InputError(f"{where} must name metrics of {', '.join(_METRICS)}. Got: {strange[0]!r}.")
  return {"metrics": ",".join(dict.fromkeys(_METRICS[name] for name in plain))}


def _network(value: Any, where: str) -> Outcome:
  # Casing varies between the published files.
  if not isinstance(value, str) or value.lower() != _NETWORK.lower():
    raise InputError(f"{where} must be {_NETWORK!r}, the only network here. Got: {value!r}.")
  return "the network of this package"


_PATHS = noted("build the dataset with flexunet build image_mask; --data_dir names it")
_INFERENCE = noted("masks are predicted with flexunet predict after training")
_KEYS: dict[str, dict[str, Reader]] = {
    "model": {
        "model": _network,
        "generator": switch({"augmentation": "default"}, {"augmentation": "none"}),
        "image_width": held("width"),
        "image_height": held("height"),
        "image_channels": whole("image_channels"),
        "input_normalize": noted("the network scales its input by 1/255 in any case"),
        "normalization": switch({"normalization": "batch"}, {"normalization": "none"}),
        "num_classes": whole("num_classes"),
        "base_filters": whole("base_filters"),
        "base_kernels": edge("base_kernels"),
        "num_layers": whole("num_layers"),
        "dropout_rate": number("dropout_rate"),
        "dilation": edge("dilation"),
        "activation": choice(
            "activation",
            {n: n for n in ("relu", "elu", "mish", "selu", "gelu", "silu", "leaky_relu")},
        ),
        "optimizer": choice("optimizer", _OPTIMIZERS),
        "learning_rate": number("learning_rate"),
        "clipvalue": number("clipvalue"),
        "loss": choice("loss", _LOSSES),
        "metrics": _metrics,
        "show_summary": noted("flexunet inspect shows the network"),
    },
    "dataset": {
        "class_name": noted("images and masks are read by the builder image_mask"),
    },
    "train": {
        "epochs": whole("epochs"),
        "batch_size": whole("batch_size"),
        "steps_per_epoch": noted("an epoch is one pass over the training split"),
        "validation_steps": noted("a validation is one pass over the validation split"),
        "patience": whole("early_stopping_patience"),
        "metrics": noted("curves of all --metrics are drawn"),
        "model_dir": noted("everything of a run lies in --run_dir"),
        "eval_dir": noted("everything of a run lies in --run_dir"),
        "image_datapath": _PATHS,
        "mask_datapath": _PATHS,
        "images_dir": _PATHS,
        "masks_dir": _PATHS,
        "create_backup": noted("a run never overwrites another one"),
        "learning_rate_reducer": held("reducer"),
        "reducer_factor": number("reduce_lr_factor"),
        "reducer_patience": whole("reduce_lr_patience"),
        "epoch_change_infer": held("previewed"),
        "epoch_change_infer_dir": noted("previews lie in RUN/previews"),
        "epoch_change_tiled_infer": noted("previews show whole slices"),
        "epoch_change_tiled_infer_dir": noted("previews lie in RUN/previews"),
        "epoch_changeinfer": noted("a former name of epoch_change_infer"),
        "epoch_changeinfer_dir": noted("previews lie in RUN/previews"),
        "num_infer_images": whole("previews"),
        "save_weights_only": noted("the whole best model is saved"),
    },
    "valid": {"images_dir": _PATHS, "masks_dir": _PATHS},
    "test": {"images_dir": _PATHS, "masks_dir": _PATHS},
    "eval": {"images_dir": _PATHS, "masks_dir": _PATHS},
    "infer": {"images_dir": _INFERENCE, "output_dir": _INFERENCE},
    "tiledinfer": {
        "overlapping": _INFERENCE, "images_dir": _INFERENCE, "output_dir": _INFERENCE
    },
    "image": {"color_order": noted("images are read as RGB")},
    "mask": {
        "mask_datatype": noted("masks are read by their colours"),
        "mask_file_format": noted("PNG, JPEG and BMP are read"),
        "rgb_map": held("rgb_map"),
    },
    "debug": {"verbose": noted("--verbosity shows more")},
}  # fmt: skip


def _join(
    flags: dict[str, Any], sections: dict, path: pathlib.Path, notes: list[str]
) -> None:
  """Resolves what takes more than one key, and adds what the published trainer does unasked."""
  edges = [flags.pop(f"_{name}", None) for name in ("height", "width")]
  if any(edges):
    for name, edge in zip(("height", "width"), edges, strict=True):
      if edge is None or isinstance(edge[0], bool) or not isinstance(edge[0], int):
        raise InputError(
            f"{path.name} [model] image_{name} must be a whole number, beside the other edge. Got:"
            f" {edge[0] if edge else None!r}."
        )
    flags["image_size"] = f"{edges[0][0]},{edges[1][0]}"
  reducer = flags.pop("_reducer", (False, ""))[0]
  if not reducer:
    flags["reduce_lr_patience"] = 0
    flags.pop("reduce_lr_factor", None)
  if not flags.pop("_previewed", (False, ""))[0]:
    flags["previews"] = 0
  if colors := flags.pop("_rgb_map", None):
    value, where = colors
    notes.append(_palette(value, where, flags.get("num_classes")))
  for name, value in _PUBLISHED_DEFAULTS.items():
    flags.setdefault(name, value)
  flags.update({
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
  })


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


def main(argv: Sequence[str]) -> None:
  if len(argv) != 2:
    raise InputError(f"Usage: {_PROGRAM.usage}. Got: {' '.join(argv[1:]) or 'nothing'}.")
  source = pathlib.Path(argv[1]).expanduser()
  converted = convert(source)
  if converted.unknown:
    unknown = "; ".join(converted.unknown)
    if _STRICT.value:
      raise InputError(f"{source.name} has unknown entries: {unknown}.")
    print(f"warning: {source.name}: unknown and left out: {unknown}.", file=sys.stderr)
  text = converted.text(source.name)
  if _OUTPUT.value is None:
    print(text, end="")
    return
  target = pathlib.Path(_OUTPUT.value).expanduser()
  if target.exists():
    raise InputError(f"--output {target} exists already. Name another file.")
  files.write_bytes(target, text.encode("utf-8"))
  print(f"Wrote {len(converted.flags)} flags to {target}.")


def run() -> None:
  command_line.run(main, _PROGRAM)


if __name__ == "__main__":
  run()
