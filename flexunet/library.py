"""What `import flexunet` offers: datasets, runs, and the calls that the programs make.

Every call here is what a program does after it has read its flags; settings carry the names of the
flags. Bad input is an `flexunet.core.errors.InputError` with one line that says what to do.
"""

from __future__ import annotations

import abc
import dataclasses
import functools
import math
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np

from flexunet import config, ensemble_folder, run_calibration, run_folder
from flexunet.core import config_fields
from flexunet.core.errors import InputError, unknown_name
from flexunet.cross_validation import cross_validate as cross_validation
from flexunet.ensemble_folder import RunSet
from flexunet.evaluation import calibrate, evaluate, evaluate_ensemble, stress_summary
from flexunet.evaluation.scores import DEFAULT_TOLERANCES_MM
from flexunet.imaging import pictures, scan_files
from flexunet.pipelines.augmentation.config import AugmentationConfig
from flexunet.prediction import files as prediction_files
from flexunet.prediction import opening, scan_volumes, scans
from flexunet.prediction import predictor as predictors
from flexunet.prediction.ensemble import Ensemble
from flexunet.prediction.opening import PredictionOptions
from flexunet.prediction.test_time import ViewOptions
from flexunet.prediction.tiles import TileOptions
from flexunet.training import (
  devices,
  forecast,
  input_pipeline,
  plan_lines,
  run_setup,
  trainer,
)

_PASSES = ("tile", "overlap", "tta", "tta_scales", "calibrated", "clean_up")
_PARTS = {
    "model": config.ModelConfig,
    "data": config.DataConfig,
    "training": config.TrainingConfig,
    "augmentation": AugmentationConfig,
}


class Segmenter(abc.ABC):
  """What segments scans: a run, or an ensemble of runs.

  Attributes:
    config: What the run was trained with, complete; of an ensemble that of its first run.
  """

  config: config.RunConfig

  @abc.abstractmethod
  def predictor(
      self, *, batch_size: int = 8, **passes: Any
  ) -> predictors.Predictor | Ensemble:
    """Returns what predicts slices at their own size, with their probabilities.

    Probabilities are scaled as the calibration of each run says, where it has one.

    Args:
      batch_size: Slices per step.
      **passes: tile, overlap, tta, tta_scales, calibrated and clean_up, as in `predict`.
    """

  @property
  def class_names(self) -> list[str]:
    """Names by class id, background first."""
    return self.config.dataset_facts.label_scheme.names

  def predict(
      self,
      scan: str | os.PathLike | np.ndarray | Sequence[str | os.PathLike],
      *,
      tile: str | int | Sequence[int] = "auto",
      overlap: int | None = None,
      tta: str | Sequence[str] = "none",
      tta_scales: Sequence[float] | None = None,
      calibrated: bool = True,
      clean_up: bool = True,
      batch_size: int = 8,
  ) -> np.ndarray:
    """Segments a scan.

    Args:
      scan: File of a volume (of any format that is read) or of an image, or folder of one DICOM
        series; or an array: uint8 [H, W], one upright slice as the dataset's records hold it, or
        uint8 [slices, H, W], all slices of a volume. Of several channels: a file for each, in the
        order of the dataset, a NIfTI file that holds them in its fourth axis, or an array with a
        last axis of channels.
      tile: Size of overlapping tiles, 512 or (512, 384) (height, width); "auto": where a whole
        slice would take too much memory; "none": never.
      overlap: Pixels by which tiles overlap; None: 64, at most half a tile.
      tta: Test-time augmentation: "none", or kinds of views to average over: "mirror",
        "rotations", "scales", several of them, or "all" that the run allows.
      tta_scales: Scales besides 1; None: 0.8 and 1.25.
      calibrated: Scales probabilities as the calibration of the run says, where it has one.
      clean_up: Cleans the label up as it says. Sizes in ml are of files alone: an array has no
        spacing.
      batch_size: Slices per step.

    Returns:
      Class ids, uint8: [i, j, k] on the voxel grid of the volume, or in the shape of the array.
    """
    segmenter = self.predictor(
        batch_size=batch_size, tile=tile, overlap=overlap, tta=tta, tta_scales=tta_scales,
        calibrated=calibrated, clean_up=clean_up,
    )  # fmt: skip
    if isinstance(scan, np.ndarray):
      return self._label_of_array(segmenter, scan)
    named = [scan] if isinstance(scan, (str, os.PathLike)) else scan
    path, *others = (pathlib.Path(one).expanduser() for one in named)
    if not path.is_dir() and not scan_files.is_scan(path):
      return segmenter.clean_up.apply(segmenter.labels([pictures.read_gray(path)])[0])
    path, *others = (scan_files.resolve(one) for one in (path, *others))
    names = self.config.dataset_facts.channel_names
    components = () if others else scans.components_of(path, names)
    return scan_volumes.predict_scan(
        segmenter, self.config, path, others, components=components
    ).label

  def _label_of_array(
      self, segmenter: predictors.Predictor | Ensemble, scan: np.ndarray
  ) -> np.ndarray:
    """Returns the class ids of a slice, or of all slices of a volume; as `predict`."""
    channels = len(self.config.dataset_facts.channel_names)
    last = (channels,) if channels > 1 else ()
    of_slice = scan.ndim == 2 + len(last)
    if scan.dtype != np.uint8 or not (of_slice or scan.ndim == 3 + len(last)) or (
        last and scan.shape[-1:] != last
    ):
      axes = f", {channels}" if last else ""
      raise InputError(
          f"An array to predict must be uint8 [H, W{axes}] or [slices, H, W{axes}]. Got"
          f" {scan.dtype} {list(scan.shape)}. Pass the file of the scan to have it windowed and cut"
          " as in training."
      )
    labels = segmenter.labels([scan] if of_slice else list(scan))
    if of_slice:
      return segmenter.clean_up.apply(labels[0])
    volume = segmenter.clean_up.apply(np.stack(labels, axis=-1), (math.nan,) * 3)
    return np.moveaxis(volume, -1, 0)

  def predict_files(
      self,
      input_path: str | os.PathLike,
      output_dir: str | os.PathLike,
      *,
      batch_size: int = 8,
      output_format: str = "same",
      series: str = "",
      **options: Any,
  ) -> prediction_files.Outcome:
    """Segments a scan or a folder of scans into files, as `flexunet predict` does.

    Args:
      input_path: Scan, or folder of scans.
      output_dir: Where labels are written.
      batch_size: As in `predict`.
      output_format: Of the labels of volumes: "same", "nifti" or "dicom_seg".
      series: Chooses DICOM series by number or by the end of their UID; "" takes all.
      **options: tile, overlap, tta, tta_scales, calibrated and clean_up, as in `predict`; overlay,
        color_masks, probabilities, uncertainty, bounds, overwrite, skip_existing, as in
        `prediction.outputs.Outputs`.
    """
    segmenter = self.predictor(batch_size=batch_size, **_taken(options, _PASSES))
    wanted = prediction_files.Outputs(folder=pathlib.Path(output_dir).expanduser(), **options)
    return prediction_files.predict_path(
        pathlib.Path(input_path).expanduser(),
        segmenter,
        self.config,
        wanted,
        output_format=output_format,
        series=series,
    )


@dataclasses.dataclass(frozen=True)
class Run(Segmenter):
  """A trained run, opened by `load` or returned by `fit`.

  Attributes:
    folder: Names of its files.
    config: What it was trained with, complete.
  """

  folder: run_folder.RunFolder
  config: config.RunConfig

  @property
  def path(self) -> pathlib.Path:
    """The run folder."""
    return self.folder.path

  @functools.cached_property
  def model(self) -> keras.Model:
    """The kept network: [B, h, w, channels] in 0..255 -> [B, h, w, classes] probabilities."""
    return predictors.load_model(self.folder)

  def predictor(self, *, batch_size: int = 8, **passes: Any) -> predictors.Predictor:
    """Returns what predicts slices at their own size; see `Segmenter.predictor`."""
    options = _options_of(passes, batch_size)
    return opening.open_run(self.folder, self.config, options, self.model)

  def evaluate(
      self, splits: str | Sequence[str] = "test", **options: Any
  ) -> dict[str, dict[str, Any]]:
    """Scores the run on splits of its dataset and writes its evaluation and report.

    Args:
      splits: Names of splits.
      **options: As in `evaluation.evaluate.evaluate`: data_dir, allow_other_data, tolerances_mm,
        lesions, lesion_overlap, stress, show_progress; and batch_size, tile, overlap, tta,
        tta_scales, calibrated and clean_up, as in `predict`.

    Returns:
      Split -> its entry in `metrics.json`.
    """
    names = [splits] if isinstance(splits, str) else list(splits)
    asked = _options_of(_taken(options, _PASSES), options.pop("batch_size", 8))
    return evaluate.evaluate(self.folder, names, options=asked, **options)

  def stress(
      self, which: str | Sequence[str] = "quick", split: str = "test", **options: Any
  ) -> dict[str, Any]:
    """Scores the run on disturbed volumes of a split, after the undisturbed ones.

    Args:
      which: "quick", "full", or names of disturbances; see `stress_disturbances.Request`.
      split: Its name.
      **options: As in `evaluate`.

    Returns:
      The entry of the split in `stress.json`.
    """
    self.evaluate(split, stress=which, **options)
    return stress_summary.read_figures(self.folder)[split]

  def calibrate(self, **options: Any) -> run_calibration.RunCalibration:
    """Learns from the validation split, as `flexunet calibrate` does; see `calibrate.calibrate`."""
    return calibrate.calibrate(self.folder, **options)


def _taken(options: dict[str, Any], names: Sequence[str]) -> dict[str, Any]:
  """Removes the entries of these names, and returns them."""
  return {name: options.pop(name) for name in names if name in options}


def _options_of(passes: Mapping[str, Any], batch_size: int = 8) -> PredictionOptions:
  """Returns what the settings of `_PASSES` ask for; another name is an InputError."""
  config_fields.refuse_unknown(passes, list(_PASSES), "prediction")
  views = {name: passes[name] for name in ("tta", "tta_scales") if name in passes}
  cuts = {name: passes[name] for name in ("tile", "overlap") if name in passes}
  return PredictionOptions(
      batch_size=batch_size,
      views=ViewOptions.of(**views),
      tiles=TileOptions.of(**cuts),
      calibrated=bool(passes.get("calibrated", True)),
      clean_up=bool(passes.get("clean_up", True)),
  )


@dataclasses.dataclass(frozen=True)
class RunEnsemble(Segmenter):
  """Several trained runs that answer as one, opened by `load`.

  Attributes:
    runs: With their weights.
    config: That of the first run, which decides classes, channels and the plane that is shown.
  """

  runs: RunSet
  config: config.RunConfig

  def predictor(self, *, batch_size: int = 8, **passes: Any) -> Ensemble:
    """Returns what predicts slices with their mean probabilities; see `Segmenter.predictor`."""
    return opening.open_runs(self.runs, _options_of(passes, batch_size))

  def evaluate(
      self, splits: str | Sequence[str] = "test", **options: Any
  ) -> dict[str, dict[str, Any]]:
    """Scores the ensemble on splits of its first run's dataset, into a folder of its own.

    Args:
      splits: Names of splits.
      **options: As in `evaluation.evaluate_ensemble.evaluate_ensemble`: output_dir, weights, and
        those of `Run.evaluate`. Learnt weights are in the folder: `load` it to predict with them.

    Returns:
      Split -> its entry in `metrics.json`.
    """
    names = [splits] if isinstance(splits, str) else list(splits)
    asked = _options_of(_taken(options, _PASSES), options.pop("batch_size", 8))
    return evaluate_ensemble.evaluate_ensemble(self.runs, names, options=asked, **options)

  def stress(
      self, which: str | Sequence[str] = "quick", split: str = "test", **options: Any
  ) -> dict[str, Any]:
    """Scores the ensemble on disturbed volumes; as `Run.stress`."""
    folder = ensemble_folder.output_folder(self.runs, options.get("output_dir"))
    self.evaluate(split, stress=which, **options)
    return stress_summary.read_figures(folder)[split]


def load(
    run_dir: str | os.PathLike | Sequence[str | os.PathLike], *, weights: str = ""
) -> Run | RunEnsemble:
  """Opens a run folder, or several runs as an ensemble; networks are read when first needed.

  Args:
    run_dir: A run folder; or several, as a list; or a folder of runs, such as that of a
      cross-validation or of an ensemble that was evaluated.
    weights: Of several runs: "equal", "learnt", or numbers as in "2,1,1"; "" takes those of
      `ensemble.json` in the folder, else equal ones.
  """
  found = ensemble_folder.open_runs(run_dir)
  if isinstance(found, RunSet):
    found = ensemble_folder.chosen(found, weights)
    return RunEnsemble(found, found.configs()[0])
  ensemble_folder.check_no_weights(weights)
  return Run(found, found.read_config())


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunPlan(config.RunConfig):
  """The complete config that a run would have, and what the run is expected to take.

  Attributes:
    expected: Steps, seconds and memory.
    lines: The plan for people, as `flexunet train` says it before it begins.
  """

  expected: forecast.Forecast
  lines: tuple[str, ...]

  def to_json(self) -> dict[str, Any]:
    """Returns the config alone, as `config.json` holds it."""
    return {name: value for name, value in super().to_json().items() if name not in _OF_PLANS}


_OF_PLANS = ("expected", "lines")


def plan(**settings: Any) -> RunPlan:
  """Returns the complete config that `fit` would train with, and the reason for each choice.

  Args:
    **settings: By the names of the trainer's flags: dataset="hippocampus_t1w", data_dir="DATA",
      max_minutes=5.0, base_filters=16, ...
  """
  return plan_of(settings_of(settings))


def plan_of(settings: trainer.Settings) -> RunPlan:
  """Returns the plan of settings as they were given; see `plan`."""
  opened = input_pipeline.open_data(settings.data, settings.model.image_size)
  made = trainer.complete(settings, opened)
  expected = run_setup.expected(made, opened)
  shown = plan_lines.lines(made, opened, devices.device_names(), expected)
  fields = {field.name: getattr(made, field.name) for field in dataclasses.fields(made)}
  return RunPlan(**fields, expected=expected, lines=tuple(shown))


def fit(run_dir: str | os.PathLike, *, resume: bool = False, **settings: Any) -> Run:
  """Trains a network into a run folder and returns the run.

  Args:
    run_dir: New folder for everything of this run.
    resume: Continues the run in the folder exactly as if it had not stopped.
    **settings: As in `plan`.
  """
  folder, _ = trainer.train(settings_of(settings), run_dir, resume=resume)
  return Run(folder, folder.read_config())


@dataclasses.dataclass(frozen=True)
class CrossValidation:
  """A cross-validation whose folds are all trained and scored.

  Attributes:
    path: Its folder.
    runs: Those of the folds, in their order.
    figures: `cross_validation.json`: "pooled" holds the scores of all held-out subjects, in the
      form of an entry of `metrics.json`; "per_fold" those of each fold; "between_folds" the spread.
  """

  path: pathlib.Path
  runs: list[Run]
  figures: dict[str, Any]


def cross_validate(
    run_dir: str | os.PathLike,
    *,
    folds: Sequence[int] | None = None,
    parallel: int = 0,
    resume: bool = False,
    tolerances_mm: Sequence[float] = DEFAULT_TOLERANCES_MM,
    evaluate_test: bool = False,
    **settings: Any,
) -> CrossValidation:
  """Trains a run without each fold of a dataset, scores it on that fold and pools all subjects.

  Each fold is trained and scored in processes of its own.

  Args:
    run_dir: New folder for everything.
    folds: Those to be run; all of the dataset by default.
    parallel: Folds at a time, which share the machine; 0: one per GPU, or one without.
    resume: Continues what is in the folder exactly as if it had not stopped.
    tolerances_mm: Distances up to which two surfaces agree, one surface Dice each.
    evaluate_test: Also scores the mean of all networks on the test split ("ensemble_test").
    **settings: As in `plan`.

  Raises:
    InputError: Settings or data are not as they must be, or folds have failed.
  """
  given = settings_of(settings)
  parts = {name: getattr(given, name) for name in _PARTS}
  job = cross_validation.check(
      parts, run_dir, folds=folds, parallel=parallel, resume=resume, tolerances_mm=tolerances_mm,
      evaluate_test=evaluate_test,
  )  # fmt: skip
  figures = cross_validation.run(job)
  folders = [run_folder.RunFolder.open(job.folder.path / name) for name in job.plan.runs]
  runs = [Run(folder, folder.read_config()) for folder in folders]
  return CrossValidation(job.folder.path, runs, figures)


def settings_of(values: Mapping[str, Any]) -> trainer.Settings:
  """Sorts settings by name into their configs; an unknown name is an InputError."""
  names = {part: [f.name for f in dataclasses.fields(cls)] for part, cls in _PARTS.items()}
  known = [name for own in names.values() for name in own]
  for name in values:
    if name not in known:
      raise unknown_name("setting", name, known)
  return trainer.Settings(**{
      part: config_fields.from_mapping(
          cls, {name: values[name] for name in names[part] if name in values}
      )
      for part, cls in _PARTS.items()
  })
