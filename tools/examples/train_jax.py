"""A small network in plain JAX on the records of a built dataset.

  python train_jax.py DATASET_FOLDER [--steps=300] [--size=128]

DATASET_FOLDER is a version folder of slices. Prints the loss, and the Dice of each class over the
validation slices. Needs jax, numpy, pillow. With Grain, `records.as_grain()` shuffles, maps and
batches in processes of its own; the loop is the same.
"""

import argparse
import functools
import itertools
import pathlib
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
from jax.example_libraries import optimizers

from flexunet.records import Records, open_records

Layers = list[tuple[jax.Array, jax.Array]]
_DILATIONS = (1, 2, 4, 8, 1)


def batches(records: Records, order: np.ndarray, size: int) -> Iterator[tuple]:
  """Yields (image float32 [8, size, size, C], label int32 [8, size, size]) in an order."""
  for start in range(0, len(order) - 7, 8):
    images, labels = [], []
    for row in order[start : start + 8]:
      record = records[row]
      height, width = record["label"].shape[:2]
      top, left = max(0, height - size) // 2, max(0, width - size) // 2
      part = np.s_[top : top + size, left : left + size]
      fill = [(0, size - min(height, size)), (0, size - min(width, size))]
      images.append(np.pad(record["image"][part], [*fill, (0, 0)]))
      labels.append(np.pad(record["label"][part][..., 0], fill))
    yield np.stack(images).astype(np.float32) / 255, np.stack(labels).astype(np.int32)


def make_layers(key: jax.Array, channels: int, classes: int, width: int = 16) -> Layers:
  """Returns (kernel [3, 3, in, out], bias [out]) of each convolution."""
  widths = [channels, *[width] * (len(_DILATIONS) - 1), classes]
  layers = []
  for before, after in itertools.pairwise(widths):
    key, own = jax.random.split(key)
    scale = np.sqrt(2 / (9 * before))
    layers.append((jax.random.normal(own, (3, 3, before, after)) * scale, jnp.zeros(after)))
  return layers


def logits(layers: Layers, image: jax.Array) -> jax.Array:
  """Image [B, H, W, C] -> [B, H, W, classes], by convolutions of growing reach."""
  for number, ((kernel, bias), dilation) in enumerate(zip(layers, _DILATIONS, strict=True)):
    image = jax.lax.conv_general_dilated(
        image, kernel, (1, 1), "SAME", rhs_dilation=(dilation, dilation),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    ) + bias  # fmt: skip
    image = jax.nn.relu(image) if number + 1 < len(layers) else image
  return image


def loss_of(layers: Layers, image: jax.Array, label: jax.Array) -> jax.Array:
  """Returns the mean cross-entropy."""
  logs = jax.nn.log_softmax(logits(layers, image))
  return -jnp.mean(jnp.take_along_axis(logs, label[..., None], -1))


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("dataset", type=pathlib.Path)
  parser.add_argument("--steps", type=int, default=300)
  parser.add_argument("--size", type=int, default=128)
  given = parser.parse_args()
  records = open_records(given.dataset, "train", features=("image", "label"))
  classes = len(records.class_names)
  start, update, current = optimizers.adam(3e-3)
  state = start(make_layers(jax.random.key(0), records[0]["image"].shape[-1], classes))

  @functools.partial(jax.jit, donate_argnums=1)
  def train_step(step, state, image, label):
    loss, gradient = jax.value_and_grad(loss_of)(current(state), image, label)
    return update(step, gradient, state), loss

  step, draw = 0, np.random.default_rng(0)
  while step < given.steps:
    for image, label in batches(records, draw.permutation(len(records)), given.size):
      state, loss = train_step(step, state, image, label)
      step += 1
      if step % 50 == 0 or step == given.steps:
        print(f"step {step}: loss {float(loss):.4f}", flush=True)
      if step == given.steps:
        break
  answer = jax.jit(lambda image: logits(current(state), image).argmax(-1))
  held_out = open_records(given.dataset, "validation", features=("image", "label"))
  overlap, total = np.zeros(classes), np.zeros(classes)
  for image, label in batches(held_out, np.arange(len(held_out)), given.size):
    found = np.asarray(answer(image))
    for one in range(classes):
      overlap[one] += np.sum((found == one) & (label == one))
      total[one] += np.sum(found == one) + np.sum(label == one)
  for name, dice in zip(records.class_names, 2 * overlap / np.maximum(total, 1), strict=True):
    print(f"{name}: Dice {dice:.3f} over all validation slices")


if __name__ == "__main__":
  main()
