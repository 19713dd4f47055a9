"""Native slices in, probabilities on their own grid out: one compiled function for each frame.

Resizing, repeated channels, the views of test-time augmentation, the temperature and the way back
run in one graph. Native size and the size inside the frame are numbers of the graph, so that a
folder of scans of many sizes is traced once, and once more where slices need a larger frame than
the trained one. Frames that are cut into tiles take the same three parts one by one.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from flexunet.network import inference
from flexunet.network.probabilities import tempered
from flexunet.pipelines.resizing import (
    Resizing,
    frame_image,
    to_channels,
    unframe_probability,
)
from flexunet.prediction import test_time


@dataclasses.dataclass(frozen=True, eq=False)
class SliceBatch:
  """Slices of one size for a step.

  Attributes:
    slices: uint8 [N, H, W, C], or [N, h, w, C] where they have been brought to their frame.
    resizing: How they come to the network.
    native_hw: (H, W).
    rows: int32 [B, neighbours], which of the slices are the channels of each input; None: each
      slice is an input of its own.
    framed: Whether the slices have been brought to their frame already.
  """

  slices: np.ndarray
  resizing: Resizing
  native_hw: tuple[int, int]
  rows: np.ndarray | None = None
  framed: bool = False

  def sizes(self) -> tf.Tensor:
    """Returns int32 [3, 2]: (height, width) of the slices, inside the frame, of the frame."""
    inner = self.resizing.inner_size(self.native_hw)
    return tf.constant([self.native_hw, inner, self.resizing.image_size], tf.int32)

  def neighbours(self) -> tf.Tensor:
    """Returns `rows`, [0, 0] where there are none."""
    return tf.constant(np.zeros((0, 0)) if self.rows is None else self.rows, tf.int32)


@dataclasses.dataclass(frozen=True)
class _Trace:
  """What a graph is made for; all else may change from call to call.

  Attributes:
    frame_hw: (height, width) of the network's input; None: any.
    method: How slices are interpolated, as `Resizing.method`.
    channels: Of the slices.
    neighbours: Slices that become the channels of one input; 0: each is an input of its own.
    framed: Whether the slices have been brought to their frame already.
  """

  frame_hw: tuple[int, int] | None
  method: str | None
  channels: int
  neighbours: int
  framed: bool


class CompiledStep:
  """A network as a function of native slices.

  The temperature scales probabilities last of all: scaled before they are interpolated or averaged,
  those of a pixel between two classes could make another one win.
  """

  def __init__(
      self,
      network: Any,
      trained_hw: tuple[int, int],
      *,
      channels: int,
      views: Sequence[test_time.View] = (test_time.View(),),
      temperature: float = 1.0,
  ):
    """Prepares the step; nothing is compiled before the first call.

    Args:
      network: `keras.Model`, or a function of tensors: [B, h, w, channels] in 0..255 ->
        probabilities [B, h, w, classes], of any size.
      trained_hw: (height, width) the network was trained on.
      channels: Channels of its input.
      views: Whose mean is the answer.
      temperature: As in `probabilities.tempered`.
    """
    self._network = inference.as_function(network)
    self._trained_hw = trained_hw
    self._channels = channels
    self._views = tuple(views)
    self._temperature = temperature
    self._traces: dict[_Trace | tuple[int, int] | None, Any] = {}

  def __call__(self, batch: SliceBatch) -> np.ndarray:
    """Returns float32 [B, H, W, classes], the mean over all views."""
    trace = self._trace(batch)
    if trace not in self._traces:
      self._traces[trace] = self._compiled(trace)
    run = self._traces[trace]
    return run(tf.constant(batch.slices), batch.neighbours(), batch.sizes()).numpy()

  def frames(self, batch: SliceBatch) -> np.ndarray:
    """Returns uint8 [B, h, w, channels], as the network sees them."""
    sizes = tf.unstack(batch.sizes())
    trace = self._trace(batch)
    return self._bring(tf.constant(batch.slices), batch.neighbours(), sizes, trace).numpy()

  def probability(self, frames: np.ndarray) -> np.ndarray:
    """Returns float32 [B, h, w, classes] for uint8 [B, h, w, channels]: one view, not tempered."""
    frame_hw = self._known_frame((frames.shape[1], frames.shape[2]))
    if frame_hw not in self._traces:
      shape = tf.TensorSpec((None, *(frame_hw or (None, None)), self._channels), tf.uint8)
      self._traces[frame_hw] = tf.function(
          self._of_network, input_signature=[shape], autograph=False
      )
    return self._traces[frame_hw](tf.constant(frames)).numpy()

  def restored(self, probability: Any, batch: SliceBatch) -> np.ndarray:
    """Returns float32 [B, H, W, classes] for answers [B, h, w, classes] to a batch's frames."""
    native, inner, frame = tf.unstack(batch.sizes())
    found = unframe_probability(
        tf.convert_to_tensor(probability), inner, frame, native, batch.resizing.method
    )
    return tempered(found, self._temperature, tf.experimental.numpy).numpy()

  def _known_frame(self, frame_hw: tuple[int, int]) -> tuple[int, int] | None:
    return frame_hw if frame_hw == self._trained_hw else None

  def _trace(self, batch: SliceBatch) -> _Trace:
    return _Trace(
        frame_hw=self._known_frame(batch.resizing.image_size),
        method=batch.resizing.method,
        channels=batch.slices.shape[-1],
        neighbours=0 if batch.rows is None else batch.rows.shape[1],
        framed=batch.framed,
    )

  def _compiled(self, trace: _Trace) -> Callable[..., tf.Tensor]:
    """Returns the function (slices, rows, sizes) -> probabilities."""

    def answer(slices: tf.Tensor, rows: tf.Tensor, sizes: tf.Tensor) -> tf.Tensor:
      native, inner, frame = tf.unstack(sizes)
      images = self._bring(slices, rows, (native, inner, frame), trace)
      mean = test_time.mean_answer(self._of_network, images, self._views)
      restored = unframe_probability(mean, inner, frame, native, trace.method)
      return tempered(restored, self._temperature, tf.experimental.numpy)

    signature = [
        tf.TensorSpec((None, None, None, trace.channels), tf.uint8),
        tf.TensorSpec((None, trace.neighbours), tf.int32),
        tf.TensorSpec((3, 2), tf.int32),
    ]
    return tf.function(answer, input_signature=signature, autograph=False)

  def _bring(
      self, slices: tf.Tensor, rows: tf.Tensor, sizes: Sequence[tf.Tensor], trace: _Trace
  ) -> tf.Tensor:
    """uint8 [N, H, W, C] -> uint8 [B, h, w, channels]; `sizes` are those of a `SliceBatch`."""
    _, inner, frame = sizes
    images = slices
    if not trace.framed:
      brought = to_channels(slices, 1 if trace.neighbours else self._channels)
      images = frame_image(brought, inner, frame, trace.method)
    if trace.neighbours:
      # [B, neighbours, h, w] -> [B, h, w, neighbours].
      images = tf.transpose(tf.gather(images[..., 0], rows), [0, 2, 3, 1])
    return tf.ensure_shape(images, [None, *(trace.frame_hw or (None, None)), self._channels])

  def _of_network(self, images: tf.Tensor) -> tf.Tensor:
    """uint8 [B, h, w, channels] -> float32 [B, h, w, classes], at least two classes."""
    answer = self._network(images)
    if answer.shape[-1] == 1:  # Sigmoid: the share of the only foreground class.
      answer = tf.concat([1.0 - answer, answer], axis=-1)
    return answer


def filled(rows: int, slices: Sequence[np.ndarray] | np.ndarray) -> np.ndarray:
  """Returns slices [N, H, W] or [N, H, W, C] as uint8 [rows, H, W, C], zeros after the last."""
  stacked = slices if isinstance(slices, np.ndarray) else np.stack(slices)
  if stacked.ndim == 3:
    stacked = stacked[..., None]
  if len(stacked) == rows:
    return stacked
  out = np.zeros((rows, *stacked.shape[1:]), np.uint8)
  out[: len(stacked)] = stacked
  return out
