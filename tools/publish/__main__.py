"""Checks whether a built dataset may be passed on, and writes what a public one needs.

  flexunet publish DIR --output_dir=OUT
  flexunet publish DIR --dry_run

DIR is the folder of one built dataset. Checked are: its licence, that no face can be seen in its
scans, that no name, date or free text stands in it, every record, its splits, and its Croissant
metadata by the reference reader. All that is in the way is printed at once, with what to do, and
the exit code is 1. Else OUT/NAME/CONFIG/VERSION is written in one step: the shards (as hard links
where that is possible), a dataset card (README.md), the citation, charts and contact sheets,
croissant.json, and SHA256SUMS, which `sha256sum -c` reads. Nothing in DIR is changed.
"""

from __future__ import annotations

import pathlib
import sys
import textwrap
from collections.abc import Sequence

from flexunet.core import command_line, flags, progress
from flexunet.core.errors import InputError
from flexunet.datasets import dataset_folders
from flexunet.datasets.built_dataset import BuiltDataset
from flexunet.reporting import sources
from flexunet.tools.publish import checks, contents, folder, licences
from flexunet.tools.publish.checks import Check
from flexunet.tools.publish.licences import Decision

_PROGRAM = flags.Program(__doc__, usage="flexunet publish DIR --output_dir=OUT")
_OUTPUT_DIR = _PROGRAM.string("output_dir", None, "Folder of published datasets.")
_DRY_RUN = _PROGRAM.boolean("dry_run", False, "Prints the verdicts, and writes nothing.")
_LICENCE = _PROGRAM.string(
    "licence", "",
    "SPDX identifier, e.g. CC-BY-4.0, of a dataset that does not state the licence of its scans.",
)  # fmt: skip
_FACES = _PROGRAM.string(
    "faces", "",
    "What was done to the faces in the scans, where images do not show it; the card quotes it.",
)  # fmt: skip
_KEY_FILE = _PROGRAM.string(
    "key_file", None, "Key file of pseudonyms, whose names must not occur."
)
_MANUAL_DIR = _PROGRAM.string(
    "manual_dir", None, "Raw folder, whose names must not occur unless codes."
)
_LINE_COLUMNS, _NAME_COLUMNS, _PROBLEMS_SHOWN = 100, 11, 20


def main(argv: Sequence[str]) -> None:
  if len(argv) != 2:
    raise InputError(f"Usage: {_PROGRAM.usage}. Got: {' '.join(argv[1:]) or 'nothing'}.")
  if not _OUTPUT_DIR.value and not _DRY_RUN.value:
    raise InputError("--output_dir must be given, or --dry_run, which writes nothing.")
  dataset = dataset_folders.find_one(pathlib.Path(argv[1]))
  target = None
  if not _DRY_RUN.value:
    target = folder.target_of(dataset, pathlib.Path(_OUTPUT_DIR.value))
  decision = licences.decide(sources.of_folder(dataset.path).licenses, _LICENCE.value)
  prose = folder.prose_of(dataset, decision)
  outcomes = _check(dataset, decision, prose)
  print(_table(outcomes))
  if failed := [check for check in outcomes if not check.passed]:
    print(f"\nNot published: {_listing(failed)}", file=sys.stderr)
    sys.exit(1)
  if target is None:
    print("\nNothing is in the way. Without --dry_run it is published.")
    return
  folder.write(dataset, target, prose, decision, outcomes, sys.stderr.isatty())
  print(f"\nPublished  {target}")


def _check(dataset: BuiltDataset, decision: Decision, prose: dict) -> list[Check]:
  """Runs all checks, so that one start names all that is in the way."""
  shown = sys.stderr.isatty()
  records = checks.of_records(dataset, shown)
  outcomes = [checks.of_licence(decision), records, checks.of_splits(dataset)]
  if not records.passed:  # What cannot be trusted is not looked into.
    return outcomes
  progress.say("Looking for faces, names and dates ...")
  found = contents.gather(dataset, shown)
  paths = [pathlib.Path(flag.value) if flag.value else None for flag in (_KEY_FILE, _MANUAL_DIR)]
  return [
      *outcomes,
      checks.of_faces(found, _FACES.value),
      checks.of_privacy(dataset, found, *paths),
      checks.of_croissant(dataset, prose),
  ]


def _table(outcomes: Sequence[Check]) -> str:
  lines = []
  for check in outcomes:
    head = f"{check.name.ljust(_NAME_COLUMNS)}{'passed' if check.passed else 'REFUSED'}  "
    indent = " " * (_NAME_COLUMNS + 9)
    lines.append(
        textwrap.fill(
            check.said, _LINE_COLUMNS, initial_indent=head.ljust(len(indent)),
            subsequent_indent=indent, break_long_words=False,
        )
    )  # fmt: skip
  return "\n".join(lines)


def _listing(failed: Sequence[Check]) -> str:
  lines = []
  for check in failed:
    lines.append(f"\n{check.name}: {check.remedy}")
    lines += [f"  - {problem}" for problem in check.problems[:_PROBLEMS_SHOWN]]
    if (more := len(check.problems) - _PROBLEMS_SHOWN) > 0:
      lines.append(f"  - and {more} more")
  return "\n".join(lines)


def run() -> None:
  command_line.run(main, _PROGRAM)


if __name__ == "__main__":
  run()
