"""Scores label volumes of any system by the project's rules, one volume at a time."""

from __future__ import annotations

import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from flexunet import ensemble_folder, run_folder
from flexunet.core.errors import InputError
from flexunet.cross_validation import pooling
from flexunet.evaluation import evaluate_ensemble, scores, summary
from flexunet.evaluation.labelled_volumes import LabelledVolume
from flexunet.prediction import opening
from flexunet.tools.benchmarks.quality.exported_set import TestVolume

_KEPT = ("class", "status", "dice", "reference_pixels", "predicted_pixels")
_UNKNOWN_MM = (float("nan"), float("nan"))


def predict_with_run(
    run_dir: pathlib.Path, volumes: Sequence[TestVolume], predictions: pathlib.Path
) -> None:
  """Writes the labels of the test volumes as a run predicts them, in the form of a peer.

  Args:
    run_dir: A trained run.
    volumes: The test split.
    predictions: Folder of the answers.
  """
  run = run_folder.RunFolder.open(run_dir)
  options = opening.PredictionOptions(calibrated=False, clean_up=False)
  predictor = opening.open_run(run, run.read_config(), options)
  predictions.mkdir(parents=True, exist_ok=True)
  for one in volumes:
    volume = one.volume
    spacing_mm = (*volume.spacing_mm, volume.slice_spacing_mm)
    labels = list(predictor.labels(volume.images, spacing_mm))
    whole = [np.stack(labels)] if len(one.files) == 1 else [label[None] for label in labels]
    for name, label in zip(one.files, whole, strict=True):
      np.savez(predictions / name, label=label)


def score(
    volumes: Sequence[TestVolume],
    predictions: pathlib.Path,
    class_names: Sequence[str],
    class_ids: Sequence[int] | None = None,
) -> dict[str, Any]:
  """Returns the scores of the predicted labels of a test split.

  Dice is of each volume and class, on the grid of the scan; a class that is empty in truth and
  prediction has none. `foreground_dice` is the mean over classes, then over volumes, as in
  `flexunet evaluate`.

  Args:
    volumes: The test split.
    predictions: Folder of the answers.
    class_names: By id, background first.
    class_ids: The class that each value of the answers stands for; None: its own.

  Returns:
    As `_summed`.

  Raises:
    InputError: An answer is missing, has another shape or values that are no class.
  """
  ids = np.asarray(range(len(class_names)) if class_ids is None else class_ids, np.uint8)
  rows = [
      row
      for one in volumes
      for row in _rows(one, _read(one, predictions, ids), class_names)
  ]
  return _summed(rows, class_names)


def score_ensemble(
    run_dirs: Sequence[pathlib.Path], folder: pathlib.Path, class_names: Sequence[str]
) -> dict[str, Any]:
  """Returns what `score` does, of runs that predict the test split together.

  They may be of different planes. Each counts the same.

  Args:
    run_dirs: Trained runs; the first decides the plane in which slices are counted.
    folder: Where the evaluation goes.
    class_names: By id, background first.

  Raises:
    InputError: The runs cannot answer together.
  """
  found = tuple(run_folder.RunFolder.open(path) for path in run_dirs)
  runs = ensemble_folder.RunSet(found, (1 / len(found),) * len(found))
  options = opening.PredictionOptions(calibrated=False, clean_up=False)
  evaluate_ensemble.evaluate_ensemble(
      runs, ["test"], output_dir=folder, weights="equal", options=options, lesions="off",
      show_progress=False,
  )  # fmt: skip
  rows = pooling.read_rows(ensemble_folder.EnsembleFolder(folder), "test")
  kept = ("subject", "volume", *_KEPT)
  return _summed([{name: row[name] for name in kept} for row in rows], class_names)


def _summed(rows: Sequence[summary.Row], class_names: Sequence[str]) -> dict[str, Any]:
  """Returns the figures of the rows of a test split.

  Returns:
    `foreground_dice`, `per_class` {class: mean Dice}, `subjects` (`subject`, `foreground_dice`,
    `dice` by class) and `volumes` (`subject`, `volume`, `class`, `status`, `dice` and pixels), NaN
    as None.
  """
  whole = summary.statistics(list(summary.foreground_dice(rows).values()))
  subjects = [
      _of_subject([row for row in rows if row["subject"] == subject], subject)
      for subject in dict.fromkeys(row["subject"] for row in rows)
  ]
  per_class = {
      name: summary.statistics([row["dice"] for row in rows if row["class"] == name])["mean"]
      for name in class_names[1:]
  }
  return summary.strict({
      "foreground_dice": whole["mean"],
      "per_class": per_class,
      "subjects": subjects,
      "volumes": rows,
  })


def _rows(
    one: TestVolume, predicted: list[np.ndarray], class_names: Sequence[str]
) -> list[dict[str, Any]]:
  volume = one.volume
  predicted = _on_native_grid(volume, predicted)
  native = volume.on_native_grid()
  if native.ignored:
    predicted = [
        label * ~ignored for label, ignored in zip(predicted, native.ignored, strict=True)
    ]
  truth = np.concatenate([label.ravel() for label in native.labels])[None]
  found = np.concatenate([label.ravel() for label in predicted])[None]
  return [
      {"subject": volume.subject, "volume": volume.volume, **{name: row[name] for name in _KEPT}}
      for row in scores.label_scores(truth, found, class_names, _UNKNOWN_MM)
  ]


def _on_native_grid(volume: LabelledVolume, labels: list[np.ndarray]) -> list[np.ndarray]:
  return [
      native for place, label in enumerate(labels) for native in volume.to_native_grid(place, label)
  ]


def _read(one: TestVolume, predictions: pathlib.Path, ids: np.ndarray) -> list[np.ndarray]:
  """Returns the predicted label of each slice of a volume, as the network saw it, by our ids."""
  slices: list[np.ndarray] = []
  for name in one.files:
    path = predictions / name
    try:
      with np.load(path) as stored:
        slices += list(stored["label"])
    except (OSError, ValueError, KeyError) as error:
      raise InputError(f"{path} must hold the predicted label: {error}.") from error
  shapes = [label.shape for label in one.volume.labels]
  if [label.shape for label in slices] != shapes:
    raise InputError(
        f"{predictions / one.files[0]} must have the shape of its case,"
        f" {len(shapes)} slices of {shapes[0]}. Got: {len(slices)} of {slices[0].shape}."
    )
  if max(int(label.max()) for label in slices) >= len(ids):
    raise InputError(
        f"{predictions / one.files[0]} must hold ids of classes, 0 to {len(ids) - 1}. Got:"
        f" {max(int(label.max()) for label in slices)}."
    )
  return [ids[label] for label in slices]


def _of_subject(rows: Sequence[summary.Row], subject: str) -> dict[str, Any]:
  classes = dict.fromkeys(row["class"] for row in rows)
  own = {
      name: summary.statistics([row["dice"] for row in rows if row["class"] == name])["mean"]
      for name in classes
  }
  overall = summary.statistics(list(summary.foreground_dice(rows).values()))
  return {"subject": subject, "foreground_dice": overall["mean"], "dice": own}
