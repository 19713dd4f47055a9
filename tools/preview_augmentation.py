"""Draws a sheet of every transformation at its strength: the image, and the label beside it.

    python -m flexunet.tools.preview_augmentation --dataset=NAME --data_dir=DATA --output=FILE.png

The upper part shows each transformation alone, at both ends of its range; what moves pixels is
shown on an image with lines drawn in. The lower part shows --rows of examples as training would
see them under the settings given. All augmentation flags apply: what a flag makes stronger is
stronger on the sheet.
"""

from __future__ import annotations

import pathlib
from collections.abc import Sequence

from absl import app, flags

from flexunet import command_line, config_flags
from flexunet.datasets.errors import InputError
from flexunet.pipelines.augmentation.config import AugmentationConfig

_DATASET = flags.DEFINE_string(
    "dataset", None, "Built dataset as name[/config[/version]] below --data_dir."
)
_DATA_DIR = flags.DEFINE_string(
    "data_dir", "~/tensorflow_datasets", "Folder of built datasets, or the version folder of one."
)
_SPLIT = flags.DEFINE_string("split", "train", "Split the examples are taken from.")
_OUTPUT = flags.DEFINE_string("output", None, "PNG file to write.", required=True)
_ROWS = flags.DEFINE_integer("rows", 3, "Rows of random draws.", lower_bound=0, upper_bound=50)
_SEED = flags.DEFINE_integer("seed", 1, "Decides the random draws.", lower_bound=0)
_IMAGE_KEY = flags.DEFINE_string("image_key", "image", "Feature of the images.")
_LABEL_KEY = flags.DEFINE_string("label_key", "label", "Feature of the labels.")
_SETTINGS = config_flags.define(AugmentationConfig)
flags.adopt_module_key_flags(config_flags)  # So that --help tells them too.


def main(argv: Sequence[str]) -> None:
  if len(argv) > 1:
    raise app.UsageError(f"Unexpected arguments: {argv[1:]}.")
  settings = config_flags.read(AugmentationConfig, _SETTINGS)
  output = pathlib.Path(_OUTPUT.value).expanduser()
  if output.suffix.lower() != ".png" or output.is_dir() or not output.absolute().parent.is_dir():
    raise InputError(f"--output must be a .png file in an existing folder. Got: {output}.")
  command_line.load_tensorflow()
  from PIL import Image

  from flexunet.pipelines import sides, source
  from flexunet.tools import augmentation_sheet

  opened = source.open_dataset(_DATASET.value, _DATA_DIR.value)
  scheme = opened.label_scheme(_LABEL_KEY.value)
  plane = (opened.slice_plan or {}).get("plane")
  one_sided = sides.one_sided_classes(
      opened, opened.table(_SPLIT.value), scheme.names, _IMAGE_KEY.value, _LABEL_KEY.value
  )
  config, _ = settings.resolve_for(scheme.names, plane, one_sided)
  columns = augmentation_sheet.COLUMNS
  examples = augmentation_sheet.pick_examples(
      opened, _SPLIT.value, _IMAGE_KEY.value, _LABEL_KEY.value, columns
  )
  picture = augmentation_sheet.sheet(
      config, examples, scheme.palette, _ROWS.value, _SEED.value
  )
  Image.fromarray(picture).save(output)
  print(f"{output}: each transformation alone, then {_ROWS.value * columns} random draws.")


def run() -> None:
  command_line.run(main)


if __name__ == "__main__":
  run()
