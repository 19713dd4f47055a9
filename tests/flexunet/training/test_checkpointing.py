"""When checkpoints are taken, and what a signal does, by hand-made steps."""

import functools
import os
import signal
import types

import keras
import numpy as np
import pytest

from flexunet.training import callbacks, checkpointing


class FakeState:
  """Notes what is taken instead of copying variables."""

  def take(self, step, **more):
    return (step, more)

  def put_back_metrics(self, checkpoint):
    self.put_back = checkpoint


class FakeWriter:
  """Insists that what was taken before is written before it is overwritten."""

  def __init__(self):
    self.written, self.busy, self.waited = [], False, False

  def submit(self, checkpoint):
    assert self.waited
    self.written.append(checkpoint)
    self.waited = False

  def wait(self):
    self.waited = True


@pytest.fixture
def run():
  """A run of epochs of 10 steps with a checkpoint every 4."""
  clock = callbacks.RunClock(100, 0, steps_per_epoch=10)
  state, writer, interruption = FakeState(), FakeWriter(), checkpointing.Interruption()
  saver = checkpointing.Checkpointer(state, clock, writer, interruption, 4, 10)
  model = types.SimpleNamespace(stop_training=False)
  for callback in (clock, saver):
    callback.set_model(model)

  def steps(count):
    for _ in range(count):
      clock.on_train_batch_end(0)
      saver.on_train_batch_end(0)

  return types.SimpleNamespace(
      clock=clock, saver=saver, state=state, writer=writer, interruption=interruption, steps=steps
  )


def test_checkpoints_come_every_n_steps_and_at_the_epochs_end(run):
  run.saver.on_epoch_begin(0)
  run.steps(10)
  run.saver.on_epoch_end(0)
  run.saver.on_epoch_begin(1)
  run.steps(3)
  # 4, 8 and 12; the epoch's end replaces what would come with step 10.
  assert [step for step, _ in run.writer.written] == [4, 8, 10, 12]
  assert [more.get("within_epoch", False) for _, more in run.writer.written] == [
      True, True, False, True]  # fmt: skip


def test_while_one_is_being_written_training_does_not_wait(run):
  run.saver.on_epoch_begin(0)
  run.writer.busy = True
  run.steps(9)
  assert not run.writer.written and not run.writer.waited
  run.steps(1)
  run.saver.on_epoch_end(0)  # An epoch's end is saved in any case.
  assert [step for step, _ in run.writer.written] == [10]


def test_running_metrics_come_back_once_and_after_keras_has_reset_them(run):
  run.saver.resume_from("saved")
  assert not hasattr(run.state, "put_back")
  run.saver.on_epoch_begin(0)
  assert run.state.put_back == "saved"
  run.state.put_back = None
  run.saver.on_epoch_begin(1)
  assert run.state.put_back is None


def test_a_signal_waits_for_the_end_of_the_step_and_is_saved(run):
  run.saver.on_epoch_begin(0)
  with run.interruption, pytest.raises(checkpointing.Interrupted) as caught:
    run.steps(2)
    os.kill(os.getpid(), signal.SIGTERM)
    run.steps(1)
  run.saver.save_interrupted(None)
  assert caught.value.signal_number == signal.SIGTERM and str(caught.value) == "SIGTERM"
  assert run.writer.written[-1] == (
      3, {"within_epoch": True, "pending": None, "stopped": False}
  )
  assert run.writer.waited


def test_interrupted_in_a_validation_the_pending_epoch_end_is_kept(run):
  run.saver.on_epoch_begin(0)
  run.steps(10)
  pending = {"epoch": 0, "logs": {"loss": 0.5}}
  run.saver.save_interrupted(pending)
  assert run.writer.written[-1] == (
      10, {"within_epoch": False, "pending": pending, "stopped": False}
  )


def test_interrupted_after_the_epochs_end_nothing_is_saved_twice(run):
  run.saver.on_epoch_begin(0)
  run.steps(10)
  run.saver.on_epoch_end(0)
  written = list(run.writer.written)
  run.saver.save_interrupted(None)
  assert run.writer.written == written and run.writer.waited


@pytest.fixture
def handle_sigint():
  """A function that sets what the process does at SIGINT: in the background it may be ignored."""
  before = signal.getsignal(signal.SIGINT)
  yield functools.partial(signal.signal, signal.SIGINT)
  signal.signal(signal.SIGINT, before)


def test_a_second_signal_acts_as_usual(handle_sigint):
  handle_sigint(signal.default_int_handler)
  with checkpointing.Interruption() as interruption:
    os.kill(os.getpid(), signal.SIGINT)
    assert interruption.signal_number == signal.SIGINT
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    with pytest.raises(KeyboardInterrupt):
      os.kill(os.getpid(), signal.SIGINT)
      signal.sigtimedwait([], 1)  # Lets Python see the signal.
  assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_an_ignored_signal_stays_ignored(handle_sigint):
  handle_sigint(signal.SIG_IGN)
  with checkpointing.Interruption() as interruption:
    os.kill(os.getpid(), signal.SIGINT)
    interruption.check()
    assert signal.getsignal(signal.SIGTERM) == interruption._note
  assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN


def test_handlers_are_put_back():
  before = signal.getsignal(signal.SIGTERM)
  with checkpointing.Interruption():
    assert signal.getsignal(signal.SIGTERM) is not before
  assert signal.getsignal(signal.SIGTERM) is before


def test_the_state_is_copied_into_the_same_memory_and_not_shared_with_the_network():
  network = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])
  network.compile(keras.optimizers.SGD(), "mse")
  network.optimizer.build(network.trainable_variables)
  state = checkpointing.RunState(network, [], {})
  first = state.take(1).arrays["model"]
  kernel = first[0].copy()
  np.testing.assert_array_equal(kernel, network.get_weights()[0])
  network.set_weights([values + 1 for values in network.get_weights()])
  np.testing.assert_array_equal(first[0], kernel)  # What was taken stays as it was,
  second = state.take(2).arrays["model"]
  np.testing.assert_array_equal(second[0], kernel + 1)
  assert second[0] is first[0]  # until the next copy goes to the same place.
