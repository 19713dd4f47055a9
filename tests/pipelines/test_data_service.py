"""Batches of a tf.data service are those of one process; losses are noticed in bounded time."""

from __future__ import annotations

import dataclasses
import functools
import queue
import time

import numpy as np
import pytest
import tensorflow as tf

from flexunet.core.errors import InputError
from flexunet.pipelines import batches, data_service, dataset_source, order, readers, resizing
from flexunet.pipelines.augmentation import augment
from flexunet.pipelines.augmentation.config import AugmentationConfig


@pytest.fixture
def service():
  """A dispatcher with two workers in this process; they cannot be killed, only be absent."""
  made = tf.data.experimental.service
  dispatcher = made.DispatchServer()
  target = dispatcher.target.split("://")[1]
  workers = [made.WorkerServer(made.WorkerConfig(dispatcher_address=target)) for _ in range(2)]
  yield dispatcher, workers
  for one in (*workers, dispatcher):
    one._stop()


@pytest.fixture
def loader(blob_data):
  source = dataset_source.open_dataset(None, str(blob_data))
  table = readers.slice_table(source, "train")
  spec = readers.ExampleSpec(resizing=resizing.Resizing((24, 32), "pad"))
  return batches.open_loader(source, table, spec)


ORDER = order.EpochOrder(36, 4, seed=3)
AUGMENT = functools.partial(
    augment.augment_example, AugmentationConfig(augmentation="default").resolve()
)


def arrays(stream):
  return [{name: np.array(value) for name, value in batch.items()} for batch in stream]


def assert_same(found, expected):
  assert len(found) == len(expected)
  for one, two in zip(found, expected, strict=True):
    assert one.keys() == two.keys()
    for name in one:
      np.testing.assert_array_equal(one[name], two[name], err_msg=name)


def made(loader, augment_one=None):
  return functools.partial(batches.batches_of_steps, loader, ORDER, augment=augment_one)


def test_steps_in_any_order_give_the_batches_of_the_stream(loader):
  steps = [7, 2, 30]  # The last lies in the fourth epoch of 9 steps.
  found = arrays(made(loader)(tf.data.Dataset.from_tensor_slices(np.array(steps, np.int64))))
  for step, batch in zip(steps, found, strict=True):
    assert (batch.pop("step") == step).all()
    assert_same([batch], arrays(
        batches.training_batches(loader, ORDER, start_step=step, num_steps=1)))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("augment_one", "starts"), [(None, (0, 5)), (AUGMENT, (5,))], ids=["plain", "augmented"]
)
def test_two_workers_give_the_batches_of_one_process_from_any_step(
    service, loader, augment_one, starts
):
  served = data_service.DataService(service[0].target, 120)
  for start in starts:
    expected = batches.training_batches(
        loader, ORDER, start_step=start, num_steps=13, augment=augment_one
    )
    found = served.stream(made(loader, augment_one), start, 13)
    assert int(found.cardinality()) == 13 and found.element_spec == expected.element_spec
    assert_same(arrays(found), arrays(expected))


@pytest.mark.slow
def test_a_service_without_a_worker_is_given_up_in_time_with_the_remedy(loader):
  dispatcher = tf.data.experimental.service.DispatchServer()
  served = data_service.DataService(dispatcher.target, 4)
  losses = []
  served.on_loss = losses.append
  began = time.monotonic()
  # The stream is finished by this process, so that the trainer can save between two steps.
  found = arrays(served.stream(made(loader), 3, 2))
  assert 4 <= time.monotonic() - began < 60
  assert_same(found, arrays(batches.training_batches(loader, ORDER, start_step=3, num_steps=2)))
  (message,) = map(str, losses)
  assert f"no batch of step 3 came from {served.address} within 4 s" in message
  assert "The dispatcher has no worker" in message and "--resume" in message
  assert "\n" not in message
  dispatcher._stop()


def test_the_workers_of_a_dispatcher_are_known_by_their_addresses(service):
  dispatcher, workers = service
  host, port = dispatcher.target.split("://")[1].split(":")
  found = data_service.worker_addresses(host, int(port))
  assert sorted(found) == sorted(worker._address for worker in workers)
  assert data_service.worker_addresses("localhost", 1) is None


class Scripted:
  """Stands for the readers of an iteration: each gives what its script says."""

  def __init__(self, *scripts):
    self.scripts, self.begun = list(scripts), []

  def __call__(self, address, make, start, stop):
    del address, make
    self.begun.append((start, stop))
    reader = type("Reader", (), {})()
    reader.found, reader.ended = queue.Queue(), type("E", (), {"set": lambda self: None})()
    for one in self.scripts.pop(0) if self.scripts else []:
      reader.found.put(one if isinstance(one, Exception) else (one, {"step of": one}))
    return reader


def steps_of(monkeypatch, scripted, start, stop, timeout_s=0.4, silent=()):
  monkeypatch.setattr(data_service, "_Reader", scripted)
  monkeypatch.setattr(data_service, "_RETRY_S", 0.01)
  served = data_service.DataService("grpc://localhost:5050", timeout_s)
  monkeypatch.setattr(served, "silent", lambda: list(silent))
  return [batch["step of"] for batch in served._in_order(None, start, stop)]


def test_batches_that_come_in_another_order_wait_for_their_turn(monkeypatch):
  assert steps_of(monkeypatch, Scripted([4, 3, 6, 5]), 3, 7) == [3, 4, 5, 6]


def test_a_lost_batch_is_asked_for_again_with_all_that_follow(monkeypatch, capsys):
  scripted = Scripted([3, 5, 6], [4, 6, 5])  # 4 was with a worker that died.
  assert steps_of(monkeypatch, scripted, 3, 7) == [3, 4, 5, 6]
  assert scripted.begun == [(3, 7), (4, 7)]
  assert "asking again for the batches from step 4 on" in capsys.readouterr().err


def test_after_an_error_of_the_service_it_is_asked_again(monkeypatch):
  scripted = Scripted([3, RuntimeError("Unknown iteration client id 3000.\nmore")], [], [4])
  scripted.scripts[1] = [EOFError("given out")]
  assert steps_of(monkeypatch, scripted, 3, 5) == [3, 4]
  assert scripted.begun == [(3, 5), (4, 5), (4, 5)]


@pytest.mark.parametrize(
    ("script", "silent", "said"),
    [([], ["The worker b:2 does not answer (refused)"], "The worker b:2 does not answer"),
     ([], [], "too slow"), ([4, 5], [], "2 later batches came")],
)  # fmt: skip
def test_what_never_comes_ends_within_the_time_that_was_given(monkeypatch, script, silent, said):
  began = time.monotonic()
  # Every iteration is like the first.
  scripted = Scripted(*[script] * 9)
  with pytest.raises(InputError, match="no batch of step 3") as found:
    steps_of(monkeypatch, scripted, 3, 9, silent=silent)
  assert 0.4 <= time.monotonic() - began < 3
  assert said in str(found.value) and "--resume" in str(found.value)


def test_later_batches_without_end_do_not_fill_the_memory(monkeypatch):
  many = list(range(4, 4 + 2 * data_service._MOST_WAITING))
  scripted = Scripted(many, [3])
  assert steps_of(monkeypatch, scripted, 3, 4) == [3]
  assert len(scripted.begun) == 2


def test_records_that_python_reads_are_refused(blob_data, loader, tmp_path):
  source = dataset_source.open_dataset(None, str(blob_data))
  table = readers.slice_table(source, "train")
  data_service.check_readable(table)
  with pytest.raises(InputError, match="needs TFRecord files"):
    data_service.check_readable(
        dataclasses.replace(table, files=["a/blobs-train.array_record-00000-of-00001"]))
  with pytest.raises(InputError, match="needs records of slices"):
    data_service.check_readable(dataclasses.replace(table, decoded=np.empty(36, object)))
