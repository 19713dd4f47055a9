"""Turns a published `train_eval_infer.config` into a file of flags for `flexunet train`.

  flexunet convert_config train_eval_infer.config --output=recipe.flags
  flexunet train --flagfile=recipe.flags --data_dir=DATA --run_dir=RUN

The file is an ini file whose values are Python literals; they are parsed as literals, never
evaluated. Keys that need no flag are noted in the output, with what to use instead; unknown ones
are named there and on standard error, or are an error with --strict.
"""

from __future__ import annotations

import pathlib
import sys
from collections.abc import Sequence

from flexunet.core import command_line, files, flags
from flexunet.core.errors import InputError
from flexunet.tools.convert_config import conversion

_PROGRAM = flags.Program(__doc__, usage="flexunet convert_config FILE [--output=FLAGFILE]")
_OUTPUT = _PROGRAM.string("output", None, "File to write. Default: standard output.")
_STRICT = _PROGRAM.boolean("strict", False, "Makes unknown keys an error.")


def main(argv: Sequence[str]) -> None:
  if len(argv) != 2:
    raise InputError(f"Usage: {_PROGRAM.usage}. Got: {' '.join(argv[1:]) or 'nothing'}.")
  source = pathlib.Path(argv[1]).expanduser()
  converted = conversion.convert(source)
  if converted.unknown:
    unknown = "; ".join(converted.unknown)
    if _STRICT.value:
      raise InputError(f"{source.name} has unknown entries: {unknown}.")
    print(f"warning: {source.name}: unknown and left out: {unknown}.", file=sys.stderr)
  text = converted.text(source.name)
  if _OUTPUT.value is None:
    print(text, end="")
    return
  target = pathlib.Path(_OUTPUT.value).expanduser()
  if target.exists():
    raise InputError(f"--output {target} exists already. Name another file.")
  files.write_bytes(target, text.encode("utf-8"))
  print(f"Wrote {len(converted.flags)} flags to {target}.")


def run() -> None:
  command_line.run(main, _PROGRAM)


if __name__ == "__main__":
  run()
