"""Builds a dataset: a raw folder, as its publisher ships it, becomes TFRecords split by subject.

    python -m flexunet.tools.build hippocampus_t1w --manual_dir=RAW --data_dir=OUT

DATASET is a name, or name/config, e.g. hippocampus_t1w/left_right. RAW is the unpacked download;
nothing in it is changed. The result lies in OUT/DATASET/CONFIG/VERSION, and any TFDS reader opens
it; build_report.json beside the shards tells what was counted, split and left out, and why.

The whole folder is checked first; --dry_run shows what was found and builds nothing. A build that
was interrupted goes on where it stopped when the same command is given again.
"""

from __future__ import annotations

import pathlib
import sys
from collections.abc import Sequence

from absl import flags

from flexunet import command_line
from flexunet.datasets import catalog
from flexunet.datasets.cases import NothingFoundError
from flexunet.datasets.errors import InputError

_MANUAL_DIR = flags.DEFINE_string("manual_dir", None, "Raw folder: the unpacked download.")
_DATA_DIR = flags.DEFINE_string("data_dir", None, "Folder in which datasets are built.")
_NUM_WORKERS = flags.DEFINE_integer(
    "num_workers", None, "Processes that read scans; all CPUs by default.", lower_bound=1
)
_OVERWRITE = flags.DEFINE_bool("overwrite", False, "Build again what is built already.")
_DRY_RUN = flags.DEFINE_bool(
    "dry_run", False, "Check the raw folder, print a table per file, build nothing."
)
_FILE_FORMAT = flags.DEFINE_enum(
    "file_format", "tfrecord", ["tfrecord", "array_record"],
    "Container of the records; flexunet.train reads tfrecord.",
)
_PLANE = flags.DEFINE_enum(
    "plane", None, ["axial", "coronal", "sagittal"], "Cut volumes along another plane."
)
_EMPTY_SLICES = flags.DEFINE_string(
    "empty_slices", None,
    "Slices without a labelled pixel: keep, drop, or the share 0..1 to keep, in every labelled"
    " split. Scores of whole volumes need keep.",
)
_MIN_FOREGROUND = flags.DEFINE_integer(
    "min_foreground_pixels", None,
    "Leave out slices that have labelled pixels, but fewer than this.", lower_bound=0,
)
_WINDOW = flags.DEFINE_list(
    "window", None, "Intensities LOW,HIGH that become 0 and 255, e.g. -20,100 for CT."
)
_ISOTROPIC = flags.DEFINE_float(
    "isotropic_mm", None, "Resample volumes to this spacing before they are cut."
)

_CONFIG_NAME = flags.DEFINE_string(
    "config_name", None,
    "Name of the built config, so that two folders with equal options can lie side by side.",
)
_PALETTE = flags.DEFINE_string(
    "palette", None,
    "image_mask: a preset such as full_head_t1w, or a JSON file {\"background\": [0, 0, 0],"
    " \"tumour\": [255, 0, 0]}.",
)
_SUBJECT_PATTERN = flags.DEFINE_string(
    "subject_pattern", None,
    "image_mask: regular expression with a group subject (and maybe slice), found in file names.",
)
_SPLIT = flags.DEFINE_enum(
    "split", None, ["published", "subject"],
    "image_mask: keep train, valid and test of the folder, or split anew by subject.",
)
_OFF_PALETTE = flags.DEFINE_float(
    "off_palette_limit", None, "image_mask: largest share of a mask's pixels off the palette."
)
_IMAGE_CHANNELS = flags.DEFINE_enum(
    "image_channels", None, ["1", "3"], "image_mask: grey or colour pictures."
)


def main(argv: Sequence[str]) -> None:
  if len(argv) != 2:
    known = ", ".join(catalog.NAMES)
    raise InputError(f"Name one dataset to build, e.g. hippocampus_t1w/left_right. Known: {known}.")
  manual_dir, data_dir = _raw_folder(argv[1]), _DATA_DIR.value
  if data_dir is None and not _DRY_RUN.value:
    raise InputError("--data_dir is missing: the folder in which the dataset is to be built.")
  if data_dir is not None and pathlib.Path(data_dir).is_file():
    raise InputError(f"--data_dir {data_dir}: this is a file; name a folder.")
  from flexunet.tools import build_output

  def make_builder():
    made = catalog.builder(
        argv[1],
        # A dry run reads no built dataset either.
        data_dir=data_dir or manual_dir / "none",
        options=_options(),
        file_format=_FILE_FORMAT.value,
    )
    made.num_workers = _NUM_WORKERS.value
    return made

  builder = make_builder()
  try:
    if _DRY_RUN.value:
      build_output.print_files(builder, manual_dir)
    elif build_output.is_built(builder) and not _OVERWRITE.value:
      print(f"Already built: {builder.data_path} (--overwrite builds it again).")
    else:
      build_output.print_summary(build_output.build(make_builder, manual_dir))
  except KeyboardInterrupt:
    print("\nInterrupted. The same command goes on where it stopped.", file=sys.stderr)
    sys.exit(130)  # What a shell expects of a program ended by Ctrl-C.
  except NothingFoundError as error:
    fitting = catalog.recognise(manual_dir)
    hint = f" The folder looks like {' or '.join(fitting)}." if fitting else ""
    raise InputError(f"{error}{hint}") from error


def _raw_folder(dataset: str) -> pathlib.Path:
  name = dataset.partition("/")[0]
  builder_class = catalog.builder_class(name)
  if _MANUAL_DIR.value is None:
    raise InputError(
        f"--manual_dir is missing: the raw folder of {name}."
        f" {builder_class.MANUAL_DOWNLOAD_INSTRUCTIONS}"
    )
  folder = pathlib.Path(_MANUAL_DIR.value).expanduser()
  if not folder.is_dir() or not any(folder.iterdir()):
    what = "the folder is empty" if folder.is_dir() else "there is no such folder"
    raise InputError(
        f"--manual_dir {folder}: {what}."
        f" {builder_class.MANUAL_DOWNLOAD_INSTRUCTIONS}"
    )
  return folder


def _options() -> dict:
  """Returns the options of the config that were given as flags."""
  given = {
      "plane": _PLANE.value,
      "empty_slices": _EMPTY_SLICES.value,
      "min_foreground_pixels": _MIN_FOREGROUND.value,
      "window": _window(),
      "isotropic_mm": _ISOTROPIC.value,
      "name": _CONFIG_NAME.value,
      "subject_pattern": _SUBJECT_PATTERN.value,
      "split": _SPLIT.value,
      "off_palette_limit": _OFF_PALETTE.value,
      "image_channels": int(_IMAGE_CHANNELS.value) if _IMAGE_CHANNELS.value else None,
  }
  if _PALETTE.value is not None:
    from flexunet.datasets.image_mask import image_mask_config

    given |= image_mask_config.options_of(_PALETTE.value)
  return {name: value for name, value in given.items() if value is not None}


def _window() -> tuple[float, ...] | None:
  if _WINDOW.value is None:
    return None
  try:
    return tuple(float(limit) for limit in _WINDOW.value)
  except ValueError as error:
    raise InputError(f"--window must be two numbers LOW,HIGH, got {_WINDOW.value}.") from error


def run() -> None:
  command_line.run(main)


if __name__ == "__main__":
  run()
