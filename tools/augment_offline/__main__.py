"""Writes augmented copies of the training slices of a built dataset, for good.

  flexunet augment_offline --dataset=brain_stroke_ct --data_dir=DATA \
        --output_dir=OUT --copies=3 --only_class=hemorrhagic

OUT becomes a data_dir that holds the dataset brain_stroke_ct/slices_augmented: the training split
with its copies, the other splits unchanged. With --output_form=images OUT is a folder of
{train,validation,test}/{images,masks} instead. The names of the copies say what was done:
KEY_aug01_rot+07_flipx. Validation and test are never augmented. The same settings and the same
--seed give the same files; all augmentation flags apply.

Training augments on the fly, with other draws in each epoch; copies on disk are for other
programs, and for balancing a rare class.
"""

from __future__ import annotations

import pathlib
import sys
from collections.abc import Sequence

from flexunet.core import command_line, files, flags
from flexunet.datasets import built_dataset
from flexunet.pipelines import dataset_source, laterality
from flexunet.pipelines.augmentation.config import AugmentationConfig

_PROGRAM = flags.Program(__doc__, first=("dataset", "data_dir", "output_dir"))
_DATASET = _PROGRAM.string(
    "dataset", None, "Built dataset as name[/config[/version]] below --data_dir."
)
_DATA_DIR = _PROGRAM.string(
    "data_dir", "~/tensorflow_datasets", "Folder of built datasets, or the version folder of one."
)
_OUTPUT_DIR = _PROGRAM.string("output_dir", None, "Where the result goes.", required=True)
_FORM = _PROGRAM.enum(
    "output_form",
    "records",
    ["records", "images"],
    "TFRecords that TFDS reads, or folders of images and masks.",
)
_COPIES = _PROGRAM.integer(
    "copies", 1, "Copies of each slice.", lower_bound=1, upper_bound=99
)
_ONLY_CLASS = _PROGRAM.list(
    "only_class", [], "Copies only slices that hold a pixel of one of these classes."
)
_DRAW_BY = _PROGRAM.enum(
    "draw_by",
    "slice",
    ["slice", "volume"],
    "A draw for each slice, or one for all slices of a volume, so that neighbours still fit.",
)
_SEED = _PROGRAM.integer("seed", 1, "Decides every draw.", lower_bound=0)
_SETTINGS = _PROGRAM.fields(AugmentationConfig, group="Augmentation")


def main(argv: Sequence[str]) -> None:
  command_line.no_words(argv)
  settings = flags.read(AugmentationConfig, _SETTINGS)
  out = pathlib.Path(_OUTPUT_DIR.value).expanduser()
  files.check_writable(out, "--output_dir")
  dataset_source.check_folder(_DATASET.value, _DATA_DIR.value, ["train"])
  command_line.load_tensorflow()
  # They load TensorFlow, which --help and a wrong flag must not wait for.
  from flexunet.pipelines import readers
  from flexunet.tools.augment_offline import copies, dataset

  opened = dataset_source.open_dataset(_DATASET.value, _DATA_DIR.value)
  source_dataset = built_dataset.open_folder(opened.path)
  names = source_dataset.scheme.names
  decided = laterality.decide_for(
      opened,
      readers.slice_table(opened, "train"),
      names,
      requested=settings.flip_horizontal_probability,
  )
  config = settings.resolve(mirroring=decided.mirroring)
  if decided.reason:
    print(f"Note: {decided.reason}.", file=sys.stderr)
  plan = copies.Plan(
      config=config,
      copies=_COPIES.value,
      seed=_SEED.value,
      only_classes=tuple(_ONLY_CLASS.value),
      draw_by=_DRAW_BY.value,
  )
  watched = sys.stderr.isatty()
  if _FORM.value == "images":
    count = dataset.write_images(source_dataset, plan, out, watched)
    print(f"{out}: {count} augmented copies among the training images.")
  else:
    target, count = dataset.write_records(source_dataset, plan, out, watched)
    print(f"{target}: {count} augmented copies in the training split.")


def run() -> None:
  command_line.run(main, _PROGRAM)


if __name__ == "__main__":
  run()
