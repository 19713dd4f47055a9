"""--max_minutes holds whatever a step, a validation and an epoch's end take, by a fake clock."""

import types

import keras
import numpy as np
import pytest

from flexunet.core import progress
from flexunet.pipelines import record_table
from flexunet.training import callbacks, time_budget, validation

BATCH_SIZE = 2


class World:
  """A training run whose work only moves the clock."""

  def __init__(
      self, monkeypatch, *, limit, step=1.0, first=3.0, forward=0.4, batches=10, closing=1.0,
      steps_per_epoch=50, epochs=10_000, every=1, spe=1,
  ):  # fmt: skip
    self.now, self.said, self.notes, self.history, self.read = 0.0, [], [], [], []
    monkeypatch.setattr(callbacks.time, "monotonic", lambda: self.now)
    monkeypatch.setattr(progress, "say", self.said.append)
    self.step, self.first, self.forward, self.closing = step, first, forward, closing
    self.batches, self.steps_per_epoch, self.epochs = batches, steps_per_epoch, epochs
    self.every, self.spe, self.limit = every, spe, limit
    self.model = types.SimpleNamespace(
        stop_training=False, stop_evaluating=False, steps_per_execution=spe, evaluate=self.evaluate
    )
    self.begin()

  def begin(self, state=None):
    """Makes the callbacks of a new process."""
    work = time_budget.Workload(validation_batches=self.batches)
    self.clock = callbacks.RunClock(
        self.steps_per_epoch * self.epochs, self.limit / 60, work,
        steps_per_epoch=self.steps_per_epoch, steps_per_execution=self.spe,
    )  # fmt: skip
    held_out = validation.HeldOut(
        lambda rows: rows, np.arange(self.batches * BATCH_SIZE), BATCH_SIZE
    )
    self.validation = validation.Validation(
        self.model, self.clock, held_out, every=self.every, epochs=self.epochs,
        note=self.notes.append,
    )  # fmt: skip
    for one in (self.clock, self.validation):
      one.set_model(self.model)
    if state:
      self.clock.load_state(state)
    self.extra = self.first - self.step

  def evaluate(self, rows, verbose, return_dict, callbacks):
    self.read.append(rows)
    self.model.stop_evaluating = False
    for one in callbacks:
      one.set_model(self.model)
      one.on_test_begin()
    done = 0
    total = self.batches if rows is None else len(rows) // BATCH_SIZE
    while done < total and not self.model.stop_evaluating:
      now = min(self.spe, total - done)
      self.now += self.forward * now
      done += now
      for one in callbacks:
        one.on_test_batch_end(done - 1)
    return {"loss": 0.5}

  def run(self):
    for epoch in range(self.clock.step // self.steps_per_epoch, self.epochs):
      self.clock.on_epoch_begin(epoch)
      for step in range(0, self.steps_per_epoch, self.spe):
        self.now += self.step * min(self.spe, self.steps_per_epoch - step) + self.extra
        self.extra = 0.0
        self.clock.on_train_batch_end(step)
        if self.model.stop_training:
          break
      logs = {"loss": 1.0}
      self.clock.on_epoch_end(epoch, logs)
      self.validation.on_epoch_end(epoch, logs)
      self.now += self.closing if "val_loss" in logs else 0.0
      self.history.append(logs)
      if self.model.stop_training:
        break
    return self


CASES = {
    "the published network on two cores": dict(
        limit=180, step=16, first=22, forward=6, batches=148, closing=8, steps_per_epoch=602),
    "as fast as on an accelerator": dict(
        limit=600, step=0.02, first=15, forward=0.006, batches=40, steps_per_epoch=200, spe=4),
    "validation far slower than a step": dict(
        limit=120, step=0.5, forward=4, batches=30, steps_per_epoch=1000),
    "validation costlier than expected, in short epochs": dict(
        limit=300, step=1, forward=1.5, batches=40, steps_per_epoch=10),
    "validations that just keep to their share": dict(
        limit=300, step=1, forward=0.55, batches=100, steps_per_epoch=50),
    "slow previews and disks": dict(
        limit=200, step=2, forward=0.5, batches=20, closing=20, steps_per_epoch=20),
    "one endless epoch": dict(limit=600, step=5, forward=2, batches=1000, steps_per_epoch=10**6),
    "hardly any time": dict(limit=60, step=6, first=12, forward=2, batches=100),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_a_limited_run_ends_near_its_limit_and_with_a_validation(monkeypatch, case):
  world = World(monkeypatch, **CASES[case]).run()
  assert 0.7 * world.limit < world.now < 1.1 * world.limit
  assert "val_loss" in world.history[-1]


def test_a_whole_validation_is_used_where_it_fits_and_nothing_is_said(monkeypatch):
  # 10 batches x 0.4 s are 4 of 200 s.
  world = World(monkeypatch, limit=200).run()
  assert len(world.read) > 1 and all(len(rows) == 20 for rows in world.read)
  assert not world.notes and world.clock.validation_batches is None
  assert all("val_slices" not in row for row in world.history)


def test_a_validation_that_takes_too_long_is_of_a_part_the_same_each_time(monkeypatch):
  # A share of 200 / 10 = 20 s holds 10 batches of 2 s; all would take 120 s.
  world = World(monkeypatch, limit=200, forward=2, batches=60, steps_per_epoch=20).run()
  assert len(world.read) == 5 and len(world.read[0]) == 120
  for rows in world.read[1:]:
    np.testing.assert_array_equal(rows, world.read[0][:20])
  assert [row["val_slices"] for row in world.history if "val_loss" in row] == [20] * 5
  assert len([line for line in world.said if "20 of 120 held-out slices" in line]) == 1
  assert [(note["slices"], note["of"], note["seconds"]) for note in world.notes] == [(20, 120, 20)]


def test_the_last_validation_may_use_all_that_is_left(monkeypatch):
  # Ends by its epochs after 52 of 600 s; 300 s are more than a tenth of the limit, but there.
  world = World(monkeypatch, limit=600, forward=3, batches=100, epochs=1).run()
  assert world.now == pytest.approx(3 + 49 + 300 + 1) and not world.notes


def test_an_epoch_goes_without_validation_where_time_is_left_for_the_last_one_only(monkeypatch):
  # The second epoch ends after 97 + 30 + 1 + 97 s; 75 s do not hold two validations of 30 s with
  # the margin of a fifth.
  world = World(
      monkeypatch, limit=300, first=1, step=1, forward=3, batches=10, steps_per_epoch=97
  ).run()
  assert ["val_loss" in row for row in world.history] == [True, False, True]
  assert any("before the last one" in line for line in world.said)
  # Training went on as long as 1.2 x 30 + 1 s, 1 % of the limit and one more step were left.
  assert world.now == pytest.approx(300 - 40 - 1 + 31, abs=1)


def test_without_a_limit_all_is_validated_in_file_order_whatever_it_takes(monkeypatch):
  world = World(monkeypatch, limit=0, forward=100, epochs=3).run()
  assert world.read == [None] * 3 and not world.said and not world.notes
  assert world.clock.step == 150 and world.clock.progress == 1.0


def test_a_resumed_run_keeps_its_part_and_the_time_it_has_spent(monkeypatch):
  knobs = {"limit": 200, "forward": 2, "batches": 60, "steps_per_epoch": 20}
  world = World(monkeypatch, **knobs)
  world.epochs = 1
  world.run()
  assert world.clock.validation_batches == 10
  state, spent = world.clock.state(), world.now
  world.now += 1000  # Nobody ran meanwhile.
  world.epochs, world.model.stop_training = 10_000, False
  world.begin(state)
  assert world.clock.elapsed_s == pytest.approx(spent)
  world.run()
  assert {len(rows) for rows in world.read[1:]} == {20} and len(world.notes) == 1
  assert world.now - 1000 < 220


def test_the_schedule_follows_the_time_and_ends_with_it(monkeypatch):
  world = World(monkeypatch, limit=100, steps_per_epoch=10**6)
  world.now = 33.0
  assert world.clock.progress == pytest.approx(33 / 99)  # 1 % is kept for what is not counted.
  world.run()
  # A step would have fitted no more, of about 1 s.
  assert world.clock.step < 100 and world.clock.progress > 0.97


def table(slices, pixels=True):
  """Rows (subject, slice index, foreground)."""
  subject, index, foreground = (np.array(column) for column in zip(*slices))
  count = len(slices)
  return record_table.RecordTable(
      files=["f"], shard=np.zeros(count, int), offset=np.arange(count), subject=subject,
      volume=subject, slice_index=index, fold=index, height=index, width=index,
      pixels=np.stack([10 - foreground, foreground], axis=1) if pixels else None,
  )  # fmt: skip


def test_any_first_part_of_the_spread_stands_for_the_whole():
  # Eight subjects of 16 slices, every fourth slice with foreground, in a shuffled file.
  slices = [(f"s{s}", i, int(i % 4 == 0)) for s in range(8) for i in range(16)]
  order = np.random.default_rng(0).permutation(len(slices))
  held_out = table([slices[place] for place in order])
  rows = validation.spread_rows(held_out)
  assert sorted(rows) == list(range(128))
  for count in (8, 16, 32, 64, 100):
    part = rows[:count]
    assert np.isin(part, held_out.foreground).mean() == pytest.approx(0.25, abs=0.05)
  part = rows[:32]
  assert all((held_out.subject[part] == f"s{s}").sum() == 4 for s in range(8))
  np.testing.assert_array_equal(rows, validation.spread_rows(held_out))


def test_rows_without_subjects_and_counts_are_spread_too():
  rows = validation.spread_rows(table([("", -1, 0)] * 5, pixels=False))
  # Places 0, 4, 2, 1, 3 of eight: bits reversed, those past the end left out.
  assert rows.tolist() == [0, 4, 2, 1, 3]
  assert validation.spread_rows(table([("", -1, 0)])).tolist() == [0]


def test_a_real_evaluation_is_broken_off_and_gives_the_figures_of_its_part(monkeypatch):
  import tensorflow as tf

  now = [0.0]
  monkeypatch.setattr(callbacks.time, "monotonic", lambda: now[0])
  monkeypatch.setattr(progress, "say", lambda text: None)
  network = keras.Sequential([keras.Input((1,)), keras.layers.Identity()])
  network.compile(loss="mse")
  clock = callbacks.RunClock(100, 2.0, time_budget.Workload(validation_batches=10))
  values = np.arange(20, dtype=np.float32)[:, None]

  def batches(rows):
    picked = values[rows]
    return tf.data.Dataset.from_tensor_slices((picked, np.zeros_like(picked))).batch(2)

  class Slow(keras.callbacks.Callback):
    def on_test_batch_end(self, batch, logs=None):
      now[0] += 4.0

  checked = validation.Validation(
      network, clock, validation.HeldOut(batches, np.arange(20), 2), every=1, epochs=5,
      watchers=[Slow()],
  )  # fmt: skip
  checked.set_model(network)
  network.stop_training = False
  logs = {}
  for _ in range(2):
    checked.on_epoch_end(0, logs)
    # 12 s hold three batches of 4 s: the squares of 0 to 5.
    assert logs["val_slices"] == 6
    assert logs["val_loss"] == pytest.approx(np.mean(np.arange(6.0) ** 2))
