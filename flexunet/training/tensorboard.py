"""What TensorBoard shows of a run: every figure of history.csv, and the previews."""

from __future__ import annotations

import math
import os

import keras
import numpy as np

from flexunet import run_folder


class TensorBoardLog(keras.callbacks.Callback):
  """Writes the figures of each epoch and its preview sheet; after the callbacks that make them."""

  def __init__(self, run: run_folder.RunFolder):
    super().__init__()
    self._run = run
    self._writer = None

  def on_epoch_end(self, epoch, logs=None):
    import tensorflow as tf

    if self._writer is None:
      self._writer = tf.summary.create_file_writer(os.fspath(self._run.tensorboard))
    with self._writer.as_default(step=epoch + 1):
      for name, value in (logs or {}).items():
        if math.isfinite(value):
          group = "validation" if name.startswith("val_") else "training"
          tf.summary.scalar(f"{group}/{name.removeprefix('val_')}", value)
      rate = float(keras.ops.convert_to_numpy(self.model.optimizer.learning_rate))
      tf.summary.scalar("training/learning_rate", rate)
      sheet = self._run.preview_png(epoch)
      if sheet.is_file():
        pixels = tf.io.decode_png(sheet.read_bytes(), channels=3).numpy()
        tf.summary.image("previews", pixels[np.newaxis])
    self._writer.flush()
