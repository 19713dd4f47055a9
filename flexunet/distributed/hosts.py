"""The processes of one run that train together on JAX: what they share, and what they agree on.

All of them hold the same weights and take the same decisions at the same steps: those that depend
on time, files or measurements are taken by the first process and passed on. A process that is
alone is a group of one, for which all this costs nothing.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import keras
import numpy as np

from flexunet.core.errors import InputError
from flexunet.distributed import launch
from flexunet.distributed.membership import Membership

_Result = TypeVar("_Result")
_member: Membership | None = None


def join(member: Membership) -> None:
  """Waits for all processes of the run and lets Keras spread batches over their devices.

  Call it before anything is computed. Variables made afterwards are copies on all devices.

  Raises:
    InputError: The address of the first process is taken or wrong.
  """
  global _member
  try:
    _jax().distributed.initialize(
        member.coordinator,
        member.count,
        member.index,
        cluster_detection_method="deactivate",  # Under Slurm it would take one GPU of each node.
        initialization_timeout=launch.START_S,
        heartbeat_timeout_seconds=launch.HEARTBEAT_S,
    )
  except TypeError as error:  # It has no such argument.
    raise InputError(
        f"Several hosts need a JAX that notices a silent one. Got: jax {_jax().__version__}."
        " Install 0.10 or later, which needs Python 3.11: pip install 'jax>=0.10'."
    ) from error
  except (RuntimeError, ValueError) as error:
    first_line = (str(error).strip().splitlines() or [type(error).__name__])[0]
    raise InputError(
        f"Process {member.index} must be able to {'listen' if not member.index else 'connect'} at"
        f" --coordinator {member.coordinator}. JAX says: {first_line:.200} Name a free port of the"
        " host of process 0, and start each --process_id once."
    ) from error
  _member = member
  # The input pipeline gives each process its own part of a batch.
  keras.distribution.set_distribution(
      keras.distribution.DataParallel(auto_shard_dataset=False)
  )


def leave() -> None:
  """Ends the group once all of its processes have come here; the last one may take minutes."""
  global _member
  if _member is not None:
    _gathered(np.zeros(1, np.uint8))  # However long the first one writes.
    keras.distribution.set_distribution(None)
    _jax().distributed.shutdown()
    _member = None


def count() -> int:
  """Returns how many processes train this run."""
  return _member.count if _member else 1


def index() -> int:
  """Returns the number of this process, from 0 on."""
  return _member.index if _member else 0


def is_first() -> bool:
  """Returns whether this process writes the run folder and speaks for all."""
  return index() == 0


def num_devices() -> int:
  """Returns the devices of all processes, which share each batch; 1 for a process alone."""
  return len(keras.distribution.list_devices()) if _member else 1


def check_batch(batch_size: int) -> None:
  """Raises InputError unless every device gets an equal part of a batch."""
  sharing = num_devices()
  if sharing % count():
    raise InputError(
        f"Every process of a run must see as many devices as the others; {count()} processes see"
        f" {sharing} together. Set CUDA_VISIBLE_DEVICES alike."
    )
  if batch_size % sharing:
    raise InputError(
        f"--batch_size={batch_size} must be a multiple of the {sharing} devices of"
        f" {count()} processes that share a batch. Use"
        f" --batch_size={-(-batch_size // sharing) * sharing}."
    )


def largest(number: int) -> int:
  """Returns the largest of the numbers (0..255) that the processes come with."""
  return int(_gathered(np.array([number], np.uint8)).max()) if _member else number


def time_of_first(seconds: float) -> float:
  """Returns the first process's `seconds`."""
  return float(array_of_first(np.array([seconds], np.float64))[0]) if _member else seconds


def array_of_first(array: np.ndarray) -> np.ndarray:
  """Returns the first process's array, bit for bit; all come with one of its shape and type."""
  if _member is None:
    return array
  # As bytes: a sum with zeros changes -0.0, and JAX has no float64.
  flat = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
  if not flat.size:
    return array
  shared = np.asarray(_jax().experimental.multihost_utils.broadcast_one_to_all(flat))
  return shared.astype(np.uint8).view(array.dtype).reshape(array.shape)


def value_of_first(value: Any) -> Any:
  """Returns the first process's value, which JSON can hold; NaN and infinity may be in it."""
  return json.loads(_text_of_first(json.dumps(value))) if _member else value


def on_first(make: Callable[[], Any]) -> Any:
  """Lets the first process make a value that JSON can hold, and returns it in all.

  Raises:
    InputError: The first process has raised it.
  """
  if _member is None:
    return make()
  made = on_all(lambda: make() if is_first() else None)
  return value_of_first(made)


def on_all(make: Callable[[], _Result]) -> _Result:
  """Lets each process do the same on its own, such as reading files; returns its result.

  Raises:
    InputError: One of them has raised it; then all do, so that none waits for it.
  """
  if _member is None:
    return make()
  problem, result = "", None
  try:
    with alone():
      result = make()
  except InputError as error:
    problem = str(error)
  problems = _texts(problem)
  if problem:
    raise InputError(problem)
  for number, other in enumerate(problems):
    if other:
      raise InputError(f"Process {number} of {count()}: {other}")
  return result  # type: ignore[return-value]


@contextlib.contextmanager
def alone() -> Iterator[None]:
  """Keeps what Keras makes inside out of the group, which would have to make it together."""
  spread = keras.distribution.distribution()
  keras.distribution.set_distribution(None)
  try:
    yield
  finally:
    keras.distribution.set_distribution(spread)


def check_same(what: str, values: dict[str, Any]) -> None:
  """Raises InputError in all processes unless they come with the same values.

  Args:
    what: What they are, for the error, e.g. "the same flags".
    values: Name as the user knows it -> a value that JSON can hold.
  """
  if _member is None:
    return
  own = {name: json.dumps(value, sort_keys=True) for name, value in values.items()}
  all_of_them = [json.loads(text) for text in _texts(json.dumps(own))]
  for number, other in enumerate(all_of_them):
    for name in dict.fromkeys([*all_of_them[0], *other]):
      first, found = str(all_of_them[0].get(name)), str(other.get(name))
      if first != found:
        raise InputError(
            f"All processes of a run need {what}, but process {number} has {name} {found:.99},"
            f" process 0 {first:.99}. Start every process alike; runs of their own need"
            " --num_processes=1."
        )


def _texts(text: str) -> list[str]:
  """Returns the texts of all processes, in their order."""
  data = np.frombuffer(text.encode(), np.uint8)
  sizes = _gathered(np.array([len(data)], np.int32)).ravel()
  padded = np.zeros(max(1, int(sizes.max())), np.uint8)
  padded[: len(data)] = data
  rows = _gathered(padded)
  return [
      row[:size].tobytes().decode() for row, size in zip(rows, sizes.tolist(), strict=True)
  ]


def _text_of_first(text: str) -> str:
  data = np.frombuffer(text.encode(), np.uint8)
  size = int(array_of_first(np.array([len(data)], np.int32))[0])
  own = data if is_first() else np.zeros(size, np.uint8)
  return array_of_first(own).tobytes().decode()


def _gathered(array: np.ndarray) -> np.ndarray:
  """Returns the arrays of all processes, [processes, ...]."""
  rows = _jax().experimental.multihost_utils.process_allgather(array)
  return np.asarray(rows).reshape(count(), *array.shape)


def _jax() -> Any:
  """Returns JAX with the module in which processes exchange arrays."""
  # An extra, needed by several hosts alone.
  import jax
  import jax.experimental.multihost_utils

  return jax
