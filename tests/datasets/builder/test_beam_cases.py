"""Builds on Apache Beam: the bytes of a local build, and a clear end where Beam fails."""

import json
import pathlib
import subprocess
import sys

import apache_beam as beam
import build_samples
import pytest

from flexunet.core.errors import InputError, UnfinishedError
from flexunet.datasets.builder import beam_cases, build_tool, case_records

# Every builder; images alone and scans.
BUILDS = [
    ("hippocampus_t1w", {}), ("hippocampus_t1w", {"form": "volumes"}), ("brain_ich_ct", {}),
    ("brain_stroke_ct", {}), ("full_head_t1w", {}), ("ms_lesion_mri", {}), ("scan_label", {}),
    ("image_mask", {"palette": "full_head_t1w"}),
]  # fmt: skip


def build(dataset: str, raw: pathlib.Path, out: pathlib.Path, **given) -> pathlib.Path:
  return build_tool.build_dataset(dataset, raw, out, **given)


def everything(folder: pathlib.Path) -> dict[str, bytes]:
  return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.mark.slow
@pytest.mark.parametrize(("dataset", "options"), BUILDS)
def test_all_files_are_those_of_a_local_build(tmp_path, dataset, options):
  raw = build_samples.raw_folder(dataset, tmp_path / "raw")
  local = build(dataset, raw, tmp_path / "local", num_workers=1, **options)
  on_beam = build(dataset, raw, tmp_path / "beam", beam_options="", **options)
  assert everything(on_beam) == everything(local)
  assert not list((tmp_path / "beam").rglob(".work-*"))


@pytest.mark.slow
def test_three_processes_write_the_same_bytes(tmp_path):
  raw = build_samples.raw_folder("hippocampus_t1w", tmp_path / "raw", subjects=6)
  local = build("hippocampus_t1w", raw, tmp_path / "local", num_workers=1)
  options = "direct_num_workers=3,direct_running_mode=multi_processing"
  on_beam = build("hippocampus_t1w", raw, tmp_path / "beam", beam_options=options)
  assert everything(on_beam) == everything(local)


def test_bad_files_are_collected_and_leave_nothing(tmp_path):
  raw = build_samples.raw_folder("hippocampus_t1w", tmp_path / "raw")
  images = sorted((raw / "Train").glob("*.img"))[:2]
  for image in images:
    image.write_bytes(image.read_bytes()[:-100])
  with pytest.raises(InputError) as raised:
    build("hippocampus_t1w", raw, tmp_path / "out", beam_options="")
  assert not isinstance(raised.value, UnfinishedError)
  assert all(image.stem in str(raised.value) for image in images)
  assert build_samples.files_below(tmp_path / "out") == []


def test_a_failure_of_beam_keeps_what_is_done(tmp_path, monkeypatch):
  """A second start, here without Beam, reads the other cases alone."""
  raw = build_samples.raw_folder("hippocampus_t1w", tmp_path / "raw")
  local = build("hippocampus_t1w", raw, tmp_path / "local", num_workers=1)
  served = beam_cases.ReadCase.process
  count = 0

  def dies(self, element):
    nonlocal count
    count += 1
    if count > 2:
      raise RuntimeError("out of memory")
    yield from served(self, element)

  with monkeypatch.context() as patched, pytest.raises(UnfinishedError) as raised:
    patched.setattr(beam_cases.ReadCase, "process", dies)
    build("hippocampus_t1w", raw, tmp_path / "out", beam_options="")
  assert "Beam failed" in str(raised.value) and "out of memory" in str(raised.value)
  assert "2 of 5 cases were read and are kept" in str(raised.value)
  read = []
  write_case = case_records.write_case
  monkeypatch.setattr(
      case_records, "write_case",
      lambda builder, task: read.append(task.written.key) or write_case(builder, task),
  )  # fmt: skip
  second = build("hippocampus_t1w", raw, tmp_path / "out", num_workers=1)
  assert len(read) == 3
  assert everything(second) == everything(local)


def test_a_pipeline_that_stands_still_ends_in_bounded_time(tmp_path, monkeypatch):
  raw = build_samples.raw_folder("hippocampus_t1w", tmp_path / "raw")
  monkeypatch.setattr(beam_cases._Run, "wait", lambda self, seconds: False)
  monkeypatch.setattr(beam_cases, "_is_answered", lambda stem: False)
  with pytest.raises(UnfinishedError, match=r"no case was finished for 0\.001 minutes"):
    build("hippocampus_t1w", raw, tmp_path / "out", beam_options="case_minutes=0.001")


def test_the_same_case_read_twice_is_written_once(tmp_path):
  raw = build_samples.raw_folder("hippocampus_t1w", tmp_path / "raw")
  local = build("hippocampus_t1w", raw, tmp_path / "local", num_workers=1)
  elements = beam.Create

  class Twice(elements):
    def __init__(self, values, **options):
      super().__init__([*values, *values], **options)

  beam.Create = Twice
  try:
    doubled = build("hippocampus_t1w", raw, tmp_path / "beam", beam_options="")
  finally:
    beam.Create = elements
  assert everything(doubled) == everything(local)


@pytest.mark.parametrize("text", ["--runner=x", "=3", "runner=x,-y"])
def test_options_are_names_and_values(text):
  with pytest.raises(InputError, match="without dashes"):
    beam_cases.options_of(text)


def test_options_reach_beam():
  shown = beam_cases.options_of("runner=FlinkRunner, case_minutes=5").get_all_options()
  assert (shown["runner"], shown["case_minutes"]) == ("FlinkRunner", 5.0)


@pytest.mark.slow
def test_the_command_of_tfds_takes_its_options(tmp_path):
  """`tfds build --beam_pipeline_options`, which was accepted and ignored before."""
  raw = build_samples.raw_folder("hippocampus_t1w", tmp_path / "raw")
  words = ["tfds", "build", "hippocampus_t1w", "--imports=flexunet.datasets",
           f"--manual_dir={raw}", f"--data_dir={tmp_path / 'out'}"]  # fmt: skip
  code = "import sys; from tensorflow_datasets.scripts.cli import main; main.launch_cli()"
  bad = subprocess.run(
      [sys.executable, "-c", code, *words[1:], "--beam_pipeline_options=runner=NoSuchRunner"],
      capture_output=True, text=True,
  )  # fmt: skip
  assert bad.returncode and "NoSuchRunner" in bad.stderr
  subprocess.run(
      [sys.executable, "-c", code, *words[1:], "--beam_pipeline_options=direct_num_workers=1"],
      capture_output=True, check=True,
  )  # fmt: skip
  local = build("hippocampus_t1w", raw, tmp_path / "local", num_workers=1)
  [report] = (tmp_path / "out").rglob("slices/*/build_report.json")
  assert json.loads(report.read_text()) == json.loads((local / "build_report.json").read_text())


def test_a_local_build_imports_no_beam(tmp_path):
  raw = build_samples.raw_folder("hippocampus_t1w", tmp_path / "raw")
  code = (
      "import sys; sys.modules['apache_beam'] = None\n"
      "from flexunet.datasets.builder import build_tool\n"
      "build_tool.build_dataset('hippocampus_t1w', sys.argv[1], sys.argv[2], num_workers=1)"
  )
  subprocess.run([sys.executable, "-c", code, str(raw), str(tmp_path / "out")], check=True)
