"""The datasets by name, with their options; a builder, and TFDS, is imported when asked for."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import importlib
import os
import pathlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from flexunet.core.errors import InputError, unknown_name
from flexunet.datasets.builder import plugin
from flexunet.datasets.builder.raw_folder import Findings
from flexunet.datasets.builder.record_options import (
    SPLIT_FIELDS,
    RecordOptions,
    VolumeOptions,
    split_options,
)
from flexunet.datasets.hippocampus_t1w.options import HippocampusOptions
from flexunet.datasets.image_mask.options import ImageMaskOptions
from flexunet.datasets.ms_lesion_mri.options import MsOptions
from flexunet.datasets.scan_label.options import ScanLabelOptions

if TYPE_CHECKING:
  from flexunet.datasets.builder.segmentation_builder import RecordConfig, SegmentationBuilder

OPTIONS: Mapping[str, type[RecordOptions]] = {
    "brain_ich_ct": VolumeOptions,
    "brain_stroke_ct": RecordOptions,
    "full_head_t1w": VolumeOptions,
    "hippocampus_t1w": HippocampusOptions,
    "image_mask": ImageMaskOptions,
    "ms_lesion_mri": MsOptions,
    "scan_label": ScanLabelOptions,
}
NAMES = tuple(OPTIONS)
_MOST_LETTERS = 40


def known_names() -> list[str]:
  """Returns the names of our datasets and of those that installed packages offer."""
  return [*NAMES, *sorted(plugin.installed().keys() - OPTIONS.keys())]


def options_class(name: str) -> type[RecordOptions]:
  """Returns the class of the options of a dataset; without its builder where it is ours.

  Raises:
    InputError: For an unknown name, with its nearest spelling.
  """
  if name in OPTIONS:
    return OPTIONS[name]
  return options_of(builder_class(name))


def options_of(chosen: type[SegmentationBuilder]) -> type[RecordOptions]:
  """Returns the class of the options of a builder, that of its first config."""
  return type(chosen.BUILDER_CONFIGS[0].options)


def datasets_with(option: str) -> list[str]:
  """Returns the datasets that have an option."""
  return [
      name
      for name, cls in OPTIONS.items()
      if option in {field.name for field in dataclasses.fields(cls)}
  ]


def builder_class(name: str) -> type[SegmentationBuilder]:
  """Returns the builder class of a dataset, ours or of an installed package.

  Raises:
    InputError: For an unknown name, with its nearest spelling; what is wrong with a package's.
  """
  if name not in OPTIONS:
    offered = plugin.installed()
    if name not in offered:
      raise unknown_name("dataset", name, known_names())
    return plugin.load_installed(offered[name])
  module = importlib.import_module(f"flexunet.datasets.{name}.{name}_dataset_builder")
  return module.Builder


def plugin_class(path: str | os.PathLike, name: str = "") -> type[SegmentationBuilder]:
  """Returns the builder class in a file or folder of the user, whose code is run.

  Args:
    path: As `plugin.load` takes it.
    name: The dataset that it must be; "": any but ours.

  Raises:
    InputError: It is no complete builder, or of another name.
  """
  chosen = plugin.load(path)
  if chosen.name in OPTIONS:
    raise InputError(
        f"{path}: its dataset is called {chosen.name}, as one of FlexUNet is. Rename the folder and"
        " the file, or give the class a `name` of its own."
    )
  if name and name != chosen.name:
    raise InputError(f"{path}: builds the dataset {chosen.name}. Got: {name}.")
  return chosen


def builder(
    name: str,
    data_dir: str | os.PathLike | None = None,
    config: str | None = None,
    options: Mapping[str, Any] | None = None,
    file_format: str | None = None,
    config_name: str | None = None,
    builder_path: str | os.PathLike | None = None,
) -> SegmentationBuilder:
  """Returns a builder; `name` may carry the config, as in "hippocampus_t1w/left_right".

  Args:
    name: Dataset, or dataset/config.
    data_dir: Where datasets are built.
    config: Name of a config, when `name` has none.
    options: Values that replace those of the config. The config is then the one that has just
      these options, or gets a name of its own, so that both can lie side by side.
    file_format: "tfrecord" (default) or "array_record".
    config_name: Names the config otherwise.
    builder_path: File or folder of the builder, where it is the user's own.

  Raises:
    InputError: For an unknown dataset, config or option, with its nearest spelling.
  """
  name, _, named = name.partition("/")
  chosen = builder_class(name) if builder_path is None else plugin_class(builder_path, name)
  configs = chosen.named_configs()
  config = named or config or chosen.DEFAULT_BUILDER_CONFIG_NAME or next(iter(configs))
  if config not in configs:
    raise unknown_name(f"config of {name}", config, configs)
  options = options or {}
  selected = with_options(configs[config], options, configs)
  if config_name is not None:
    selected = selected.renamed(_folder_name(config_name))
  kwargs = {"file_format": file_format} if file_format else {}
  made = chosen(
      data_dir=None if data_dir is None else os.fspath(data_dir), config=selected, **kwargs
  )
  made.split_options = split_options(options)
  return made


def with_options(
    config: RecordConfig, options: Mapping[str, Any], configs: Mapping[str, RecordConfig]
) -> RecordConfig:
  """Returns a config with some options replaced: itself, a known one, or one named after them.

  Options of the splits are no part of a config, whose name a dataset keeps as it grows.
  """
  known = [field.name for field in dataclasses.fields(config.options)]
  for name in options:
    if name not in known:
      raise unknown_name("option", name, known)
  of_records = {name: value for name, value in options.items() if name not in SPLIT_FIELDS}
  changed = dataclasses.replace(config.options, **of_records)
  if found := [one for one in (config, *configs.values()) if one.options == changed]:
    return found[0]
  parts = [
      f"{name}_{_plain(getattr(changed, name))}"
      for name in sorted(known)
      if getattr(changed, name) != getattr(config.options, name)
  ]
  return config.renamed("-".join([config.name, *parts]), changed)


def recognise(root: str | os.PathLike) -> list[str]:
  """Returns the datasets (as dataset/config where it is not the default) that a raw folder fits."""
  found = []
  for name in NAMES:
    chosen = builder_class(name)
    for config in chosen.BUILDER_CONFIGS:
      findings = Findings(pathlib.Path(root))
      with contextlib.suppress(InputError, OSError):
        chosen(data_dir=os.fspath(root), config=config.name).find_cases(findings)
      if findings.cases:
        default = config.name == chosen.DEFAULT_BUILDER_CONFIG_NAME
        found.append(name if default else f"{name}/{config.name}")
        break
  return found


def _folder_name(title: str) -> str:
  if not title or title[0] == "." or not all(c.isalnum() or c in "._+-" for c in title):
    raise InputError(
        f"A config name must be a folder name of letters, digits and ._+-. Got: {title!r}."
    )
  return title


def _plain(value: Any) -> str:
  """Returns a value as a piece of a folder name."""
  if isinstance(value, (tuple, list)):
    return "_".join(_plain(entry) for entry in value)
  text = f"{value:g}" if isinstance(value, float) else str(value)
  if len(text) > _MOST_LETTERS or not all(c.isalnum() or c in "._+-" for c in text):
    return hashlib.sha256(text.encode()).hexdigest()[:8]  # A pattern or a palette is no file name.
  return text
