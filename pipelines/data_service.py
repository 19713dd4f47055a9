"""Batches that a tf.data service computes on other processes or machines, in the trainer's order.

The batch of a step is a function of the step alone. So what is given out to the workers is the
numbers of the steps (tf.data's distributed epoch: each number to whichever worker asks first),
every batch comes back with its number, and the trainer puts them back into order: the stream is
that of one process, byte for byte, with any number of workers, and a run resumes from any step.

tf.data visits each number at most once: what a lost worker was computing never comes. A missing
step is asked for again, with all that follow, in a new iteration of the service; where that brings
no batch either, the service is given up after a stated time, with one line that says who does not
answer. Nothing here waits longer than that.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import tensorflow as tf

from flexunet.core import progress, service_address
from flexunet.core.errors import InputError
from flexunet.datasets.records import shards
from flexunet.pipelines import tf_data
from flexunet.pipelines.record_table import RecordTable

# Batches that wait for an earlier one. More have never been seen where no worker was lost: workers
# differ in speed, but each is asked for a few at a time.
_MOST_WAITING = 64
_QUEUED = 2
_MOST_PROBED = 8  # Workers, for a message: each that is gone takes seconds.
_RETRY_S = 1.0  # From one try to the next where the service refuses.
_LOOKS = (0.25, 0.5)  # Shares of the time after which a missing batch is looked into.
_FLAG = "--data_service"
_OTHERS_CAME = "later batches came, but not this one"
_ALL_GIVEN_OUT = "all its steps were given out, and this one did not come back"
# step numbers int64 -> batches with `step` int64 [B], one for each number
MakeBatches = Callable[[tf.data.Dataset], tf.data.Dataset]


class DataService:
  """A tf.data service, asked for the batches of steps.

  Attributes:
    address: grpc://HOST:PORT of its dispatcher.
    timeout_s: Seconds without the next batch after which it is given up.
    on_loss: Called once with the error when it has been given up. The stream then goes on with
      batches computed in this process, so that the trainer can end between two steps. None: the
      error is raised from the stream.
  """

  def __init__(self, address: str, timeout_s: float):
    host, port = service_address.parse(address, _FLAG)
    self.host, self.port, self.timeout_s = host, port, timeout_s
    self.address = f"grpc://{service_address.joined(host, port)}"
    self.on_loss: Callable[[InputError], None] | None = None

  def stream(self, make: MakeBatches, start_step: int, num_steps: int) -> tf.data.Dataset:
    """Returns the batches of some steps in order, without `step`; its cardinality is known."""
    spec = dict(make(tf.data.Dataset.range(0, 1)).element_spec)
    del spec["step"]

    def generate() -> Iterator[dict]:
      yield from self._in_order(make, start_step, start_step + num_steps)

    found = tf.data.Dataset.from_generator(generate, output_signature=spec)
    return tf_data.untuned(
        found.apply(tf.data.experimental.assert_cardinality(num_steps)).prefetch(_QUEUED)
    )

  def _in_order(self, make: MakeBatches, start: int, stop: int) -> Iterator[dict]:
    asked = _Asked(self, make, start, stop)
    step = start
    try:
      while step < stop:
        batch = asked.batch(step)
        yield batch
        step += 1
    except InputError as error:
      if self.on_loss is None:
        raise
      self.on_loss(error)
    finally:
      asked.end()
    if step < stop:
      for batch in make(tf.data.Dataset.range(step, stop)).as_numpy_iterator():
        del batch["step"]
        yield batch

  def explain(self, step: int, last_error: str, num_waiting: int) -> InputError:
    """Returns what to tell the user when the batch of a step did not come."""
    silent = self.silent()
    found = f" {'; '.join(silent)}." if silent else ""
    if not silent and last_error:
      found = f" It answers: {last_error}."
    elif not silent and num_waiting:
      found = f" {num_waiting} later batches came: a worker has kept this one."
    elif not silent:
      found = " Dispatcher and workers answer: they are too slow, or have no worker that is free."
    return InputError(
        f"{_FLAG}: no batch of step {step} came from {self.address} within {self.timeout_s:g} s."
        f"{found} Start what is missing (flexunet data_service) and repeat the command with"
        " --resume; without --data_service it continues alone, with --data_service_timeout_s it"
        " waits longer. The batches are the same in each case."
    )

  def silent(self) -> list[str]:
    """Returns which parts of the service cannot be reached, each in a few words."""
    if reason := service_address.problem(self.host, self.port, 3.0):
      return [f"The dispatcher {self.address} does not answer ({reason})"]
    workers = worker_addresses(self.host, self.port)
    if workers == []:
      return ["The dispatcher has no worker"]
    silent = []
    for worker in (workers or [])[:_MOST_PROBED]:
      host, port = service_address.parse(worker, "worker")
      if reason := service_address.problem(host, port, 3.0):
        silent.append(f"The worker {worker} does not answer ({reason})")
    return silent


class _Asked:
  """The iterations of a service that one stream has asked for, the last of which is read."""

  def __init__(self, service: DataService, make: MakeBatches, start: int, stop: int):
    self._service, self._make, self._stop = service, make, stop
    self._waiting: dict[int, dict] = {}
    self._reader = _Reader(service.address, make, start, stop)

  def batch(self, step: int) -> dict:
    """Returns the batch of a step, as NumPy arrays.

    Raises:
      InputError: It did not come in time.
    """
    began, timeout_s = time.monotonic(), self._service.timeout_s
    looks = [began + share * timeout_s for share in _LOOKS]
    last_error = ""
    while step not in self._waiting:
      left_s = (looks[0] if looks else began + timeout_s) - time.monotonic()
      if left_s <= 0 and not looks:
        raise self._service.explain(step, last_error, len(self._waiting))
      if left_s <= 0:
        looks = self._looked(step, looks[1:])
        continue
      try:
        found = self._reader.found.get(timeout=left_s)
      except queue.Empty:
        continue
      if isinstance(found, Exception):
        last_error = _first_line(found)
        self._ask_again(step, last_error)
        time.sleep(min(_RETRY_S, max(0.0, began + timeout_s - time.monotonic())))
      else:
        self._waiting[found[0]] = found[1]
        if len(self._waiting) > _MOST_WAITING:
          self._ask_again(step, _OTHERS_CAME)
    return self._waiting.pop(step)

  def _looked(self, step: int, further: list[float]) -> list[float]:
    """Asks again for a step that has not come if that may help; returns when to look again.

    At first only where somebody does not answer: a worker that has just been started is slow, and
    would begin once more.
    """
    if silent := self._service.silent():
      self._ask_again(step, "; ".join(silent))
      return []
    if self._waiting and not further:
      self._ask_again(step, _OTHERS_CAME)
    return further

  def _ask_again(self, step: int, why: str) -> None:
    """Leaves the iteration that is being read and asks for all steps from this one on."""
    progress.say(f"{_FLAG}: asking again for the batches from step {step} on: {why}.")
    self.end()
    self._waiting.clear()
    self._reader = _Reader(self._service.address, self._make, step, self._stop)

  def end(self) -> None:
    """Lets the thread that reads end, as soon as it can."""
    self._reader.ended.set()


class _Reader(threading.Thread):
  """Reads one iteration of the service: calls of tf.data may never return, so in a thread.

  Attributes:
    found: (step, batch) in the order in which they came, or the error that ended the iteration.
    ended: Set where nobody takes what is found any more.
  """

  def __init__(self, address: str, make: MakeBatches, start: int, stop: int):
    super().__init__(daemon=True, name="data service")
    self.found: queue.Queue[Any] = queue.Queue(_QUEUED)
    self.ended = threading.Event()
    self._address, self._make, self._range = address, make, (start, stop)
    self.start()

  def run(self) -> None:
    try:
      served = self._make(tf.data.Dataset.range(*self._range)).apply(
          tf.data.experimental.service.distribute(
              tf.data.experimental.service.ShardingPolicy.DYNAMIC, self._address
          )
      )
      for batch in served.as_numpy_iterator():
        steps = batch.pop("step")
        if (steps != steps[0]).any():
          raise ValueError(f"A batch must be of one step. Got examples of {sorted(set(steps))}.")
        if not self._give((int(steps[0]), batch)):
          return
      self._give(EOFError(_ALL_GIVEN_OUT))
    except Exception as error:  # It belongs to the thread that waits.
      self._give(error)

  def _give(self, what: Any) -> bool:
    """Puts something where it is taken; returns whether anybody still takes it."""
    while not self.ended.is_set():
      try:
        self.found.put(what, timeout=0.5)
        return True
      except queue.Full:
        continue
    return False


def check_readable(table: RecordTable) -> None:
  """Refuses records that Python reads: a worker is sent a graph, and no Python with it.

  Raises:
    InputError: They are whole volumes, or lie in array_record files.
  """
  if table.decoded is not None:
    raise InputError(
        f"{_FLAG} needs records of slices; those of config 'volumes' are cut in the trainer's"
        " memory. Build the dataset with its config 'slices'."
    )
  if any(shards.container_of(file) == shards.ARRAY_RECORD for file in table.files):
    raise InputError(
        f"{_FLAG} needs TFRecord files; TensorFlow reads array_record through Python, which workers"
        " do not have. Build the dataset with --file_format=tfrecord."
    )


def worker_addresses(host: str, port: int, timeout_s: float = 3.0) -> list[str] | None:
  """Returns the workers that a dispatcher knows, as HOST:PORT; None where it does not say.

  TensorFlow has no function for this; its dispatcher answers `GetWorkers` with messages
  {1: {1: address}}, which are read here as they travel.
  """
  # A dependency of TensorFlow, needed for messages about a failure alone.
  import grpc

  try:
    with grpc.insecure_channel(service_address.joined(host, port)) as channel:
      call = channel.unary_unary("/tensorflow.data.DispatcherService/GetWorkers")
      answer = call(b"", timeout=timeout_s)
    return [_fields(worker)[1][0].decode() for worker in _fields(answer).get(1, [])]
  except (grpc.RpcError, KeyError, IndexError, ValueError):
    return None


def _fields(message: bytes) -> dict[int, list[bytes]]:
  """Returns the fields of a protobuf message that are bytes, by number."""
  found: dict[int, list[bytes]] = {}
  place = 0

  def number() -> int:
    nonlocal place
    value = shift = 0
    while True:
      byte = message[place]
      place += 1
      value |= (byte & 0x7F) << shift
      shift += 7
      if byte < 0x80:
        return value

  while place < len(message):
    key = number()
    if key & 7 == 2:
      size = number()
      found.setdefault(key >> 3, []).append(message[place : place + size])
      place += size
    elif key & 7 == 0:
      number()
    else:
      raise ValueError(f"Unexpected wire type {key & 7}.")
  return found


def _first_line(error: Exception) -> str:
  return (str(error) or type(error).__name__).strip().splitlines()[0][:300]

