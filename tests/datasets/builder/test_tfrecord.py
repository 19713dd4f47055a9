"""The TFRecord container, against its definition and against TensorFlow."""

import pytest

from flexunet.datasets.builder import tfrecord


def test_the_checksum_is_that_of_the_standard():
  assert tfrecord.crc32c(b"123456789") == 0xE3069283  # The check value of CRC-32C.
  assert tfrecord.crc32c(bytes(32)) == 0x8A9136AA  # RFC 3720, appendix B.4.
  assert tfrecord.crc32c(b"\xff" * 32) == 0x62A8AB43


@pytest.mark.parametrize("length", [0, 1, 255, 256, 257, 511, 512, 513, 767, 768, 1281, 70001])
def test_long_payloads_get_the_checksum_that_one_byte_at_a_time_gives(length):
  payload = bytes((7 * index * index + index) % 251 for index in range(length))
  register = 0xFFFFFFFF
  for byte in payload:
    register ^= byte
    for _ in range(8):
      register = (register >> 1) ^ (0x82F63B78 if register & 1 else 0)
  assert tfrecord.crc32c(payload) == register ^ 0xFFFFFFFF


@pytest.mark.slow
def test_tensorflow_writes_the_same_bytes(tmp_path):
  import tensorflow as tf

  payloads = [bytes(range(256)) * count for count in (0, 1, 3, 40)] + [b"x"]
  with tf.io.TFRecordWriter(str(tmp_path / "theirs")) as writer:
    for payload in payloads:
      writer.write(payload)
  ours = b"".join(tfrecord.frame(p, tfrecord.masked_crc(p)) for p in payloads)
  assert ours == (tmp_path / "theirs").read_bytes()
