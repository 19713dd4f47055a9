"""What steers a run: schedule, clock, early stopping, by hand-made logs."""

import json
import types

import keras
import numpy as np
import pytest

from flexunet import run_folder
from flexunet.training import callbacks, history


class FakeModel:
  def __init__(self):
    self.stop_training = False
    self.optimizer = types.SimpleNamespace(learning_rate=keras.Variable(0.0))


def test_schedules_start_at_one_and_end_at_zero():
  for name in ("cosine", "poly"):
    values = [callbacks.scale(name, p) for p in np.linspace(0, 1, 11)]
    assert values[0] == 1.0 and values[-1] == pytest.approx(0.0)
    assert values == sorted(values, reverse=True)
  assert callbacks.scale("constant", 0.7) == 1.0
  assert [callbacks.warmup(step, 4) for step in range(5)] == [0.25, 0.5, 0.75, 1.0, 1.0]


def rate_control(clock, **changes):
  options = {
      "initial": 0.1, "schedule": "constant", "warmup_steps": 0,
      "reduce_factor": 0.5, "reduce_patience": 2, **changes,
  }
  control = callbacks.LearningRate(clock, **options)
  control.set_model(FakeModel())
  return control


def test_the_learning_rate_follows_steps():
  clock = callbacks.RunClock(total_steps=10, max_minutes=0)
  clock.set_model(FakeModel())
  control = rate_control(clock, schedule="cosine")
  seen = []
  for step in range(10):
    control.on_train_batch_begin(step)
    seen.append(float(control.model.optimizer.learning_rate))
    clock.on_train_batch_end(step)
  expected = [0.1 * callbacks.scale("cosine", step / 10) for step in range(10)]
  np.testing.assert_allclose(seen, expected, rtol=1e-6)


def test_a_plateau_reduces_the_rate_after_its_patience():
  control = rate_control(callbacks.RunClock(10, 0))
  for loss in (1.0, 0.9, 0.95, 0.91, 0.92, 0.93):  # Two bad ones twice after the best.
    control.on_epoch_end(0, {"val_loss": loss})
  assert control.current() == pytest.approx(0.1 * 0.5 * 0.5)
  control.on_epoch_end(0, {"loss": 5.0})  # An epoch without validation changes nothing.
  assert control.wait == 0


def test_early_stopping_counts_validations_without_gain():
  stop = callbacks.EarlyStop(patience=2)
  stop.set_model(FakeModel())
  for epoch, score in enumerate((0.5, 0.6, 0.6, None, 0.55)):
    assert not stop.model.stop_training
    stop.on_epoch_end(epoch, {} if score is None else {callbacks.MONITOR: score})
  assert stop.model.stop_training and stop.stopped_epoch == 4


def test_a_state_goes_back_as_it_was():
  one, two = callbacks.EarlyStop(3), callbacks.EarlyStop(3)
  one.on_epoch_end(0, {callbacks.MONITOR: 0.5})
  one.on_epoch_end(1, {callbacks.MONITOR: 0.4})
  two.load_state(one.state())
  assert (two.best, two.wait) == ((1, 0.5), 1)


def test_a_score_that_went_through_json_is_compared_with_later_ones():
  one, two = callbacks.EarlyStop(3), callbacks.EarlyStop(3)
  one.on_epoch_end(0, {callbacks.MONITOR: 0.5})
  two.load_state(json.loads(json.dumps(one.state())))
  two.on_epoch_end(1, {callbacks.MONITOR: 0.6})
  assert (two.best, two.wait) == ((1, 0.6), 0)


def test_any_dice_ranks_above_none_and_among_none_the_lower_loss_wins():
  def score(dice, loss):
    return callbacks.score_of({callbacks.MONITOR: dice, "val_loss": loss}, "dice")

  nothing_found = float("nan")
  # A loss of -3 million is lower than any that a number of 1e6 could have stood for.
  assert score(0.0, 9.0) > score(nothing_found, -3e6) > score(nothing_found, 1.0)
  assert score(0.4, 1.0) < score(0.5, 2.0)
  assert callbacks.score_of({"val_loss": 2.0}, "loss") < callbacks.score_of(
      {"val_loss": 1.0}, "loss"
  )
  assert callbacks.score_of({"loss": 1.0}, "dice") is None


def test_an_epoch_cut_by_a_time_limit_and_continued_is_no_second_epoch_of_its_number(
    tmp_path, monkeypatch
):
  monkeypatch.setattr(history, "draw_curves", lambda rows: b"")
  clock = callbacks.RunClock(30, 0, steps_per_epoch=10)
  table = history.History(run_folder.RunFolder(tmp_path), clock)
  table.set_model(FakeModel())
  for step, epoch in ((10, 0), (14, 1), (20, 1), (30, 2)):  # Cut after 4 of the 10 steps.
    clock.step = step
    table.on_epoch_end(epoch, {"loss": 1.0})
  assert [row["epoch"] for row in table.rows] == [1, 1.4, 2, 3]
  assert [line.split(",")[0] for line in (tmp_path / "history.csv").read_text().split()] == [
      "epoch", "1", "1.4", "2", "3"
  ]  # fmt: skip
  assert json.loads(history.final_line(table.rows))["epochs"] == 3


def test_curves_are_drawn_in_a_small_share_of_the_time_and_at_the_end(tmp_path, monkeypatch):
  now, drawn = [100.0], []

  def draw(rows):
    now[0] += 1.0
    drawn.append(len(rows))
    return b"png"

  monkeypatch.setattr(history, "draw_curves", draw)
  monkeypatch.setattr(history.time, "monotonic", lambda: now[0])
  run = run_folder.RunFolder(tmp_path)
  table = history.History(run, callbacks.RunClock(90, 0, steps_per_epoch=10))
  table.set_model(FakeModel())
  for epoch in range(9):
    now[0] += 10.0
    table.on_epoch_end(epoch, {"loss": 1.0})
    assert len(run.history_csv.read_text().splitlines()) == epoch + 2
  # A second each, so 50 s after the last one at the earliest.
  assert drawn == [1, 6] and run.curves_png.read_bytes() == b"png"
  assert len(table.finish()) == 9 and drawn == [1, 6, 9]
  table.finish()
  assert drawn == [1, 6, 9]


def test_the_last_line_has_the_best_score_of_the_epochs_that_have_one():
  scores = (float("nan"), 0.5, 0.25)
  rows = [
      {"epoch": epoch, "step": 9, "seconds": 2.0, "val_foreground_dice": score}
      for epoch, score in enumerate(scores, 1)
  ]
  line = json.loads(history.final_line(rows))
  assert line == {"epochs": 3, "steps": 9, "seconds": 2.0, "best_val_foreground_dice": 0.5}
  assert "best_val_foreground_dice" not in json.loads(history.final_line(rows[:1]))
