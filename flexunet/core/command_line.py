"""How every program of the package starts and how it ends on bad input."""

from __future__ import annotations

import contextlib
import logging as standard_logging
import os
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from absl import logging

from flexunet.core import flags
from flexunet.core.errors import InputError

# Keras imports them where they are installed, to take their data, to wrap networks for scikit-learn
# and to draw galleries; no program needs that, and they are a third of the start of TensorFlow.
_WRAPPED_BY_KERAS = ("sklearn", "pandas", "matplotlib.pyplot")
_CLOSED_PIPE = 141  # As a shell reports a program that SIGPIPE has ended.


def run(
    main: Callable[[Sequence[str]], None],
    program: flags.Program,
    *,
    expand: Callable[[Sequence[str]], Sequence[str]] | None = None,
    argv: Sequence[str] | None = None,
) -> None:
  """Parses the flags of a program and runs `main` with the words that are no flags.

  Bad input ends in one `error: ...` line and exit code 1. Only `InputError` is caught. Anything
  else is a fault of the program and keeps its trace.

  Args:
    main: Takes [program, words ...].
    program: Its flags.
    expand: Rewrites the command line before it is parsed, e.g. by the flags of a preset.
    argv: The command line; by default that of the process.
  """
  # The start-up lines of the libraries are noise beside our own; --verbosity brings them back.
  os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
  os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
  logging.use_absl_handler()
  logging.set_verbosity(logging.ERROR)
  logging.set_stderrthreshold("error")
  logging.get_absl_logger().addFilter(_is_worth_showing)
  try:
    words = list(sys.argv if argv is None else argv)
    main(program.parse(expand(words) if expand else words))
  except InputError as error:
    print(f"error: {error}", file=sys.stderr)
    sys.exit(1)
  except BrokenPipeError:  # The reader has seen enough, as in `flexunet build --help | head`.
    # Python would flush what is left at its end, and complain.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(_CLOSED_PIPE)


def no_words(argv: Sequence[str]) -> None:
  """Refuses words that are no flags, for programs that take none."""
  if len(argv) > 1:
    raise InputError(
        f"This program takes flags only. Got: {' '.join(argv[1:])}. --help shows them."
    )


@contextlib.contextmanager
def noise_aside() -> Iterator[list[str]]:
  """Keeps back what libraries write to standard error, and shows it only when the block fails.

  Yields:
    A list that holds the lines written, once the block has ended.
  """
  lines: list[str] = []
  sys.stderr.flush()
  kept = os.dup(2)
  with tempfile.TemporaryFile() as aside:
    os.dup2(aside.fileno(), 2)
    shown = True
    try:
      yield lines
      shown = False
    except InputError:  # One line says what is wrong.
      shown = False
      raise
    finally:
      sys.stderr.flush()
      os.dup2(kept, 2)
      os.close(kept)
      aside.seek(0)
      text = aside.read().decode(errors="replace")
      lines += text.splitlines()
      if shown:
        sys.stderr.write(text)


def load_tensorflow() -> None:
  """Imports TensorFlow and finds its devices without its start-up lines.

  TF 2.21 writes them before its log level is read. What it wrote is shown when the import fails,
  and its errors when the machine has a GPU.
  """
  if "tensorflow" in sys.modules:
    return
  with noise_aside() as lines, _left_out(_WRAPPED_BY_KERAS):
    # Programs load it when the flags are known to be right, and --help not at all.
    import tensorflow as tf

    tf.config.list_physical_devices()
  if os.path.exists("/dev/nvidiactl"):
    sys.stderr.writelines(f"{line}\n" for line in lines if line.startswith("E"))


@contextlib.contextmanager
def _left_out(names: Sequence[str]) -> Iterator[None]:
  """Lets what is imported in the block find that these modules are not installed."""
  modules: dict[str, Any] = sys.modules
  absent = [name for name in names if name not in modules]
  modules.update(dict.fromkeys(absent))  # An import that finds None fails as if there were none.
  try:
    yield
  finally:
    for name in absent:
      del modules[name]


def _is_worth_showing(record: standard_logging.LogRecord) -> bool:
  # TFDS warns of its own use of an attribute that it has deprecated, at each feature it reads.
  return "`FeatureConnector.dtype` is deprecated" not in record.getMessage()
