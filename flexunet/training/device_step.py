"""What the training step does with a batch before the network sees it, on the device.

With `--augment_on=device` a batch comes as {"image", "label", "seed"} and is augmented there; with
`--cache=device` it comes as {"row", "seed"} and is gathered there as well. With `--patch_size` both
hold {"target", "content"} too, and patches are cut there. All this happens inside the compiled
step. Seeds are a function of the position, so a checkpoint holds nothing of this.

The examples are those of the input pipeline up to rounding. A GPU that multiplies in
TensorFloat-32 (NVIDIA from Ampere on, TensorFlow's default) rounds random fields to 10 bits: by
arithmetic, not measured, a distortion of 40 pixels is then off by up to 0.04 of one.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from flexunet.imaging.label_scheme import IGNORED
from flexunet.pipelines import tf_data
from flexunet.pipelines.augmentation import augment
from flexunet.pipelines.augmentation.config import AugmentationConfig
from flexunet.pipelines.cache import DeviceCache
from flexunet.pipelines.patches import PatchSampler
from flexunet.pipelines.resizing import to_channels


@dataclasses.dataclass(frozen=True, eq=False)
class DeviceInput:
  """Turns a batch as it travels into (image, label, weight) as the network learns from it.

  Attributes:
    image_channels: The network's; grey images travel and are augmented as one channel.
    augmentation: Resolved; None: batches are not augmented here.
    cache: Where the rows of a batch are looked up; None: its images travel.
    compiled: Compiles this part by XLA even where the step is not: TensorFlow's own gather has no
      kernel for bytes on a GPU, and the pixels would go to the CPU and back.
    separate_channels: Grey values change channel by channel, as in `augment.augment_batch`.
    ignores: Labels hold pixels that are not to be counted; weights are then those of pixels.
    patches: Draws a patch of each slice, augmenting it by itself: `augmentation` is then None.
  """

  image_channels: int
  augmentation: AugmentationConfig | None = None
  cache: DeviceCache | None = None
  compiled: bool = False
  separate_channels: bool = False
  ignores: bool = False
  patches: PatchSampler | None = None

  def plain(self) -> DeviceInput:
    """Returns the same without augmentation."""
    patches = self.patches and self.patches.plain()
    return dataclasses.replace(self, augmentation=None, patches=patches)

  def __call__(self, batch: dict[str, Any]) -> tuple[Any, Any, Any]:
    """Returns image uint8 [B, h, w, C], label uint8 [B, h, w] and weight float32.

    The weight is 1 [B]; of labels with ignored pixels it is [B, h, w], and 0 there.
    """
    # A distribution strategy too would run AutoGraph over it.
    return tf_data.plain_graph(self._finished)(batch)

  def _finished(self, batch):
    if self.cache is None:
      image, label = batch["image"], batch["label"]
    else:
      # Compiled apart, so that the numbers are the same whatever keeps the slices.
      image, label = self._compiled(self.cache.gather)(batch["row"])
    drawn = {name: batch[name] for name in ("seed", "target", "content") if name in batch}
    return self._compiled(self._augmented)(image, label, drawn)

  def _augmented(self, image, label, drawn):
    if self.patches is not None:
      image, label = self.patches(image, label, drawn)
    elif self.augmentation is not None:
      image, label = augment.augment_batch(
          self.augmentation, image, label, drawn["seed"], separate_channels=self.separate_channels
      )
    image = to_channels(image, self.image_channels)
    weight = tf.ones(tf.shape(label)[:1], tf.float32)
    if self.ignores:
      label, weight = without_ignored(label, weight)
    return image, label, weight

  def _compiled(self, part: Callable) -> Callable:
    return tf.function(part, autograph=False, jit_compile=True) if self.compiled else part


def without_ignored(label: tf.Tensor, weight: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
  """Returns (label uint8 [B, h, w] with background for ignored pixels, weight float32 [B, h, w]).

  Args:
    label: May hold `IGNORED`.
    weight: float32 [B].
  """
  counted = tf.not_equal(label, IGNORED)
  weight = weight[:, None, None] * tf.cast(counted, tf.float32)
  return tf.where(counted, label, tf.zeros_like(label)), weight


class DeviceStep(keras.Model):
  """A network in training that is given batches as `DeviceInput` takes them.

  On the TensorFlow backend alone. Evaluation is given finished batches, as of any network.

  Attributes:
    device_input: Set before the first step.
  """

  device_input: DeviceInput

  def train_step(self, data):
    if isinstance(data, dict):
      data = self.device_input(data)
    return super().train_step(data)


def build_metrics(network: keras.Model, batch_size: int) -> None:
  """Lets Keras create the variables of the scores, by a test step on an empty batch.

  With a distribution strategy it would create them from the first training batch, before the step
  has turned it into images; and a checkpoint can only be put back where they are. Nothing that
  lasts is changed.
  """
  image = np.zeros((batch_size, *network.input_shape[1:]), np.uint8)
  network.test_on_batch(image, image[..., 0], np.ones(batch_size, np.float32))
  network.reset_metrics()
