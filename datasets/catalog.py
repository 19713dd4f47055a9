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
from flexunet.datasets.builder.raw_folder import Findings
from flexunet.datasets.builder.record_options import RecordOptions, VolumeOptions
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


def options_class(name: str) -> type[RecordOptions]:
  """Returns the class of the options of a dataset, without its builder.

  Raises:
    InputError: For an unknown name, with its nearest spelling.
  """
  if name not in OPTIONS:
    raise unknown_name("dataset", name, NAMES)
  return OPTIONS[name]


def datasets_with(option: str) -> list[str]:
  """Returns the datasets that have an option."""
  return [
      name
      for name, cls in OPTIONS.items()
      if option in {field.name for field in dataclasses.fields(cls)}
  ]


def builder_class(name: str) -> type[SegmentationBuilder]:
  """Returns the builder class of a dataset.

  Raises:
    InputError: For an unknown name, with its nearest spelling.
  """
  options_class(name)
  module = importlib.import_module(f"flexunet.datasets.{name}.{name}_dataset_builder")
  return module.Builder


def builder(
    name: str,
    data_dir: str | os.PathLike | None = None,
    config: str | None = None,
    options: Mapping[str, Any] | None = None,
    file_format: str | None = None,
    config_name: str | None = None,
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

  Raises:
    InputError: For an unknown dataset, config or option, with its nearest spelling.
  """
  name, _, named = name.partition("/")
  chosen = builder_class(name)
  configs = chosen.named_configs()
  config = named or config or chosen.DEFAULT_BUILDER_CONFIG_NAME
  if config not in configs:
    raise unknown_name(f"config of {name}", config, configs)
  selected = with_options(configs[config], options or {}, configs)
  if config_name is not None:
    selected = selected.renamed(_folder_name(config_name))
  kwargs = {"file_format": file_format} if file_format else {}
  return chosen(
      data_dir=None if data_dir is None else os.fspath(data_dir), config=selected, **kwargs
  )


def with_options(
    config: RecordConfig, options: Mapping[str, Any], configs: Mapping[str, RecordConfig]
) -> RecordConfig:
  """Returns a config with some options replaced: itself, a known one, or one named after them."""
  known = [field.name for field in dataclasses.fields(config.options)]
  for name in options:
    if name not in known:
      raise unknown_name("option", name, known)
  changed = dataclasses.replace(config.options, **options)
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
