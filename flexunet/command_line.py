"""How every program of the package starts and how it ends on bad input."""

from __future__ import annotations

import logging as standard_logging
import os
import sys
import tempfile
from collections.abc import Callable, Sequence

from absl import app, flags, logging

from flexunet import preset_files
from flexunet.datasets.errors import InputError


def run(main: Callable[[Sequence[str]], None]) -> None:
  """Runs `main` under absl; bad input ends in one `error: ...` line and exit code 1.

  Only `InputError` is caught. Anything else is a fault of the program and keeps its trace.
  """
  # The start-up lines of the libraries are noise beside our own; --verbosity brings them back.
  os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
  os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
  logging.set_verbosity(logging.ERROR)
  logging.set_stderrthreshold("error")
  logging.get_absl_logger().addFilter(_is_worth_telling)
  app.run(lambda argv: _report_bad_input(main, argv), flags_parser=_parse_flags)


def _report_bad_input(main: Callable[[Sequence[str]], None], argv: Sequence[str]) -> None:
  try:
    main(argv)
  except InputError as error:
    print(f"error: {error}", file=sys.stderr)
    sys.exit(1)


def _parse_flags(argv: Sequence[str]) -> list[str]:
  """Parses as absl does, with the flags of a `--preset` where a program has this flag."""
  if "preset" in flags.FLAGS:
    try:
      argv = preset_files.expand(argv)
    except InputError as error:
      print(f"error: {error}", file=sys.stderr)
      sys.exit(1)
  return app.parse_flags_with_usage(list(argv))


def given(flag: flags.FlagHolder) -> str:
  """Returns the value of a flag that must be given."""
  if flag.value is None:
    raise InputError(f"--{flag.name} is missing. --help tells what it is.")
  return flag.value


def load_tensorflow() -> None:
  """Imports TensorFlow and finds its devices without its start-up lines.

  TF 2.21 writes them before its log level is read, so standard error is set aside meanwhile. What
  it said is shown after all when the import fails, and its errors when the machine has a GPU.
  """
  if "tensorflow" in sys.modules:
    return
  sys.stderr.flush()
  kept = os.dup(2)
  with tempfile.TemporaryFile() as aside:
    os.dup2(aside.fileno(), 2)
    failed = True
    try:
      import tensorflow as tf

      tf.config.list_physical_devices()
      failed = False
    finally:
      os.dup2(kept, 2)
      os.close(kept)
      aside.seek(0)
      said = aside.read().decode(errors="replace")
      if failed:
        sys.stderr.write(said)
      elif os.path.exists("/dev/nvidiactl"):
        sys.stderr.writelines(f"{line}\n" for line in said.splitlines() if line.startswith("E"))


def _is_worth_telling(record: standard_logging.LogRecord) -> bool:
  # TFDS warns of its own use of an attribute that it has deprecated, at each feature it reads.
  return "`FeatureConnector.dtype` is deprecated" not in record.getMessage()
