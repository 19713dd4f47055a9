"""Reads cases on Apache Beam: one element is one case, whose records go into its work files.

The work folder lies beside the dataset and must be seen by all workers, as the raw folder. A case
is whole where its index file is, so an element may be tried twice, or at two places at once; bad
input is an answer, not an error, and never tried again. Splits, order, shards and report are then
made by the build itself, as without Beam: the bytes are the same.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import threading
import time
import uuid
from collections.abc import Iterator, Sequence
from typing import Any

import apache_beam as beam
from apache_beam.options.pipeline_options import PipelineOptions, StandardOptions
from apache_beam.runners.portability.fn_api_runner import FnApiRunner

from flexunet.core import files, progress
from flexunet.core.errors import InputError, UnfinishedError
from flexunet.datasets.builder import case_records
from flexunet.datasets.builder.case_records import CaseReader, CaseTask
from flexunet.datasets.builder.workers import BuilderAddress

_PROBLEM_SUFFIX = ".problem"
_POLL_SECONDS, _CANCEL_SECONDS = 0.2, 10.0


class CaseOptions(PipelineOptions):
  """Options of our own, given among those of the runner."""

  @classmethod
  def _add_argparse_args(cls, parser: Any) -> None:
    parser.add_argument(
        "--case_minutes", type=float, default=30.0,
        help="Longest wait without any case being finished; then the build ends.",
    )  # fmt: skip


def options_of(text: str) -> PipelineOptions:
  """Returns the options in a text such as "runner=FlinkRunner,parallelism=8".

  Raises:
    InputError: It is no list of names and values.
  """
  words = [word.strip() for word in text.split(",") if word.strip()]
  if bad := [word for word in words if word.startswith("-") or not word.partition("=")[0]]:
    raise InputError(
        "--beam_options must be names and values without dashes, such as"
        f" runner=FlinkRunner,parallelism=8. Got: {bad[0]!r}."
    )
  return PipelineOptions(flags=[f"--{word}" for word in words])


class ReadCase(beam.DoFn):
  """Writes the work files of one case, or the message of its bad input."""

  def __init__(self, address: dict[str, Any]):
    self._address = address
    self._reader: CaseReader | None = None

  def setup(self) -> None:
    """Imports the builder once in each worker process."""
    self._reader = BuilderAddress(**self._address).load()

  def process(self, element: str) -> Iterator[str]:
    """Reads the task in JSON; yields the name of its work files."""
    task = CaseTask.from_json(json.loads(element))
    if self._reader is None:
      raise RuntimeError("A worker reads cases after its setup.")
    if not case_records.is_finished(task.stem):
      # A name of its own: the same case may be read elsewhere at the same time.
      stem = task.stem.with_name(f"{task.stem.name}-{uuid.uuid4().hex[:8]}")
      problem = case_records.write_case(self._reader, dataclasses.replace(task, stem=stem))
      if problem is not None:
        files.write_json(task.stem.with_suffix(_PROBLEM_SUFFIX), problem)
      else:
        for suffix in (".records", ".json"):  # The index last: it makes both count.
          os.replace(stem.with_suffix(suffix), task.stem.with_suffix(suffix))
    yield task.stem.name


def read_cases(
    address: BuilderAddress,
    tasks: Sequence[CaseTask],
    options: PipelineOptions,
    runner: Any = None,
    done: int = 0,
) -> list[str]:
  """Writes the work files of all tasks on Beam; returns the messages of cases that are bad input.

  Args:
    address: Where workers find the builder.
    tasks: The cases.
    options: Of Beam; without a runner among them it is FnApiRunner, on this machine.
    runner: Of Beam, instead of that in the options.
    done: Cases that an earlier build finished; the progress bar starts there.

  Raises:
    UnfinishedError: Beam failed, or no case was finished for `case_minutes`. What is finished is
      kept for the next start.
  """
  if not tasks:
    return []
  for task in tasks:
    task.stem.with_suffix(_PROBLEM_SUFFIX).unlink(missing_ok=True)
  run = _Run(address, tasks, options, runner)
  bar = progress.bar(
      total=done + len(tasks), initial=done, desc="Reading", unit=" case", disable=None,
      leave=False,
  )  # fmt: skip
  with bar:
    _wait(run, tasks, options.view_as(CaseOptions).case_minutes, bar)
  problems = []
  for task in tasks:
    path = task.stem.with_suffix(_PROBLEM_SUFFIX)
    if path.is_file():
      problems.append(files.read_json(path))
    elif not case_records.is_finished(task.stem):
      raise _unfinished(
          tasks, f"Beam ended without {task.written.key}. All workers must see"
          f" {task.stem.parent.parent} and the raw folder under these paths",
      )  # fmt: skip
  return sorted(problems)


class _Run:
  """A pipeline in a thread of its own; some runners block until it has ended.

  Attributes:
    error: What it raised.
  """

  def __init__(
      self,
      address: BuilderAddress,
      tasks: Sequence[CaseTask],
      options: PipelineOptions,
      runner: Any,
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
        | "Read" >> beam.ParDo(ReadCase(dataclasses.asdict(address)))
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


def _wait(run: _Run, tasks: Sequence[CaseTask], minutes: float, bar: Any) -> None:
  """Waits for a pipeline that makes progress.

  Raises:
    UnfinishedError: It failed, or made none.
  """
  waiting = {task.stem for task in tasks}
  changed = time.monotonic()
  try:
    while True:
      ended = run.wait(_POLL_SECONDS)
      finished = {stem for stem in waiting if _is_answered(stem)}
      if finished:
        changed = time.monotonic()
        waiting -= finished
        bar.update(len(finished))
      if ended:
        break
      if time.monotonic() - changed > 60 * minutes:
        raise _unfinished(
            tasks, f"no case was finished for {minutes:g} minutes (case_minutes): a worker or the"
            " job server may have died",
        )  # fmt: skip
  except BaseException:
    run.cancel()
    raise
  if run.error is not None:
    # The message begins with that of the worker, where there is one.
    lines = [line for line in str(run.error).splitlines() if line.strip()]
    said = lines[-1].strip() if lines else type(run.error).__name__
    raise _unfinished(tasks, f"Beam failed: {said[:300]}") from run.error


def _is_answered(stem: Any) -> bool:
  return stem.with_suffix(".json").is_file() or stem.with_suffix(_PROBLEM_SUFFIX).is_file()


def _unfinished(tasks: Sequence[CaseTask], reason: str) -> UnfinishedError:
  count = sum(_is_answered(task.stem) for task in tasks)
  return UnfinishedError(
      f"{reason}. {count} of {len(tasks)} cases were read and are kept: start the same command"
      " again, with a job server and workers that run, or without Beam."
  )
