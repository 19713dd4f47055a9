"""The benchmark of the build."""

import json
import subprocess
import sys

import pytest

from flexunet.tools.phantom import layouts


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads memory from /proc")
def test_the_benchmark_prints_speed_and_memory_as_json(tmp_path):
  raw = layouts.write("hippocampus_t1w", tmp_path / "raw", subjects=6, size=(24, 12, 20))
  command = [
      sys.executable, "-m", "flexunet.tools.benchmarks.build", "hippocampus_t1w",
      f"--manual_dir={raw}", "--many=6", "--few=4", "--workers=2",
  ]
  result = subprocess.run(command, capture_output=True, text=True, check=True)
  found = json.loads(result.stdout)
  assert found["speedup"] == pytest.approx(
      found["seconds_one_worker"] / found["seconds_workers"], rel=0.02)
  assert found["peak_mb_many"] > 10 and found["records_many"] >= 6 * 12
  assert found["volumes_per_second"] == pytest.approx(6 / found["seconds_one_worker"], rel=0.02)
  assert found["seconds_to_reading_alone"] == pytest.approx(
      found["volumes_per_second_read_alone"] / found["volumes_per_second"], rel=0.02)
  assert found["peak_mb_one_worker"] > 10 and found["peak_mb_read_alone"] > 10
  too_many = subprocess.run(
      [*command, "--many=99"], capture_output=True, text=True, check=False)
  assert too_many.returncode == 1 and too_many.stderr.startswith("error: ")
