"""How build, tables, readers and evaluation grow: the lines, what follows, the command."""

import json
import subprocess
import sys

import nibabel
import numpy as np
import pytest

from flexunet.core.errors import InputError
from flexunet.pipelines import record_table
from flexunet.tools.benchmarks import scaling
from flexunet.tools.benchmarks.scaling import Line


def test_a_line_through_figures_that_lie_on_one_is_that_line():
  line = scaling.fit([5, 20, 80], [4 + 2 * 5, 4 + 2 * 20, 4 + 2 * 80])
  assert (line.per_unit, line.fixed) == pytest.approx((2, 4)) and line.worst < 1e-9
  assert line.at(1000) == pytest.approx(2004)


def test_the_distance_from_the_line_is_a_share():
  # 1, 2 and 6 beside their line: the largest distance is below the figure itself, above nothing.
  line = scaling.fit([1, 2, 3], [1, 2, 6])
  assert 0.1 < line.worst < 1


def test_noise_never_makes_more_data_cheaper():
  assert Line(-0.5, 100.0, 0.0).at(1000) == 100.0


def test_a_single_figure_is_shared_out():
  assert scaling.fit([5], [10]) == Line(2.0, 0.0, 0.0)


FOUND = {
    "build": {
        "per_case": {
            "seconds": {"per_unit": 0.5, "fixed": 3.0, "worst": 0.0},
            "peak_mb": {"per_unit": 0.1, "fixed": 200.0, "worst": 0.0},
            "disk_mb": {"per_unit": 2.0, "fixed": 1.0, "worst": 0.0},
        },
        "raw_mb_per_case": 10.0,
        "records_per_case": 40.0,
    },
    "table": {"listing": {"per_record": {
        "seconds": {"per_unit": 1e-5, "fixed": 0.0, "worst": 0.0},
        "table_mb": {"per_unit": 1e-4, "fixed": 0.0, "worst": 0.0},
        "peak_mb": {"per_unit": 2e-3, "fixed": 10.0, "worst": 0.0},
    }}},
    "readers": [{"images_per_second": 500.0}, {"images_per_second": 1000.0}],
    "evaluation": {"per_volume": {"per_unit": 2.4, "fixed": 8.0, "worst": 0.0}},
}  # fmt: skip


def test_what_follows_from_the_lines():
  """320 cases a thousand times: 320,000 cases and 12.8 million records."""
  found = scaling.computed(FOUND, 320, 1000)
  assert (found["cases"], found["records"]) == (320_000, 12_800_000)
  # 0.5 s x 320,000 + 3 s = 160,003 s = 1.85 days of a core: two cores do it in a day.
  assert found["build_core_days"] == 1.85 and found["build_workers_for_one_day"] == 2
  # 0.1 MB x 320,000 + 200 MB.
  assert found["build_memory_gb"] == 32.2
  assert (found["raw_tb"], found["records_tb"]) == (3.2, 0.64)
  assert (found["table_read_s"], found["table_gb"]) == (128.0, 1.28)
  assert found["table_read_peak_gb"] == 25.61
  # 12.8 million images at the fastest rate, 1000 a second: 12,800 s.
  assert found["epoch_of_input_hours"] == 3.56
  # 48,000 volumes at 2.4 s, and 8 s.
  assert found["evaluation_hours_of_15_percent"] == 32.0


def test_cases_are_copies_but_no_identical_images(tmp_path):
  raws = scaling.write_cases(tmp_path, [5, 7], (12, 10, 8))
  assert [len(list((raw / "images").iterdir())) for raw in raws] == [5, 7]
  assert {path.name for path in (raws[0] / "labels").iterdir()} == {
      path.name for path in (raws[0] / "images").iterdir()
  }
  # Case 5 is a copy of case 0.
  first, copy = (
      np.asarray(nibabel.load(raws[1] / "images" / f"case_0000{n}.nii").dataobj) for n in (0, 5)
  )
  assert all((first[..., k] != copy[..., k]).any() for k in range(first.shape[2]))
  assert np.corrcoef(first.ravel(), copy.ravel())[0, 1] > 0.9


def test_the_rows_of_made_up_records_are_read_as_any(tmp_path):
  listing, shard = tmp_path / "records.csv", tmp_path / "train.tfrecord"
  scaling._write_listing(listing, shard, 250)
  table = record_table.read(listing, "train", [str(shard)])
  assert len(table) == 250 and len(table.foreground) == 125
  assert sorted(set(table.subject)) == ["case_000000", "case_000001", "case_000002"]


def test_an_order_resumes_without_passing_through_what_came_before():
  [small, large] = scaling.measure_orders([200, 2000])
  assert (small["records"], large["records"]) == (200, 2000)
  # Every second record is drawn for: 8 bytes each.
  assert large["order_mb"] == pytest.approx(1000 * 8 / 1e6)
  assert small["resumed_batch_us"] > 0 and small["batch_us"] > 0


@pytest.mark.parametrize(("words", "message"), [
    (["20", "5"], "must grow"), (["2"], "numbers from 5 on"), (["5", "x"], "numbers from 5 on"),
])  # fmt: skip
def test_numbers_grow_and_are_numbers(words, message):
  with pytest.raises(InputError, match=message):
    scaling._numbers(words, "cases", least=5)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads memory from /proc")
def test_the_benchmark_prints_lines_and_what_follows_as_json():
  command = [
      sys.executable, "-m", "flexunet", "benchmark_scaling", "--cases=5,12", "--size=24,12,24",
      "--records=1000,10000", "--processes=1,2", "--images=60", "--train_minutes=0.05",
      "--factor=10",
  ]  # fmt: skip
  found = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
  assert [run["cases"] for run in found["build"]["runs"]] == [5, 12]
  # Axial slices along the stored second or third axis; as many records a case in both.
  first, second = found["build"]["runs"]
  assert second["records"] / 12 == first["records"] / 5
  assert found["build"]["per_case"]["disk_mb"]["per_unit"] > 0
  assert [run["records"] for run in found["table"]["listing"]["runs"]] == [1000, 10000]
  assert [one["processes"] for one in found["readers"]] == [1, 2]
  assert [one["volumes"] for one in found["evaluation"]["runs"]] == [2, 8]
  assert found["computed"]["cases"] == 120
