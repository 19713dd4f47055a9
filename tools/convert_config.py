"""Turns a published `train_eval_infer.config` into a flagfile of `flexunet.train`.

  python -m flexunet.tools.convert_config train_eval_infer.config --output=recipe.flags
  python -m flexunet.train --flagfile=recipe.flags --data_dir=DATA --run_dir=RUN

Values are parsed as Python literals, never evaluated. Keys that need no flag are noted in the file;
unknown ones are named there and on standard error, or are an error with --strict.
"""

from __future__ import annotations

import pathlib
import sys
from collections.abc import Sequence

from absl import app, flags

from flexunet import command_line, run_folder
from flexunet.datasets.errors import InputError
from flexunet.tools import published_config

_OUTPUT = flags.DEFINE_string("output", None, "Flagfile to write; standard output by default.")
_STRICT = flags.DEFINE_boolean("strict", False, "Unknown keys are an error.")


def main(argv: Sequence[str]) -> None:
  if len(argv) != 2:
    raise app.UsageError("Name one file: python -m flexunet.tools.convert_config FILE.")
  source = pathlib.Path(argv[1]).expanduser()
  converted = published_config.convert(source)
  if converted.unknown:
    told = "; ".join(converted.unknown)
    if _STRICT.value:
      raise InputError(f"{source.name} has unknown entries: {told}.")
    print(f"warning: {source.name}: unknown and left out: {told}.", file=sys.stderr)
  text = converted.text(source.name)
  if _OUTPUT.value is None:
    print(text, end="")
    return
  target = pathlib.Path(_OUTPUT.value).expanduser()
  if target.exists():
    raise InputError(f"--output {target} exists already. Name another file.")
  run_folder.write_bytes(target, text.encode("utf-8"))
  print(f"Wrote {len(converted.flags)} flags to {target}.")


def run() -> None:
  command_line.run(main)


if __name__ == "__main__":
  run()
