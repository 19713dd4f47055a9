"""Turns one case into serialized records in a work file of its own; runs in worker processes.

Workers never import TensorFlow: images are encoded by Pillow and the container is NumPy.
"""

from __future__ import annotations

import dataclasses
import io
import json
import os
import pathlib
import secrets
import zlib
from collections.abc import Iterator, Mapping
from typing import Any, Protocol

import numpy as np
from PIL import Image

from flexunet.core import files
from flexunet.core.errors import InputError
from flexunet.datasets.builder import tfrecord
from flexunet.datasets.builder.raw_folder import Case, Notes

# Half the time of zlib's default effort (6) on CT slices, for less than 1 % more bytes.
_PNG_LEVEL = 4


class CaseReader(Protocol):
  """What reading cases needs of a dataset builder."""

  @property
  def info(self) -> Any:
    """The `tfds.core.DatasetInfo`, for its features."""

  def records_of(
      self, case: Case, fold: int, notes: Notes
  ) -> Iterator[tuple[str, dict[str, Any], dict[str, Any]]]:
    """Yields (key, example, columns of the record table) of one case."""


@dataclasses.dataclass(frozen=True)
class CaseTask:
  """One case to be read.

  Attributes:
    case: As the raw folder names it; splits are decided by these names.
    fold: Of its subject.
    stem: Where its work files go.
    written: The same under the names of its records.
  """

  case: Case
  fold: int
  stem: pathlib.Path
  written: Case

  def to_json(self) -> dict[str, Any]:
    """Returns it as JSON, for a worker process."""
    return {"case": self.written.to_json(), "fold": self.fold, "stem": os.fspath(self.stem)}

  @classmethod
  def from_json(cls, values: Mapping[str, Any]) -> CaseTask:
    """Reads what `to_json` wrote."""
    case = Case.from_json(values["case"])
    return cls(case, values["fold"], pathlib.Path(values["stem"]), written=case)


@dataclasses.dataclass(frozen=True, slots=True)
class RecordRow:
  """One record of a work file, with what the tables of the build need.

  Attributes:
    fold: What the payload says; the build may decide otherwise when all cases are read.
    content: A digest of each of its images that shows something (`identical_images`).
  """

  key: str
  start: int
  length: int
  crc: int
  slice_index: int | None
  height: int | None
  width: int | None
  pixels: tuple[int, ...]
  fold: int
  content: tuple[str, ...] = ()


def write_case(builder: CaseReader, task: CaseTask) -> str | None:
  """Writes `<stem>.records` and `<stem>.json`; the latter appears last and makes both count.

  Returns:
    None, or the message of the `InputError` that reading the case raised.
  """
  # Read only where records are written: what needs a row or a PNG must not load TFDS.
  from tensorflow_datasets.core import example_serializer

  features = builder.info.features
  serializer = example_serializer.ExampleSerializer(features.get_serialized_info())
  notes = Notes()
  rows: list[RecordRow] = []
  # A name of its own: a worker of a killed build may still be writing this case.
  temporary = task.stem.with_suffix(f".{secrets.token_hex(4)}.part")
  start, checksum = 0, 0
  try:
    with open(temporary, "wb") as stream:
      for key, example, row in builder.records_of(task.written, task.fold, notes):
        encoded = features.encode_example(example)
        # Without `deterministic` the fields come in another order in every process.
        payload = serializer.get_tf_example(encoded).SerializeToString(deterministic=True)
        stream.write(payload)
        crc = tfrecord.masked_crc(payload)
        rows.append(
            RecordRow(
                key=key, start=start, length=len(payload), crc=crc, fold=task.fold, **row
            )
        )  # fmt: skip
        start += len(payload)
        checksum = zlib.crc32(payload, checksum)
  except InputError as error:
    temporary.unlink(missing_ok=True)
    return str(error)
  os.replace(temporary, task.stem.with_suffix(".records"))
  index = {
      "bytes": start,
      "crc32": checksum,
      "rows": [dataclasses.asdict(row) for row in rows],
      "notes": dataclasses.asdict(notes),
  }
  temporary.write_text(json.dumps(index))
  os.replace(temporary, task.stem.with_suffix(".json"))
  return None


def is_finished(stem: pathlib.Path) -> bool:
  """Returns whether an earlier build wrote this case whole."""
  try:
    index = files.read_json(stem.with_suffix(".json"))
    checksum, size = 0, 0
    with open(stem.with_suffix(".records"), "rb") as stream:
      while block := stream.read(1 << 20):
        checksum, size = zlib.crc32(block, checksum), size + len(block)
    return (size, checksum) == (index["bytes"], index["crc32"])
  except (InputError, OSError, KeyError, TypeError):
    return False


def read_index(stem: pathlib.Path) -> tuple[list[RecordRow], Notes]:
  """Returns the rows and notes of a finished case."""
  index = files.read_json(stem.with_suffix(".json"))
  rows = []
  for row in index["rows"]:
    lists = {name: tuple(row[name]) for name in ("pixels", "content")}
    rows.append(RecordRow(**{**row, **lists}))
  return rows, Notes(**index["notes"])


def encode_png(pixels: np.ndarray) -> bytes:
  """Returns uint8 [H, W] or [H, W, 3] as PNG."""
  buffer = io.BytesIO()
  Image.fromarray(pixels).save(buffer, "PNG", compress_level=_PNG_LEVEL)
  return buffer.getvalue()
