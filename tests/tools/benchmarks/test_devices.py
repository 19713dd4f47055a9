"""The benchmark of devices that share a batch."""

import json
import subprocess
import sys

import pytest


@pytest.mark.slow
def test_each_number_of_devices_trains_the_same_in_its_own_process(blob_data):
  done = subprocess.run(
      [sys.executable, "-m", "flexunet.tools.benchmarks.devices", f"--data_dir={blob_data}",
       "--num_layers=2", "--base_filters=4", "--batch_size=4", "--dropout_rate=0",
       "--augmentation=none", "--precision=float32", "--counts=1,2", "--steps=3", "--rounds=1"],
      capture_output=True, text=True, check=False,
  )  # fmt: skip
  assert done.returncode == 0, done.stderr[-2000:]
  found = json.loads(done.stdout)
  assert found["devices"] == {"1": 1, "2": 2} and found["batch_size"] == {"1": 4, "2": 4}
  rates = found["steps_per_second"]
  assert found["images_per_second"]["2"] == pytest.approx(4 * rates["2"], rel=0.01)
  assert found["images_per_second / that of 1"]["1"] == 1
  losses = found["loss_after_the_first_turn"]
  assert losses["2"] == pytest.approx(losses["1"], rel=1e-3)
