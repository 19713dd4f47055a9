"""Grey values drawn anew from label and image, so that a network learns shapes of any contrast.

After SynthSeg (Billot et al. 2023, https://doi.org/10.1016/j.media.2023.102789), in 2-D and on the
fly: each class gets a grey value of its own, and so does each cluster of grey values within the
background, a class or the whole image, since labels alone leave out most of what a head shows. The
clusters are found in the example itself. Between their grey values lies a curve by which the scan's
own texture is kept in part; the other part is a mean and noise for each cluster. Blurring mixes
neighbouring tissues. Bias field, resolution and noise follow (`intensity.py`), geometry comes
before (`spatial.py`).

What is darkest in the background stays dark: air gives no signal in any sequence.
"""

from __future__ import annotations

import numpy as np
import tensorflow as tf

from flexunet.imaging.label_scheme import IGNORED
from flexunet.pipelines import tf_data
from flexunet.pipelines.augmentation import draws, intensity
from flexunet.pipelines.augmentation.config import AugmentationConfig
from flexunet.pipelines.augmentation.spatial import where_drawn

_GREYS = 256
# Classes whose ids are equal modulo this share one draw: few datasets have more.
_CLASSES = 32
# Background below is air in part, at 0 wholly; what a scanner's noise makes of air lies there too.
_AIR_BELOW = 16
_ROUNDS = 6  # Of k-means; in one dimension a few suffice.
# A cluster's border never meets a whole grey value, so that rounding decides nothing.
_OFF_GRID = 0.0137
# Beyond the outermost clusters a curve carries on by this share of the step before.
_BEYOND = 0.5


def change(
    config: AugmentationConfig,
    draw: draws.Draw,
    seeds: tf.Tensor,
    image: tf.Tensor,
    label: tf.Tensor,
    view: intensity.View | None = None,
) -> tf.Tensor:
  """Draws the grey values of those examples anew that the draw names.

  Args:
    config: Resolved.
    draw: Says which examples, and how.
    seeds: int32 [B, 2]; they decide grey values and noise.
    image: uint8 [B, H, W, C]; all channels by the same curves.
    label: uint8 [B, H, W]; ignored pixels count as background.
    view: What they are a part of: clusters are those of the whole slice, so that its parts get the
      contrast that it would have; noise is of the part alone.

  Returns:
    uint8 [B, H, W, C].
  """
  if not config.synthetic_share:
    return image

  def fused(part):
    return tf_data.fused(part, image)

  def synthetic(image, label):
    # Compiled by XLA only where that pays: it adds up one pixel at a time, takes seconds over the
    # many small steps of the curves, and would paint each pixel once for each neighbour.
    place = _places(image, label)
    whole = (place, image) if view is None else (_places(view.stored, view.label), view.stored)
    means, deviations = _curves(config, draw, seeds, _histogram(*whole))
    values = fused(lambda *x: _painted(config, seeds, view, *x))(place, means, deviations)
    return [fused(lambda x: _mixed(config, draw, x))(values), label]

  return where_drawn(draw.stages()["synthetic"], synthetic, (image, label))[0]


def _places(image: tf.Tensor, label: tf.Tensor) -> tf.Tensor:
  """Returns int32 [B, H, W, C]: where (example, class, grey value) stands in a table of all."""
  label = tf.where(tf.equal(label, IGNORED), tf.zeros_like(label), label)
  # Computed in floating point: int32 arithmetic has no kernel on a GPU.
  classes = tf.math.floormod(tf.cast(label, tf.float32), _CLASSES)[..., None]
  example = tf.range(tf.cast(tf.shape(image)[0], tf.float32))[:, None, None, None]
  within = classes * _GREYS + tf.cast(image, tf.float32)
  return tf.cast(example * (_CLASSES * _GREYS) + within, tf.int32)


def _histogram(place: tf.Tensor, image: tf.Tensor) -> tf.Tensor:
  """Returns float32 [B, classes, grey values], counts of pixels: exact in whatever order."""
  examples = image.shape[0] or tf.shape(image)[0]
  counts = tf.math.unsorted_segment_sum(
      tf.ones_like(place, tf.float32), place, examples * _CLASSES * _GREYS
  )
  return tf.reshape(counts, [-1, _CLASSES, _GREYS])


def _curves(
    config: AugmentationConfig, draw: draws.Draw, seeds: tf.Tensor, counts: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor]:
  """Returns mean and deviation of each (class, grey value) as shares of the grey range.

  Both float32 [B * classes * grey values], as `_places` counts.
  """
  tissue = np.ones((_CLASSES, _GREYS), np.float32)
  tissue[0] = np.clip(np.arange(_GREYS) / _AIR_BELOW, 0, 1)
  counts = counts * tissue
  # The last row is the whole image.
  counts = tf.concat([counts, tf.reduce_sum(counts, axis=1, keepdims=True)], axis=1)
  centers = _cluster_centers(counts, config.synthetic_clusters)
  levels, deviations = _levels(config, seeds)
  texture = draw["synthetic_texture"][:, None, None]
  deviations = deviations * (1 - texture)
  by_class = draw["synthetic_by_class"][:, None, None]

  def table(values):
    curve = _interpolated(centers, values, texture)
    curve = curve[:, -1:] + (curve[:, :-1] - curve[:, -1:]) * by_class
    return tf.reshape(curve * tissue, [-1])

  return table(levels), table(deviations)


def _levels(config: AugmentationConfig, seeds: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
  """Returns grey value and deviation of each cluster, float32 [B, classes + 1, clusters]."""
  clusters = config.synthetic_clusters
  numbers = draws.uniform_numbers(seeds, draws.LEVELS_SALT, [_CLASSES + 1, 2 * clusters + 1])
  free, deviation = numbers[..., :clusters], numbers[..., clusters:-1]
  near = numbers[..., -1:] + config.synthetic_class_range * (2 * free - 1)
  # The clusters of background and whole image are tissues of their own.
  of_class = np.zeros((_CLASSES + 1, 1), bool)
  of_class[1:-1] = True
  return tf.where(of_class, near, free), deviation * config.synthetic_noise_std


def _cluster_centers(counts: tf.Tensor, clusters: int) -> tf.Tensor:
  """Returns float32 [B, rows, clusters], ascending: k-means of the grey values of each row.

  Args:
    counts: float32 [B, rows, grey values]; a row of zeros is allowed.
  """
  greys = np.arange(_GREYS, dtype=np.float32)
  there = tf.where(counts > 0, greys, float(_GREYS - 1))
  low = tf.reduce_min(there, axis=2)
  high = tf.maximum(tf.reduce_max(tf.where(counts > 0, greys, 0.0), axis=2), low)
  shares = (np.arange(clusters, dtype=np.float32) + 0.5) / clusters
  centers = low[..., None] + (high - low)[..., None] * shares
  # Pixels, and sums of their grey values, below each grey value: any part is a difference of two.
  both = tf.stack([counts, counts * greys], axis=2)
  below = tf.pad(tf.cumsum(both, axis=3), [[0, 0], [0, 0], [0, 0], [1, 0]])

  def refined(centers):
    borders = (centers[..., 1:] + centers[..., :-1]) / 2 + _OFF_GRID
    first = tf.zeros_like(centers[..., :1])
    edges = tf.concat([first, tf.math.ceil(borders), first + _GREYS], axis=2)
    edges = tf.cast(edges, tf.int32)[:, :, None]  # [B, rows, 1, clusters + 1]
    up_to = tf.gather(below, tf.tile(edges, [1, 1, 2, 1]), axis=3, batch_dims=3)
    mass, total = tf.unstack(up_to[..., 1:] - up_to[..., :-1], axis=2)
    return tf.where(mass > 0, total / tf.maximum(mass, 1e-3), centers)

  for _ in range(_ROUNDS):
    centers = refined(centers)
  return centers


def _interpolated(centers: tf.Tensor, values: tf.Tensor, texture: tf.Tensor) -> tf.Tensor:
  """Returns float32 [B, rows, grey values]: the curve through the values of the clusters.

  Args:
    centers, values: float32 [B, rows, clusters].
    texture: float32 [B, 1, 1]; 1 gives straight lines from center to center, 0 steps halfway.
  """
  greys = tf.range(_GREYS, dtype=tf.float32)
  curve = values[..., :1] + tf.zeros_like(greys)
  steps = centers.shape[-1] - 1
  for k in range(steps):
    gap = tf.maximum(centers[..., k + 1] - centers[..., k], 1.0)[..., None]
    share = (greys - centers[..., k, None] - _OFF_GRID) / gap
    line = tf.clip_by_value(
        share, -_BEYOND if k == 0 else 0.0, 1.0 + (_BEYOND if k == steps - 1 else 0.0)
    )
    step = tf.cast(share > 0.5, tf.float32)
    part = step + (line - step) * texture
    curve += part * (values[..., k + 1, None] - values[..., k, None])
  return curve


def _painted(
    config: AugmentationConfig,
    seeds: tf.Tensor,
    view: intensity.View | None,
    place: tf.Tensor,
    means: tf.Tensor,
    deviations: tf.Tensor,
) -> tf.Tensor:
  """Returns float32 [B, H, W, C], shares of the grey range: means and noise of the tables."""
  height, width = place.shape[1:3]
  values = tf.gather(means, place)
  if not config.synthetic_noise_std:
    return values
  # Drawn for the largest margin, so that a pixel's noise is the same with any.
  more = 0 if view is None else intensity.reach(config) - view.margin
  noise = draws.normal_numbers(seeds, draws.TEXTURE_SALT, [height + 2 * more, width + 2 * more, 1])
  noise = noise[:, more : more + height, more : more + width]
  return values + tf.gather(deviations, place) * noise


def _mixed(config: AugmentationConfig, draw: draws.Draw, values: tf.Tensor) -> tf.Tensor:
  """Returns the image uint8 [B, H, W, C]: neighbouring tissues mixed."""
  if config.synthetic_blur_sigma:
    sigma = draw["synthetic_blur"]
    values = intensity.gaussian_smoothed(values, sigma, config.synthetic_blur_sigma)
  return intensity.to_bytes(255 * values)
