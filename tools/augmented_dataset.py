"""Writes a built dataset with augmented copies of its training slices, as records or pictures."""

from __future__ import annotations

import contextlib
import dataclasses
import pathlib
import re
import shutil
import tempfile
from collections.abc import Iterator

import tqdm

from flexunet.datasets.errors import InputError
from flexunet.pipelines.augmentation.config import AugmentationConfig
from flexunet.tools import augmented_copies, augmented_records
from flexunet.tools.augmented_copies import Copy
from flexunet.tools.built_datasets import BuiltDataset


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
  rows = augmented_copies.choose(dataset, plan.split, plan.only_classes)
  report = dataset.report
  config_name = f"{report['config']}_augmented"
  target = out / report["dataset"] / config_name / report["version"]
  if target.exists():
    raise InputError(f"{target}: exists already. Remove it, or name another --output_dir.")
  with _whole_or_nothing(target) as work:
    copies = _copies(dataset, rows, plan, progress)
    count = augmented_records.write(dataset, copies, work, config_name, plan.settings())
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
  count = 0
  with _whole_or_nothing(out.absolute()) as work:
    export_images.export(dataset, work, progress=progress)
    folder = work / plan.split
    for copy in _copies(dataset, rows, plan, progress):
      name = re.sub(r"[^\w.+-]", "_", copy.key) + ".png"
      pixels = copy.image[..., 0] if copy.image.shape[-1] == 1 else copy.image
      Image.fromarray(pixels).convert("RGB").save(folder / "images" / name)
      Image.fromarray(dataset.scheme.colorize(copy.label)).save(folder / "masks" / name)
      count += 1
  return count


@contextlib.contextmanager
def _whole_or_nothing(target: pathlib.Path) -> Iterator[pathlib.Path]:
  """Gives a folder to write into, which becomes `target` at the end; a failure leaves nothing."""
  made = [folder for folder in target.parents if not folder.exists()]
  target.parent.mkdir(parents=True, exist_ok=True)
  work = pathlib.Path(tempfile.mkdtemp(prefix="incomplete.", dir=target.parent))
  try:
    yield work
    work.chmod(0o755)  # Temporary folders are closed to others.
    if target.exists():
      target.rmdir()  # It was empty.
    work.rename(target)
  except BaseException:
    shutil.rmtree(work, ignore_errors=True)
    for folder in made:
      with contextlib.suppress(OSError):
        folder.rmdir()
    raise


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
