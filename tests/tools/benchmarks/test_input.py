"""The benchmark of the input pipeline."""

import json
import subprocess
import sys

import dataset_samples
import pytest

_ALWAYS = {"decode_limit", "stream", "slicing", "stream_ram", "stream_disk", "augmented",
           "augmented_ram"}  # fmt: skip
_ON_DEVICE = {"device_cache", "device_cache_augmented", "device_augmented_ram"}


@pytest.mark.slow
@pytest.mark.parametrize(("flag", "more"), [("--device", _ON_DEVICE), ("--nodevice", set())])
def test_the_benchmark_prints_rates_as_json(tmp_path, flag, more):
  records = []
  for index in range(16):
    image, label = dataset_samples.blob_slice(16, 16, index)
    records.append({"image": image, "label": label, "subject": f"s{index}", "volume": "v",
                    "slice_index": 0})  # fmt: skip
  data_dir = dataset_samples.write_dataset(tmp_path, {"train": records, "validation": records[:4]})
  done = subprocess.run(
      [sys.executable, "-m", "flexunet.tools.benchmarks.input", f"--data_dir={data_dir}",
       "--image_size=16", "--batch_size=4", "--records=16", "--rounds=1", flag],
      capture_output=True, text=True, check=False,
  )  # fmt: skip
  assert done.returncode == 0, done.stderr[-2000:]
  found = json.loads(done.stdout)
  rates = found["images_per_second"]
  assert set(rates) == _ALWAYS | more and min(rates.values()) > 0
  ratio = found["ratios"]["augmented / stream"]
  assert ratio == pytest.approx(rates["augmented"] / rates["stream"], rel=0.05, abs=0.002)
  assert ("device_augmented_ram / augmented_ram" in found["ratios"]) == bool(more)
