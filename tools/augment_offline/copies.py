"""Makes augmented copies of training slices, one by one, each decided by (seed, key, number)."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from flexunet.core.errors import InputError, unknown_name
from flexunet.datasets.builder import tfrecord
from flexunet.datasets.built_dataset import BuiltDataset
from flexunet.pipelines.augmentation import draws
from flexunet.pipelines.augmentation.config import AugmentationConfig

# A draw that changes nothing, or moves the wanted class out of the picture, is drawn again.
_ATTEMPTS = 100


@dataclasses.dataclass(frozen=True, eq=False)
class Copy:
  """One augmented copy.

  Attributes:
    source_key: Key of its source.
    suffix: aug01, aug02, ...
    done: What was done, as `naming.describe` says it.
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
    return f"{self.source_key}_{self.suffix}_{self.done}"

  def pixels(self, num_classes: int) -> tuple[int, ...]:
    """Returns the labelled pixels of each class."""
    return tuple(int(n) for n in np.bincount(self.label.ravel(), minlength=num_classes))


def choose(
    dataset: BuiltDataset, split: str, only_classes: Sequence[str]
) -> list[dict[str, Any]]:
  """Returns the rows of the records that get copies.

  Args:
    dataset: A dataset of slices.
    split: Must be the training split.
    only_classes: Records with a pixel of any of these classes; all records when empty.

  Raises:
    InputError: Another split, a dataset that has copies already, an unknown class, or no record.
  """
  if split != "train":
    raise InputError(
        f"--split must be train: copies in {split!r} would make its scores those of made-up"
        " images. Leave the flag out."
    )
  if "augmentation" in dataset.report:
    raise InputError(
        f"{dataset.path}: holds augmented copies already; copies of copies would be mixed up with"
        " them. Name the dataset they were made from."
    )
  if dataset.report.get("form", "slices") != "slices" or not dataset.rows[0]["slice_index"]:
    raise InputError(f"{dataset.path}: holds whole volumes. Name a config of slices.")
  if dataset.report.get("file_format", "tfrecord") != "tfrecord":
    raise InputError(f"{dataset.path}: copies are made of tfrecord files. Build with them.")
  names = dataset.scheme.names
  for name in only_classes:
    if name not in names[1:]:
      raise unknown_name("class", name, names[1:])
  rows = [row for row in dataset.rows if row["split"] == split]
  if only_classes:
    rows = [r for r in rows if any(int(r[f"pixels_{name}"]) for name in only_classes)]
  if not rows:
    wanted = f" with {' or '.join(only_classes)}" if only_classes else ""
    raise InputError(f"{dataset.path}: its training split holds no record{wanted}.")
  return rows


def make(
    dataset: BuiltDataset,
    rows: Sequence[dict[str, Any]],
    config: AugmentationConfig,
    *,
    copies: int,
    seed: int,
    only_classes: Sequence[str] = (),
    draw_by: str = "slice",
) -> Iterator[Copy]:
  """Yields the copies of each row in turn.

  Args:
    dataset: Whose rows these are.
    rows: From `choose`.
    config: A resolved config that changes something.
    copies: Of each record.
    seed: Together with key (or volume) and number it decides a copy, and nothing else does.
    only_classes: A copy keeps a pixel of one of them.
    draw_by: "slice" draws for each slice; "volume" gives all slices of a volume the same draw,
      so that neighbouring slices of a copy still fit each other.
  """
  whole_volumes = draw_by == "volume"
  # What one slice needs must not change the draw of its volume.
  wanted = [] if whole_volumes else [dataset.scheme.names.index(name) for name in only_classes]
  for row in rows:
    payload = _payload(dataset, row)
    example = dataset.decode(payload)
    image, label = np.asarray(example["image"]), np.asarray(example["label"])[..., 0]
    identity = f"{seed}:{row['volume'] if whole_volumes else row['key']}"
    for number in range(1, copies + 1):
      done, new_image, new_label = _copy(config, image, label, f"{identity}:{number}", wanted)
      yield Copy(row["key"], f"aug{number:02d}", done, new_image, new_label, payload)


def _payload(dataset: BuiltDataset, row: dict[str, Any]) -> bytes:
  """Reads one record and checks it: damage must not be copied under a new checksum."""
  length = int(row["length"])
  with open(dataset.path / row["shard"], "rb") as stream:
    stream.seek(int(row["offset"]) + tfrecord.HEADER_BYTES)
    payload, stored = stream.read(length), int.from_bytes(stream.read(4), "little")
  if len(payload) < length or tfrecord.masked_crc(payload) != stored:
    raise InputError(
        f"{dataset.path / row['shard']}: record {row['record']} ({row['key']}) is damaged. Run"
        f" python -m flexunet.tools.verify_records {dataset.path}."
    )
  return payload


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
def _changer(config: AugmentationConfig, shape: tuple[int, int, int]):
  """Returns a compiled (image, label, seed) -> (image, label, values), and the values' names."""
  import tensorflow as tf

  from flexunet.pipelines.augmentation import augment, draws

  def change(image, label, seed):
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
