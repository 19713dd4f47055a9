"""Writes one self-contained page on a built dataset, and the same as one image.

    flexunet report DIR [--output=FILE.html]

DIR is the folder of one built dataset. FILE.html holds everything it needs; FILE.png beside it
holds the charts and the contact sheets. Without --output they are written into DIR as
dataset_report.html and dataset_report.png.
"""

from __future__ import annotations

import pathlib
from collections.abc import Sequence

from flexunet.core import command_line, flags
from flexunet.core.errors import InputError
from flexunet.datasets import dataset_folders
from flexunet.tools.dataset_report import page, statistics

_PROGRAM = flags.Program(__doc__, usage="flexunet report DIR [--output=FILE.html]")
_OUTPUT = _PROGRAM.string("output", None, "The .html file. Default: DIR/dataset_report.html.")


def main(argv: Sequence[str]) -> None:
  if len(argv) != 2:
    raise InputError(f"Usage: {_PROGRAM.usage}. Got: {' '.join(argv[1:]) or 'nothing'}.")
  dataset = dataset_folders.find_one(pathlib.Path(argv[1]))
  output = pathlib.Path(_OUTPUT.value or dataset.path / "dataset_report.html")
  page.write_report(dataset, output, show_progress=statistics.shows_progress())
  print(f"{output} and {output.with_suffix('.png').name}")


def run() -> None:
  command_line.run(main, _PROGRAM)


if __name__ == "__main__":
  run()
