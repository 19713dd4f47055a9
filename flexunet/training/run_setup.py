"""From what the user gave to a complete `RunConfig`: plan, then checked as a whole.

Everything that can be refused from flags, dataset and starting point is refused here, before
anything is decoded, built or written.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from flexunet import config
from flexunet.core import machine, progress
from flexunet.core.errors import InputError, unknown_name
from flexunet.dataset_facts import DatasetFacts
from flexunet.imaging import label_scheme
from flexunet.imaging.intensity import IntensityWindow
from flexunet.imaging.slicing import SlicePlan
from flexunet.network import pretrained
from flexunet.objectives import loss_settings, metrics
from flexunet.pipelines import dataset_source, laterality, readers
from flexunet.pipelines.augmentation.config import AugmentationConfig
from flexunet.pipelines.dataset_source import DatasetSource
from flexunet.pipelines.pixel_size import PixelSizes
from flexunet.pipelines.record_table import RecordTable
from flexunet.pipelines.resizing import Resizing
from flexunet.training import devices, forecast, input_pipeline, monitoring, planning

_DEFAULT_AUGMENTATION = AugmentationConfig()


def complete(
    model: config.ModelConfig,
    data: config.DataConfig,
    training: config.TrainingConfig,
    opened: input_pipeline.TrainingData,
    augmentation: AugmentationConfig = _DEFAULT_AUGMENTATION,
) -> config.RunConfig:
  """Plans what was left open and checks that everything fits together.

  Raises:
    InputError: Values that are fine alone cannot be together, or not with this dataset.
  """
  source = opened.source
  data = _with_features(data, source)
  rows, spacing_mm = readers.sampled_spacing_mm(source, opened.train)
  facts = _dataset_facts(source, data.label_key, model.num_classes, spacing_mm)
  mirroring = _laterality(opened, data, augmentation, facts.label_scheme.names)
  start = pretrained.open_start(training.init_from) if training.init_from else None
  # A run that time ends is planned by what the machine can do, any other one by its steps alone.
  timed = bool(training.max_minutes or training.budget)
  known = forecast.Facts(
      train=opened.train,
      validation=opened.validation,
      class_names=facts.label_scheme.names,
      spacing_mm=facts.spacing_mm,
      laterality=mirroring,
      channel_names=facts.channel_names,
      start=start.config if start else None,
      **_machine_facts(opened, training, timed),
  )
  plan = planning.plan(model, data, training, augmentation, known)
  _check(plan, facts.label_scheme.num_classes, source.name)
  if start:
    pretrained.check_same_kind(start, plan.model)
  settings, reasons = devices.complete(
      plan.training,
      cache=plan.data.cache,
      augmented=plan.augmentation.enabled,
      served=bool(plan.data.data_service),
  )
  _warn_of_memory(plan, settings, opened.free_device_bytes)
  scales = _input_scales(plan, opened.train.take(rows))
  completed = config.RunConfig(
      model=plan.model,
      data=plan.data,
      training=settings,
      augmentation=plan.augmentation,
      dataset_facts=dataclasses.replace(facts, **_pixel_facts(scales, spacing_mm)),
      laterality=mirroring,
      reasons={**plan.reasons, **reasons},
  )
  completed.check_shown_channel()
  return completed


def _warn_of_memory(
    plan: planning.Plan, settings: config.TrainingConfig, free_bytes: int | None
) -> None:
  sharing, shape = devices.num_sharing(settings.num_devices), plan.data.step_model(plan.model)
  flag = "--patch_size" if plan.data.patch_hw else "--image_size"
  if warning := forecast.memory_warning(shape, settings, free_bytes, sharing, flag):
    progress.say(warning)


def _with_features(data: config.DataConfig, source: DatasetSource) -> config.DataConfig:
  """Returns the data config with the features that were found, all of which are there."""
  for key in (source.keys.image, source.keys.label):
    if key not in source.info.features:
      raise unknown_name(f"feature of {source.name}", key, source.info.features)
  if len(source.channel_names) > 1 and source.keys.image != "image":
    raise InputError(
        f"--image_key is for datasets built elsewhere. Got: {source.keys.image}. Build"
        f" {source.name} with --channels to have some of its channels alone."
    )
  return data.with_keys(source.keys)


def _dataset_facts(
    source: DatasetSource, label_key: str, num_classes: int | None, spacing_mm: np.ndarray
) -> DatasetFacts:
  """Returns what is known before anything is planned.

  Args:
    source: The opened dataset.
    label_key: Feature of the label.
    num_classes: As in `DatasetSource.label_scheme`.
    spacing_mm: (row, column) of some training slices, [N, 2]; NaN where unknown.
  """
  plan, window = source.slice_plan, source.intensity
  row_mm, column_mm = np.median(spacing_mm, axis=0) if len(spacing_mm) else (np.nan, np.nan)
  return DatasetFacts(
      name=source.name,
      fingerprint=source.fingerprint,
      label_scheme=source.label_scheme(label_key, num_classes),
      slice_plan=SlicePlan(**plan) if plan else None,
      intensity=IntensityWindow(**window) if window else None,
      spacing_mm=(float(row_mm), float(column_mm)) if np.isfinite(row_mm + column_mm) else None,
      isotropic_mm=(source.report.get("options") or {}).get("isotropic_mm"),
      channel_names=source.channel_names,
      in_plane_mm=source.recipe.in_plane_mm if source.recipe else None,
      resample_channels=(source.report.get("options") or {}).get("resample_channels", False),
      other_intensities=source.recipe.other_intensities if source.recipe else (),
      bias_correction=source.recipe.bias_correction if source.recipe else "none",
  )


def _input_scales(plan: planning.Plan, table: RecordTable) -> np.ndarray | None:
  """Returns the factors (row, column) by which slices are scaled to the planned input, [N, 2].

  Args:
    plan: Complete.
    table: Some training slices.

  Returns:
    None where the size of a slice that is to be scaled is unknown.
  """
  if plan.model.image_size is None:
    raise ValueError("A complete plan has an image_size.")
  resizing = Resizing(plan.model.image_size, plan.data.resize_mode)
  if resizing.mode == "pad":
    return np.ones((len(table), 2))
  native = np.stack([table.height, table.width], axis=1)
  if not (native > 0).all():
    return None
  inner = np.array([resizing.inner_size((height, width)) for height, width in native.tolist()])
  return inner.reshape(-1, 2) / native


def _pixel_facts(scales: np.ndarray | None, spacing_mm: np.ndarray) -> dict[str, Any]:
  """Returns what the run remembers of the pixels of its input, by the names of `DatasetFacts`.

  Args:
    scales: Of some training slices; see `_input_scales`.
    spacing_mm: Their (row, column) spacing, [N, 2]; NaN where unknown.
  """
  if scales is None:
    return {"pixel_sizes": None, "input_scale": None}
  row, column = np.median(scales, axis=0) if len(scales) else (1.0, 1.0)
  return {
      "pixel_sizes": PixelSizes.of_slices(spacing_mm / scales),
      "input_scale": None if row == column == 1 else (float(row), float(column)),
  }


def _machine_facts(
    opened: input_pipeline.TrainingData, training: config.TrainingConfig, measure: bool
) -> dict[str, Any]:
  """Returns what planning knows of the machine, by the names of `forecast.Facts`.

  Args:
    opened: The data, which know the memory.
    training: Settings; the precision may be open.
    measure: Whether to time a convolution.
  """
  precision = training.precision
  precision = devices.default_precision()[0] if precision == "auto" else precision
  gpu = devices.has_gpu()
  return {
      "device": "gpu" if gpu else "cpu",
      "cpu_cores": machine.available_cpus(),
      "memory_bytes": opened.free_device_bytes,
      "precision": precision,
      "convolution_speed": devices.convolution_speed(precision) if measure and not gpu else None,
  }


def expected(
    run_config: config.RunConfig, opened: input_pipeline.TrainingData
) -> forecast.Forecast:
  """Returns what a run is expected to take on this machine; a convolution is timed for it."""
  settings = run_config.training
  known = forecast.Facts(
      train=opened.train,
      validation=opened.validation,
      class_names=run_config.dataset_facts.label_scheme.names,
      **_machine_facts(opened, settings, True),
  )
  sharing = devices.num_sharing(settings.num_devices)
  faster = devices.num_sharing_hardware(settings.num_devices)
  return forecast.forecast(run_config.model, run_config.data, settings, known, sharing, faster)


def _laterality(
    opened: input_pipeline.TrainingData,
    data: config.DataConfig,
    augmentation: AugmentationConfig,
    class_names: Sequence[str],
) -> laterality.Laterality:
  """Decides on mirror images, and says so where the user would expect some."""
  decided = laterality.decide_for(
      opened.source,
      opened.train,
      class_names,
      requested=augmentation.flip_horizontal_probability,
      image_key=data.image_key,
      label_key=data.label_key,
  )
  augments = augmentation.augmentation != "none" or augmentation.given
  if decided.reason and decided.mirroring:
    progress.say(f"Warning: images are mirrored as asked for, although {decided.reason}.")
  elif decided.reason and augments:
    progress.say(
        f"No mirror images: {decided.reason}. --flip_horizontal_probability=0.5 overrules this."
    )
  return decided


def _check(plan: planning.Plan, in_dataset: int, name: str) -> None:
  num_classes = plan.model.num_classes
  if num_classes not in (in_dataset, 1 if in_dataset == 2 else in_dataset):
    raise InputError(
        f"--num_classes must be {in_dataset}, the classes of {name} with background"
        f"{' (or 1 for a sigmoid)' if in_dataset == 2 else ''}. Got: {num_classes}."
    )
  plan.model.require_complete()
  loss_settings.check(plan.training, num_classes)
  metrics.training_metrics(plan.training.metrics, num_classes)
  monitoring.check(plan.training)
  context = plan.data.context_slices
  wanted = 2 * context + 1
  if context and plan.model.image_channels != wanted:
    raise InputError(
        f"--context_slices={context} makes {wanted} channels: --image_channels must be {wanted}."
        f" Got: {plan.model.image_channels}."
    )
  if plan.data.cache_dir and plan.data.cache not in ("auto", "disk"):
    raise InputError(
        f"--cache_dir is of --cache=disk or auto. Got: --cache={plan.data.cache}."
    )


def label_warnings(
    run_config: config.RunConfig, opened: input_pipeline.TrainingData
) -> list[str]:
  """Returns a sentence for each split without foreground, and each class that a split lacks.

  Of the splits of the run as it divides them, and of the others that its dataset has labels for.
  """
  data = run_config.data
  tables = {data.train_split: opened.train, data.validation_split: opened.validation}
  for split in opened.source.splits:
    known = split in (*tables, *dataset_source.WITHOUT_TRUTH)
    if not known and opened.source.info.splits[split].num_examples:
      tables[split] = opened.source.records(split)
  pixels = {name: table.pixels for name, table in tables.items() if table.pixels is not None}
  return label_scheme.presence_warnings(run_config.dataset_facts.label_scheme.names, pixels)
