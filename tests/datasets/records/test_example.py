"""The reader of tf.train.Example, against the library that defines it."""

import contextlib

import numpy as np
import pytest
from tensorflow_datasets.proto import tf_example_pb2

from flexunet.datasets.records import example


def made(**features) -> bytes:
  message = tf_example_pb2.Example()
  for name, values in features.items():
    feature = message.features.feature[name]
    if isinstance(values[0], bytes):
      feature.bytes_list.value[:] = values
    elif isinstance(values[0], float):
      feature.float_list.value[:] = values
    else:
      feature.int64_list.value[:] = values
  return message.SerializeToString(deterministic=True)


def test_every_kind_of_value_is_read():
  found = example.parse(
      made(image=[b"x" * 300], names=[b"", b"a"], mm=[1.5, float("nan")], fold=[-1], one=[7])
  )
  assert [bytes(one) for one in found["image"]] == [b"x" * 300]
  assert [bytes(one) for one in found["names"]] == [b"", b"a"]
  np.testing.assert_array_equal(found["mm"], np.array([1.5, np.nan], np.float32))
  assert found["fold"].tolist() == [-1] and found["one"].tolist() == [7]


@pytest.mark.parametrize("numbers", [[0], [127], [128], [-(2**63), 2**63 - 1, 0, 300], [1] * 50])
def test_integers_of_any_length_are_those_that_were_written(numbers):
  found = example.parse(made(number=numbers))["number"]
  assert found.tolist() == numbers and found.dtype == np.int64


def test_features_that_are_not_wanted_are_skipped():
  assert set(example.parse(made(a=[1], b=[b"y"], c=[1.0]), wanted={"b"})) == {"b"}


def test_a_feature_without_values_is_left_out():
  message = tf_example_pb2.Example()
  message.features.feature["empty"].Clear()
  assert example.parse(message.SerializeToString()) == {}
  assert example.parse(b"") == {}


def test_numbers_that_are_not_packed_are_read():
  # Features {map entry {name "n", feature {floats {1.0 unpacked}}}}, by the wire format.
  floats = b"\x0d" + np.float32(1.0).tobytes()
  feature = b"\x12" + bytes([len(floats)]) + floats
  entry = b"\x0a\x01n\x12" + bytes([len(feature)]) + feature
  features = b"\x0a" + bytes([len(entry)]) + entry
  found = example.parse(b"\x0a" + bytes([len(features)]) + features)
  assert found["n"].tolist() == [1.0]


@pytest.mark.parametrize("cut", range(1, 40))
def test_a_message_that_is_cut_is_no_example(cut):
  whole = made(image=[b"x" * 20], fold=[3], mm=[1.0])
  with pytest.raises(example.MalformedExampleError, match="no tf.train.Example"):
    example.parse(whole[: len(whole) - cut])


def test_changed_bytes_are_an_error_or_another_example_but_no_other_exception():
  whole = made(image=[b"x" * 20], fold=[3], mm=[1.0], spacing=[2**40, -5])
  for place in range(len(whole)):
    for value in (0, 0x7F, 0x80, 0xFF):
      changed = whole[:place] + bytes([value]) + whole[place + 1 :]
      with contextlib.suppress(example.MalformedExampleError):
        example.parse(changed)
