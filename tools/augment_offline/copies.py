"""Makes augmented copies of training slices, one by one, each decided by (seed, key, number)."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from flexunet.core.errors import InputError, unknown_name
from flexunet.datasets.built_dataset import BuiltDataset
from flexunet.pipelines.augmentation import augment, draws
from flexunet.pipelines.augmentation.config import AugmentationConfig

TRAIN = "train"  # The only split that gets copies.
# A draw that changes nothing, or moves the wanted class out of the image, is drawn again.
_ATTEMPTS = 100


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
  """Which copies are wanted.

  Attributes:
    config: A resolved config.
    copies: How many, per chosen slice.
    seed: Decides every draw.
    only_classes: Names of classes; empty for all slices.
    draw_by: "slice" or "volume".
  """

  config: AugmentationConfig
  copies: int = 1
  seed: int = 1
  only_classes: tuple[str, ...] = ()
  draw_by: str = "slice"

  def __post_init__(self):
    if not self.config.enabled:
      raise InputError(
          "The augmentation is off: its copies would be the same as their sources. Pass"
          " --augmentation=default or the probability of a transformation."
      )

  def settings(self) -> dict[str, Any]:
    """Returns what the build report says of the copies."""
    return {
        "copies": self.copies,
        "seed": self.seed,
        "only_classes": list(self.only_classes),
        "draw_by": self.draw_by,
        "config": dataclasses.asdict(self.config),
    }


@dataclasses.dataclass(frozen=True, eq=False)
class Copy:
  """One augmented copy.

  Attributes:
    source_key: Key of its source.
    suffix: aug01, aug02, ...
    done: What was done, as `draws.describe` says it.
    image: uint8 [H, W, C].
    label: uint8 [H, W].
    payload: The serialized record of the source.
  """

  source_key: str
  suffix: str
  done: str
  image: np.ndarray
  label: np.ndarray
  payload: bytes

  @property
  def key(self) -> str:
    """Key of its record."""
    return f"{self.source_key}_{self.suffix}_{self.done}"

  def pixels(self, num_classes: int) -> tuple[int, ...]:
    """Returns the labelled pixels of each class."""
    counts = np.bincount(self.label.ravel(), minlength=num_classes)
    return tuple(counts[:num_classes].tolist())  # Behind them are ignored pixels.


def choose(dataset: BuiltDataset, plan: Plan) -> list[dict[str, str]]:
  """Returns the rows of the training records that get copies.

  Raises:
    InputError: A dataset of volumes, of several channels or one that has copies already, an unknown
      class, or no record.
  """
  if "augmentation" in dataset.report:
    raise InputError(
        f"{dataset.path}: holds augmented copies already; copies of copies would be mixed up with"
        " them. Name the dataset they were made from."
    )
  if dataset.report.get("form", "slices") != "slices" or not dataset.rows[0]["slice_index"]:
    raise InputError(f"{dataset.path}: holds whole volumes. Name a config of slices.")
  if dataset.report.get("file_format", "tfrecord") != "tfrecord":
    raise InputError(f"{dataset.path}: copies are made of tfrecord files. Build with them.")
  if len(dataset.channel_names) > 1:
    raise InputError(
        f"{dataset.path}: has the channels {', '.join(dataset.channel_names)}; copies are made of"
        " one image a record. Training augments them as it reads them."
    )
  names = dataset.scheme.names
  for name in plan.only_classes:
    if name not in names[1:]:
      raise unknown_name("class", name, names[1:])
  rows = [row for row in dataset.rows if row["split"] == TRAIN]
  if plan.only_classes:
    rows = [r for r in rows if any(int(r[f"pixels_{name}"]) for name in plan.only_classes)]
  if not rows:
    wanted = f" with {' or '.join(plan.only_classes)}" if plan.only_classes else ""
    raise InputError(f"{dataset.path}: its training split holds no record{wanted}.")
  return rows


def make(
    dataset: BuiltDataset, rows: Sequence[dict[str, str]], plan: Plan
) -> Iterator[Copy]:
  """Yields the copies of each row in turn.

  Args:
    dataset: Whose rows these are.
    rows: From `choose`.
    plan: Its seed, together with key (or volume) and number, decides a copy, and nothing else.
  """
  whole_volumes = plan.draw_by == "volume"
  # What one slice needs must not change the draw of its volume.
  wanted = [] if whole_volumes else [dataset.scheme.names.index(n) for n in plan.only_classes]
  for row in rows:
    payload = dataset.payload(row)  # Checked: damage must not be copied under a new checksum.
    example = dataset.decode(payload)
    image, label = np.asarray(example["image"]), np.asarray(example["label"])[..., 0]
    identity = f"{plan.seed}:{row['volume'] if whole_volumes else row['key']}"
    for number in range(1, plan.copies + 1):
      done, new_image, new_label = _copy(plan.config, image, label, f"{identity}:{number}", wanted)
      yield Copy(row["key"], f"aug{number:02d}", done, new_image, new_label, payload)


def _copy(
    config: AugmentationConfig,
    image: np.ndarray,
    label: np.ndarray,
    identity: str,
    wanted: Sequence[int],
) -> tuple[str, np.ndarray, np.ndarray]:
  """Returns (what was done, image, label) of the first attempt that is of use."""
  change, names = _changer(config, image.shape)
  for attempt in range(_ATTEMPTS):
    digest = hashlib.sha256(f"{identity}:{attempt}".encode()).digest()
    new_image, new_label, values = change(image, label, np.frombuffer(digest[:8], "<i4"))
    amounts = dict(zip(names, values.numpy(), strict=True))
    new_label = new_label.numpy()
    if not draws.is_same(amounts) and (not wanted or np.isin(new_label, wanted).any()):
      return draws.describe(amounts), new_image.numpy(), new_label
  raise InputError(
      f"{_ATTEMPTS} draws for one slice changed nothing, or moved the wanted class out of it. Raise"
      " the probabilities, or lower the strengths."
  )


@functools.lru_cache(64)
def _changer(
    config: AugmentationConfig, shape: tuple[int, int, int]
) -> tuple[Callable, tuple[str, ...]]:
  """Returns a compiled (image, label, seed) -> (image, label, values), and the values' names."""
  def change(image: tf.Tensor, label: tf.Tensor, seed: tf.Tensor) -> tuple[tf.Tensor, ...]:
    draw = draws.draw(config, shape[:2], seed[None])
    images, labels = augment.apply(config, draw, image[None], label[None], seed[None])
    return images[0], labels[0], draw.values[0]

  signature = [
      tf.TensorSpec(shape, tf.uint8),
      tf.TensorSpec(shape[:2], tf.uint8),
      tf.TensorSpec([2], tf.int32),
  ]
  compiled = tf.function(change, input_signature=signature, autograph=False)
  return compiled, tuple(draws.parameters(config))
