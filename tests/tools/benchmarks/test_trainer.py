"""The benchmark of the trainer."""

import json

import dataset_samples
import forked
import pytest


@pytest.mark.slow
def test_the_benchmark_prints_step_times_and_ratios_as_json(tmp_path):
  records = []
  for index in range(40):
    image, label = dataset_samples.blob_slice(16, 16, index)
    records.append({"image": image, "label": label, "subject": f"s{index}", "volume": "v",
                    "slice_index": 0})  # fmt: skip
  data_dir = dataset_samples.write_dataset(
      tmp_path, {"train": records, "validation": records[:4]}
  )
  done = forked.command(
      "benchmark_trainer", f"--data_dir={data_dir}",
      "--num_layers=2", "--base_filters=2", "--batch_size=2", "--foreground_fraction=0",
      "--rounds=1", "--steps=8", "--every=4",
  )  # fmt: skip
  assert done.returncode == 0, done.stderr[-2000:]
  found = json.loads(done.stdout)
  times = found["ms_per_step"]
  assert found["trainer_to_bare"] == pytest.approx(times["trainer"] / times["bare"], rel=0.02)
  assert set(times) == {"bare", "trainer", "checkpoints"} and min(times.values()) > 0
  # Steps 2 and 6 of the 8 that are measured; a slow disk can cost one of them.
  assert 1 <= found["checkpoints_in_a_turn"] <= 2
