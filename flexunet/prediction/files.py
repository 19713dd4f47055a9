"""Predicts scans into files: label volumes on the scan's own grid, label images, overlays.

An image given to a network trained on volumes is taken as one upright slice whose grey values
already are what the dataset's records hold (windowed to 8 bits). A volume given to a network
trained on images is refused: the run does not know how to cut it.
"""

from __future__ import annotations

import dataclasses
import io
import pathlib
from collections.abc import Sequence

import numpy as np

from flexunet import config
from flexunet.core import files, progress
from flexunet.core.errors import InputError
from flexunet.imaging import nifti, pictures
from flexunet.prediction import scans
from flexunet.prediction.predictor import Predictor, predict_scan, to_label
from flexunet.prediction.scans import Scan
from flexunet.reporting import overlay

# Beyond this ratio of pixel sizes structures look unlike anything in training.
_SPACING_RATIO = 2.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Outputs:
  """What is written beside each label, and whether older files may be replaced."""

  folder: pathlib.Path
  overlay: bool = True
  color_masks: bool = False
  probabilities: bool = False
  overwrite: bool = False


@dataclasses.dataclass(frozen=True)
class Outcome:
  """What became of a folder.

  Attributes:
    predicted: Scans that were segmented.
    failures, warnings: One line each.
    labels_skipped: Files that were taken for labels.
    images_skipped: Images that lie beside volumes.
  """

  predicted: int
  failures: list[str]
  warnings: list[str]
  labels_skipped: int = 0
  images_skipped: int = 0


def predict_all(
    wanted: Sequence[Scan],
    predictor: Predictor,
    run_config: config.RunConfig,
    outputs: Outputs,
    *,
    show_progress: bool = True,
) -> Outcome:
  """Predicts each scan; a file that cannot be read or written does not lose the others.

  Raises:
    InputError: Another program writes into the output folder.
  """
  with files.locked(outputs.folder, "--output_dir"):
    return _predict_locked(wanted, predictor, run_config, outputs, show_progress)


def _predict_locked(
    wanted: Sequence[Scan],
    predictor: Predictor,
    run_config: config.RunConfig,
    outputs: Outputs,
    show_progress: bool,
) -> Outcome:
  failures: list[str] = []
  warnings: list[str] = []
  bar = progress.bar(wanted, unit="scan", disable=not show_progress)
  for scan in bar:
    bar.set_postfix_str(scan.stem)
    try:
      warnings += predict_one(scan, predictor, run_config, outputs)
    except InputError as error:
      failures.append(str(error))
    except OSError as error:  # A full disk, a folder without permission.
      failures.append(f"{scan.path}: {error.strerror or error} ({error.filename}).")
    except MemoryError:
      failures.append(f"{scan.path}: too large for this machine's memory.")
  return Outcome(len(wanted) - len(failures), failures, warnings)


def predict_path(
    input_path: pathlib.Path,
    predictor: Predictor,
    run_config: config.RunConfig,
    outputs: Outputs,
    *,
    show_progress: bool = True,
) -> Outcome:
  """Predicts a scan, or every scan below a folder (`scans.find`)."""
  found = scans.find(
      input_path, outputs.folder, volumes_first=run_config.dataset_facts.recipe is not None
  )
  outcome = predict_all(
      found.scans, predictor, run_config, outputs, show_progress=show_progress
  )
  return dataclasses.replace(
      outcome,
      labels_skipped=found.labels_skipped,
      images_skipped=found.images_skipped,
  )


def predict_one(
    scan: Scan, predictor: Predictor, run_config: config.RunConfig, outputs: Outputs
) -> list[str]:
  """Predicts one scan and writes its files, the label last; returns warnings.

  Raises:
    InputError: The file is bad, of the wrong kind, or an output exists already.
  """
  _refuse_existing(scan, outputs)
  if scan.kind == "image":
    _predict_image(scan, predictor, run_config, outputs)
    return []
  return _predict_volume(scan, predictor, run_config, outputs)


def _predict_volume(
    scan: Scan, predictor: Predictor, run_config: config.RunConfig, outputs: Outputs
) -> list[str]:
  facts = run_config.dataset_facts
  found = predict_scan(predictor, run_config, scan.path, probabilities=outputs.probabilities)
  scan.label_path(outputs.folder).parent.mkdir(parents=True, exist_ok=True)
  if outputs.overlay:
    palette = overlay.display_palette(facts.label_scheme.palette)
    height, width = found.slices.spacing_mm
    aspect = height / width if width > 0 else 1.0  # Not known where the file states no spacing.
    sheet = overlay.volume_sheet(found.slices.pixels, found.label_slices, palette, aspect=aspect)
    _write_png(scan, outputs, "_overlay.png", sheet)
  if found.probability is not None:
    _write_probabilities(scan, outputs, found.probability, run_config)
  nifti.write_like(scan.path, found.label, scan.label_path(outputs.folder))
  return _spacing_warning(scan, found.seen_spacing_mm, facts.spacing_mm)


def _predict_image(
    scan: Scan, predictor: Predictor, run_config: config.RunConfig, outputs: Outputs
) -> None:
  pixels = _read_image(scan, run_config)
  image = pixels if pixels.ndim == 2 else np.round(pixels.mean(axis=-1)).astype(np.uint8)
  probability = next(predictor.probabilities([pixels]))
  label = to_label(probability)
  scheme = run_config.dataset_facts.label_scheme
  scan.label_path(outputs.folder).parent.mkdir(parents=True, exist_ok=True)
  if outputs.overlay:
    blended = overlay.blend(image, label, overlay.display_palette(scheme.palette))
    _write_png(scan, outputs, "_overlay.png", blended)
  if outputs.color_masks:
    _write_png(scan, outputs, "_color.png", scheme.colorize(label))
  if outputs.probabilities:
    _write_probabilities(scan, outputs, probability.astype(np.float16), run_config)
  _write_png(scan, outputs, "_label.png", label)


def _read_image(scan: Scan, run_config: config.RunConfig) -> np.ndarray:
  """Returns uint8 [H, W], or [H, W, 3] for a colour image and a network of three channels."""
  try:
    return pictures.read_gray(scan.path)
  except InputError:
    if run_config.model.image_channels != 3:
      raise
    return pictures.read_rgb(scan.path)


def _spacing_warning(
    scan: Scan, spacing_mm: tuple[float, float], trained_mm: Sequence[float] | None
) -> list[str]:
  if trained_mm is None or not np.isfinite(spacing_mm).all():
    return []
  ratio = float(np.max(np.maximum(
      np.divide(spacing_mm, trained_mm), np.divide(trained_mm, spacing_mm)
  )))  # fmt: skip
  if ratio < _SPACING_RATIO:
    return []
  shown = " x ".join(f"{edge:.2g}" for edge in spacing_mm)
  trained = " x ".join(f"{edge:.2g}" for edge in trained_mm)
  return [
      f"{scan.path}: its pixels are {shown} mm, those of the training {trained} mm. The label may"
      " be poor."
  ]


def _refuse_existing(scan: Scan, outputs: Outputs) -> None:
  if outputs.overwrite:
    return
  wanted = [scan.label_path(outputs.folder)]
  if scan.suffix.lower().startswith((".hdr", ".img")):
    twin = {".hdr": ".img", ".img": ".hdr"}[scan.suffix.lower()[:4]] + scan.suffix[4:]
    wanted.append(scan.output(outputs.folder, f"_label{twin}"))
  for ending, asked in (
      ("_overlay.png", outputs.overlay),
      ("_color.png", outputs.color_masks and scan.kind == "image"),
      ("_probability.npz", outputs.probabilities),
  ):
    if asked:
      wanted.append(scan.output(outputs.folder, ending))
  if existing := [path for path in wanted if path.exists()]:
    raise InputError(
        f"{scan.path}: its output {existing[0]} exists already. Pass --overwrite to replace it, or"
        " another --output_dir."
    )


def _write_png(scan: Scan, outputs: Outputs, ending: str, image: np.ndarray) -> None:
  files.write_bytes(scan.output(outputs.folder, ending), overlay.encode_png(image))


def _write_probabilities(
    scan: Scan, outputs: Outputs, probability: np.ndarray, run_config: config.RunConfig
) -> None:
  """Writes float16 probabilities, classes last, on the grid of the scan, and the class names."""
  names = np.array(run_config.dataset_facts.label_scheme.names)
  buffer = io.BytesIO()
  np.savez_compressed(buffer, probability=probability, classes=names)
  files.write_bytes(scan.output(outputs.folder, "_probability.npz"), buffer.getvalue())
