"""Segments scans with a trained run.

  flexunet predict --run_dir=RUN --input=FILE_OR_FOLDER --output_dir=DIR
  flexunet predict --run_dir=RUN,RUN,RUN ... (an ensemble: the mean of their probabilities)

A volume (NIfTI, ANALYZE, MGZ; with the extras itk and dicom MetaImage, NRRD, DICOM series) gives
<stem>_label of the same format, shape and geometry and a contact sheet <stem>_overlay.png; that of
a DICOM series is a DICOM-SEG named after the folder of the series. An image gives
<stem>_label.png, whose grey values are class ids, and <stem>_overlay.png. In a folder everything
below it is predicted, except what is named like a label (..._label, ..._mask, ..._seg, or in a
folder called masks, labels, labelsTr, derivatives): name a file or such a folder directly to
predict it. So the root of an MSD, nnU-Net or BIDS set can be given as it is. The files of a case
(CASE_0000, CASE_0001; sub-01_T1w, sub-01_FLAIR) are joined for a run of several channels.

A volume whose pixels are of another size than in training is brought to that size for the network;
its label lies on its own grid.

A slice that is larger than the network's input is predicted whole, at its own resolution, as far as
the memory goes, and in overlapping tiles beyond (--tile). Tiles are blended into each other; the
answer is that of the whole slice except near their seams. A run that scales its images to its input
(--resize_mode=fit or stretch) leaves nothing to cut: with --tile=512 a slice without a known pixel
size is scaled as much as the training slices were, and no further.

--uncertainty also writes how uncertain each voxel is; --margin and --volume_interval what the
calibration of the run (flexunet calibrate) says of the error of the label. Margins hold for
prediction as it was calibrated: without --tta.

Several runs, named with commas or by a folder that holds them, are averaged voxel by voxel on the
grid of the scan, each after its own cut: runs of different planes too.
"""

from __future__ import annotations

import dataclasses
import json
import pathlib
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from flexunet import config, ensemble_folder
from flexunet.core import command_line, flags, progress
from flexunet.core import files as core_files
from flexunet.core.errors import InputError
from flexunet.ensemble_folder import RunSet
from flexunet.imaging import scan_files
from flexunet.prediction import scans, test_time, tiles
from flexunet.prediction.outputs import UNCERTAINTY_KINDS, Outputs
from flexunet.run_folder import RunFolder

if TYPE_CHECKING:  # SciPy: --help does without.
  from flexunet.prediction.error_bounds import ErrorBounds

_PASSES = "Tiles and views"

_PROGRAM = flags.Program(__doc__, first=("run_dir", "weights", "input", "output_dir", "json"))
_RUN_DIR = _PROGRAM.string(
    "run_dir", None,
    "Folder of the run; several, as in A,B,C, or a folder of runs are averaged.",
    required=True,
)  # fmt: skip
_INPUT = _PROGRAM.string("input", None, "Scan, or folder of scans.", required=True)
_OUTPUT_DIR = _PROGRAM.string("output_dir", None, "Where labels are written.", required=True)
_JSON = _PROGRAM.boolean("json", False, "Prints the counts as one JSON object.")
_OVERLAY = _PROGRAM.boolean("overlay", True, "Also writes <stem>_overlay.png to look at.")
_ANIMATION = _PROGRAM.enum(
    "animation",
    "none",
    {
        "none": "no film",
        "gif": "GIF, which every browser shows",
        "mp4": "MP4 (H.264), smaller; needs the extra `animation`",
    },
    "Also writes the slices of a volume, labels drawn in, as a film <stem>_overlay.gif or .mp4.",
)
_ANIMATION_FPS = _PROGRAM.integer(
    "animation_fps", 10, "Slices a second of --animation.", lower_bound=1, upper_bound=50
)
_OVERLAY_SLICES = _PROGRAM.boolean(
    "overlay_slices",
    False,
    "Also writes a folder <stem>_slices with an image of each slice of a volume, labels drawn in.",
)
_COLOR_MASKS = _PROGRAM.boolean(
    "color_masks", False, "Also writes <stem>_color.png for images, in the dataset's colours."
)
_PROBABILITIES = _PROGRAM.boolean(
    "probabilities", False, "Also writes <stem>_probability.npz, float16, classes last."
)
_OVERWRITE = _PROGRAM.boolean("overwrite", False, "Replaces output that exists already.")
_SKIP_EXISTING = _PROGRAM.boolean(
    "skip_existing",
    False,
    "Predicts only scans whose label is not in --output_dir yet, such as those left by a run that"
    " was cut short.",
)
_BATCH_SIZE = _PROGRAM.integer("batch_size", 8, "Slices per step.", lower_bound=1)
_OUTPUT_FORMAT = _PROGRAM.enum(
    "output_format",
    "same",
    {
        "same": "the format of the scan",
        "nifti": "NIfTI",
        "dicom_seg": "DICOM-SEG, of DICOM only: it belongs to the study of its patient and, as the"
        " standard demands, repeats his identifiers",
    },
    "Format of the labels of volumes.",
)
_SERIES = _PROGRAM.string(
    "series", "", "Predicts only DICOM series of this number, or with this end of their UID."
)
_WEIGHTS = _PROGRAM.string(
    "weights",
    "",
    "Weights of several runs: equal, numbers as in 2,1,1, or learnt (by flexunet evaluate)."
    " Default: those of ensemble.json in the folder that is named, else equal.",
)
_UNCERTAINTY = _PROGRAM.enum(
    "uncertainty",
    "none",
    UNCERTAINTY_KINDS,
    "Also writes how uncertain each voxel is, 0 to 1: <stem>_uncertainty (NIfTI; of images PNG).",
)
_MARGIN = _PROGRAM.float(
    "margin", None,
    "Share of subjects, such as 0.9: also writes <stem>_margin_<class>, each structure widened so"
    " that it contains the true one in that share of new subjects. Needs a calibrated run.",
)  # fmt: skip
_VOLUME_INTERVAL = _PROGRAM.float(
    "volume_interval", None,
    "Share of subjects: also writes between which volumes the true one lies, <stem>_bounds.json."
    " Needs a calibrated run.",
)  # fmt: skip
_CALIBRATED = _PROGRAM.boolean(
    "calibrated", True, "Scales probabilities as the calibration of the run says, where it has one."
)
_CLEAN_UP = _PROGRAM.boolean(
    "clean_up", True, "Cleans labels up as the calibration of the run has chosen, where it has."
)
_VIEWS = _PROGRAM.fields(test_time.ViewOptions, _PASSES)
_TILES = _PROGRAM.fields(tiles.TileOptions, _PASSES)


def main(argv: Sequence[str]) -> None:
  command_line.no_words(argv)
  run = ensemble_folder.open_for_prediction(_RUN_DIR.value, _WEIGHTS.value)
  run_config = run.configs()[0] if isinstance(run, RunSet) else run.read_config()
  views, cuts = flags.read(test_time.ViewOptions, _VIEWS), flags.read(tiles.TileOptions, _TILES)
  bounds, without = _bounds(run, run_config, views)
  source = pathlib.Path(_INPUT.value).expanduser()
  target = pathlib.Path(_OUTPUT_DIR.value).expanduser()
  outputs = dataclasses.replace(_outputs(target), bounds=bounds)
  core_files.check_writable(target, "--output_dir")
  core_files.check_unlocked(target, "--output_dir")
  found = scans.find(
      source,
      target,
      volumes_first=run_config.dataset_facts.recipe is not None,
      channel_names=run_config.dataset_facts.channel_names,
      output_format=_OUTPUT_FORMAT.value,
      series=_SERIES.value,
  )

  progress.say("Loading TensorFlow ...")
  command_line.load_tensorflow()
  # Heavy: a wrong flag or path is answered before they are loaded.
  from flexunet.prediction import files

  predictor = _predictor(run, run_config, views, cuts)
  if predictor.clean_up:
    said = "; ".join(predictor.clean_up.sentences())
    progress.say(f"Clean-up: {said}. --noclean_up leaves it out.")
  outcome = files.predict_all(found.scans, predictor, run_config, outputs)
  for line in [*without, *outcome.warnings]:
    progress.say(f"warning: {line}")
  failures = [*found.problems, *outcome.failures]
  for line in failures:
    progress.say(f"error: {line}")
  for line in (*outcome.resampled, *predictor.pass_lines()):
    progress.say(line)
  counts = {
      "predicted": outcome.predicted,
      "existing": outcome.existing,
      "failed": len(failures),
      "resampled": len(outcome.resampled),
      "labels_skipped": found.labels_skipped,
      "images_skipped": found.images_skipped,
      "channels_skipped": found.channels_skipped,
      "not_read": found.not_read,
      "not_scans": found.not_scans,
      "dicom_skipped": found.dicom_skipped,
  }
  print(json.dumps(counts) if _JSON.value else outcome_text(counts, target))
  if failures:
    sys.exit(1)


def _predictor(
    run: RunFolder | RunSet,
    run_config: config.RunConfig,
    views: test_time.ViewOptions,
    cuts: tiles.TileOptions,
) -> Any:
  """Returns what predicts slices: a network, or an ensemble of several."""
  kind = _UNCERTAINTY.value
  if kind == "disagreement" and not isinstance(run, RunSet) and views != test_time.ONE_VIEW:
    raise InputError(
        "--uncertainty=disagreement of a single run averages over mirrored slices by itself. Leave"
        " out --tta."
    )
  # Heavy: see above.
  from flexunet.prediction import opening, uncertainty

  options = opening.PredictionOptions(
      batch_size=_BATCH_SIZE.value, views=views, tiles=cuts, calibrated=_CALIBRATED.value,
      clean_up=_CLEAN_UP.value,
  )
  if isinstance(run, RunSet):
    return uncertainty.prepared(kind, opening.open_runs(run, options), run_config)
  return uncertainty.prepared(kind, opening.open_run(run, run_config, options), run_config)


def _bounds(
    run: RunFolder | RunSet, run_config: config.RunConfig, views: test_time.ViewOptions
) -> tuple[ErrorBounds | None, list[str]]:
  """Returns the margins and intervals that are asked for, and what is to be said of them."""
  if _MARGIN.value is None and _VOLUME_INTERVAL.value is None:
    return None, []
  if not _CALIBRATED.value:
    raise InputError("--margin and --volume_interval use what --nocalibrated leaves aside.")
  # SciPy: --help does without.
  from flexunet import run_calibration
  from flexunet.prediction import error_bounds

  learnt = run_calibration.read_named(run)
  if learnt and learnt.clean_up and learnt.clean_up["rules"] and not _CLEAN_UP.value:
    raise InputError(
        "--margin and --volume_interval hold for labels that are cleaned up as they were in"
        " calibration. Leave out --noclean_up."
    )
  names = run_config.dataset_facts.label_scheme.names
  bounds, said = error_bounds.bounds_of(learnt, names, _MARGIN.value, _VOLUME_INTERVAL.value)
  if views != test_time.ONE_VIEW:
    said = [*said, "margins and volume intervals were learnt without --tta, whose labels differ."]
  return bounds, said


def _outputs(target: pathlib.Path) -> Outputs:
  """Returns what the flags ask for beside the labels in a folder."""
  return Outputs(
      folder=target,
      overlay=_OVERLAY.value,
      animation=_ANIMATION.value,
      animation_fps=_ANIMATION_FPS.value,
      overlay_slices=_OVERLAY_SLICES.value,
      color_masks=_COLOR_MASKS.value,
      probabilities=_PROBABILITIES.value,
      uncertainty=_UNCERTAINTY.value,
      overwrite=_OVERWRITE.value,
      skip_existing=_SKIP_EXISTING.value,
  )


def outcome_text(counts: dict[str, Any], target: pathlib.Path) -> str:
  """Returns what became of the scans, for people.

  Args:
    counts: As --json prints them; not_read and not_scans are {ending: files}, dicom_skipped is
      {why: files}.
    target: Where the labels lie.
  """
  predicted = progress.count(counts["predicted"], "scan")
  lines = [f"\n{predicted} predicted, {counts['failed']} failed"]
  if counts["existing"]:
    lines.append(f"{counts['existing']} skipped, whose label is there already")
  if counts["resampled"]:
    lines.append(f"{counts['resampled']} resampled to the pixel size of the training")
  if counts["labels_skipped"]:
    lines.append(f"{counts['labels_skipped']} files skipped, which are named like labels")
  if counts["images_skipped"]:
    lines.append(f"{counts['images_skipped']} images skipped, which lie beside volumes")
  if counts["channels_skipped"]:
    lines.append(
        f"{counts['channels_skipped']} files skipped, of channels or modalities that the run does"
        " not know"
    )
  if others := counts["not_scans"]:
    kinds = ", ".join(f"{count} {ending}" for ending, count in sorted(others.items()))
    lines.append(f"{progress.count(sum(others.values()), 'file')} skipped, no scans: {kinds}")
  for ending, count in counts["not_read"].items():
    reason = scan_files.reason_unread(f"scan{ending}")
    lines.append(f"{progress.count(count, ending + ' file')} skipped: {reason}")
  for why, count in counts["dicom_skipped"].items():
    lines.append(f"{progress.count(count, 'DICOM file')} skipped: {why}")
  return "\n".join([*lines, f"Labels  {target}"])


def run() -> None:
  command_line.run(main, _PROGRAM)


if __name__ == "__main__":
  run()
