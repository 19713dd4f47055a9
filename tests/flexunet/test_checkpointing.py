"""When checkpoints are taken, and what a signal does, by hand-made steps."""

import os
import signal
import types

import pytest

from flexunet.training import callbacks, checkpointing


class FakeState:
  """Notes what is taken instead of copying variables."""

  def take(self, step, **more):
    return (step, more)

  def put_back_metrics(self, checkpoint):
    self.put_back = checkpoint


class FakeWriter:
  def __init__(self):
    self.written, self.busy, self.waits = [], False, 0

  def submit(self, checkpoint):
    self.written.append(checkpoint)

  def wait(self):
    self.waits += 1


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
  assert not run.writer.written and not run.writer.waits
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
  assert run.writer.waits == 1


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
  assert run.writer.written == written and run.writer.waits == 1


def test_a_second_signal_acts_as_usual():
  before = signal.getsignal(signal.SIGINT)
  with checkpointing.Interruption() as interruption:
    os.kill(os.getpid(), signal.SIGINT)
    assert interruption.signal_number == signal.SIGINT
    assert signal.getsignal(signal.SIGINT) is before
    with pytest.raises(KeyboardInterrupt):
      os.kill(os.getpid(), signal.SIGINT)
      signal.sigtimedwait([], 1)  # Lets Python see the signal.
  assert signal.getsignal(signal.SIGINT) is before


def test_handlers_are_put_back():
  before = signal.getsignal(signal.SIGTERM)
  with checkpointing.Interruption():
    assert signal.getsignal(signal.SIGTERM) is not before
  assert signal.getsignal(signal.SIGTERM) is before
