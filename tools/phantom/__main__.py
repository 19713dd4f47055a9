"""Makes synthetic raw scans in the layout of a published dataset, to try everything without data.

  flexunet phantom hippocampus_t1w OUT --subjects=12 --seed=0

DATASET is one of the names that flexunet build knows. The same command gives the same files.
"""

from __future__ import annotations

from collections.abc import Sequence

from flexunet.core import command_line, errors, flags
from flexunet.core.errors import InputError
from flexunet.tools.phantom import layouts

_PROGRAM = flags.Program(__doc__, usage="flexunet phantom DATASET OUT [--subjects=N]")
_SUBJECTS = _PROGRAM.integer("subjects", 12, "Labelled subjects to make.", lower_bound=1)
_SEED = _PROGRAM.integer("seed", 0, "Decides everything about them.", lower_bound=0)
_SIZE = _PROGRAM.list(
    "size", None, "Voxels per stored axis (volumes), or edge and slices (images), e.g. 96,40,96."
)


def main(argv: Sequence[str]) -> None:
  if len(argv) != 3:
    raise InputError(f"Usage: {_PROGRAM.usage}. Got: {' '.join(argv[1:]) or 'nothing'}.")
  given = _SIZE.value or []
  try:
    size = [int(text) for text in given]
  except ValueError as error:
    raise errors.InputError(
        f"--size must be whole numbers such as 96,40,96. Got: {','.join(given)}."
    ) from error
  out = layouts.write(argv[1], argv[2], _SUBJECTS.value, _SEED.value, size)
  files = [path for path in out.rglob("*") if path.is_file()]
  megabytes = sum(path.stat().st_size for path in files) / 1e6
  print(f"{argv[1]}: {len(files)} files, {megabytes:.0f} MB in {out}")


def run() -> None:
  command_line.run(main, _PROGRAM)


if __name__ == "__main__":
  run()
