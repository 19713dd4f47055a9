"""A patch of a changed slice, computed at its own pixels: one resampling, at the cost of the patch.

The patch is what lies at its place in the slice as `augment.augment_batch` changes it, from the
same draw and up to rounding, with two exceptions: contrast is changed about the mean of the slice
as it is stored, and noise is drawn for the patch alone. So nothing ends at the border of a patch
where the slice continues: geometry and bias field are those of the whole, and blur, sharpening and
lower resolution see the pixels around it.
"""

from __future__ import annotations

import tensorflow as tf

from flexunet.pipelines import tf_data
from flexunet.pipelines.augmentation import augment, draws, intensity, sampling, spatial
from flexunet.pipelines.augmentation.config import AugmentationConfig

# Each halves at least what is left of the largest bend; the rest is below a pixel or two.
_INVERSION_STEPS = 4


def landing(
    config: AugmentationConfig,
    draw: draws.Draw,
    seeds: tf.Tensor,
    points: tf.Tensor,
    whole_hw: tuple[int, int],
) -> tf.Tensor:
  """Returns where the geometry of a draw brings pixels of the stored slice.

  Args:
    config: Resolved.
    draw: From `draws.draw`.
    seeds: int32 [B, 2], of the draw.
    points: float32 [B, 2], (row, column) of a pixel of each example.
    whole_hw: (height, width) of the slices.

  Returns:
    float32 [B, 2], to a pixel or two where lines are bent; it may lie outside of the slice.
  """
  height, width = whole_hw
  row, column = points[:, 0], points[:, 1]
  odd, flip_y, flip_x = spatial.turns(config, draw, square=height == width)
  if odd is not None:
    row, column = tf.where(odd, column, row), tf.where(odd, row, column)
  if flip_y is not None:
    row = tf.where(flip_y, height - 1 - row, row)
  if flip_x is not None:
    column = tf.where(flip_x, width - 1 - column, column)
  if not spatial.can_warp(config):
    return tf.stack([row, column], axis=1)
  middle = tf.constant([(height - 1) / 2, (width - 1) / 2], tf.float32)
  (yy, yx, y0), (xy, xx, x0) = spatial.inverse_affine(draw, whole_hw)
  y, x = row - middle[0] - y0, column - middle[1] - x0
  straight = tf.stack([xx * y - yx * x, yy * x - xy * y], axis=1) / (yy * xx - yx * xy)[:, None]
  if not spatial.can_bend(config):
    return straight + middle

  def unbent():
    """Finds the pixel whose place, once bent, is that one: what a pixel is bent by is taken off."""
    place = straight + middle
    for _ in range(_INVERSION_STEPS):
      pixel = tf.clip_by_value(tf.round(place), 0.0, 2 * middle)
      window = spatial.Window(pixel[:, :1], pixel[:, 1:], pixel)
      bent = spatial.offsets(config, draw, seeds, whole_hw, window=window)
      place = straight + pixel - tf.concat([one[:, :, 0] for one in bent], axis=1)
    return place

  return tf.cond(
      tf.reduce_any(draw.stages()["bend"]), unbent, lambda: straight + middle
  )


def change(
    config: AugmentationConfig,
    draw: draws.Draw,
    images: tf.Tensor,
    labels: tf.Tensor,
    seeds: tf.Tensor,
    corners: tf.Tensor,
    size_hw: tuple[int, int],
    separate_channels: bool = False,
) -> tuple[tf.Tensor, tf.Tensor]:
  """Returns one patch of each changed slice.

  Args:
    config: Resolved.
    draw: From `draws.draw`, of the seeds and the whole slices.
    images: uint8 [B, H, W, C], whole slices; H, W and C static.
    labels: uint8 [B, H, W].
    seeds: int32 [B, 2].
    corners: float32 [B, 2], (row, column) of the upper left pixel of each patch in the changed
      slice: whole numbers; the patch lies within the slice.
    size_hw: (height, width) of the patches.
    separate_channels: As of `augment.augment_batch`.

  Returns:
    (images uint8 [B, h, w, C], labels uint8 [B, h, w]).
  """
  whole_hw = images.shape[1], images.shape[2]
  own = [(seeds, draw)]
  if separate_channels:
    own = augment.draws_of_channels(config, whole_hw, seeds, draw, images.shape[-1])

  def cut(margin):
    window = window_at(corners, size_hw, whole_hw, margin)
    image, label = _moved(config, draw, seeds, images, labels, window)
    parts, stored = [image], [images]
    if separate_channels:
      parts, stored = (tf.split(one, one.shape[-1], axis=-1) for one in (image, images))
    changed = [
        augment.recoloured(config, its_draw, its_seeds, part, label,
                           intensity.View(window, whole_hw, before, labels, margin))
        for part, before, (its_seeds, its_draw) in zip(parts, stored, own, strict=True)
    ]  # fmt: skip
    inner = slice(margin, -margin or None)
    return tf.concat(changed, axis=-1), label[:, inner, inner]

  margin = intensity.reach(config)
  if not margin:
    return cut(0)
  stages = [its_draw.stages() for _, its_draw in own]
  names = ("synthetic", "blur", "sharpening", "low_resolution")
  reaching = [one[name] for one in stages for name in names]
  return tf.cond(tf.reduce_any(tf.stack(reaching)), lambda: cut(margin), lambda: cut(0))


def window_at(
    corners: tf.Tensor, size_hw: tuple[int, int], whole_hw: tuple[int, int], margin: int = 0
) -> spatial.Window:
  """Returns the pixels of patches, with so many more along each edge.

  Args:
    corners: float32 [B, 2], (row, column) of the upper left pixels: whole numbers.
    size_hw: (height, width) of the patches.
    whole_hw: Those of the slices, at whose borders the margin mirrors what lies within.
    margin: In pixels.
  """
  first = corners - margin
  lines = []
  for axis, (edge, whole) in enumerate(zip(size_hw, whole_hw, strict=True)):
    line = first[:, axis, None] + tf.range(edge + 2 * margin, dtype=tf.float32)
    if margin:
      turn = tf.math.floormod(line, 2.0 * whole)
      line = tf.minimum(turn, 2.0 * whole - 1 - turn)
    lines.append(line)
  rows, columns = lines
  return spatial.Window(rows, columns, first)


def cut_out(pixels: tf.Tensor, window: spatial.Window) -> tf.Tensor:
  """uint8 [B, H, W, C] -> the pixels of a window as they are stored, [B, h, w, C]."""
  return _fetched(pixels, window.rows[:, :, None], window.columns[:, None, :])


def _fetched(pixels: tf.Tensor, rows: tf.Tensor, columns: tf.Tensor) -> tf.Tensor:
  """[B, H, W, C] -> [B, h, w, C] at whole rows and columns within, which broadcast together."""
  height, width = pixels.shape[1], pixels.shape[2]
  if height * width >= 1 << 24:  # Above it float32 skips whole numbers.
    rows, columns = tf.cast(rows, tf.float64), tf.cast(columns, tf.float64)
  # Computed in floating point: int32 arithmetic has no kernel on a GPU.
  return sampling.gather(pixels, tf.cast(rows * width + columns, tf.int32))


def _moved(
    config: AugmentationConfig,
    draw: draws.Draw,
    seeds: tf.Tensor,
    images: tf.Tensor,
    labels: tf.Tensor,
    window: spatial.Window,
) -> tuple[tf.Tensor, tf.Tensor]:
  """Returns the pixels of a window after the geometry of the draw, from the stored slices."""
  whole_hw = images.shape[1], images.shape[2]
  decided = spatial.turns(config, draw, square=whole_hw[0] == whole_hw[1])
  stages = draw.stages()

  def resampled(bends):
    def places():
      grid = spatial.source_grid(config, draw, seeds, whole_hw, bends, window)
      return sampling.places(*_unturned(decided, *grid, whole_hw), whole_hw)

    def sample(image, label, where):
      return sampling.sample_linear(image, where), sampling.sample_nearest(label, where)

    def border(image, label):
      return sampling.with_border(image), sampling.with_border(label[..., None])

    where = tf_data.fused(places, images)()
    bordered = tf_data.fused(border, images)(images, labels)
    return tf_data.fused(sample, images)(*bordered, where)

  def warped():
    if not spatial.can_bend(config):
      return resampled(False)
    return tf.cond(
        tf.reduce_any(stages["bend"]), lambda: resampled(True), lambda: resampled(False)
    )

  rows, columns = window.rows[:, :, None], window.columns[:, None, :]
  rows, columns = _unturned(decided, rows, columns, whole_hw)
  taken = tuple(_fetched(pixels, rows, columns) for pixels in (images, labels[..., None]))
  if spatial.can_warp(config):
    taken = spatial.where_drawn(stages["warp"], lambda *_: warped(), taken)
  return taken[0], taken[1][..., 0]


def _unturned(
    decided: tuple[tf.Tensor | None, ...],
    rows: tf.Tensor,
    columns: tf.Tensor,
    whole_hw: tuple[int, int],
) -> tuple[tf.Tensor, tf.Tensor]:
  """Returns where pixels of the turned and mirrored slice lie in the stored one."""
  height, width = whole_hw
  odd, flip_y, flip_x = (None if one is None else one[:, None, None] for one in decided)
  if flip_y is not None:
    rows = tf.where(flip_y, height - 1 - rows, rows)
  if flip_x is not None:
    columns = tf.where(flip_x, width - 1 - columns, columns)
  if odd is not None:
    rows, columns = tf.where(odd, columns, rows), tf.where(odd, rows, columns)
  return rows, columns
