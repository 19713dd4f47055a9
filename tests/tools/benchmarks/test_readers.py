"""The benchmark of the readers."""

import json
import os
import pathlib
import subprocess
import sys

import pytest

from flexunet.tools.benchmarks import processes, readers
from flexunet.tools.benchmarks.quality import running

_ROOT = pathlib.Path(__file__).resolve().parents[3]


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


def test_processes_share_the_records(blob_data):
  words = [str(blob_data), "train", "0", "2", "40"]
  with processes.started(sys.executable, readers._PROCESS, [["records", *words]], {}) as [worker]:
    assert worker.first == {"ways": ["records"]}
    answers = [worker.ask()["records"] for _ in range(2)]
  assert [answer["images"] for answer in answers] == [20, 20]  # Half of 40.
  assert min(answer["cpu_s"] for answer in answers) > 0


def test_a_python_without_monai_is_said_in_one_line(blob_data):
  readers._PROGRAM.parse(["benchmark_readers", f"--data_dir={blob_data}"])
  with (
      pytest.raises(readers.InputError, match="for MONAI's datasets torch and monai"),
      readers.workers("/usr/bin/false", "monai", blob_data, 1),
  ):
    pass


@pytest.mark.peers
def test_monai_decodes_a_record_once(tmp_path):
  folder = os.environ.get("FLEXUNET_PEERS_ENV")
  if not folder:
    pytest.skip("needs the environment of other systems (FLEXUNET_PEERS_ENV)")
  program = """if True:
    import sys
    import numpy as np
    from flexunet.tools.benchmarks import reader_rates

    class Records:
      read = 0
      def __len__(self):
        return 3
      def __getitem__(self, number):
        self.read += 1
        one = np.full((2, 2, 1), number, np.uint8)
        return {"image": one, "label": one}

    records = Records()
    ways = reader_rates.monai_ways(records, [2, 0, 1, 2], sys.argv[1])
    for way in [*ways.values(), *ways.values()]:
      assert reader_rates.pixel_sum(way()) == 2 * 4 * (2 + 0 + 1 + 2)
    print(list(ways), records.read)
  """
  done = subprocess.run(
      [running.peers_python(folder), "-c", program, str(tmp_path)],
      capture_output=True, text=True, check=False, env={**os.environ, "PYTHONPATH": str(_ROOT)},
  )  # fmt: skip
  assert done.returncode == 0, done.stderr[-2000:]
  # Three records by each of the two datasets.
  assert done.stdout == "['monai_persistent', 'monai_cache'] 6\n"
