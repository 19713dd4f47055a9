"""A TFDS dataset that FlexUNet has not built: its features in our form, its records measured.

Labels may be class ids of any dtype with or without a channel axis, bool, or one-hot; images uint8
or floats in 0..1. They are converted where they are decoded, so that all that follows sees uint8
images [H, W, C] and class ids uint8 [H, W, 1]. Without records.csv the sizes, the pixels of each
class, and whose slices they are come from reading every record once; the result is kept in the
user's cache folder.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import io
import json
import os
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf
import tensorflow_datasets as tfds
from PIL import Image

from flexunet.core import files as core_files
from flexunet.core import progress
from flexunet.core.errors import InputError
from flexunet.imaging.label_scheme import LabelScheme
from flexunet.pipelines import feature_keys, record_table, tf_data
from flexunet.pipelines.feature_keys import FeatureForm, FeatureKeys
from flexunet.pipelines.record_table import RecordTable

_FORMAT = 2  # Of the kept measurements.
_MOST_CLASSES = 256
_LOOKS_LIKE_IDS = 16  # Ids up to here may have gaps: a class that does not occur.
_SHOWN_VALUES = 8
_COLUMNS = ("subject", "volume", "slice_index", "height", "width", "pixels", "spacing_mm")


class ForeignDataset:
  """What such a dataset offers instead of a build report and a table.

  Attributes:
    keys: Which features hold what.
    features: Those of the dataset, image and label in our form.
    warnings: What a reader of scores must know, one sentence each.
  """

  def __init__(self, path: pathlib.Path, info: tfds.core.DatasetInfo, given: FeatureKeys):
    """Takes an opened dataset and the features that the user named.

    Raises:
      InputError: There is no image or label that can be read.
    """
    self._path, self._info = path, info
    forms = {key: _form(feature) for key, feature in info.features.items()}
    self.keys = feature_keys.resolve(info.full_name, forms, given)
    image, label = info.features[self.keys.image], info.features[self.keys.label]
    self._image = _ImageForm(image, self.keys.image)
    self._label = _LabelForm(label, self.keys.label, given.label_values)
    own = {
        self.keys.image: _Converted(image, self._image.to_uint8, self._image.shape),
        self.keys.label: _Converted(label, self._label.to_ids, (*_form(label).shape[:2], 1)),
    }
    self.features = tfds.features.FeaturesDict({**dict(info.features.items()), **own})
    self.warnings = tuple(_warnings(self.keys))

  @property
  def counted_by(self) -> str:
    """What counts as independent in scores: "subject", "volume" or "slice"."""
    if self.keys.subject:
      return "subject"
    return "volume" if self.keys.volume else "slice"

  def describe(self) -> list[str]:
    """Returns lines that say which features are read, and how."""
    named = {"image": self.keys.image, "label": self.keys.label, "subject": self.keys.subject,
             "volume": self.keys.volume, "slice": self.keys.slice,
             "spacing": self.keys.spacing}  # fmt: skip
    parts = [f"{role} {key!r}" for role, key in named.items() if key]
    notes = [note for note in (self._image.note, self._label.note) if note]
    name = self._info.full_name
    lines = [f"{name} was built elsewhere: {', '.join(parts)}" + "".join(f"; {n}" for n in notes)]
    return [*lines, *(f"warning: {name}: {warning}" for warning in self.warnings)]

  def label_scheme(self, num_classes: int | None) -> LabelScheme:
    """Returns the classes: by their names, or numbered by what the labels hold.

    Args:
      num_classes: What the user says; it must be what is there.

    Raises:
      InputError: It is not.
    """
    if self._label.names:
      return LabelScheme.from_names(self._label.names)
    found = self.num_classes
    if num_classes not in (None, found, 1 if found == 2 else found):
      raise InputError(
          f"--num_classes must be {found} for {self._info.full_name}: its labels hold"
          f" {_listed(self._values)}. Got: {num_classes}."
      )
    return LabelScheme.numbered(found)

  @property
  def num_classes(self) -> int:
    """How many classes the labels have, the background included."""
    if self._label.num_classes:
      return self._label.num_classes
    return max(2, max(self._values, default=0) + 1)

  @property
  def _values(self) -> list[int]:
    """The class ids that occur in any split."""
    return _values_of(self._measured)

  def records(self, split: str, files: list[str]) -> RecordTable:
    """Returns the table of a split; all splits are measured when the first one is asked for.

    Args:
      split: Its name.
      files: Its shards.
    """
    table, columns = record_table.scan(files), self._measured[split]
    if len(table) != len(columns["height"]):
      raise InputError(
          f"{files[0]}: the shards of {split!r} hold {len(table)} records, and"
          f" {len(columns['height'])} when they were measured. Copy the dataset again."
      )
    return dataclasses.replace(
        table,
        subject=columns["subject"],
        volume=columns["volume"],
        slice_index=columns["slice_index"],
        height=columns["height"],
        width=columns["width"],
        pixels=_of_width(columns["pixels"], self.num_classes),
        spacing_mm=columns["spacing_mm"] if self.keys.spacing else None,
    )

  @functools.cached_property
  def _measured(self) -> dict[str, dict[str, np.ndarray]]:
    """Split -> column -> values of all its records, from the cache where they are kept."""
    kept = core_files.user_cache_folder() / "tables" / f"{self.fingerprint}.npz"
    splits = self._whole_splits()
    try:
      with np.load(kept, allow_pickle=False) as found:
        return {
            name: {column: found[f"{name}/{column}"] for column in _COLUMNS} for name in splits
        }
    except (OSError, ValueError, KeyError):
      pass  # Not there, or of no use.
    total = sum(split.num_examples for split in splits.values())
    with progress.bar(
        total=total, desc="measuring records", unit="slice", delay=3.0, leave=False
    ) as bar:
      measured = {
          name: self._measure(name, [os.fspath(file) for file in split.filepaths], bar)
          for name, split in splits.items()
      }
    self._check_values(measured)
    arrays = {f"{n}/{c}": values for n, own in measured.items() for c, values in own.items()}
    stream = io.BytesIO()
    np.savez(stream, **arrays)  # type: ignore[arg-type] # No array is called allow_pickle.
    try:
      kept.parent.mkdir(parents=True, exist_ok=True)
      core_files.write_bytes(kept, stream.getvalue())
    except OSError:
      pass  # No room or no permission: the next program measures again.
    return measured

  def _whole_splits(self) -> dict[str, tfds.core.SplitInfo]:
    """Returns the splits that hold records and miss no shard; who asks for another one is told."""
    return {
        name: split
        for name, split in sorted(self._info.splits.items())
        if split.num_examples and all(os.path.isfile(file) for file in split.filepaths)
    }

  @property
  def fingerprint(self) -> str:
    """A digest that changes with the shards, where they lie, and how they are read."""
    state: list[Any] = [_FORMAT, self._info.full_name, repr(self.keys)]
    for name, split in self._whole_splits().items():
      for file in split.filepaths:
        found = os.stat(file)
        state.append([name, os.path.abspath(file), found.st_size, found.st_mtime_ns])
    return hashlib.sha256(json.dumps(state).encode()).hexdigest()[:24]

  def _measure(self, split: str, files: list[str], bar: Any) -> dict[str, np.ndarray]:
    count = self._info.splits[split].num_examples
    columns: dict[str, np.ndarray] = {
        "height": np.zeros(count, np.int32),
        "width": np.zeros(count, np.int32),
        "slice_index": np.full(count, -1, np.int32),
        "spacing_mm": np.full((count, 3), np.nan),
    }
    subjects, volumes = [""] * count, [""] * count
    # As long as their highest class: a column for each of 256 would be gigabytes.
    pixels = [np.zeros(0, np.int64)] * count
    for row, record in self._readable(files):
      if row >= count:
        break
      bar.update()
      where = f"{self._info.full_name}, split {split!r}, record {row}"
      ids = self._label.checked(record[self.keys.label], where)
      size = self._image.checked_size(record[self.keys.image], where)
      if size is None:
        continue  # As what cannot be decoded: training names it.
      columns["height"][row], columns["width"][row] = ids.shape
      if size != ids.shape:
        raise InputError(f"{where}: image and label differ in size: {size} and {ids.shape}.")
      pixels[row] = np.bincount(ids.ravel())
      if self.keys.slice:
        columns["slice_index"][row] = record[self.keys.slice]
      if self.keys.spacing:
        spacing = record[self.keys.spacing]
        columns["spacing_mm"][row, : len(spacing)] = spacing
      subjects[row] = _text(record[self.keys.subject]) if self.keys.subject else ""
      volumes[row] = _text(record[self.keys.volume]) if self.keys.volume else ""
    if self.keys.subject and self.keys.slice and not self.keys.volume:
      volumes = subjects  # One scan per person, cut into these slices.
    return {
        **columns,
        "pixels": _of_width(pixels, max(map(len, pixels), default=0)),
        "subject": np.array(subjects, str),
        "volume": np.array(volumes, str),
    }

  def _readable(self, files: list[str]) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yields (row, features that are measured) of the records that can be decoded.

    Training names the others.
    """
    wanted = [key for role in ("image", "label", "subject", "volume", "slice", "spacing")
              if (key := getattr(self.keys, role))]  # fmt: skip
    partial = tfds.decode.PartialDecoding(dict.fromkeys(wanted, True))
    features = partial.extract_features(self._info.features)
    # Of an encoded image the header says enough.
    decoders = {self.keys.image: tfds.decode.SkipDecoding()} if self._image.encoded else {}
    table = record_table.scan(files)
    payload = tf_data.record_reader(files, table.shard, table.offset)

    def read(row: tf.Tensor) -> tuple[tf.Tensor, Any]:
      return row, features.deserialize_example(payload(row), decoders=decoders)

    records = tf_data.untuned(
        tf.data.Dataset.range(len(table))
        .map(read, num_parallel_calls=tf_data.default_threads(), deterministic=True)
        .ignore_errors()
    )
    for row, record in records.as_numpy_iterator():
      yield int(row), record

  def _check_values(self, measured: Mapping[str, Mapping[str, np.ndarray]]) -> None:
    """Refuses labels whose values are no class ids, with the flag that says what they mean."""
    found = _values_of(measured)
    names, name = self._label.names, self._info.full_name
    if names and found and found[-1] >= len(names):
      raise InputError(
          f"{name}: labels must be ids 0..{len(names) - 1} of {', '.join(names)}. They hold"
          f" {_listed(found)}."
      )
    if names or self._label.num_classes or not found:
      return
    gaps = len(found) < found[-1] + 1
    if 0 not in found or (gaps and found[-1] >= _LOOKS_LIKE_IDS):
      raise InputError(
          f"{name}: labels must be class ids 0, 1, 2, ..., the background 0. They hold"
          f" {_listed(found)}: name the stored values in the order of the classes, the background"
          f" first, such as --label_values={','.join(map(str, found[:_SHOWN_VALUES]))}."
      )


def _warnings(keys: FeatureKeys) -> Iterator[str]:
  if keys.subject is None and keys.volume is None:
    yield (
        "it names no subjects (--subject_key): every slice counts as a subject, slices of one"
        " person may stand in several splits, and intervals are over slices, hence too narrow."
    )
  elif keys.subject is None:
    yield (
        "it names no subjects (--subject_key): every volume counts as a subject; scans of one"
        " person may stand in several splits."
    )
  elif keys.slice is None:
    yield (
        "it names no places of the slices in their volume (--slice_key): surfaces are compared"
        " within slices only."
    )


def _form(feature: tfds.features.FeatureConnector) -> FeatureForm:
  """Returns what a feature is like; nested ones are like nothing that is looked for."""
  if not isinstance(feature.shape, tuple) or isinstance(feature, tfds.features.FeaturesDict):
    return FeatureForm((0,) * 9, np.dtype(object))
  if isinstance(feature, tfds.features.Sequence | tfds.features.Dataset):
    return FeatureForm((0,) * 9, np.dtype(object))
  if isinstance(feature, tfds.features.ClassLabel):
    return FeatureForm((), np.dtype(np.int64))
  dtype = np.dtype(feature.np_dtype)
  return FeatureForm(feature.shape, np.dtype(object) if dtype.kind in "OSU" else dtype)


class _ImageForm:
  """How the images are stored, and how they become uint8 [H, W, C]."""

  def __init__(self, feature: tfds.features.FeatureConnector, key: str):
    form = _form(feature)
    self._scaled = form.dtype.kind == "f"
    if form.dtype != np.uint8 and not self._scaled:
      raise InputError(
          f"Feature {key!r} must hold images of uint8, or of floats in 0..1. It holds"
          f" {form.dtype.name}. Bring the intensities to 8 bits where the dataset is built."
      )
    channels = form.shape[2] if len(form.shape) == 3 else 1
    self._key, self._flat, self.shape = key, len(form.shape) == 2, (*form.shape[:2], channels)
    self.encoded = isinstance(feature, tfds.features.Image) and not self._scaled
    self.note = "image floats in 0..1 become 0..255" if self._scaled else ""

  def to_uint8(self, image: tf.Tensor) -> tf.Tensor:
    """[H, W] or [H, W, C] -> uint8 [H, W, C]."""
    if self._scaled:
      image = tf.cast(tf.clip_by_value(tf.round(image * 255), 0, 255), tf.uint8)
    return image[..., None] if self._flat else image

  def checked_size(self, image: Any, where: str) -> tuple[int, int] | None:
    """Returns (height, width) of a stored image, None where its bytes are no image.

    Raises:
      InputError: Floats are out of range.
    """
    if self.encoded:
      try:
        with Image.open(io.BytesIO(image)) as header:
          return header.height, header.width
      except OSError:
        return None
    if self._scaled and image.size and not (image.min() >= 0 and image.max() <= 1):
      raise InputError(
          f"{where}: images of floats must lie in 0..1. Found {image.min():g}..{image.max():g} in"
          f" {self._key!r}. Scale them where the dataset is built."
      )
    return image.shape[0], image.shape[1]


class _LabelForm:
  """How the labels are stored, and how they become class ids uint8 [H, W, 1].

  Attributes:
    names: Of the classes, by id; empty where the dataset names none.
    num_classes: What the form alone says; None: the values do.
  """

  def __init__(self, feature: tfds.features.FeatureConnector, key: str, values: tuple[int, ...]):
    form = _form(feature)
    channels = form.shape[2] if len(form.shape) == 3 else 1
    self._key, self._values = key, values
    self._is_float, self._flat = form.dtype.kind == "f", len(form.shape) == 2
    if channels is None:
      raise InputError(f"Feature {key!r} must have a known number of channels. It has any.")
    if channels > 1 and isinstance(feature, tfds.features.Image):
      raise InputError(
          f"Feature {key!r} holds colour images of {channels} channels, no class ids. Export image"
          " and mask files and build them by their colours: flexunet build image_mask --palette."
      )
    self._one_hot = channels > 1
    if values and (self._one_hot or form.dtype == np.bool_):
      raise InputError(f"--label_values: feature {key!r} is bool or one-hot and needs none.")
    if len(set(values)) < len(values) or not all(0 <= value < _MOST_CLASSES for value in values):
      raise InputError(f"--label_values must be different values of 0..255. Got: {values}.")
    self.names = list(getattr(feature, "names", None) or ())
    known = 2 if form.dtype == np.bool_ else channels if self._one_hot else len(values)
    self.num_classes: int | None = len(self.names) or known or None
    self.note = "label one-hot" if self._one_hot else ""

  def to_ids(self, label: tf.Tensor) -> tf.Tensor:
    """A stored label -> class ids uint8 [H, W, 1]."""
    if self._one_hot:
      return tf.cast(tf.argmax(tf.cast(label, tf.float32), axis=-1), tf.uint8)[..., None]
    label = label[..., None] if self._flat else label
    if self._values:
      return tf.gather(tf.constant(self._table()), tf.cast(label, tf.int32))
    return tf.cast(label, tf.uint8)

  def _table(self) -> np.ndarray:
    """Returns uint8 [256]: stored value -> class id."""
    table = np.zeros(_MOST_CLASSES, np.uint8)
    for number, value in enumerate(self._values):
      table[value] = number
    return table

  def checked(self, label: np.ndarray, where: str) -> np.ndarray:
    """Returns class ids [H, W] of a stored label; InputError where it is none."""
    if self._one_hot:
      ones = label.astype(np.float32)
      if not (np.isin(ones, (0, 1)).all() and (ones.sum(axis=-1) == 1).all()):
        raise InputError(
            f"{where}: a label of several channels must be one-hot, with a channel for the"
            f" background: one 1 in each pixel. {self._key!r} is not; classes that overlap cannot"
            " be told apart here."
        )
      return ones.argmax(axis=-1)
    label = label if self._flat else label[..., 0]
    whole = label.astype(np.int64)
    if self._is_float and (whole != label).any():
      raise InputError(f"{where}: labels of floats must be whole class ids. {self._key!r} is not.")
    if whole.size and not (whole.min() >= 0 and whole.max() < _MOST_CLASSES):
      raise InputError(
          f"{where}: labels must lie in 0..255. Found {whole.min()}..{whole.max()} in"
          f" {self._key!r}."
      )
    if self._values:
      strange = set(np.unique(whole).tolist()) - set(self._values)
      if strange:
        raise InputError(
            f"{where}: --label_values={','.join(map(str, self._values))} must list every stored"
            f" value. Found also: {_listed(sorted(strange))}."
        )
      return self._table()[whole]
    return whole


class _Converted(tfds.features.FeatureConnector):
  """A feature that is stored as another one and converted after it is decoded."""

  def __init__(
      self,
      stored: tfds.features.FeatureConnector,
      convert: Callable[[tf.Tensor], tf.Tensor],
      shape: tuple[int | None, ...],
  ):
    super().__init__()
    self._stored, self._convert, self._shape = stored, convert, shape
    self.names = getattr(stored, "names", None)

  def get_tensor_info(self) -> tfds.features.TensorInfo:
    """Returns what it is after conversion."""
    return tfds.features.TensorInfo(shape=self._shape, dtype=np.uint8)

  def get_serialized_info(self) -> Any:
    """Returns what lies in the records."""
    return self._stored.get_serialized_info()

  def encode_example(self, example_data: Any) -> Any:
    """Is for writing, which nobody does."""
    raise NotImplementedError("Datasets of others are read only.")

  def decode_example(self, tfexample_data: Any) -> tf.Tensor:
    """Returns the converted feature."""
    return self._convert(self._stored.decode_example(tfexample_data))

  def decode_example_np(self, example_data: Any) -> np.ndarray:
    """Returns the converted feature."""
    return self._convert(tf.convert_to_tensor(self._stored.decode_example_np(example_data))).numpy()

  def to_json_content(self) -> Any:
    """Is for writing, which nobody does."""
    raise NotImplementedError("Datasets of others are read only.")

  @classmethod
  def from_json_content(cls, value: Any) -> _Converted:
    """Is for reading what `to_json_content` writes."""
    raise NotImplementedError("Datasets of others are read only.")


def _of_width(rows: Sequence[np.ndarray] | np.ndarray, width: int) -> np.ndarray:
  """Returns int64 [N, width] of rows of any length: zeros are added, columns behind it left out."""
  out = np.zeros((len(rows), width), np.int64)
  if isinstance(rows, np.ndarray):
    out[:, : rows.shape[1]] = rows[:, :width]
    return out
  for number, row in enumerate(rows):
    out[number, : len(row)] = row[:width]
  return out


def _values_of(measured: Mapping[str, Mapping[str, np.ndarray]]) -> list[int]:
  """Returns the class ids that occur in any split."""
  found = (np.flatnonzero(one["pixels"].sum(axis=0)).tolist() for one in measured.values())
  return sorted(set().union(*found))


def _text(value: Any) -> str:
  return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


def _listed(values: list[int]) -> str:
  shown = ", ".join(map(str, values[:_SHOWN_VALUES]))
  return shown + (", ..." if len(values) > _SHOWN_VALUES else "")
