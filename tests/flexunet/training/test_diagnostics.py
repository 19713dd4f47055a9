"""What goes wrong in training ends in one line that says what to do."""

import json
import pathlib
import shutil

import numpy as np
import pytest

from flexunet import config
from flexunet.core.errors import InputError
from flexunet.training import callbacks, diagnostics, input_pipeline, run_setup, trainer


def opened_and_planned(data_dir, data=None, **settings):
  data_config = config.DataConfig(data_dir=str(data_dir), **(data or {}))
  opened = input_pipeline.open_data(data_config)
  run_config = run_setup.complete(
      config.ModelConfig(num_layers=2, base_filters=2),
      data_config,
      config.TrainingConfig(**{"epochs": 1, "batch_size": 4, "previews": 0, **settings}),
      opened,
  )
  return opened, run_config


@pytest.fixture
def damaged_data(tmp_path, blob_data):
  """A copy of the dataset with one wrong byte, in the record of row 6."""
  own_blob_data = shutil.copytree(blob_data, tmp_path / "data" / "blobs" / "slices" / "1.0.0")
  opened = input_pipeline.open_data(config.DataConfig(data_dir=str(own_blob_data)))
  row = 6
  path = pathlib.Path(opened.train.files[opened.train.shard[row]])
  content = bytearray(path.read_bytes())
  content[opened.train.offset[row] + 40] ^= 0xFF
  path.write_bytes(content)
  return own_blob_data, opened.train.describe(row)


def test_a_nan_names_the_records_of_its_batch(blob_data):
  opened, run_config = opened_and_planned(blob_data)
  order = input_pipeline.make_order(run_config, opened.train)
  clock = callbacks.RunClock(100, 0)
  guard = diagnostics.NanGuard(clock, order, opened.train)
  clock.on_train_batch_end(0)
  guard.on_train_batch_end(0, {"loss": 0.5})
  clock.on_train_batch_end(1)
  with pytest.raises(InputError, match="nan at step 2.*subject.*--learning_rate") as caught:
    guard.on_train_batch_end(1, {"loss": float("nan")})
  rows = order.records_at(np.arange(4, 8))[0].numpy()
  for row in rows:
    assert opened.train.describe(int(row)) in str(caught.value)


def test_a_corrupt_record_is_named_with_the_remedy(damaged_data, tmp_path):
  data_dir, described = damaged_data
  opened, run_config = opened_and_planned(data_dir, data={"cache": "none"})
  with pytest.raises(InputError) as caught:
    trainer.fit(run_config, tmp_path / "run", opened)
  assert described in str(caught.value) and "--skip_corrupt=1" in str(caught.value)


@pytest.mark.slow
def test_skip_corrupt_leaves_them_out_and_names_them(damaged_data, tmp_path, capsys):
  data_dir, described = damaged_data
  opened, run_config = opened_and_planned(data_dir, data={"skip_corrupt": 1})
  run, rows = trainer.fit(run_config, tmp_path / "run", opened)
  assert json.loads(run.manifest_json.read_text())["left_out"] == [described]
  assert described in capsys.readouterr().err
  # 36 slices less one, half of each batch of 4 drawn or not: at least one step.
  assert rows[-1]["step"] >= 1


def test_more_corrupt_records_than_allowed_are_refused(damaged_data, monkeypatch):
  data_dir, _ = damaged_data
  opened, run_config = opened_and_planned(data_dir, data={"skip_corrupt": 1})
  monkeypatch.setattr(diagnostics, "_corrupt_rows", lambda *_: [0, 6])
  with pytest.raises(InputError, match="--skip_corrupt=1 must be at least.*4: "):
    diagnostics.leave_out_corrupt(run_config, opened)


def test_running_out_of_memory_names_the_flags_with_their_values(blob_data):
  import tensorflow as tf

  opened, run_config = opened_and_planned(blob_data, precision="float32")
  with (
      pytest.raises(
          InputError, match=r"--batch_size \(now 4\).*--base_filters \(now 2\).*mixed_bfloat16\."
      ),
      diagnostics.explained(run_config, opened),
  ):
    raise tf.errors.ResourceExhaustedError(None, None, "OOM when allocating tensor")
  opened, run_config = opened_and_planned(blob_data, data={"cache": "device"})
  with (
      pytest.raises(InputError, match="keep the slices in main memory with --cache=ram"),
      diagnostics.explained(run_config, opened),
  ):
    raise tf.errors.ResourceExhaustedError(None, None, "OOM when allocating tensor")


def test_another_error_keeps_its_trace(blob_data):
  import tensorflow as tf

  opened, run_config = opened_and_planned(blob_data)
  for error in (KeyError("x"), tf.errors.InvalidArgumentError(None, None, "shapes")):
    with pytest.raises(type(error)), diagnostics.explained(run_config, opened):
      raise error
