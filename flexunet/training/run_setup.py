"""From what the user gave to a complete `RunConfig`: planned, then checked as a whole.

Everything that can be refused from flags, dataset and starting point is refused here, before
anything is decoded, built or written.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from flexunet import config
from flexunet.core import machine, progress
from flexunet.core.errors import InputError, unknown_name
from flexunet.network import architecture, pretrained
from flexunet.objectives import loss_settings, metrics
from flexunet.pipelines import laterality, readers
from flexunet.pipelines.augmentation.config import AugmentationConfig
from flexunet.pipelines.laterality import names_sides
from flexunet.training import devices, input_pipeline, monitoring, planning

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
  for key in (data.image_key, data.label_key):
    if key not in source.info.features:
      raise unknown_name(f"feature of {source.name}", key, source.info.features)
  scheme = source.label_scheme(data.label_key, model.num_classes)
  spacing = np.asarray(readers.median_spacing_mm(source, opened.train), float)
  spacing_mm = spacing.tolist() if np.isfinite(spacing).all() else None
  start = pretrained.open_start(training.init_from) if training.init_from else None
  device = "gpu" if devices.has_gpu() else "cpu"
  memory_bytes = opened.free_device_bytes
  one_sided = _one_sided(opened, data, augmentation, scheme.names)
  planned = planning.plan(
      model,
      data,
      training,
      augmentation,
      planning.Facts(
          train=opened.train,
          validation=opened.validation,
          class_names=scheme.names,
          device=device,
          cpu_cores=machine.available_cpus(),
          memory_bytes=memory_bytes,
          spacing_mm=spacing_mm,
          plane=(source.slice_plan or {}).get("plane"),
          start=start.knobs if start else None,
          one_sided=one_sided,
      ),
  )
  _check(planned, scheme.num_classes, source.name)
  if start:
    pretrained.check_same_kind(start, _knobs(planned.model))
  settings, reasons = devices.complete(
      planned.training, cache=planned.data.cache, augmented=planned.augmentation.enabled
  )
  sharing = devices.num_sharing(settings.num_devices)
  if warning := planning.memory_warning(planned.model, settings, memory_bytes, sharing):
    progress.say(warning)
  return config.RunConfig(
      model=planned.model,
      data=planned.data,
      training=settings,
      augmentation=planned.augmentation,
      dataset_facts=config.DatasetFacts(
          name=source.name,
          fingerprint=source.fingerprint,
          label_scheme=scheme.to_json(),
          slice_plan=source.slice_plan,
          intensity=source.intensity,
          spacing_mm=spacing_mm,
          isotropic_mm=(source.report.get("options") or {}).get("isotropic_mm"),
          one_sided=list(one_sided),
      ),
      reasons={**planned.reasons, **reasons},
  )


def _one_sided(
    opened: input_pipeline.TrainingData,
    data: config.DataConfig,
    augmentation: AugmentationConfig,
    class_names: Sequence[str],
) -> tuple[str, ...]:
  """Returns the classes that forbid mirror images, in training and when answers are averaged."""
  if augmentation.flip_horizontal_probability is not None or names_sides(class_names):
    return ()
  found = laterality.one_sided_classes(
      opened.source, opened.train, class_names, data.image_key, data.label_key
  )
  if found and (augmentation.augmentation != "none" or augmentation.given):
    progress.say(
        f"No mirror images: {' and '.join(found)} lies on one side of the picture in every subject"
        " looked at. Pass --flip_horizontal_probability=0.5 if that is chance."
    )
  return found


def _check(planned: planning.Planned, in_dataset: int, name: str) -> None:
  num_classes = planned.model.num_classes
  if num_classes not in (in_dataset, 1 if in_dataset == 2 else in_dataset):
    raise InputError(
        f"--num_classes must be {in_dataset}, the classes of {name} with background"
        f"{' (or 1 for a sigmoid)' if in_dataset == 2 else ''}. Got: {num_classes}."
    )
  _knobs(planned.model)
  loss_settings.check(planned.training, num_classes)
  metrics.training_metrics(planned.training.metrics, num_classes)
  monitoring.check(planned.training)
  context = planned.data.context_slices
  wanted = 2 * context + 1
  if context and planned.model.image_channels != wanted:
    raise InputError(
        f"--context_slices={context} makes {wanted} channels: --image_channels must be {wanted}."
        f" Got: {planned.model.image_channels}."
    )
  if planned.data.cache_dir and planned.data.cache not in ("auto", "disk"):
    raise InputError(
        f"--cache_dir is of --cache=disk or auto. Got: --cache={planned.data.cache}."
    )


def _knobs(model: config.ModelConfig) -> architecture.Knobs:
  return architecture.Knobs(**dataclasses.asdict(model))
