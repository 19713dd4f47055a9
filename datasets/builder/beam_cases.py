"""Reads cases on Apache Beam: one element is one case, whose records go into its work files.

The work folder lies beside the dataset and must be seen by all workers, as the raw folder, or both
lie in a bucket (`shared_work`). A case is whole where its index file is, so an element may be tried
twice, or at two places at once; bad input is an answer, not an error, and never tried again.
Splits, order, shards and report are then made by the build itself, as without Beam: the bytes are
the same. Runners may wait for ever for workers that were killed; the build does not.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import pathlib
import re
import socket
import threading
import time
import uuid
from collections.abc import Iterator, Sequence
from typing import Any

import apache_beam as beam
from apache_beam.options.pipeline_options import (
    DirectOptions,
    PipelineOptions,
    PortableOptions,
    StandardOptions,
)
from apache_beam.runners.portability.fn_api_runner import FnApiRunner

from flexunet.core import errors, files, progress
from flexunet.core.errors import InputError, UnfinishedError
from flexunet.datasets.builder import case_records, shared_work
from flexunet.datasets.builder.case_records import CaseReader, CaseTask
from flexunet.datasets.builder.shared_work import PROBLEM_SUFFIX, RawSource, SharedWork
from flexunet.datasets.builder.workers import BuilderAddress

# A name that workers of this machine look for: the build has failed.
_STOP = "stop"
_POLL_SECONDS, _BUCKET_POLL_SECONDS, _CANCEL_SECONDS, _CONNECT_SECONDS = 0.2, 2.0, 10.0, 10.0
# Beam ends the stream of a job's states after `job_server_timeout`, whatever its help says.
_JOB_SECONDS = 90 * 86400
_LOCAL_RUNNERS = ("", "FnApiRunner", "DirectRunner", "BundleBasedDirectRunner")


class CaseOptions(PipelineOptions):
  """Options of our own, given among those of the runner."""

  @classmethod
  def _add_argparse_args(cls, parser: Any) -> None:
    parser.add_argument(
        "--case_minutes", type=float, default=30.0,
        help="Longest wait without any case being finished; then the build ends.",
    )  # fmt: skip
    parser.add_argument(
        "--start_minutes", type=float, default=10.0,
        help="Longest wait until a worker begins with a case.",
    )  # fmt: skip
    parser.add_argument(
        "--silent_minutes", type=float, default=5.0,
        help="Longest wait without a sign of any worker after that.",
    )  # fmt: skip
    parser.add_argument(
        "--raw_address", default=None,
        help="The raw folder in a bucket, for workers that do not see it.",
    )  # fmt: skip
    parser.add_argument(
        "--work_address", default=None,
        help="Folder in a bucket through which workers pass records that do not see DATA.",
    )  # fmt: skip


def options_of(text: str) -> PipelineOptions:
  """Returns the options in a text such as "runner=FlinkRunner,parallelism=8".

  Commas within braces or quotes part nothing: environment_config={"command": "boot", "env": {}}.

  Raises:
    InputError: It is no list of names and values, or a name is misspelt.
  """
  words = [word.strip() for word in _split(text) if word.strip()]
  if bad := [word for word in words if word.startswith("-") or not word.partition("=")[0]]:
    raise InputError(
        "--beam_options must be names and values without dashes, such as"
        f" runner=FlinkRunner,parallelism=8. Got: {bad[0]!r}."
    )
  try:
    options = PipelineOptions(flags=[f"--{word}" for word in words])
    known = options.get_all_options()
  except SystemExit as error:  # What argparse does; its reason stands above.
    raise InputError(f"--beam_options: Beam does not take the values in {text!r}.") from error
  # Names that are in nobody's list may be those of a job server, where there is one.
  if known["runner"] is None or known["runner"] in _LOCAL_RUNNERS:
    for word in words:
      name = word.partition("=")[0]
      if name not in known and not name.startswith("no_"):
        raise InputError(
            str(errors.unknown_name("name in --beam_options", name, known)).partition(" Known:")[0]
        )
  return options


def _split(text: str) -> list[str]:
  """Splits at commas that stand in no braces and no quotes."""
  words, depth, quoted = [""], 0, False
  for character in text:
    quoted ^= character == '"'
    depth += {"{": 1, "}": -1}.get(character, 0) if not quoted else 0
    if character == "," and not quoted and depth <= 0:
      words.append("")
    else:
      words[-1] += character
  return words


class ReadCase(beam.DoFn):
  """Writes the work files of one case, or the message of its bad input.

  Attributes:
    address: Of the builder, as a dict.
    source: Where the files of cases are.
    work: Folder and address of the work files.
    build_process: Host and process of the build; its workers end when it has failed. None where
      somebody else ends them.
  """

  def __init__(
      self,
      address: dict[str, Any],
      source: RawSource,
      work: tuple[str, str | None],
      build_process: tuple[str, int] | None = None,
  ):
    self._address, self._source, self._work = address, source, work
    self._build_process = build_process
    self._reader: CaseReader | None = None
    self._shared: SharedWork | None = None

  def setup(self) -> None:
    """Imports the builder once in each worker process."""
    self._reader = BuilderAddress(**self._address).load()
    folder, work_address = self._work
    self._shared = SharedWork(pathlib.Path(folder), work_address)
    here = (socket.gethostname(), os.getpid())
    if self._build_process is not None and here != self._build_process:
      threading.Thread(target=_end_with_build, args=(pathlib.Path(folder),), daemon=True).start()

  def process(self, element: str) -> Iterator[str]:
    """Reads the task in JSON; yields the name of its work files."""
    task = CaseTask.from_json(json.loads(element))
    name = task.stem.name
    if self._reader is None or self._shared is None:
      raise RuntimeError("A worker reads cases after its setup.")
    if self._shared.address is None and case_records.is_finished(task.stem):
      yield name
      return
    # Names of its own: the same case may be read elsewhere at the same time.
    attempt = f"{name}-{uuid.uuid4().hex[:8]}"
    with self._shared.signs_of_life(attempt), self._shared.scratch() as scratch:
      own = scratch / attempt
      with self._source.at_hand(task.written) as (case, folder):
        given = CaseTask(case, task.fold, own, written=case)
        problem = case_records.write_case(self._reader, given)
      if problem is not None:
        problem = problem.replace(folder, self._source.root)  # As a build on one machine says it.
        files.write_json(own.with_suffix(PROBLEM_SUFFIX), problem)
        self._shared.put(own.with_suffix(PROBLEM_SUFFIX), f"{name}{PROBLEM_SUFFIX}")
      else:
        for suffix in (".records", ".json"):  # The index last: it makes both count.
          self._shared.put(own.with_suffix(suffix), f"{name}{suffix}")
    yield name


def _end_with_build(folder: pathlib.Path) -> None:
  """Ends this worker process when the build has failed: its runner waits for it for ever."""
  while folder.is_dir() and not (folder / _STOP).exists():
    time.sleep(1)
  os._exit(0)


def read_cases(
    address: BuilderAddress,
    tasks: Sequence[CaseTask],
    options: PipelineOptions,
    root: pathlib.Path,
    runner: Any = None,
    done: int = 0,
) -> list[str]:
  """Writes the work files of all tasks on Beam; returns the messages of cases that are bad input.

  Args:
    address: Where workers find the builder.
    tasks: The cases.
    options: Of Beam; without a runner among them it is FnApiRunner, on this machine.
    root: The raw folder.
    runner: Of Beam, instead of that in the options.
    done: Cases that an earlier build finished; the progress bar starts there.

  Raises:
    UnfinishedError: Beam failed, or no case was finished for `case_minutes`, or no worker gave a
      sign of life. What is finished is kept for the next start.
    InputError: There is no job server where the options name one.
  """
  if not tasks:
    return []
  waits = options.view_as(CaseOptions)
  folder = tasks[0].stem.parent
  within = f"{waits.work_address.rstrip('/')}/{folder.name}" if waits.work_address else None
  shared = SharedWork(folder, within)
  (folder / _STOP).unlink(missing_ok=True)
  progress_of = _Progress(tasks, shared, waits)
  missing = progress_of.start()
  bar = progress.bar(
      total=done + len(tasks), initial=done + len(tasks) - len(missing), desc="Reading",
      unit=" case", disable=None, leave=False,
  )  # fmt: skip
  if missing:
    _check_job_server(options)
    work = (os.fspath(folder), within)
    source = RawSource(os.fspath(root), waits.raw_address)
    reading = ReadCase(dataclasses.asdict(address), source, work, _own_process(options, runner))
    with bar:
      _wait(_Run(reading, missing, options, runner), progress_of, bar)
  problems = []
  for task in tasks:
    path = task.stem.with_suffix(PROBLEM_SUFFIX)
    if path.is_file():
      problems.append(files.read_json(path))
    elif not case_records.is_finished(task.stem):
      raise progress_of.unfinished(
          f"Beam ended without {task.written.key}. All workers must see {folder.parent} and the raw"
          " folder under these paths"
      )
  shared.clear()
  return sorted(problems)


def _own_process(options: PipelineOptions, runner: Any) -> tuple[str, int] | None:
  """Returns host and process where the workers are processes of this machine."""
  several = options.view_as(DirectOptions).direct_running_mode == "multi_processing"
  return (socket.gethostname(), os.getpid()) if several and _is_local(options, runner) else None


def _is_local(options: PipelineOptions, runner: Any) -> bool:
  name = options.view_as(StandardOptions).runner or ""
  return isinstance(runner, FnApiRunner) or (runner is None and name in _LOCAL_RUNNERS)


def _check_job_server(options: PipelineOptions) -> None:
  """Raises an `InputError` where nobody answers at `job_endpoint`."""
  given = options.view_as(PortableOptions)
  given.job_server_timeout = max(given.job_server_timeout, _JOB_SECONDS)
  endpoint = given.job_endpoint
  if not endpoint or endpoint == "embed":
    return
  host, _, port = endpoint.rpartition(":")
  try:
    socket.create_connection((host, int(port)), _CONNECT_SECONDS).close()
  except (OSError, ValueError) as error:
    raise UnfinishedError(
        f"job_endpoint={endpoint}: no job server answers there ({error}). Start one, such as python"
        " -m apache_beam.runners.portability.local_job_service_main -p PORT, and name HOST:PORT."
    ) from error


class _Run:
  """A pipeline in a thread of its own; some runners block until it has ended.

  Attributes:
    error: What it raised.
  """

  def __init__(
      self, reading: ReadCase, tasks: Sequence[CaseTask], options: PipelineOptions, runner: Any
  ):
    self.error: BaseException | None = None
    self._result: Any = None
    if runner is None and not options.view_as(StandardOptions).runner:
      runner = FnApiRunner()
    self._pipeline = beam.Pipeline(runner=runner, options=options)
    elements = [json.dumps(task.to_json()) for task in tasks]
    _ = (
        self._pipeline
        | "Cases" >> beam.Create(elements)
        # Else one worker would read them all: they come out of one element.
        | "Spread" >> beam.Reshuffle()
        | "Read" >> beam.ParDo(reading)
    )
    self._thread = threading.Thread(target=self._serve, daemon=True)
    self._thread.start()

  def _serve(self) -> None:
    try:
      self._result = self._pipeline.run()
      state = self._result.wait_until_finish()
      if state is not None and state != "DONE":
        raise RuntimeError(f"the pipeline ended as {state}")
    except BaseException as error:
      self.error = error

  def wait(self, seconds: float) -> bool:
    """Waits for the end of the pipeline; returns whether it has come."""
    self._thread.join(seconds)
    return not self._thread.is_alive()

  def cancel(self) -> None:
    """Asks the runner to stop, and does not wait long."""
    def stop() -> None:
      with contextlib.suppress(Exception):  # A dead job server answers nothing.
        if self._result is not None:
          self._result.cancel()

    thread = threading.Thread(target=stop, daemon=True)
    thread.start()
    thread.join(_CANCEL_SECONDS)


class _Progress:
  """Which cases have been answered, and when a worker last gave a sign of life."""

  def __init__(self, tasks: Sequence[CaseTask], shared: SharedWork, waits: CaseOptions):
    self._tasks, self._shared, self._waits = tasks, shared, waits
    self._waiting: set[str] = {task.stem.name for task in tasks}
    self._signs: dict[str, str] = {}
    self._has_begun = False
    self._changed = self._alive = time.monotonic()

  @property
  def poll_seconds(self) -> float:
    """How long to wait between two looks: those into a bucket are requests."""
    return _POLL_SECONDS if self._shared.address is None else _BUCKET_POLL_SECONDS

  def start(self) -> list[CaseTask]:
    """Forgets earlier problems and signs; returns the tasks that no worker has answered."""
    for name in self._shared.versions():
      if name.endswith((PROBLEM_SUFFIX, shared_work.ALIVE_SUFFIX)):
        self._shared.remove(name)
    for task in self._tasks:
      for suffix in (PROBLEM_SUFFIX, ".json"):  # No index here is whole, or it were no task.
        task.stem.with_suffix(suffix).unlink(missing_ok=True)
    self.look()  # What an earlier build left in a bucket.
    missing = [task for task in self._tasks if not case_records.is_finished(task.stem)]
    for task in missing:
      self._shared.remove(f"{task.stem.name}.json")
    self._waiting = {task.stem.name for task in missing}
    return missing

  def look(self) -> int:
    """Takes what has been answered since the last look, and returns how much that is."""
    versions = self._shared.versions()
    answered = {
        name for name in self._waiting
        if f"{name}.json" in versions or f"{name}{PROBLEM_SUFFIX}" in versions
    }  # fmt: skip
    for name in answered:
      kept = [PROBLEM_SUFFIX] if f"{name}{PROBLEM_SUFFIX}" in versions else [".records", ".json"]
      for suffix in kept:
        self._shared.take(f"{name}{suffix}")
    self._waiting -= answered
    signs = {
        name: version for name, version in versions.items()
        if name.endswith(shared_work.ALIVE_SUFFIX)
    }  # fmt: skip
    if answered:
      self._changed = time.monotonic()
    if answered or signs.items() - self._signs.items():
      self._alive, self._has_begun = time.monotonic(), True
    self._signs = signs
    return len(answered)

  def check(self) -> None:
    """Raises an `UnfinishedError` where nothing has happened for too long."""
    silent = (time.monotonic() - self._alive) / 60
    if not self._has_begun and silent > self._waits.start_minutes:
      raise self.unfinished(
          f"no worker began a case within {self._waits.start_minutes:g} minutes (start_minutes)."
          " Workers need a Python with flexunet and apache-beam; a pool starts the first `python`"
          " of its PATH: put that of the environment first there (its log says what is missing)"
      )
    if self._has_begun and silent > self._waits.silent_minutes:
      raise self.unfinished(
          f"no worker gave a sign of life for {self._waits.silent_minutes:g} minutes"
          " (silent_minutes): they may have been killed, perhaps for want of memory"
      )
    if time.monotonic() - self._changed > 60 * self._waits.case_minutes:
      raise self.unfinished(
          f"no case was finished for {self._waits.case_minutes:g} minutes (case_minutes): a worker"
          " or the job server may have died"
      )

  def stop(self) -> None:
    """Lets the worker processes of this machine end."""
    (self._shared.folder / _STOP).touch()

  def unfinished(self, reason: str) -> UnfinishedError:
    """Returns the error of a build that ends early, with what to do."""
    count = len(self._tasks) - len(self._waiting)
    return UnfinishedError(
        f"{reason}. {count} of {len(self._tasks)} cases were read and are kept: start the same"
        " command again, with a job server and workers that run, or without Beam."
    )


def _wait(run: _Run, progress_of: _Progress, bar: Any) -> None:
  """Waits for a pipeline that makes progress.

  Raises:
    UnfinishedError: It failed, or made none.
  """
  try:
    while not (ended := run.wait(progress_of.poll_seconds)):
      bar.update(progress_of.look())
      progress_of.check()
    bar.update(progress_of.look())
    if ended and run.error is not None:
      raise progress_of.unfinished(f"Beam failed: {_said(run.error)}") from run.error
  except BaseException:
    progress_of.stop()
    run.cancel()
    raise


def _said(error: BaseException) -> str:
  """Returns the last line of an error of Beam, which is that of the worker where there is one."""
  details = getattr(error, "details", None)  # Errors of gRPC.
  text = str(details() if callable(details) else error)
  lines = [line.strip() for line in text.splitlines() if line.strip()]
  said = lines[-1][:300] if lines else type(error).__name__
  if "connect" in said.lower() or "socket closed" in said.lower():
    return f"the job server or the worker pool does not answer ({said})"
  if missing := re.search(r"No module named '([\w.]+)'", said):
    return f"{said}. Workers need {missing[1].partition('.')[0]} installed (pip install flexunet)"
  if urn := re.search(r"beam:env:(\w+)", said):
    return f"{said}: this runner starts no workers of kind {urn[1]}; name another environment_type"
  return said
