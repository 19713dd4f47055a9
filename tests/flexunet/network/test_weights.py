"""Networks are read from files with distrust: what has changed on the disk is never taken over."""

import zipfile

import keras
import numpy as np
import pytest

from flexunet.core.errors import InputError
from flexunet.network import cost, model, pretrained, weights
from flexunet.tools import inspect_model


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
  path = tmp_path_factory.mktemp("model") / "model.keras"
  model.build_model(
      image_size=(8, 8), image_channels=1, num_classes=2, base_filters=2, base_kernels=3,
      num_layers=2,
  ).save(path)  # fmt: skip
  return path


def flipped(source, part, target):
  """Writes the file with one bit flipped in the middle of a part of the archive."""
  with zipfile.ZipFile(source) as archive:
    info = archive.getinfo(part)
  data = bytearray(source.read_bytes())
  start = info.header_offset + 30 + len(part)  # The fixed header of ZIP, then the name.
  data[start + info.file_size // 2] ^= 4
  target.write_bytes(data)
  return target


@pytest.mark.parametrize("part", ["config.json", "model.weights.h5", "metadata.json"])
@pytest.mark.parametrize(
    "read",
    [weights.read_model, cost.check_keras_file, lambda path: pretrained.open_start(path).load()],
    ids=["read_model", "check_keras_file", "init_from"],
)
def test_a_flipped_bit_in_any_part_is_one_line(saved, tmp_path, part, read):
  with pytest.raises(InputError, match=r"m\.keras") as caught:
    read(flipped(saved, part, tmp_path / "m.keras"))
  assert "\n" not in str(caught.value)
  assert part in str(caught.value)


def test_weights_that_fail_their_checksum_do_not_reach_keras(saved, tmp_path, monkeypatch):
  # Keras falls back to a reader of parts, which never sees the checksum at the end.
  monkeypatch.setattr(keras.saving, "load_model", lambda *_, **__: pytest.fail("was loaded"))
  with pytest.raises(InputError, match=r"checksum of model\.weights\.h5"):
    weights.read_model(flipped(saved, "model.weights.h5", tmp_path / "m.keras"))


def test_an_inspected_file_is_checked_whole(saved, tmp_path):
  path = flipped(saved, "model.weights.h5", tmp_path / "m.keras")
  inspect_model._PROGRAM.parse(["inspect", f"--model={path}"])
  with pytest.raises(InputError, match="does not fit"):
    inspect_model.main(["inspect"])


def test_a_truncated_file_is_one_line(saved, tmp_path):
  whole = saved.read_bytes()
  for length in (0, 10, len(whole) // 2, len(whole) - 1):
    (tmp_path / "m.keras").write_bytes(whole[:length])
    with pytest.raises(InputError, match=r"m\.keras"):
      weights.read_model(tmp_path / "m.keras")


def test_a_whole_file_is_read_as_it_was_saved(saved):
  found = [np.asarray(value) for value in weights.read_model(saved).weights]
  wanted = [np.asarray(value) for value in keras.saving.load_model(saved, compile=False).weights]
  assert all(np.array_equal(*pair) for pair in zip(found, wanted, strict=True))
