"""Calibrates a run on the subjects that were held out of its training, in one pass over them.

Learnt are the temperature of the probabilities, the clean-up of labels (`clean_up_choice`), and
what bounds the error of a new subject after it: margins around structures and ratios of volumes
(`conformal`). Labels are kept compressed, and voxels are drawn, so that memory hardly grows with
the split. No test data are read.

The folds of a cross-validation together hold out every subject once. Their scores calibrate the
ensemble of the folds, whose networks are others than the one that each subject was held out of: the
guarantee of the level is then not a theorem, and the coverage of each fold by the others is stated.
"""

from __future__ import annotations

import dataclasses
import math
import os
import pathlib
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

import flexunet
from flexunet import run_calibration, run_folder, seen_subjects
from flexunet.core import files, progress
from flexunet.core.errors import InputError
from flexunet.ensemble_folder import RunSet
from flexunet.evaluation import clean_up_choice, conformal
from flexunet.evaluation.calibration import TemperatureFit, VoxelSample, voxels_near_foreground
from flexunet.evaluation.conformal import Margins, Scores, VolumeRatios
from flexunet.evaluation.evaluate import check_data, open_run_dataset
from flexunet.evaluation.labelled_volumes import LabelledVolume, read_volumes
from flexunet.imaging.clean_up import CleanUp
from flexunet.pipelines import readers
from flexunet.pipelines.dataset_source import DatasetSource
from flexunet.prediction import opening
from flexunet.prediction.opening import PredictionOptions
from flexunet.prediction.predictor import Predictor, to_label
from flexunet.run_calibration import RunCalibration

# At which the coverage of a cross-validation is stated.
LEVELS = (0.5, 0.6, 0.7, 0.8, 0.9)


@dataclasses.dataclass(frozen=True)
class HeldOutVolume:
  """True and predicted labels of a volume, compressed.

  Attributes:
    about: The volume without its slices.
    fold: It was held out of; -1 without a cross-validation.
    shapes: Of each slice.
    packed: True and predicted slices.
  """

  about: LabelledVolume
  fold: int
  shapes: list[tuple[int, ...]]
  packed: tuple[bytes, bytes]

  @classmethod
  def of(cls, volume: LabelledVolume, found: Sequence[np.ndarray], fold: int) -> HeldOutVolume:
    """Packs the labels of a volume and what was predicted for it, uint8 [H, W] each."""
    truth, predicted = (
        zlib.compress(b"".join(label.astype(np.uint8).tobytes() for label in labels), 1)
        for labels in (volume.labels, found)
    )
    about = dataclasses.replace(volume, images=[], labels=[], native=[], ignored=[])
    return cls(about, fold, [label.shape for label in volume.labels], (truth, predicted))

  @property
  def subject(self) -> str:
    """Whose it is."""
    return self.about.subject

  def unpacked(self) -> tuple[LabelledVolume, list[np.ndarray]]:
    """Returns the volume with its labels, and the predicted label of each slice, uint8 [H, W]."""
    truth, predicted = (self._slices(part) for part in self.packed)
    return dataclasses.replace(self.about, labels=truth), predicted

  def cleaned(self, clean_up: CleanUp) -> HeldOutVolume:
    """Returns the volume with its predicted labels cleaned up."""
    if not clean_up:
      return self
    volume, found = self.unpacked()
    found = clean_up.apply_to_slices(
        found, volume.spacing_mm, volume.slice_spacing_mm, is_solid=volume.is_solid
    )
    return HeldOutVolume.of(volume, found, self.fold)

  def _slices(self, packed: bytes) -> list[np.ndarray]:
    flat = np.frombuffer(zlib.decompress(packed), np.uint8)
    ends = np.cumsum([math.prod(shape) for shape in self.shapes])
    parts = np.split(flat, ends[:-1])
    return [part.reshape(shape) for part, shape in zip(parts, self.shapes, strict=True)]


@dataclasses.dataclass(frozen=True)
class HeldOut:
  """What one pass over the held-out subjects of a run gives.

  Attributes:
    sample: Voxels near foreground, for the temperature.
    volumes: Labels.
    about: Where it comes from: `RunCalibration.learnt_on`.
    class_names: By id, background first.
    is_volumes: The run was trained on volumes; otherwise each image stands alone.
    has_lesions: Whether the dataset declares that its classes are lesions.
  """

  sample: VoxelSample
  volumes: list[HeldOutVolume]
  about: dict[str, Any]
  class_names: list[str]
  is_volumes: bool
  has_lesions: bool


def calibrate(
    run: run_folder.RunFolder,
    *,
    data_dir: str | os.PathLike | None = None,
    allow_other_data: bool = False,
    batch_size: int = 8,
    contained: float = 1.0,
    show_progress: bool = True,
) -> RunCalibration:
  """Calibrates a run on its validation split and writes `calibration.json`.

  A run on a fold has divided its training and validation splits again: its validation split is the
  fold.

  Args:
    run: A trained run.
    data_dir: Where the dataset lies; as in training where None.
    allow_other_data: Accepts records that differ from those of the training.
    batch_size: Slices per step.
    contained: Share of a structure's voxels that a margin must contain.
    show_progress: Draws a bar on standard error.

  Raises:
    InputError: The data are others, were trained on, or have no foreground; no trained network.
  """
  with files.locked(run.evaluation, "--run_dir"):
    held_out = _predict_held_out(run, -1, data_dir, allow_other_data, batch_size, show_progress)
    return _write_own(run, held_out, contained)


def calibrate_named(
    named: run_folder.RunFolder | RunSet, **options: Any
) -> tuple[RunCalibration, pathlib.Path]:
  """Calibrates a run, or a cross-validation and each of its folds.

  Args:
    named: What --run_dir names.
    **options: As of `calibrate`.

  Returns:
    What was learnt, and the file it was written into.

  Raises:
    InputError: As of `calibrate`, or runs that are no cross-validation.
  """
  if isinstance(named, run_folder.RunFolder):
    return calibrate(named, **options), named.calibration_json
  if named.folder is None:
    raise InputError(
        f"Runs that are named one by one ({', '.join(named.names)}) are calibrated one by one. Name"
        " one run, or the folder of a cross-validation."
    )
  runs = {run.path.name: run for run in named.runs}
  learnt = calibrate_folds(named.folder, runs, **options)
  return learnt, run_folder.RunFolder(named.folder).calibration_json


def calibrate_folds(
    folder: pathlib.Path,
    runs: Mapping[str, run_folder.RunFolder],
    *,
    data_dir: str | os.PathLike | None = None,
    allow_other_data: bool = False,
    batch_size: int = 8,
    contained: float = 1.0,
    show_progress: bool = True,
) -> RunCalibration:
  """Calibrates each fold of a cross-validation on its subjects, and all together the ensemble.

  Args:
    folder: Of the cross-validation, where the common file is written.
    runs: Name of the folder of each fold -> its run.
    data_dir, allow_other_data, batch_size, contained, show_progress: As in `calibrate`.

  Raises:
    InputError: As in `calibrate`, or two folds hold out the same subject.
  """
  with files.locked(folder, "--run_dir"):
    parts = {}
    for name, run in runs.items():
      fold = run.read_config().data.fold
      parts[name] = _predict_held_out(
          run, fold, data_dir, allow_other_data, batch_size, show_progress
      )
      _write_own(run, parts[name], contained)
    _check_apart(parts)
    learnt = _pooled(parts, contained)
    run_calibration.write(folder, learnt)
    return learnt


def _write_own(
    run: run_folder.RunFolder, held_out: HeldOut, contained: float
) -> RunCalibration:
  clean_up, volumes = _cleaned(held_out.volumes, held_out)
  learnt = RunCalibration(
      learnt_on=held_out.about,
      temperature=TemperatureFit.of(held_out.sample).to_json(),
      clean_up=clean_up.to_json(),
      margins=margins(volumes, held_out.class_names, contained, held_out.is_volumes),
      volume_ratios=_ratios_of(volumes, held_out.class_names, held_out.is_volumes),
  )
  run_calibration.write(run.path, learnt)
  return learnt


def _cleaned(
    volumes: Sequence[HeldOutVolume], held_out: HeldOut
) -> tuple[CleanUp, list[HeldOutVolume]]:
  """Returns the clean-up that volumes speak for, and the volumes after it.

  Args:
    volumes: Those that decide.
    held_out: Says of what kind they are.
  """
  clean_up = clean_up_choice.choose(
      (volume.unpacked() for volume in volumes),
      held_out.class_names,
      in_slices=not held_out.is_volumes,
      lesions=held_out.has_lesions,
  )
  return clean_up, [volume.cleaned(clean_up) for volume in volumes]


def _pooled(parts: Mapping[str, HeldOut], contained: float) -> RunCalibration:
  """Returns what all folds together show."""
  first = next(iter(parts.values()))
  every = [volume for part in parts.values() for volume in part.volumes]
  clean_up, volumes = _cleaned(every, first)
  found = margins(volumes, first.class_names, contained, first.is_volumes)
  ratios = _ratios_of(volumes, first.class_names, first.is_volumes)
  about = {
      **first.about,
      "split": "held out",
      "subjects": [name for part in parts.values() for name in part.about["subjects"]],
      "volumes": len(volumes),
      "model_sha256": {name: part.about["model_sha256"] for name, part in parts.items()},
  }
  kinds = {"margin": found.classes, "volume_interval": ratios.classes if ratios else {}}
  levels = [
      {"level": level, **{kind: _coverage(own, level) for kind, own in kinds.items()}}
      for level in LEVELS
  ]
  return RunCalibration(about, None, clean_up.to_json(), found, ratios, {"levels": levels})


def _coverage(classes: Mapping[str, Scores], level: float) -> dict[str, dict[str, int]]:
  """Returns class -> how many subjects the other folds cover, where these suffice for the level."""
  counts = {name: conformal.coverage_by_fold(own, level) for name, own in classes.items()}
  return {
      name: {"covered": covered, "subjects": subjects}
      for name, (covered, subjects) in counts.items()
      if subjects
  }


def _check_apart(parts: Mapping[str, HeldOut]) -> None:
  owner: dict[str, str] = {}
  for name, part in parts.items():
    for subject in part.about["subjects"]:
      if subject in owner:
        raise InputError(
            f"The folds of a cross-validation must hold out different subjects. {owner[subject]}"
            f" and {name} both hold out {subject}. Name the folder of one cross-validation."
        )
      owner[subject] = name


def _predict_held_out(
    run: run_folder.RunFolder,
    fold: int,
    data_dir: str | os.PathLike | None,
    allow_other_data: bool,
    batch_size: int,
    show_progress: bool,
) -> HeldOut:
  """Predicts the subjects that a run was not trained on, once."""
  run_config = run.read_config()
  source = open_run_dataset(run_config, data_dir)
  data = run_config.data
  check_data(source, run_config, (data.train_split, data.validation_split), allow_other_data)
  _, table = readers.split_tables(
      source, data.train_split, data.validation_split, None if data.fold < 0 else data.fold
  )
  _check_unseen(run, source, table.subject)
  options = PredictionOptions(batch_size=batch_size, calibrated=False, clean_up=False)
  predictor = opening.open_run(run, run_config, options)
  names = run_config.dataset_facts.label_scheme.names
  sample, volumes = VoxelSample(), []
  keys = (source.keys.image, source.keys.label)
  with progress.bar(
      total=len(table), desc="held out", unit="slice", disable=not show_progress
  ) as bar:
    for shown in read_volumes(source, table, keys):
      volume = shown.on_native_grid()
      found = _predicted(shown, volume, predictor, sample, bar.update)
      volumes.append(HeldOutVolume.of(volume, found, fold))
  about = {
      "split": data.validation_split if data.fold < 0 else f"fold {data.fold}",
      "subjects": list(dict.fromkeys(volume.subject for volume in volumes)),
      "volumes": len(volumes),
      "counted_by": source.counted_by,
      "dataset": source.name,
      "fingerprint": source.fingerprint,
      "model_sha256": files.sha256_of(run.model_keras),
      "flexunet": flexunet.__version__,
  }
  is_volumes = run_config.dataset_facts.recipe is not None
  return HeldOut(sample, volumes, about, names, is_volumes, source.has_lesions)


def _predicted(
    shown: LabelledVolume,
    volume: LabelledVolume,
    predictor: Predictor,
    sample: VoxelSample,
    done: Callable[[], Any],
) -> list[np.ndarray]:
  """Returns the predicted label of each slice of the scan's own grid; what is ignored is 0."""
  found: list[np.ndarray] = []
  answers = predictor.probabilities(shown.images, shown.spacing_mm)
  for place, seen_by_network in enumerate(answers):
    for probability in shown.to_native_grid(place, seen_by_network):
      counted = ~volume.ignored[len(found)] if volume.ignored else None
      sample.add(*voxels_near_foreground(volume.labels[len(found)], probability, counted))
      predicted = to_label(probability)
      found.append(predicted if counted is None else predicted * counted)
    done()
  return found


def _check_unseen(
    run: run_folder.RunFolder, source: DatasetSource, subjects: Iterable[str]
) -> None:
  """Refuses subjects that the network was trained on."""
  seen = seen_subjects.of_run(run) or []
  known = seen_subjects.overlap(subjects, source.name, seen)
  if known.trained:
    raise InputError(
        "A run is calibrated on subjects that it was not trained on."
        f" {progress.count(len(known.trained), 'subject')} of the validation split"
        f" {'was' if len(known.trained) == 1 else 'were'} trained on:"
        f" {', '.join(sorted(known.trained)[:5])}. Name the --data_dir of the training."
    )


def margins(
    volumes: Sequence[HeldOutVolume],
    class_names: Sequence[str],
    contained: float,
    is_volumes: bool,
) -> Margins:
  """Returns the margin that each subject would have needed, by class.

  In 3-D and mm where all volumes allow it; otherwise within slices, in mm where all pixel sizes are
  known, else in pixels.

  Args:
    volumes: Of held-out subjects.
    class_names: By id, background first.
    contained: Share of a structure's voxels that a margin must contain.
    is_volumes: Otherwise each image stands alone.
  """
  kinds = {volume.unpacked()[0].distances for volume in volumes}
  # A file of a single image states no spacing, whatever its dataset knows.
  solid, known = is_volumes and kinds == {"3d"}, is_volumes and "none" not in kinds
  classes: dict[str, dict[str, tuple[float, int]]] = {name: {} for name in class_names[1:]}
  for volume in volumes:
    truth, found = volume.unpacked()
    spacing = truth.spacing_mm if known else (1.0, 1.0)
    for class_id, name in enumerate(class_names[1:], start=1):
      own, other = ([label == class_id for label in labels] for labels in (truth.labels, found))
      if not any(mask.any() for mask in own):
        continue
      if solid:
        margin = conformal.containing_margin(
            np.stack(own), np.stack(other), truth.axes_mm, contained
        )
      else:
        margin = conformal.margin_of_slices(own, other, spacing, contained)
      worst, _ = classes[name].get(volume.subject, (0.0, volume.fold))
      classes[name][volume.subject] = (max(worst, margin), volume.fold)
  return Margins(
      unit="mm" if solid or known else "px",
      geometry="3d" if solid else "2d",
      contained=contained,
      classes={name: _ascending(own) for name, own in classes.items()},
  )


def _ascending(of_subjects: Mapping[str, tuple[float, int]]) -> Scores:
  rows = sorted((margin, subject, fold) for subject, (margin, fold) in of_subjects.items())
  return Scores(
      subjects=tuple(subject for _, subject, _ in rows),
      values=np.array([margin for margin, _, _ in rows], np.float64),
      folds=_folds([fold for _, _, fold in rows]),
  )


def _folds(folds: Sequence[int]) -> tuple[int, ...] | None:
  return tuple(folds) if any(fold >= 0 for fold in folds) else None


def _ratios_of(
    volumes: Sequence[HeldOutVolume], class_names: Sequence[str], is_volumes: bool
) -> VolumeRatios | None:
  """Returns the ratios of volumes; None where images stand alone, which have none."""
  return volume_ratios(volumes, class_names) if is_volumes else None


def volume_ratios(
    volumes: Sequence[HeldOutVolume], class_names: Sequence[str]
) -> VolumeRatios:
  """Returns log(true / predicted volume) of each subject, by class; of volumes that have it.

  Args:
    volumes: Of held-out subjects.
    class_names: By id, background first.
  """
  classes: dict[str, dict[str, tuple[float, float, int]]] = {name: {} for name in class_names[1:]}
  for volume in volumes:
    labelled, predicted = volume.unpacked()
    truth, found = (
        np.bincount(np.concatenate([one.ravel() for one in labels]), minlength=len(class_names))
        for labels in (labelled.labels, predicted)
    )
    for class_id, name in enumerate(class_names[1:], start=1):
      if not found[class_id]:
        continue
      ratio = truth[class_id] / found[class_id]
      log_ratio = math.log(ratio) if ratio else -math.inf
      low, high, _ = classes[name].get(volume.subject, (math.inf, -math.inf, 0))
      classes[name][volume.subject] = (min(low, log_ratio), max(high, log_ratio), volume.fold)
  return VolumeRatios({
      name: Scores(
          subjects=tuple(own),
          values=np.array([(low, high) for low, high, _ in own.values()]).reshape(-1, 2),
          folds=_folds([fold for _, _, fold in own.values()]),
      )
      for name, own in classes.items()
  })
