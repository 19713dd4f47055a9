"""Scores label volumes of any system by the project's rules, one volume at a time."""

from __future__ import annotations

import contextlib
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from flexunet import config, ensemble_folder, run_folder
from flexunet.core.errors import InputError
from flexunet.cross_validation import pooling
from flexunet.evaluation import evaluate_ensemble, scores, summary
from flexunet.evaluation.labelled_volumes import LabelledVolume
from flexunet.prediction import opening
from flexunet.prediction.predictor import Predictor, load_model
from flexunet.prediction.test_time import ONE_VIEW, ViewOptions
from flexunet.tools.benchmarks.quality.exported_set import TestVolume

_KEPT = ("class", "status", "dice", "reference_pixels", "predicted_pixels")
_UNKNOWN_MM = (float("nan"), float("nan"))
# Answers without mirrored views, and with them: their names in the files of predictions.
ANSWERS = ("label", "mirrored")
_VIEWS = {"label": ONE_VIEW, "mirrored": ViewOptions.of("mirror")}


def predict_with_run(
    run_dir: pathlib.Path, volumes: Sequence[TestVolume], predictions: pathlib.Path
) -> None:
  """Writes the labels of the test volumes as a run predicts them, in the form of a peer.

  Those of mirrored views stand beside them where the run may see such.

  Args:
    run_dir: A trained run.
    volumes: The test split.
    predictions: Folder of the answers.
  """
  run = run_folder.RunFolder.open(run_dir)
  own = run.read_config()
  model = load_model(run)
  predictors = {
      answer: opening.open_run(run, own, _options(answer), model) for answer in _answers([own])
  }
  predictions.mkdir(parents=True, exist_ok=True)
  for one in volumes:
    found = {answer: _of_files(one, predictor) for answer, predictor in predictors.items()}
    for place, name in enumerate(one.files):
      arrays: dict[str, Any] = {answer: labels[place] for answer, labels in found.items()}
      np.savez(predictions / name, **arrays)


def _answers(runs: Sequence[config.RunConfig]) -> Sequence[str]:
  """Returns the kinds of answers that runs can give together."""
  return ANSWERS if all(own.laterality.mirroring for own in runs) else ANSWERS[:1]


def _options(answer: str) -> opening.PredictionOptions:
  return opening.PredictionOptions(views=_VIEWS[answer], calibrated=False, clean_up=False)


def _of_files(one: TestVolume, predictor: Predictor) -> list[np.ndarray]:
  """Returns the predicted label of each file of a volume, uint8 [slices, H, W]."""
  spacing_mm = (*one.volume.spacing_mm, one.volume.slice_spacing_mm)
  labels = list(predictor.labels(one.volume.images, spacing_mm))
  return [np.stack(labels)] if len(one.files) == 1 else [label[None] for label in labels]


def score(
    volumes: Sequence[TestVolume],
    predictions: pathlib.Path,
    class_names: Sequence[str],
    class_ids: Sequence[int] | None = None,
) -> dict[str, dict[str, Any] | None]:
  """Returns the scores of the predicted labels of a test split, by `ANSWERS`.

  Dice is of each volume and class, on the grid of the scan; a class that is empty in truth and
  prediction has none. `foreground_dice` is the mean over classes, then over volumes, as in
  `flexunet evaluate`.

  Args:
    volumes: The test split.
    predictions: Folder of the answers.
    class_names: By id, background first.
    class_ids: The class that each value of the answers stands for; None: its own.

  Returns:
    Answer -> as `_summed`; None where there are none with mirrored views.

  Raises:
    InputError: An answer is missing, has another shape or values that are no class.
  """
  ids = np.asarray(range(len(class_names)) if class_ids is None else class_ids, np.uint8)
  scored: dict[str, dict[str, Any] | None] = dict.fromkeys(ANSWERS)
  for answer in ANSWERS:
    if answer == "mirrored" and not _has_mirrored(volumes, predictions):
      continue
    rows = [
        row
        for one in volumes
        for row in _rows(one, _read(one, predictions, answer, ids), class_names)
    ]
    scored[answer] = _summed(rows, class_names)
  return scored


def _has_mirrored(volumes: Sequence[TestVolume], predictions: pathlib.Path) -> bool:
  with _opened(predictions / volumes[0].files[0]) as stored:
    return "mirrored" in stored


def score_ensemble(
    run_dirs: Sequence[pathlib.Path], folder: pathlib.Path, class_names: Sequence[str]
) -> dict[str, dict[str, Any] | None]:
  """Returns what `score` does, of runs that predict the test split together.

  They may be of different planes. Each counts the same. Mirrored views are of all or of none.

  Args:
    run_dirs: Trained runs; the first decides the plane in which slices are counted.
    folder: Where the evaluations go.
    class_names: By id, background first.

  Raises:
    InputError: The runs cannot answer together.
  """
  found = tuple(run_folder.RunFolder.open(path) for path in run_dirs)
  runs = ensemble_folder.RunSet(found, (1 / len(found),) * len(found))
  scored: dict[str, dict[str, Any] | None] = dict.fromkeys(ANSWERS)
  for answer in _answers(runs.configs()):
    place = folder / answer
    evaluate_ensemble.evaluate_ensemble(
        runs, ["test"], output_dir=place, weights="equal", options=_options(answer), lesions="off",
        show_progress=False,
    )  # fmt: skip
    rows = pooling.read_rows(ensemble_folder.EnsembleFolder(place), "test")
    kept = ("subject", "volume", *_KEPT)
    scored[answer] = _summed([{name: row[name] for name in kept} for row in rows], class_names)
  return scored


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


@contextlib.contextmanager
def _opened(path: pathlib.Path) -> Iterator[Mapping[str, np.ndarray]]:
  """Opens the predicted labels of a file; InputError where what is asked of them fails."""
  try:
    with np.load(path) as stored:
      yield stored
  except (OSError, ValueError, KeyError) as error:
    raise InputError(f"{path} must hold the predicted label: {error}.") from error


def _read(
    one: TestVolume, predictions: pathlib.Path, answer: str, ids: np.ndarray
) -> list[np.ndarray]:
  """Returns the predicted label of each slice of a volume, as the network saw it, by our ids."""
  slices: list[np.ndarray] = []
  for name in one.files:
    with _opened(predictions / name) as stored:
      slices += list(stored[answer])
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
