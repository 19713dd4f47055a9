"""Builds on Apache Beam: the bytes of a local build, and a clear end where Beam fails."""

import functools
import json
import os
import pathlib
import signal
import subprocess
import sys
import time
import types

import apache_beam as beam
import beam_servers
import build_samples
import pytest

from flexunet.core.errors import InputError, UnfinishedError
from flexunet.datasets.builder import beam_cases, build_tool, case_records, shared_work

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
def test_a_job_server_and_a_worker_pool_write_the_same_bytes(tmp_path):
  """Every builder; the job server and the pool are those of Beam."""
  workers = 2
  with beam_servers.job_server(tmp_path, workers) as (_, server), beam_servers.worker_pool(
      tmp_path
  ) as (_, pool):
    options = (f"runner=PortableRunner,job_endpoint={server},environment_type=EXTERNAL,"
               f"environment_config={pool}")  # fmt: skip
    for number, (dataset, given) in enumerate(BUILDS):
      raw = build_samples.raw_folder(dataset, tmp_path / f"raw_{number}")
      local = build(dataset, raw, tmp_path / f"local_{number}", num_workers=1, **given)
      on_beam = build(dataset, raw, tmp_path / f"beam_{number}", beam_options=options, **given)
      assert everything(on_beam) == everything(local), dataset
  count = (tmp_path / "log").read_text().count("Starting worker with command")
  assert count == workers * len(BUILDS)


ENVIRONMENTS = [
    "environment_type=LOOPBACK",
    # What takes the place of PROCESS at this job server: a command line without a container.
    "environment_type=beam:env:harness_subprocess_python:v1,"
    f"environment_config={sys.executable} -m apache_beam.runners.worker.sdk_worker_main",
]


@pytest.mark.slow
@pytest.mark.parametrize("environment", ENVIRONMENTS)
def test_workers_in_this_process_and_by_a_command_write_the_same_bytes(tmp_path, environment):
  raw = build_samples.raw_folder("scan_label", tmp_path / "raw")
  local = build("scan_label", raw, tmp_path / "local", num_workers=1)
  with beam_servers.job_server(tmp_path) as (_, server):
    options = f"runner=PortableRunner,job_endpoint={server},{environment}"
    on_beam = build("scan_label", raw, tmp_path / "beam", beam_options=options)
  assert everything(on_beam) == everything(local)


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
  with beam_servers.out_of_memory_after(2), pytest.raises(UnfinishedError) as raised:
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
  monkeypatch.setattr(beam_cases._Progress, "look", lambda self: 0)
  with pytest.raises(UnfinishedError, match=r"no case was finished for 0\.001 minutes"):
    build("hippocampus_t1w", raw, tmp_path / "out", beam_options="case_minutes=0.001")


def test_a_sign_that_no_longer_changes_is_no_sign(tmp_path):
  """What a killed worker leaves behind stays as it is."""
  waits = beam_cases.options_of("silent_minutes=0.002,start_minutes=9").view_as(
      beam_cases.CaseOptions
  )
  task = types.SimpleNamespace(stem=tmp_path / "case")
  waiting = beam_cases._Progress([task], shared_work.SharedWork(tmp_path), waits)
  assert waiting.start() == [task]
  for count in (1, 2):  # Each later than the longest wait, but another one.
    time.sleep(0.15)
    (tmp_path / "case-1.alive").write_bytes(b"." * count)
    waiting.look()
    waiting.check()
  time.sleep(0.15)
  waiting.look()
  with pytest.raises(UnfinishedError, match=r"no worker gave a sign of life for 0\.002 minutes"):
    waiting.check()


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


# Reads a case a second, so that there is time to kill what reads it.
SLOW_BUILDER = """
import time
import tensorflow_datasets as tfds
from flexunet.datasets.builder import raw_folder, volume_builder
from flexunet.imaging.intensity import IntensityWindow
from flexunet.imaging.label_scheme import LabelScheme
from flexunet.imaging.slicing import SlicePlan

class Builder(volume_builder.VolumeBuilder):
  VERSION = tfds.core.Version("1.0.0")
  BUILDER_CONFIGS = [volume_builder.VolumeConfig(name="slices")]

  def label_scheme(self): return LabelScheme.from_names(["background", "first", "second"])
  def label_map(self): return {0: 0, 1: 1, 2: 2}
  def slice_plan(self): return SlicePlan(axes="LAS", plane="axial")
  def intensity(self): return IntensityWindow("percentile", 0.5, 99.5)

  def records_of(self, case, fold, notes):
    time.sleep(1)
    yield from super().records_of(case, fold, notes)

  def find_cases(self, findings):
    labels = raw_folder.volumes_by_stem(findings.root / "labels", findings)
    for name, scan in raw_folder.volumes_by_stem(findings.root / "images", findings).items():
      files = {"image": scan, "label": labels[name]}
      findings.add(raw_folder.Case(name, name, name, files))
    raw_folder.note(findings)
"""


def slow_builds(tmp_path: pathlib.Path, name: str):
  """Returns what builds twelve cases, each of which takes a second, and the local build's files.

  Args:
    tmp_path: Of the test.
    name: Of the builder; a process keeps the module that it has imported under a name.
  """
  source = tmp_path / name / f"{name}_dataset_builder.py"
  source.parent.mkdir()
  source.write_text(SLOW_BUILDER)
  raw = build_samples.raw_folder("scan_label", tmp_path / "raw", subjects=12)
  run = functools.partial(build, name, raw, builder=source.parent)
  return run, everything(run(tmp_path / "local", num_workers=6))


def kill(pids) -> None:
  for pid in pids:
    os.kill(pid, signal.SIGKILL)


@pytest.mark.slow
def test_a_killed_worker_of_a_pool_ends_the_build_and_the_next_one_finishes(tmp_path):
  run, expected = slow_builds(tmp_path, "slow_pool")
  out = tmp_path / "beam"
  with beam_servers.job_server(tmp_path) as (_, server), beam_servers.worker_pool(
      tmp_path
  ) as (process, pool):
    options = (f"runner=PortableRunner,job_endpoint={server},environment_type=EXTERNAL,"
               # Shorter than a build: Beam would end the stream of the job's states by it.
               f"environment_config={pool},silent_minutes=0.2,job_server_timeout=5")  # fmt: skip
    killed = beam_servers.when_a_case_is_done(
        out, lambda: kill(beam_servers.children(process.pid))
    )
    with killed, pytest.raises(UnfinishedError, match="no worker gave a sign of life for 0.2 min"):
      run(out, beam_options=options)
    assert everything(run(out, beam_options=options)) == expected


@pytest.mark.slow
def test_a_killed_process_of_three_ends_the_build_and_leaves_none_behind(tmp_path):
  run, expected = slow_builds(tmp_path, "slow_process")
  out = tmp_path / "beam"
  options = "direct_num_workers=3,direct_running_mode=multi_processing,silent_minutes=0.2"
  before = set(beam_servers.workers(os.getpid()))

  def own():
    return [pid for pid in beam_servers.workers(os.getpid()) if pid not in before]

  killed = beam_servers.when_a_case_is_done(out, lambda: kill(own()[:1]))
  with killed, pytest.raises(UnfinishedError, match="no worker gave a sign of life"):
    run(out, beam_options=options)
  end = time.monotonic() + 20
  while own():
    assert time.monotonic() < end, "workers of a build that failed stay behind"
    time.sleep(0.2)
  assert everything(run(out, beam_options=options)) == expected


@pytest.mark.slow
def test_a_killed_job_server_ends_the_build_at_once_and_the_next_one_finishes(tmp_path):
  run, expected = slow_builds(tmp_path, "slow_server")
  out = tmp_path / "beam"
  began = time.monotonic()
  with beam_servers.worker_pool(tmp_path) as (_, pool):
    with beam_servers.job_server(tmp_path) as (process, server):
      options = (f"runner=PortableRunner,job_endpoint={server},environment_type=EXTERNAL,"
                 f"environment_config={pool}")  # fmt: skip
      killed = beam_servers.when_a_case_is_done(out, process.kill)
      with killed, pytest.raises(UnfinishedError, match="the job server .* does not answer"):
        run(out, beam_options=options)
    assert time.monotonic() - began < 60
    with pytest.raises(UnfinishedError, match="no job server answers there") as raised:
      run(out, beam_options=options)
    assert "local_job_service_main -p PORT" in str(raised.value)
  assert everything(run(out, num_workers=6)) == expected


@pytest.mark.slow
def test_a_pool_whose_python_has_no_beam_is_named(tmp_path):
  """The pool starts the first `python` of its PATH; the runner waits for it for ever."""
  raw = build_samples.raw_folder("hippocampus_t1w", tmp_path / "raw")
  other = tmp_path / "bin" / "python"
  other.parent.mkdir()
  other.write_text("#!/bin/sh\nexit 1\n")
  other.chmod(0o755)
  path = f"{other.parent}{os.pathsep}{os.environ['PATH']}"
  with beam_servers.job_server(tmp_path) as (_, server), beam_servers.worker_pool(
      tmp_path, path
  ) as (_, pool):
    options = (f"runner=PortableRunner,job_endpoint={server},environment_type=EXTERNAL,"
               f"environment_config={pool},start_minutes=0.1")  # fmt: skip
    with pytest.raises(UnfinishedError, match="put that of the environment first") as raised:
      build("hippocampus_t1w", raw, tmp_path / "out", beam_options=options)
  assert "the first `python` of its PATH" in str(raised.value)


@pytest.mark.slow
def test_what_beams_job_server_does_not_start_is_named(tmp_path):
  raw = build_samples.raw_folder("hippocampus_t1w", tmp_path / "raw")
  with beam_servers.job_server(tmp_path) as (_, server):
    options = (f"runner=PortableRunner,job_endpoint={server},environment_type=PROCESS,"
               'environment_config={"command": "/opt/boot", "env": {"A": "b"}}')  # fmt: skip
    with pytest.raises(UnfinishedError, match="starts no workers of kind process; name another"):
      build("hippocampus_t1w", raw, tmp_path / "out", beam_options=options)


def test_commas_within_braces_part_no_options():
  text = 'runner=FlinkRunner,environment_config={"command": "boot, now", "env": {"A": "b"}},x=1'
  shown = beam_cases.options_of(text).get_all_options()
  assert json.loads(shown["environment_config"]) == {"command": "boot, now", "env": {"A": "b"}}


@pytest.mark.parametrize("text", ["direct_num_worker=3", "runner=FnApiRunner,case_minute=3"])
def test_a_misspelt_option_is_refused_with_the_nearest(text):
  with pytest.raises(InputError, match="Did you mean '(direct_num_workers|case_minutes)"):
    beam_cases.options_of(text)


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
