"""Native slices in, probabilities on their own grid out: one compiled function for each frame.

Resizing, repeated channels, the mirrored pass, the temperature and the way back run in one graph.
Native size and the size inside the frame are numbers of the graph, so that a folder of scans of
many sizes is traced once, and once more where slices need a larger frame than the trained one.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from flexunet.network import inference
from flexunet.network.probabilities import tempered
from flexunet.pipelines import readers
from flexunet.pipelines.resizing import Resizing, frame_image, unframe_probability


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


@dataclasses.dataclass(frozen=True, eq=False)
class _Sizes:
  """(height, width) in a graph, int32 [2] each: of the slices, inside the frame, of the frame."""

  native: tf.Tensor
  inner: tf.Tensor
  frame: tf.Tensor


class CompiledStep:
  """A network as a function of native slices.

  In its graph `_bring` takes slices to the frame, `probability` answers in the frame; then the
  answer is taken back, and its probabilities are scaled by the temperature.
  """

  def __init__(
      self,
      network: Any,
      trained_hw: tuple[int, int],
      *,
      channels: int,
      mirror: bool = False,
      temperature: float = 1.0,
  ):
    """Prepares the step; nothing is compiled before the first call.

    Args:
      network: `keras.Model`, or a function of tensors: [B, h, w, channels] in 0..255 ->
        probabilities [B, h, w, classes], of any size.
      trained_hw: (height, width) the network was trained on.
      channels: Channels of its input.
      mirror: Averages the answer with that for the mirrored slice.
      temperature: As in `probabilities.tempered`.
    """
    self._network = inference.as_function(network)
    self._trained_hw = trained_hw
    self._channels = channels
    self._mirror = mirror
    self._temperature = temperature
    self._traces: dict[_Trace, Any] = {}

  def __call__(
      self,
      slices: np.ndarray,
      resizing: Resizing,
      *,
      rows: np.ndarray | None = None,
      native_hw: tuple[int, int] | None = None,
  ) -> np.ndarray:
    """Returns float32 [B, H, W, classes] for slices of one size.

    Args:
      slices: uint8 [N, H, W, C].
      resizing: How they come to the network.
      rows: int32 [B, neighbours], which of the slices are the channels of each input; None: each
        slice is an input of its own.
      native_hw: (H, W), where `slices` have been brought to their frame already.
    """
    trace = _Trace(
        frame_hw=resizing.image_size if resizing.image_size == self._trained_hw else None,
        method=resizing.method,
        channels=slices.shape[-1],
        neighbours=0 if rows is None else rows.shape[1],
        framed=native_hw is not None,
    )
    if trace not in self._traces:
      self._traces[trace] = self._compiled(trace)
    native = native_hw or (slices.shape[1], slices.shape[2])
    sizes = [native, resizing.inner_size(native), resizing.image_size]
    chosen = np.zeros((0, 0), np.int32) if rows is None else rows.astype(np.int32)
    answer = self._traces[trace](
        tf.constant(slices), tf.constant(chosen), tf.constant(sizes, tf.int32)
    )
    return answer.numpy()

  def probability(self, images: tf.Tensor) -> tf.Tensor:
    """uint8 [B, h, w, channels] -> float32 [B, h, w, classes], the mean over mirror images."""
    answer = self._of_network(images)
    if self._mirror:
      answer = (answer + self._of_network(images[:, :, ::-1])[:, :, ::-1]) / 2
    return answer

  def _of_network(self, images: tf.Tensor) -> tf.Tensor:
    """uint8 [B, h, w, channels] -> float32 [B, h, w, classes], at least two classes."""
    answer = self._network(images)
    if answer.shape[-1] == 1:  # Sigmoid: the share of the only foreground class.
      answer = tf.concat([1.0 - answer, answer], axis=-1)
    return answer

  def _compiled(self, trace: _Trace) -> Any:
    """Returns the function (slices, rows, sizes) -> probabilities."""

    def answer(slices: tf.Tensor, rows: tf.Tensor, given: tf.Tensor) -> tf.Tensor:
      sizes = _Sizes(*tf.unstack(given))
      probability = self.probability(self._bring(slices, rows, sizes, trace))
      restored = unframe_probability(
          probability, sizes.inner, sizes.frame, sizes.native, trace.method
      )
      # Last of all: scaled before they are interpolated or averaged, the probabilities of a pixel
      # between two classes could make another one win.
      return tempered(restored, self._temperature, tf.experimental.numpy)

    signature = [
        tf.TensorSpec((None, None, None, trace.channels), tf.uint8),
        tf.TensorSpec((None, trace.neighbours), tf.int32),
        tf.TensorSpec((3, 2), tf.int32),
    ]
    return tf.function(answer, input_signature=signature, autograph=False)

  def _bring(
      self, slices: tf.Tensor, rows: tf.Tensor, sizes: _Sizes, trace: _Trace
  ) -> tf.Tensor:
    """uint8 [N, H, W, C] -> uint8 [B, h, w, channels]."""
    images = slices
    if not trace.framed:
      grey = readers.to_channels(slices, 1 if trace.neighbours else self._channels)
      images = frame_image(grey, sizes.inner, sizes.frame, trace.method)
    if trace.neighbours:
      # [B, neighbours, h, w] -> [B, h, w, neighbours].
      images = tf.transpose(tf.gather(images[..., 0], rows), [0, 2, 3, 1])
    images.set_shape([None, *(trace.frame_hw or (None, None)), self._channels])
    return images


def filled(rows: int, slices: Sequence[np.ndarray] | np.ndarray) -> np.ndarray:
  """Returns slices [N, H, W] or [N, H, W, C] as uint8 [rows, H, W, C], zeros after the last."""
  stacked = np.stack(slices) if not isinstance(slices, np.ndarray) else slices
  if stacked.ndim == 3:
    stacked = stacked[..., None]
  if len(stacked) == rows:
    return stacked
  out = np.zeros((rows, *stacked.shape[1:]), np.uint8)
  out[: len(stacked)] = stacked
  return out
