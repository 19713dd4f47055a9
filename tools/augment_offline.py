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

import dataclasses
import pathlib
import re
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import tqdm
from absl import app, flags

from flexunet import command_line, config_flags
from flexunet.datasets.errors import InputError
from flexunet.pipelines.augmentation.config import AugmentationConfig, names_sides
from flexunet.tools import augmented_copies, built_datasets, dataset_statistics

if TYPE_CHECKING:
  from flexunet.tools.augmented_copies import Copy
  from flexunet.tools.built_datasets import BuiltDataset

_DATASET = flags.DEFINE_string(
    "dataset", None, "Built dataset as name[/config[/version]] below --data_dir."
)
_DATA_DIR = flags.DEFINE_string(
    "data_dir", "~/tensorflow_datasets", "Folder of built datasets, or the version folder of one."
)
_OUTPUT_DIR = flags.DEFINE_string("output_dir", None, "Where the result goes.")
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
    list(augmented_copies.DRAW_BY),
    "A draw for each slice, or one for all slices of a volume, so that neighbours still fit.",
)
_SEED = flags.DEFINE_integer("seed", 1, "Decides every draw.", lower_bound=0)
_SETTINGS = config_flags.define(AugmentationConfig)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
  """What is to be made.

  Attributes:
    config: A resolved config.
    copies: Of each chosen slice.
    seed: Decides every draw.
    only_classes: Names of classes; empty for all slices.
    draw_by: "slice" or "volume".
    split: The training split.
  """

  config: AugmentationConfig
  copies: int = 1
  seed: int = 1
  only_classes: tuple[str, ...] = ()
  draw_by: str = "slice"
  split: str = "train"

  def __post_init__(self):
    if not self.config.enabled:
      raise InputError(
          "The augmentation is off: its copies would be the same as their sources. Pass"
          " --augmentation=default or the probability of a transformation."
      )

  def settings(self) -> dict:
    """Returns what the build report says of the copies."""
    return {
        "copies": self.copies,
        "seed": self.seed,
        "only_classes": list(self.only_classes),
        "draw_by": self.draw_by,
        "config": dataclasses.asdict(self.config),
    }


def write_records(
    dataset: BuiltDataset, plan: Plan, out: pathlib.Path, progress: bool = False
) -> tuple[pathlib.Path, int]:
  """Writes the dataset with its copies below the data_dir `out`.

  Returns:
    (version folder, number of copies). An interrupted call leaves nothing there.
  """
  from flexunet.tools import augmented_records

  rows = augmented_copies.choose(dataset, plan.split, plan.only_classes)
  report = dataset.report
  config_name = f"{report['config']}_augmented"
  target = out / report["dataset"] / config_name / report["version"]
  if target.exists():
    raise InputError(f"{target}: exists already. Remove it, or name another --output_dir.")
  target.parent.mkdir(parents=True, exist_ok=True)
  work = pathlib.Path(tempfile.mkdtemp(prefix="incomplete.", dir=target.parent))
  try:
    copies = _copies(dataset, rows, plan, progress)
    count = augmented_records.write(dataset, copies, work, config_name, plan.settings())
    work.chmod(0o755)
    work.rename(target)
  finally:
    shutil.rmtree(work, ignore_errors=True)
  return target, count


def write_pictures(
    dataset: BuiltDataset, plan: Plan, out: pathlib.Path, progress: bool = False
) -> int:
  """Writes all splits as pictures to `out`, with the copies among those of the training split.

  Returns:
    The number of copies. An interrupted call leaves nothing at `out`.
  """
  from PIL import Image

  from flexunet.tools import export_images

  rows = augmented_copies.choose(dataset, plan.split, plan.only_classes)
  if out.exists() and (not out.is_dir() or any(out.iterdir())):
    raise InputError(f"{out}: pictures go into a new or an empty folder. Name another one.")
  out.absolute().parent.mkdir(parents=True, exist_ok=True)
  work = pathlib.Path(tempfile.mkdtemp(prefix="incomplete.", dir=out.absolute().parent))
  count = 0
  try:
    export_images.export(dataset, work, progress=progress)
    folder = work / plan.split
    for copy in _copies(dataset, rows, plan, progress):
      name = re.sub(r"[^\w.+-]", "_", copy.key) + ".png"
      pixels = copy.image[..., 0] if copy.image.shape[-1] == 1 else copy.image
      Image.fromarray(pixels).convert("RGB").save(folder / "images" / name)
      Image.fromarray(dataset.scheme.colorize(copy.label)).save(folder / "masks" / name)
      count += 1
    work.chmod(0o755)
    if out.exists():
      out.rmdir()
    work.rename(out)
  finally:
    shutil.rmtree(work, ignore_errors=True)
  return count


def _copies(dataset: BuiltDataset, rows, plan: Plan, progress: bool) -> Iterator[Copy]:
  made = augmented_copies.make(
      dataset,
      rows,
      plan.config,
      copies=plan.copies,
      seed=plan.seed,
      only_classes=plan.only_classes,
      draw_by=plan.draw_by,
  )
  total = len(rows) * plan.copies
  yield from tqdm.tqdm(made, total=total, unit=" copy", disable=not progress, leave=False)


def main(argv: Sequence[str]) -> None:
  if len(argv) > 1:
    raise app.UsageError(f"Unexpected arguments: {argv[1:]}.")
  settings = config_flags.read(AugmentationConfig, _SETTINGS)
  command_line.load_tensorflow()
  from flexunet.pipelines import source

  folder = source.open_dataset(_DATASET.value, _DATA_DIR.value).path
  dataset = built_datasets.open_folder(folder)
  plan = Plan(
      config=settings.resolve(sided=names_sides(dataset.scheme.names)),
      copies=_COPIES.value,
      seed=_SEED.value,
      only_classes=tuple(_ONLY_CLASS.value),
      draw_by=_DRAW_BY.value,
      split=_SPLIT.value,
  )
  out = pathlib.Path(_OUTPUT_DIR.value).expanduser()
  progress = dataset_statistics.shows_progress()
  if _FORM.value == "pictures":
    count = write_pictures(dataset, plan, out, progress)
    print(f"{out}: {count} augmented copies among the training pictures.")
  else:
    target, count = write_records(dataset, plan, out, progress)
    print(f"{target}: {count} augmented copies in the training split.")


def run() -> None:
  flags.mark_flag_as_required("output_dir")
  command_line.run(main)


if __name__ == "__main__":
  run()
