"""The history of a run: a row of figures for each epoch in history.csv, and its curves.

`foreground_dice` and `dice_<class>` count the pixels of all slices of an epoch together, and so
does `val_pooled_foreground_dice` those of the validation. Scores whose names begin with `val_` are
otherwise means over the held-out volumes, as an evaluation reports them, but at the network's
size; `val_foreground_dice` chooses the best model.
"""

from __future__ import annotations

import csv
import io
import json
import math
import time
from collections.abc import Sequence
from typing import Any

import keras

from flexunet import config, run_folder
from flexunet.core import files
from flexunet.reporting import charts, overlay, training_section
from flexunet.training import callbacks

_DRAWING_SHARE = 0.02  # Of the time, at most.
# Nobody looks earlier, and a run of a minute has no time for a curve of one point.
_FIRST_DRAWING_S = 5.0


class History(callbacks.RunCallback):
  """Writes history.csv after each epoch, one row per epoch, and curves.png as often as is cheap.

  Drawing takes a quarter of a second, of epochs of a few seconds a share that training misses.

  The row of an epoch that a time limit cut short stands at the part of it that was done, e.g. 1.4,
  once the epoch has been continued.
  """

  _STATE = ("rows",)

  def __init__(self, run: run_folder.RunFolder, clock: callbacks.RunClock):
    super().__init__()
    self._run, self._clock = run, clock
    self._drawn_rows, self._next_drawing = 0, time.monotonic() + _FIRST_DRAWING_S
    self.rows: list[dict[str, Any]] = []

  @property
  def step(self) -> int:
    """Training steps done."""
    return self._clock.step

  def kept_epoch(self, training: config.TrainingConfig) -> float | None:
    """Returns the epoch whose weights are in model.keras; None where nothing was validated."""
    return training_section.kept_epoch(self.rows, training)

  def on_epoch_end(self, epoch, logs=None):
    row = {
        "epoch": epoch + 1,
        "step": self._clock.step,
        "seconds": round(self._clock.elapsed_s, 1),
        "learning_rate": float(
            keras.ops.convert_to_numpy(self.model.optimizer.learning_rate)
        ),
        **{name: float(value) for name, value in (logs or {}).items()},
    }
    for before in self.rows:
      # A time limit cut the epoch short and a longer one has continued it: scored twice.
      if before["epoch"] == row["epoch"]:
        before["epoch"] = round(self._clock.epochs_at(before["step"]), 3)
    self.rows.append(row)
    self._write_table()
    if time.monotonic() >= self._next_drawing:
      self._draw()

  def finish(self) -> list[dict[str, Any]]:
    """Draws what is not drawn yet; returns the rows."""
    if self._drawn_rows < len(self.rows):
      self._draw()
    return self.rows

  def _write_table(self) -> None:
    names = list(dict.fromkeys(name for row in self.rows for name in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, names, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(self.rows)
    files.write_bytes(self._run.history_csv, text.getvalue().encode())

  def _draw(self) -> None:
    begun = time.monotonic()
    files.write_bytes(self._run.curves_png, draw_curves(self.rows))
    ended = time.monotonic()
    self._drawn_rows, self._next_drawing = len(self.rows), ended + (ended - begun) / _DRAWING_SHARE


def draw_curves(rows: Sequence[dict[str, Any]]) -> bytes:
  """Returns curves.png: the charts that the report draws of history.csv, side by side."""
  drawn = training_section.history_charts(rows)
  return overlay.encode_png(charts.image(drawn, columns=2 if len(drawn) == 4 else 3))


def final_line(rows: Sequence[dict[str, Any]]) -> str:
  """Returns one line of JSON with what a run of these history rows came to."""
  last = rows[-1] if rows else {}
  scores = [score for row in rows if math.isfinite(score := row.get(callbacks.MONITOR, math.nan))]
  names = {"epochs": "epoch", "steps": "step", "seconds": "seconds"}
  shown = {name: last.get(column) for name, column in names.items()}
  if "val_slices" in last:
    shown["val_slices"] = int(last["val_slices"])
  if scores:
    shown["best_val_foreground_dice"] = round(max(scores), 4)
  return json.dumps(shown)
