"""The benchmark of the readers."""

import json
import subprocess
import sys

import pytest


@pytest.mark.slow
def test_the_benchmark_prints_rates_as_json(blob_data):
  done = subprocess.run(
      [sys.executable, "-m", "flexunet.tools.benchmarks.readers", f"--data_dir={blob_data}",
       "--records=40", "--rounds=1", "--processes=1,2"],
      capture_output=True, text=True, check=False,
  )  # fmt: skip
  assert done.returncode == 0, done.stderr[-2000:]
  found = json.loads(done.stdout)
  rates = found["images_per_second_per_core"]
  assert {"tf_data", "records_1", "records_2"} <= set(rates) and min(rates.values()) > 0
  ratio = found["per core, by tf_data"]["records_1"]
  assert ratio == pytest.approx(rates["records_1"] / rates["tf_data"], rel=0.05)


@pytest.mark.parametrize("processes", ["0", "1,x", ""])
def test_numbers_of_processes_are_numbers(blob_data, processes):
  done = subprocess.run(
      [sys.executable, "-m", "flexunet.tools.benchmarks.readers", f"--data_dir={blob_data}",
       f"--processes={processes}"],
      capture_output=True, text=True, check=False,
  )  # fmt: skip
  assert done.returncode == 1
  assert f"--processes must be numbers from 1 on. Got: {processes}." in done.stderr
