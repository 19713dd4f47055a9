"""The TFRecord container in NumPy: the build needs no TensorFlow, so its workers start fast.

A record is: length (uint64, little endian), masked CRC-32C of the length, payload, masked CRC-32C
of the payload. The checksum is linear over GF(2): that of a block is the XOR of what each byte adds
by its place, looked up in a table, and the checksums of blocks are joined in the same way.
"""

from __future__ import annotations

import functools
import struct

import numpy as np

_POLYNOMIAL = 0x82F63B78  # Castagnoli, bit-reversed (RFC 3720).
_ONES = 0xFFFFFFFF
# Measured: the tables (512 and 256 KiB) stay in the cache of a core, and so does what is worked on.
_BLOCK_BYTES = 512
_BLOCKS = 64
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


def _shifted(registers: np.ndarray) -> np.ndarray:
  """Returns checksums to which one zero byte is appended."""
  return (registers >> 8) ^ _table()[registers & 0xFF]


@functools.cache
def _byte_table() -> np.ndarray:
  """uint32 [_BLOCK_BYTES * 256]: what a byte at each place of a block adds to its checksum."""
  rows = np.empty((_BLOCK_BYTES, 256), np.uint32)
  rows[-1] = _table()
  for place in range(_BLOCK_BYTES - 2, -1, -1):
    rows[place] = _shifted(rows[place + 1])
  return rows.ravel()


@functools.cache
def _block_table() -> np.ndarray:
  """uint32 [_BLOCKS * 4 * 256]: what each byte of a block's checksum is after all later blocks."""
  rows = np.empty((_BLOCKS, 4, 256), np.uint32)
  shifts = 8 * np.arange(4, dtype=np.uint32)
  rows[-1] = np.arange(256, dtype=np.uint32)[None] << shifts[:, None]
  step = rows[-1]
  for _ in range(_BLOCK_BYTES):
    step = _shifted(step)
  for block in range(_BLOCKS - 2, -1, -1):
    rows[block] = _four_bytes(step, rows[block + 1])
  return rows.ravel()


def _four_bytes(table: np.ndarray, registers: np.ndarray) -> np.ndarray:
  """Returns registers looked up byte by byte in uint32 [4, 256]."""
  result = table[0][registers & 0xFF]
  for byte in range(1, 4):
    result = result ^ table[byte][(registers >> np.uint32(8 * byte)) & 0xFF]
  return result


@functools.cache
def _places(count: int) -> np.ndarray:
  """int64 [count]: where the entries of each place begin in a table of 256 entries a place."""
  return 256 * np.arange(count, dtype=np.int64)


def crc32c(payload: bytes | memoryview) -> int:
  """Returns the CRC-32C checksum of some bytes."""
  register = _ONES
  data = np.frombuffer(payload, np.uint8)
  for start in range(0, len(data), _BLOCK_BYTES * _BLOCKS):
    register = _advanced(register, data[start : start + _BLOCK_BYTES * _BLOCKS])
  return register ^ _ONES


def _advanced(register: int, data: np.ndarray) -> int:
  """Returns the register after at most _BLOCKS blocks of bytes."""
  first = np.frombuffer(register.to_bytes(4, "little"), np.uint8)
  blocks = -(-len(data) // _BLOCK_BYTES)
  if len(data) < 4:  # The register reaches beyond the data.
    small = _small_table()
    for byte in data.tolist():
      register = (register >> 8) ^ small[(register ^ byte) & 0xFF]
    return register
  # Zeros in front change no checksum that begins with 0: so the first block may be a short one.
  padded = np.zeros(blocks * _BLOCK_BYTES, np.int64)
  lead = len(padded) - len(data)
  padded[lead:] = data
  padded[lead : lead + 4] ^= first
  index = padded.reshape(blocks, _BLOCK_BYTES)
  index += _places(_BLOCK_BYTES)
  registers = np.bitwise_xor.reduce(_byte_table().take(index), axis=1)
  if blocks == 1:
    return int(registers[0])
  places = _places(4 * _BLOCKS)[-4 * blocks :]
  bytes_of = registers.astype("<u4").view(np.uint8).astype(np.int64) + places
  return int(np.bitwise_xor.reduce(_block_table().take(bytes_of)))


@functools.cache
def _small_table() -> tuple[int, ...]:
  return tuple(int(entry) for entry in _table())


def masked_crc(payload: bytes | memoryview) -> int:
  """Returns the checksum as the container stores it."""
  crc = crc32c(payload)
  return (((crc >> 15) | (crc << 17)) + _MASK_DELTA) & _ONES


def frame(payload: bytes, payload_crc: int) -> bytes:
  """Returns a record: the payload between its header and its masked checksum."""
  length = struct.pack("<Q", len(payload))
  return b"".join(
      (length, struct.pack("<I", masked_crc(length)), payload, struct.pack("<I", payload_crc))
  )


def payload_length(header: bytes | memoryview) -> int:
  """Returns the length that the header of a record states."""
  return int.from_bytes(header[:8], "little")
