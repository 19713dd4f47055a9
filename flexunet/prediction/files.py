"""Predicts scans into files: label volumes on the scan's own grid, label images, overlays.

An image given to a network trained on volumes is taken as one upright slice whose grey values
already are what the dataset's records hold (windowed to 8 bits). A volume given to a network
trained on images is refused: the run does not know how to cut it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from flexunet import config
from flexunet.core import files, progress
from flexunet.core.errors import InputError
from flexunet.imaging import pictures, scan_files
from flexunet.pipelines import pixel_size
from flexunet.prediction import overlap, scan_volumes, scans, uncertainty, views
from flexunet.prediction import predictor as predictors
from flexunet.prediction.ensemble import Ensemble
from flexunet.prediction.outputs import UNCERTAINTY_ENDINGS, Outputs
from flexunet.prediction.predictor import Predictor
from flexunet.prediction.scan_volumes import ScanVolume, SliceAnswers, VolumePrediction
from flexunet.prediction.scans import Scan
from flexunet.reporting import overlay


@dataclasses.dataclass(frozen=True)
class VolumeNote:
  """What is to be said of a predicted volume: its pixel size beside that of the training, and more.

  Attributes:
    path: The scan.
    spacing_mm: (row, column) of its slices; NaN where unknown.
    scaling: As in `predictor.NetworkInput`.
    remarks: Warnings, one line each.
  """

  path: pathlib.Path
  spacing_mm: tuple[float, float]
  scaling: tuple[float, float]
  remarks: list[str]

  @property
  def known(self) -> bool:
    """Whether the scan states its pixel size."""
    return bool(np.isfinite(self.spacing_mm).all())

  @property
  def changed(self) -> bool:
    """Whether its pixel size is another one than in training."""
    return self.scaling != (1.0, 1.0)

  @property
  def believed(self) -> bool:
    """Whether the scan was resampled, where `changed`."""
    return pixel_size.believed(self.scaling)

  @property
  def line(self) -> str:
    """What was done, or would have been."""
    wanted = [mm / factor for mm, factor in zip(self.spacing_mm, self.scaling, strict=True)]
    return f"{self.path}: pixels of {_edges(self.spacing_mm)} mm, brought to {_edges(wanted)} mm"


@dataclasses.dataclass(frozen=True)
class Outcome:
  """What became of a folder.

  Attributes:
    predicted: Scans that were segmented.
    existing: Scans that were not, since their label is there already.
    failures, warnings: One line each.
    resampled: One line for each scan that was brought to the pixel size of the training.
    labels_skipped: Files that were taken for labels.
    images_skipped: Images that lie beside volumes.
    not_read: {ending: number of files} in formats that are not read.
    channels_skipped: Files with a channel or modality that the run does not know.
    not_scans: {ending: number of files} of all else.
  """

  predicted: int
  failures: list[str]
  warnings: list[str]
  resampled: list[str] = dataclasses.field(default_factory=list)
  labels_skipped: int = 0
  images_skipped: int = 0
  not_read: Mapping[str, int] = dataclasses.field(default_factory=dict)
  channels_skipped: int = 0
  not_scans: Mapping[str, int] = dataclasses.field(default_factory=dict)
  existing: int = 0


def predict_all(
    wanted: Sequence[Scan],
    predictor: Predictor | Ensemble,
    run_config: config.RunConfig,
    outputs: Outputs,
    *,
    show_progress: bool = True,
) -> Outcome:
  """Predicts each scan; a file that cannot be read or written does not lose the others.

  While the network is at a scan, a thread reads the next one and another writes the last: one scan
  ahead and one behind at most, whatever their number.

  Raises:
    InputError: Another program writes into the output folder.
  """
  with files.locked(outputs.folder, "--output_dir"):
    return _predict_locked(wanted, predictor, run_config, outputs, show_progress)


def _predict_locked(
    wanted: Sequence[Scan],
    predictor: Predictor | Ensemble,
    run_config: config.RunConfig,
    outputs: Outputs,
    show_progress: bool,
) -> Outcome:
  failures: list[str] = []
  notes: list[VolumeNote] = []
  wanted, existing = outputs.divide(wanted)
  bar = progress.bar(total=len(wanted), unit="scan", disable=not show_progress)

  def answer(scan: Scan, given: ScanVolume | np.ndarray) -> Any:
    bar.set_postfix_str(scan.stem)
    return _answer(given, predictor, outputs)

  results = overlap.in_turns(
      wanted,
      lambda scan: _read(scan, run_config, outputs),
      answer,
      lambda scan, answered: _write(scan, answered, run_config, outputs),
  )
  with bar, contextlib.closing(results):
    for scan, result in results:
      found = _outcome(scan, result)
      bar.update()
      if isinstance(found, VolumeNote):
        notes.append(found)
      elif isinstance(found, str):
        failures.append(found)
  return Outcome(
      predicted=len(wanted) - len(failures),
      failures=failures,
      warnings=[
          *_warnings(notes, run_config.dataset_facts.pixel_sizes is not None),
          *outputs.lacking(existing),
      ],
      existing=len(existing),
      resampled=[note.line for note in notes if note.changed and note.believed],
  )


def _outcome(
    scan: Scan, result: Callable[[], VolumeNote | None]
) -> VolumeNote | str | None:
  """Returns what is to be said of a scan; a line where it failed."""
  try:
    return result()
  except InputError as error:
    return str(error)
  except OSError as error:  # A full disk, a folder without permission.
    return f"{scan.path}: {error.strerror or error} ({error.filename})."
  except MemoryError:
    return f"{scan.path}: too large for this machine's memory."


def predict_path(
    input_path: pathlib.Path,
    predictor: Predictor | Ensemble,
    run_config: config.RunConfig,
    outputs: Outputs,
    *,
    show_progress: bool = True,
    output_format: str = "same",
    series: str = "",
) -> Outcome:
  """Predicts a scan, or every scan below a folder (`scans.find`)."""
  facts = run_config.dataset_facts
  found = scans.find(
      input_path,
      outputs.folder,
      volumes_first=facts.recipe is not None,
      channel_names=facts.channel_names,
      output_format=output_format,
      series=series,
  )
  outcome = predict_all(
      found.scans, predictor, run_config, outputs, show_progress=show_progress
  )
  return dataclasses.replace(
      outcome,
      failures=[*found.problems, *outcome.failures],
      labels_skipped=found.labels_skipped,
      images_skipped=found.images_skipped,
      not_read=found.not_read,
      channels_skipped=found.channels_skipped,
      not_scans=found.not_scans,
  )


def _read(
    scan: Scan, run_config: config.RunConfig, outputs: Outputs
) -> ScanVolume | np.ndarray:
  """Returns a volume, cut into slices, or the pixels of an image."""
  outputs.refuse_existing(scan)
  if scan.kind == "image":
    pixels = _read_image(scan, run_config)
    return _stacked(pixels, scan) if scan.others else pixels
  volume = scan_volumes.read_scan(run_config, scan.path, scan.others, scan.components)
  _ = volume.cut  # Kept by the volume: work that needs no network.
  return volume


@dataclasses.dataclass(frozen=True, eq=False)
class _Answered:
  """A scan, and what the network makes of it; of an image label and probability are [H, W, ...].

  `doubt` says how uncertain it is, uint8 [row, column, slice]; None where that is not asked for.
  """

  given: ScanVolume | np.ndarray
  found: SliceAnswers
  doubt: np.ndarray | None = None


def _answer(
    given: ScanVolume | np.ndarray, predictor: Predictor | Ensemble, outputs: Outputs
) -> _Answered:
  """Returns a scan, and what the network makes of it."""
  asked: Any = predictor
  if outputs.uncertainty != "none":
    asked = uncertainty.Recorder(predictor, outputs.uncertainty)
  if isinstance(given, np.ndarray):
    (probability,) = asked.probabilities([given])
    label = predictor.clean_up.apply(predictors.to_label(probability))
    found = SliceAnswers(label, probability, (1.0, 1.0), predictor.clean_up)
  else:
    found = scan_volumes.answer_slices(asked, given, probabilities=outputs.probabilities)
  return _Answered(given, found, None if asked is predictor else asked.taken())


def _write(
    scan: Scan,
    answered: _Answered,
    run_config: config.RunConfig,
    outputs: Outputs,
) -> VolumeNote | None:
  """Writes the files of a scan, the label last."""
  outputs.refuse_existing(scan)  # Another scan may have written one of that name meanwhile.
  scan.label_path(outputs.folder).parent.mkdir(parents=True, exist_ok=True)
  given, found = answered.given, answered.found
  if isinstance(given, ScanVolume):
    restored = scan_volumes.restore_volume(given, found)
    if answered.doubt is not None:
      uncertainty.write_volume(scan, answered.doubt, given.recipe, outputs.folder)
    if outputs.bounds:
      outputs.bounds.write_volume(scan, restored.label, given.recipe.plan, outputs.folder)
    _write_volume(scan, restored, run_config, outputs)
    return VolumeNote(scan.path, restored.spacing_mm, restored.scaling, restored.remarks)
  if answered.doubt is not None:
    _write_png(scan, outputs, UNCERTAINTY_ENDINGS["image"], answered.doubt[..., 0])
  _write_image(scan, given, found, run_config, outputs)
  return None


def _write_volume(
    scan: Scan, found: VolumePrediction, run_config: config.RunConfig, outputs: Outputs
) -> None:
  scheme = run_config.dataset_facts.label_scheme
  views.write_volume(scan, outputs, found, run_config.dataset_facts.slice_plan, scheme)
  if found.probability is not None:
    _write_probabilities(scan, outputs, found.probability, run_config)
  scan_files.write_label_like(
      scan.path, found.label, scan.label_path(outputs.folder), scheme.names,
      next(iter(scan.components), None),
  )  # fmt: skip


def _write_image(
    scan: Scan,
    pixels: np.ndarray,
    found: SliceAnswers,
    run_config: config.RunConfig,
    outputs: Outputs,
) -> None:
  image = pixels if pixels.ndim == 2 else overlay.grey_of(pixels, run_config.shown_channel)
  label = found.label
  scheme = run_config.dataset_facts.label_scheme
  views.write_image(scan, outputs, image, label, scheme)
  if outputs.color_masks:
    _write_png(scan, outputs, "_color.png", scheme.colorize(label))
  if outputs.probabilities and found.probability is not None:
    _write_probabilities(scan, outputs, found.probability.astype(np.float16), run_config)
  if outputs.bounds:
    outputs.bounds.write_image(scan, label, outputs.folder)
  _write_png(scan, outputs, "_label.png", label)


def _read_image(scan: Scan, run_config: config.RunConfig) -> np.ndarray:
  """Returns uint8 [H, W], or [H, W, 3] for a colour image and a network of three channels."""
  try:
    return pictures.read_gray(scan.path)
  except InputError:
    if run_config.model.image_channels != 3:
      raise
    return pictures.read_rgb(scan.path)


def _stacked(pixels: np.ndarray, scan: Scan) -> np.ndarray:
  """Returns uint8 [H, W, channels] of the first channel, [H, W], and the files of the others."""
  channels = [pixels, *(pictures.read_gray(path) for path in scan.others)]
  for path, channel in zip(scan.others, channels[1:], strict=True):
    if channel.shape != pixels.shape:
      sizes = ["x".join(map(str, one.shape)) for one in (pixels, channel)]
      raise InputError(
          f"{path}: channels of a case must be of one size. {scan.path} has {sizes[0]} pixels, this"
          f" one {sizes[1]}."
      )
  return np.stack(channels, axis=-1)


def _warnings(notes: Sequence[VolumeNote], trained_known: bool) -> list[str]:
  """Returns the remarks, and what is wrong with pixel sizes: one line for all that are unknown."""
  lines = [remark for note in notes for remark in note.remarks]
  lines += [
      f"{note.path}: its header states pixels of {_edges(note.spacing_mm)} mm, more than"
      f" {pixel_size.MOST_SCALING:g} times off those of the training. It was predicted as it is;"
      " the label may be poor. Check the header."
      for note in notes
      if not note.believed
  ]
  if notes and not trained_known:
    lines.append(
        "the run does not know the pixel size of its training, so all volumes were predicted as"
        " they are."
    )
  elif unknown := sum(not note.known for note in notes):
    lines.append(
        f"{progress.count(unknown, 'volume')} without a pixel size in the header: predicted as if"
        " of that of the training."
    )
  return lines


def _edges(sizes_mm: Sequence[float]) -> str:
  return " x ".join(f"{edge:.3g}" for edge in sizes_mm)


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
