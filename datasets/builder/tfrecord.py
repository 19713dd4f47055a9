"""The TFRecord container in NumPy: the build needs no TensorFlow, so its workers start fast.

A record is: length (uint64, little endian), masked CRC-32C of the length, payload, masked CRC-32C
of the payload. The checksum is linear over GF(2), so the bytes of a payload are cut into lanes,
all lanes advance one byte per NumPy step, and the lanes are joined by "append n zero bytes".
"""

from __future__ import annotations

import functools
import struct

import numpy as np

_POLYNOMIAL = 0x82F63B78  # Castagnoli, bit-reversed (RFC 3720).
_ONES = 0xFFFFFFFF
_LANE_BYTES = 256
# An odd mask against payloads that hold their own checksums (the format's definition).
_MASK_DELTA = 0xA282EAD8
FRAME_BYTES = 16
HEADER_BYTES = 12


@functools.cache
def _table() -> np.ndarray:
  """uint32 [256]: the checksum step of each byte."""
  table: np.ndarray = np.arange(256, dtype=np.uint32)
  for _ in range(8):
    table = (table >> 1) ^ np.where(table & 1, np.uint32(_POLYNOMIAL), np.uint32(0))
  return table


@functools.cache
def _zeros_table(power: int) -> np.ndarray:
  """uint32 [4, 256]: appends 2**power zero bytes to a checksum, looked up byte by byte."""
  if power == 0:
    shifts = 8 * np.arange(4, dtype=np.uint32)
    registers = np.arange(256, dtype=np.uint32)[None] << shifts[:, None]
    return (registers >> 8) ^ _table()[registers & 0xFF]
  half = _zeros_table(power - 1)
  return _apply(half, half)


def _apply(table: np.ndarray, registers: np.ndarray) -> np.ndarray:
  result = table[0][registers & 0xFF]
  for byte in range(1, 4):
    result = result ^ table[byte][(registers >> np.uint32(8 * byte)) & 0xFF]
  return result


def _append_zeros(registers: np.ndarray, count: int) -> np.ndarray:
  power = 0
  while count:
    if count & 1:
      registers = _apply(_zeros_table(power), registers)
    count >>= 1
    power += 1
  return registers


def crc32c(payload: bytes) -> int:
  """Returns the CRC-32C checksum of some bytes."""
  table = _table()
  register = np.uint32(_ONES)
  whole = len(payload) // _LANE_BYTES
  if whole > 1:
    lanes = np.frombuffer(payload, np.uint8, whole * _LANE_BYTES).reshape(whole, _LANE_BYTES)
    columns = np.ascontiguousarray(lanes.T)
    registers = np.zeros(whole, np.uint32)
    registers[0] = register
    for column in columns:
      registers = (registers >> 8) ^ table[(registers ^ column) & 0xFF]
    register = _join(registers)
    payload = payload[whole * _LANE_BYTES :]
  value = int(register)
  small = _small_table()
  for byte in payload:
    value = (value >> 8) ^ small[(value ^ byte) & 0xFF]
  return value ^ _ONES


def _join(registers: np.ndarray) -> np.uint32:
  """Joins neighbouring lanes in pairs until one is left."""
  length = _LANE_BYTES
  while len(registers) > 1:
    if len(registers) % 2:
      # A lane of nothing in front changes no checksum: zeros before the first byte stay zero.
      registers = np.concatenate([np.zeros(1, np.uint32), registers])
    registers = _append_zeros(registers[0::2], length) ^ registers[1::2]
    length *= 2
  return registers[0]


@functools.cache
def _small_table() -> tuple[int, ...]:
  return tuple(int(entry) for entry in _table())


def masked_crc(payload: bytes) -> int:
  """Returns the checksum as the container stores it."""
  crc = crc32c(payload)
  return (((crc >> 15) | (crc << 17)) + _MASK_DELTA) & _ONES


def frame(payload: bytes, payload_crc: int) -> bytes:
  """Returns a record: the payload between its header and its masked checksum."""
  length = struct.pack("<Q", len(payload))
  return b"".join(
      (length, struct.pack("<I", masked_crc(length)), payload, struct.pack("<I", payload_crc))
  )


def payload_length(header: bytes) -> int:
  """Returns the length that the header of a record states."""
  return int.from_bytes(header[:8], "little")
