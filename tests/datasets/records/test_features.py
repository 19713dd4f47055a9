"""Features decoded without TensorFlow, against what TFDS wrote and TensorFlow decodes."""

import pickle

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds
from PIL import Image
from tensorflow_datasets.core import example_serializer

from flexunet.core.errors import InputError
from flexunet.datasets.records import features as record_features
from flexunet.datasets.records.features import RecordDecoder, read_features

_DRAW = np.random.default_rng(3)
_PIXELS = _DRAW.integers(0, 256, (17, 13, 4), np.uint8)
VALUES = {
    "grey": (tfds.features.Image(shape=(None, None, 1)), _PIXELS[..., :1]),
    "rgb": (tfds.features.Image(shape=(None, None, 3)), _PIXELS[..., :3]),
    "rgba": (tfds.features.Image(shape=(17, 13, 4)), _PIXELS),
    "deep": (
        tfds.features.Image(shape=(None, None, 1), dtype=np.uint16, encoding_format="png"),
        _DRAW.integers(0, 2**16, (9, 11, 1), np.uint16),
    ),
    "real": (
        tfds.features.Image(shape=(None, None, 1), dtype=np.float32),
        _DRAW.normal(size=(9, 11, 1)).astype(np.float32),
    ),
    "mask": (
        tfds.features.LabeledImage(labels=["a", "b"], shape=(None, None, 1)), _PIXELS[..., :1] % 2
    ),
    "voxels": (
        tfds.features.Tensor(shape=(None, None, None), dtype=np.int16, encoding="zlib"),
        _DRAW.integers(-2000, 2000, (3, 4, 5), np.int16),
    ),
    "affine": (
        tfds.features.Tensor(shape=(4, 4), dtype=np.float64, encoding="bytes"),
        _DRAW.normal(size=(4, 4)),
    ),
    "slope": (tfds.features.Tensor(shape=(), dtype=np.float64, encoding="bytes"), np.float64(2.5)),
    "mm": (tfds.features.Tensor(shape=(2,), dtype=np.float32), np.array([np.nan, 1], np.float32)),
    "list": (tfds.features.Tensor(shape=(None,), dtype=np.int64), np.arange(-3, 200)),
    "none": (tfds.features.Tensor(shape=(None,), dtype=np.float32), np.zeros(0, np.float32)),
    "pngs": (tfds.features.Tensor(shape=(None,), dtype=np.str_), np.array([b"\x89x", b""], object)),
    "large": (tfds.features.Scalar(np.uint64), np.uint64(2**63 + 1)),
    "fold": (tfds.features.Scalar(np.int32), np.int32(-1)),
    "flag": (tfds.features.Scalar(np.bool_), np.bool_(True)),
    "class": (tfds.features.ClassLabel(num_classes=3), np.int64(2)),
    "box": (tfds.features.BBoxFeature(), tfds.features.BBox(0.0, 0.25, 0.5, 1.0)),
    "series": (tfds.features.Sequence(np.int32), np.arange(4, dtype=np.int32)),
    "text": (tfds.features.Text(), "hé"),
    "inner": (
        tfds.features.FeaturesDict({"x": np.int64, "t": tfds.features.Text()}),
        {"x": 4, "t": "u"},
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def written(tmp_path_factory):
  """(folder of features.json, features of TFDS, a record)."""
  folder = tmp_path_factory.mktemp("features")
  features = tfds.features.FeaturesDict({name: feature for name, (feature, _) in VALUES.items()})
  features.save_config(folder)
  serializer = example_serializer.ExampleSerializer(features.get_serialized_info())
  encoded = features.encode_example({name: value for name, (_, value) in VALUES.items()})
  payload = serializer.get_tf_example(encoded).SerializeToString(deterministic=True)
  return folder, features, payload


def flat(record, outer=""):
  for name, value in record.items():
    if isinstance(value, dict):
      yield from flat(value, f"{outer}{name}/")
    else:
      yield f"{outer}{name}", value


def test_every_feature_has_the_value_that_tensorflow_decodes(written):
  folder, features, payload = written
  ours = RecordDecoder(read_features(folder))(payload)
  theirs = dict(flat(tfds.as_numpy(features.deserialize_example(payload))))
  assert set(ours) == set(theirs)
  for name, value in theirs.items():
    if isinstance(value, bytes):
      assert ours[name].encode() == value, name
      continue
    assert (ours[name].dtype, ours[name].shape) == (value.dtype, value.shape), name
    if value.dtype == object:
      assert ours[name].tolist() == value.tolist(), name
    else:
      assert ours[name].tobytes() == value.tobytes(), name


def test_arrays_may_be_written_to(written):
  folder, _, payload = written
  for name, value in RecordDecoder(read_features(folder))(payload).items():
    assert not isinstance(value, np.ndarray) or value.flags.writeable, name


def test_only_the_features_that_are_chosen_are_decoded(written):
  folder, _, payload = written
  decoder = RecordDecoder(read_features(folder), ["text", "fold"])
  again = pickle.loads(pickle.dumps(decoder))  # noqa: S301  Written in the line itself.
  assert decoder(payload) == again(payload) == {"text": "hé", "fold": -1}
  with pytest.raises(InputError, match="Unknown feature 'txt'. Did you mean 'text'"):
    RecordDecoder(read_features(folder), ["txt"])


def test_what_is_not_decoded_here_is_refused_by_its_name(tmp_path):
  images = tfds.features.Sequence(tfds.features.Image(shape=(None, None, 1)))
  tfds.features.FeaturesDict({"film": images, "fold": np.int32}).save_config(tmp_path)
  known = read_features(tmp_path)
  with pytest.raises(InputError, match=r"'film' is of the class Sequence of Image.*features="):
    RecordDecoder(known)
  RecordDecoder(known, ["fold"])


def test_a_missing_or_damaged_list_of_features_is_one_line(tmp_path):
  with pytest.raises(InputError, match="features.json"):
    read_features(tmp_path)
  (tmp_path / "features.json").write_text('{"pythonClassName": "x.FeaturesDict"}')
  with pytest.raises(InputError, match=r"features.json: must be as TFDS wrote it"):
    read_features(tmp_path)


@pytest.mark.parametrize("mode, channels", [("P", 3), ("1", 1), ("L", 3), ("RGB", 4)])
def test_other_forms_of_png_are_those_of_tensorflow(tmp_path, mode, channels):
  pixels = Image.fromarray(_PIXELS[..., :3])
  pixels.convert(mode).save(tmp_path / "one.png")
  data = (tmp_path / "one.png").read_bytes()
  theirs = tf.image.decode_image(data, channels=channels).numpy()
  np.testing.assert_array_equal(record_features.decode_image(data, channels), theirs)


def test_two_channels_are_read_which_tensorflow_refuses(tmp_path):
  Image.fromarray(_PIXELS[..., :2], "LA").save(tmp_path / "two.png")
  found = record_features.decode_image((tmp_path / "two.png").read_bytes(), 2)
  np.testing.assert_array_equal(found, _PIXELS[..., :2])


def test_an_image_of_other_channels_or_damaged_pixels_is_refused(written, tmp_path):
  Image.fromarray(_PIXELS[..., :3]).save(tmp_path / "one.png")
  data = (tmp_path / "one.png").read_bytes()
  with pytest.raises(ValueError, match="mode RGB where L must be"):
    record_features.decode_image(data, 1)
  with pytest.raises((ValueError, OSError)):
    record_features.decode_image(data[: len(data) // 2], 3)
