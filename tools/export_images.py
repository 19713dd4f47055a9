"""Writes a built dataset as a folder of images: {train,validation,test}/{images,masks}.

  flexunet export_images DIR OUT [--image_mode=rgb|grey]

DIR is the folder of one built dataset (config of slices). Masks are RGB PNG in the dataset's
palette, which OUT/palette.json states; the scripts published beside the datasets read this form,
and so does the dataset `image_mask`. Unlabelled slices go to unlabeled/images, without masks.
"""

from __future__ import annotations

import json
import pathlib
import re
import sys
from collections.abc import Sequence

import numpy as np
from PIL import Image

from flexunet.core import command_line, flags
from flexunet.core.errors import InputError
from flexunet.core.progress import bar
from flexunet.datasets import dataset_folders
from flexunet.datasets.built_dataset import BuiltDataset

_PROGRAM = flags.Program(__doc__, usage="flexunet export_images DIR OUT")
_IMAGE_MODE = _PROGRAM.enum(
    "image_mode", "rgb", ["rgb", "grey"], "Grey slices as three equal channels, or as one."
)


_CHANNEL = _PROGRAM.string(
    "channel", None, "Channel to write, by its name, of a dataset of several; by default the first."
)


def export(
    dataset: BuiltDataset,
    out: pathlib.Path,
    image_mode: str = "rgb",
    show_progress: bool = False,
    channel: str | None = None,
) -> dict[str, int]:
  """Writes every record as a pair of PNG files; returns {split: pairs}.

  Args:
    dataset: A dataset of slices.
    out: A new or an empty folder; it is created where there is none.
    image_mode: "rgb" repeats the grey channel three times, "grey" keeps one.
    show_progress: Whether a bar is shown.
    channel: Which of several channels is written; None: the first.
  """
  feature = dataset.image_feature(channel)
  if dataset.rows and not dataset.rows[0]["slice_index"]:
    raise InputError(
        f"{dataset.path}: holds whole volumes, which are no images. Export a config of slices."
    )
  if out.exists() and (not out.is_dir() or any(out.iterdir())):
    raise InputError(f"{out}: images go into a new or an empty folder. Name another one.")
  scheme = dataset.scheme
  counts: dict[str, int] = {}
  for split in dataset.splits:
    (out / split / "images").mkdir(parents=True)
    if split != "unlabeled":
      (out / split / "masks").mkdir()
  colors = {entry["name"]: entry["color"] for entry in scheme.to_json()}
  (out / "palette.json").write_text(json.dumps(colors, indent=1) + "\n", encoding="utf-8")
  records = bar(
      dataset.records(), total=len(dataset.rows), unit=" record", disable=not show_progress,
      leave=False,
  )  # fmt: skip
  for row, example in records:
    # Keys may hold signs that a file name cannot; those of this project's datasets do not.
    name = re.sub(r"[^\w.-]", "_", row["key"]) + ".png"
    folder = out / row["split"]
    image = np.asarray(example[feature])
    written = Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)
    if image_mode == "rgb":
      written = written.convert("RGB")
    if (folder / "images" / name).exists():
      raise InputError(f"{dataset.path}: two records would be called {name}.")
    written.save(folder / "images" / name)
    if row["split"] != "unlabeled":
      label = np.asarray(example["label"])[..., 0]
      Image.fromarray(scheme.colorize(label)).save(folder / "masks" / name)
    counts[row["split"]] = counts.get(row["split"], 0) + 1
  return counts


def main(argv: Sequence[str]) -> None:
  if len(argv) != 3:
    raise InputError(f"Usage: {_PROGRAM.usage}. Got: {' '.join(argv[1:]) or 'nothing'}.")
  dataset = dataset_folders.find_one(pathlib.Path(argv[1]))
  out = pathlib.Path(argv[2])
  counts = export(dataset, out, _IMAGE_MODE.value, sys.stderr.isatty(), _CHANNEL.value)
  listing = ", ".join(f"{split} {count}" for split, count in counts.items())
  print(f"{out}: {listing}")


def run() -> None:
  command_line.run(main, _PROGRAM)


if __name__ == "__main__":
  run()
