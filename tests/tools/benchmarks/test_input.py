"""The benchmark of the input pipeline."""

import json

import dataset_samples
import forked
import pytest

_NAMES = {"decode_limit", "stream", "slicing", "stream_ram", "stream_disk", "augmented",
          "augmented_ram", "device_cache", "device_cache_augmented",
          "device_augmented_ram"}  # fmt: skip


@pytest.mark.slow
def test_the_benchmark_prints_rates_as_json(tmp_path):
  records = []
  for index in range(16):
    image, label = dataset_samples.blob_slice(16, 16, index)
    records.append({"image": image, "label": label, "subject": f"s{index}", "volume": "v",
                    "slice_index": 0})  # fmt: skip
  data_dir = dataset_samples.write_dataset(tmp_path, {"train": records, "validation": records[:4]})
  done = forked.command(
      "benchmark_input", f"--data_dir={data_dir}",
      "--image_size=16", "--batch_size=4", "--records=16", "--rounds=1", "--device",
  )  # fmt: skip
  assert done.returncode == 0, done.stderr[-2000:]
  found = json.loads(done.stdout)
  rates = found["images_per_second"]
  assert set(rates) == _NAMES and min(rates.values()) > 0
  ratio = found["ratios"]["augmented / stream"]
  assert ratio == pytest.approx(rates["augmented"] / rates["stream"], rel=0.05, abs=0.002)
  assert found["ratios"]["device_augmented_ram / augmented_ram"] > 0
