"""`tf.train.Example` from its bytes, without TensorFlow and protobuf.

The message is three levels deep and never changes; a strict reader of it fits one screen. The
library protobuf would be a dependency more, for which the message must be declared a second time:
two declarations of one message exclude each other in a process that has TensorFlow as well.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator

import numpy as np

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
# Values of a feature: its bytes, or its numbers as float32 [N] or int64 [N].
Values = list[memoryview] | np.ndarray


class MalformedExampleError(ValueError):
  """Bytes that are no `tf.train.Example`."""


def parse(payload: bytes | memoryview, wanted: Collection[str] | None = None) -> dict[str, Values]:
  """Returns the values of the features of an example.

  Args:
    payload: A serialized example.
    wanted: Features to be read; the others are skipped. None: all.

  Returns:
    Feature -> its values; a feature without values is left out. Byte values are parts of
    `payload`, not copies.

  Raises:
    MalformedExampleError: It is none.
  """
  found: dict[str, Values] = {}
  try:
    for features in _fields(memoryview(payload), 1, _BYTES):
      for entry in _fields(features, 1, _BYTES):
        name, value = _entry(entry)
        if (wanted is None or name in wanted) and len(value):
          found[name] = _values(value)
  except (IndexError, ValueError, UnicodeDecodeError) as error:
    raise MalformedExampleError(f"no tf.train.Example: {error}") from error
  return found


def _varint(data: memoryview, position: int) -> tuple[int, int]:
  """Returns (the number at a position, the position after it)."""
  value = data[position]
  if value < 0x80:
    return value, position + 1
  value &= 0x7F
  for shift in range(7, 70, 7):
    position += 1
    byte = data[position]
    value |= (byte & 0x7F) << shift
    if byte < 0x80:
      return value, position + 1
  raise ValueError("a number has more than ten bytes")


def _messages(data: memoryview) -> Iterator[tuple[int, int, memoryview]]:
  """Yields (number, wire type, content) of each field of a message."""
  position, size = 0, len(data)
  while position < size:
    tag, start = _varint(data, position)
    kind = tag & 7
    if kind == _BYTES:
      length, start = _varint(data, start)
      position = start + length
    elif kind == _VARINT:
      _, position = _varint(data, start)
    elif kind in (_FIXED32, _FIXED64):
      position = start + (4 if kind == _FIXED32 else 8)
    else:
      raise ValueError(f"a field has the wire type {kind}")
    if position > size:
      raise ValueError("a field ends after its message")
    yield tag >> 3, kind, data[start:position]


def _fields(data: memoryview, number: int, kind: int) -> Iterator[memoryview]:
  """Yields the contents of a message whose fields are all of one number and kind."""
  for found, wire_type, content in _messages(data):
    if (found, wire_type) != (number, kind):
      raise ValueError(f"field {found} of wire type {wire_type} where {number}, {kind} must be")
    yield content


def _entry(data: memoryview) -> tuple[str, memoryview]:
  """Returns (name, feature) of an entry of the map of features."""
  parts = {number: content for number, kind, content in _messages(data) if kind == _BYTES}
  if not {1} <= set(parts) <= {1, 2}:
    raise ValueError("a feature has no name")
  return str(parts[1], "utf-8"), parts.get(2, memoryview(b""))


def _values(feature: memoryview) -> Values:
  """Returns the values of a feature that is not empty."""
  [(number, kind, content), *more] = _messages(feature)
  if more or kind != _BYTES or number not in (1, 2, 3):
    raise ValueError("a feature must be one list of bytes, floats or integers")
  if number == 1:
    return list(_fields(content, 1, _BYTES))
  # Numbers come packed, or, of some writers, one field each.
  packed = b"".join(part for field, _, part in _messages(content) if field == 1)
  return np.frombuffer(packed, "<f4") if number == 2 else _integers(packed)


def _integers(packed: bytes) -> np.ndarray:
  """Returns int64 [N] of numbers of seven bits a byte, the lowest first."""
  if len(packed) == 1 and packed[0] < 0x80:  # Most features: a small number.
    return np.array([packed[0]], np.int64)
  data = np.frombuffer(packed, np.uint8)
  ends = np.flatnonzero(data < 0x80)
  if not len(data):
    return np.zeros(0, np.int64)
  if not len(ends) or ends[-1] != len(data) - 1:
    raise ValueError("a list of integers ends within a number")
  starts = np.concatenate([[0], ends[:-1] + 1])
  lengths = ends + 1 - starts
  if lengths.max() > 10:
    raise ValueError("a number has more than ten bytes")
  shifts = 7 * (np.arange(len(data)) - np.repeat(starts, lengths))
  parts = (data & 0x7F).astype(np.uint64) << shifts.astype(np.uint64)
  return np.add.reduceat(parts, starts).view(np.int64)
