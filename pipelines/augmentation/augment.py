"""Changes examples at random: image and label by one draw, decided by a seed alone.

`augment_example` is for input pipelines on the CPU, `augment_batch` for whole batches on the
device. Both give the same result, up to rounding, for the same (config, example, seed). Nothing
that is not drawn costs anything in the former; in the latter what one example of the batch draws
is computed for all, which a GPU does not mind.
"""

from __future__ import annotations

import tensorflow as tf

from flexunet.pipelines import tf_data
from flexunet.pipelines.augmentation import contrast, draws, intensity, spatial
from flexunet.pipelines.augmentation.config import AugmentationConfig

# Between the seeds of two channels: a prime, so that no channel meets the seed of another example.
_CHANNEL_STRIDE = 15485863


def augment_example(
    config: AugmentationConfig,
    image: tf.Tensor,
    label: tf.Tensor,
    seed: tf.Tensor,
    separate_channels: bool = False,
) -> tuple[tf.Tensor, tf.Tensor]:
  """Changes one example.

  Args:
    config: A resolved config (`config.resolve()`).
    image: uint8 [H, W, C] of static shape.
    label: uint8 [H, W], class ids.
    seed: int32 [2]; the same seed gives the same result, anywhere.
    separate_channels: As of `augment_batch`.

  Returns:
    (image, label) of the same dtypes and shapes.
  """
  batch = (tf.convert_to_tensor(x)[None] for x in (image, label, seed))
  images, labels, seeds = batch
  images, labels = augment_batch(config, images, labels, seeds, separate_channels)
  return images[0], labels[0]


def augment_batch(
    config: AugmentationConfig,
    images: tf.Tensor,
    labels: tf.Tensor,
    seeds: tf.Tensor,
    separate_channels: bool = False,
) -> tuple[tf.Tensor, tf.Tensor]:
  """Changes a batch: each example by its own seed.

  Args:
    config: A resolved config (`config.resolve()`).
    images: uint8 [B, H, W, C]; H, W and C static.
    labels: uint8 [B, H, W], class ids; ignored pixels hold `IGNORED`.
    seeds: int32 [B, 2].
    separate_channels: The channels are scans of their own: their grey values change by a draw each,
      their geometry by one.

  Returns:
    (images, labels) of the same dtypes and shapes.
  """
  def changed(images, labels, seeds):
    images, labels, seeds = (tf.convert_to_tensor(x) for x in (images, labels, seeds))
    _check(images, labels)
    if not config.enabled:
      return images, labels
    size_hw = images.shape[1], images.shape[2]
    draw = draws.draw(config, size_hw, seeds)
    if not separate_channels or images.shape[-1] == 1:
      return apply(config, draw, images, labels, seeds)
    images, labels = _moved(config, draw, images, labels, seeds)
    channels = tf.split(images, images.shape[-1], axis=-1)
    own = draws_of_channels(config, size_hw, seeds, draw, len(channels))
    changed = [
        recoloured(config, its_draw, its_seeds, image, labels)
        for image, (its_seeds, its_draw) in zip(channels, own, strict=True)
    ]
    return tf.concat(changed, axis=-1), labels

  return tf_data.plain_graph(changed)(images, labels, seeds)


def draws_of_channels(
    config: AugmentationConfig,
    size_hw: tuple[int, int],
    seeds: tf.Tensor,
    draw: draws.Draw,
    channels: int,
) -> list[tuple[tf.Tensor, draws.Draw]]:
  """Returns (seeds, draw) of each channel's grey values; the first has those of the example."""
  found = [(seeds, draw)]
  for number in range(1, channels):
    own = seeds + tf.constant([0, number * _CHANNEL_STRIDE], tf.int32)
    # Whether the example is synthetic is decided once; which contrast, by each channel.
    own_draw = draws.draw(config, size_hw, own).with_values("synthetic", draw["synthetic"])
    found.append((own, own_draw))
  return found


def apply(
    config: AugmentationConfig,
    draw: draws.Draw,
    images: tf.Tensor,
    labels: tf.Tensor,
    seeds: tf.Tensor,
) -> tuple[tf.Tensor, tf.Tensor]:
  """Applies a draw: geometry to images and labels, then grey values to images.

  Args:
    config: Its probabilities say which transformations are built at all; one of probability 0 is
      not applied, whatever the draw says.
    draw: From `draws.draw`, or `draws.by_hand`.
    images, labels, seeds: As of `augment_batch`; the seeds decide the random fields.
  """
  images, labels, seeds = (tf.convert_to_tensor(x) for x in (images, labels, seeds))
  _check(images, labels)
  images, labels = _moved(config, draw, images, labels, seeds)
  return recoloured(config, draw, seeds, images, labels), labels


def recoloured(
    config: AugmentationConfig,
    draw: draws.Draw,
    seeds: tf.Tensor,
    images: tf.Tensor,
    labels: tf.Tensor,
    view: intensity.View | None = None,
) -> tf.Tensor:
  """Returns images after the changes of grey values: the contrast first, then the scanner.

  Args:
    config, draw, seeds, images, labels: As of `apply`.
    view: What images and labels are a part of, where they are not whole slices.
  """
  images = contrast.change(config, draw, seeds, images, labels, view)
  return intensity.change(config, draw, seeds, images, view)


def _moved(
    config: AugmentationConfig,
    draw: draws.Draw,
    images: tf.Tensor,
    labels: tf.Tensor,
    seeds: tf.Tensor,
) -> tuple[tf.Tensor, tf.Tensor]:
  """Returns images and labels after the geometry of a draw."""
  images, labels = spatial.turn_and_flip(config, draw, images, labels)
  return spatial.warp(config, draw, seeds, images, labels)


def _check(images: tf.Tensor, labels: tf.Tensor) -> None:
  if images.dtype.name != "uint8" or labels.dtype.name != "uint8":
    raise ValueError(
        f"Images and labels are uint8. Got: {images.dtype.name} and {labels.dtype.name}."
    )
  if images.shape.rank != 4 or labels.shape.rank != 3 or None in images.shape[1:]:
    raise ValueError(
        "Images are [B, H, W, C] of static H, W and C, labels [B, H, W]. Got:"
        f" {images.shape} and {labels.shape}."
    )
  if images.shape[1:3] != labels.shape[1:3]:
    raise ValueError(
        f"Image and label must have one shape. Got: {images.shape[1:3]} and {labels.shape[1:3]}."
    )
