"""Writes augmented copies of the training slices of a built dataset, for good.

    python -m flexunet.tools.augment_offline --dataset=brain_stroke_ct --data_dir=DATA \\
        --output_dir=OUT --copies=3 --only_class=hemorrhagic

OUT becomes a data_dir that holds the dataset brain_stroke_ct/slices_augmented: the training split
with its copies, the other splits unchanged. With --output_form=pictures OUT is a folder of
{train,validation,test}/{images,masks} instead. The names of the copies tell what was done:
KEY_aug01_rot+07_flipx. Validation and test are never augmented. The same settings and the same
--seed give the same files; all augmentation flags apply.

Training augments on the fly, with other draws in each epoch; copies on disk are for other
programs, and for balancing a rare class.
"""

from __future__ import annotations

import pathlib
import sys
from collections.abc import Sequence

from absl import app, flags

from flexunet import command_line, config_flags
from flexunet.pipelines.augmentation.config import AugmentationConfig
from flexunet.tools import augmented_dataset, built_datasets, dataset_statistics

_DATASET = flags.DEFINE_string(
    "dataset", None, "Built dataset as name[/config[/version]] below --data_dir."
)
_DATA_DIR = flags.DEFINE_string(
    "data_dir", "~/tensorflow_datasets", "Folder of built datasets, or the version folder of one."
)
_OUTPUT_DIR = flags.DEFINE_string("output_dir", None, "Where the result goes.", required=True)
_FORM = flags.DEFINE_enum(
    "output_form",
    "records",
    ["records", "pictures"],
    "TFRecords that TFDS reads, or folders of images and masks.",
)
_SPLIT = flags.DEFINE_string("split", "train", "Only the training split can get copies.")
_COPIES = flags.DEFINE_integer(
    "copies", 1, "Copies of each slice.", lower_bound=1, upper_bound=99
)
_ONLY_CLASS = flags.DEFINE_list(
    "only_class", [], "Copies only slices that hold a pixel of one of these classes."
)
_DRAW_BY = flags.DEFINE_enum(
    "draw_by",
    "slice",
    ["slice", "volume"],
    "A draw for each slice, or one for all slices of a volume, so that neighbours still fit.",
)
_SEED = flags.DEFINE_integer("seed", 1, "Decides every draw.", lower_bound=0)
_SETTINGS = config_flags.define(AugmentationConfig)
flags.adopt_module_key_flags(config_flags)  # So that --help tells them too.


def main(argv: Sequence[str]) -> None:
  if len(argv) > 1:
    raise app.UsageError(f"Unexpected arguments: {argv[1:]}.")
  settings = config_flags.read(AugmentationConfig, _SETTINGS)
  command_line.load_tensorflow()
  from flexunet.pipelines import sides, source

  opened = source.open_dataset(_DATASET.value, _DATA_DIR.value)
  dataset = built_datasets.open_folder(opened.path)
  plane = (opened.slice_plan or {}).get("plane")
  names = dataset.scheme.names
  one_sided = sides.one_sided_classes(opened, opened.table(_SPLIT.value), names)
  config, unmirrored = settings.resolve_for(names, plane, one_sided)
  if unmirrored:
    print(f"Note: {unmirrored}.", file=sys.stderr)
  plan = augmented_dataset.Plan(
      config=config,
      copies=_COPIES.value,
      seed=_SEED.value,
      only_classes=tuple(_ONLY_CLASS.value),
      draw_by=_DRAW_BY.value,
      split=_SPLIT.value,
  )
  out = pathlib.Path(_OUTPUT_DIR.value).expanduser()
  progress = dataset_statistics.shows_progress()
  if _FORM.value == "pictures":
    count = augmented_dataset.write_pictures(dataset, plan, out, progress)
    print(f"{out}: {count} augmented copies among the training pictures.")
  else:
    target, count = augmented_dataset.write_records(dataset, plan, out, progress)
    print(f"{target}: {count} augmented copies in the training split.")


def run() -> None:
  command_line.run(main)


if __name__ == "__main__":
  run()
