"""The datasets by name; a builder is imported when it is asked for."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import importlib
import os
import pathlib
from typing import Any

from flexunet.core.errors import InputError, unknown_name
from flexunet.datasets.builder.raw_folder import Findings
from flexunet.datasets.builder.segmentation_builder import BrainBuilder

NAMES = (
    "brain_ich_ct",
    "brain_stroke_ct",
    "full_head_t1w",
    "hippocampus_t1w",
    "image_mask",
    "ms_lesion_mri",
)
_MOST_LETTERS = 40


def builder_class(name: str) -> type[BrainBuilder]:
  """Returns the builder class of a dataset.

  Raises:
    InputError: For an unknown name, with its nearest spelling.
  """
  if name not in NAMES:
    raise unknown_name("dataset", name, NAMES)
  module = importlib.import_module(f"flexunet.datasets.{name}.{name}_dataset_builder")
  return module.Builder


def builder(
    name: str,
    data_dir: str | os.PathLike | None = None,
    config: str | None = None,
    options: dict[str, Any] | None = None,
    file_format: str | None = None,
) -> BrainBuilder:
  """Returns a builder; `name` may carry the config, as in "hippocampus_t1w/left_right".

  Args:
    name: Dataset, or dataset/config.
    data_dir: Where datasets are built.
    config: Config name, when `name` has none.
    options: Values of the config's fields that replace its own; the config then gets a name of
      its own, so that both can lie side by side.
    file_format: "tfrecord" (default) or "array_record".

  Raises:
    InputError: For an unknown dataset, config or option, with its nearest spelling.
  """
  name, _, named = name.partition("/")
  chosen = builder_class(name)
  configs = chosen.builder_configs
  config = named or config or chosen.DEFAULT_BUILDER_CONFIG_NAME
  if config not in configs:
    raise unknown_name(f"config of {name}", config, configs)
  selected = configs[config]
  if options:
    selected = with_options(selected, options)
  kwargs = {"file_format": file_format} if file_format else {}
  return chosen(
      data_dir=None if data_dir is None else os.fspath(data_dir), config=selected, **kwargs
  )


def with_options(config, options: dict[str, Any]):
  """Returns a config with some fields replaced, named after them; itself when nothing changes.

  The option "name" names it otherwise.
  """
  fields = {field.name for field in dataclasses.fields(config)}
  options = dict(options)
  title = options.pop("name", None)
  for name in options:
    if name not in fields:
      raise unknown_name("option", name, fields)
  changed = dataclasses.replace(config, **options)
  differing = {
      name: getattr(changed, name)
      for name in sorted(options)
      if getattr(changed, name) != getattr(config, name)
  }
  if title is not None:
    return dataclasses.replace(changed, name=_folder_name(title))
  if not differing:
    return config
  parts = [f"{name}_{_plain(value)}" for name, value in differing.items()]
  return dataclasses.replace(changed, name="-".join([config.name, *parts]))


def recognise(root: str | os.PathLike) -> list[str]:
  """Returns the datasets (as dataset/config where it is not the default) that a raw folder fits."""
  found = []
  for name in NAMES:
    chosen = builder_class(name)
    for config in chosen.BUILDER_CONFIGS:
      findings = Findings(pathlib.Path(root))
      with contextlib.suppress(InputError):
        chosen(data_dir=os.fspath(root), config=config.name).find_cases(findings)
      if findings.cases:
        default = config.name == chosen.DEFAULT_BUILDER_CONFIG_NAME
        found.append(name if default else f"{name}/{config.name}")
        break
  return found


def register_all() -> None:
  """Imports all builders, so that `tfds.builder(name)` finds them."""
  for name in NAMES:
    builder_class(name)


def _folder_name(title: str) -> str:
  if not title or title[0] == "." or not all(c.isalnum() or c in "._+-" for c in title):
    raise InputError(f"A config name is a folder name of letters, digits and ._+-, got {title!r}.")
  return title


def _plain(value: Any) -> str:
  """Returns a value as a piece of a folder name."""
  if isinstance(value, (tuple, list)):
    return "_".join(_plain(entry) for entry in value)
  text = f"{value:g}" if isinstance(value, float) else str(value)
  if len(text) > _MOST_LETTERS or not all(c.isalnum() or c in "._+-" for c in text):
    return hashlib.sha256(text.encode()).hexdigest()[:8]  # A pattern or a palette is no file name.
  return text


__all__ = ["NAMES", "builder", "builder_class", "recognise", "register_all", "with_options"]
