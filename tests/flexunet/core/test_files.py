"""One program at a time writes into a folder, and a dead one bars nobody."""

import errno
import fcntl
import json
import os
import re
import signal
import subprocess
import sys

import pytest

from flexunet.core import files
from flexunet.core.errors import InputError

_HOLD = """
import pathlib, signal, sys, time
from flexunet.core import files
signal.signal(signal.SIGINT, signal.default_int_handler)  # Ignored below a shell's background job.
if sys.argv[2] == "create":
  files.lock_stream = lambda stream: (_ for _ in ()).throw(OSError(files.errno.ENOLCK, ""))
with files.locked(pathlib.Path(sys.argv[1]), "--run_dir"):
  print("held", flush=True)
  time.sleep(60)
"""


def without_locks(stream):
  raise OSError(errno.ENOLCK, "No locks available")


@pytest.fixture(params=["system", "create"])
def way(request, monkeypatch):
  """The system's lock, and the file that stands in where a file system offers none."""
  if request.param == "create":
    monkeypatch.setattr(files, "lock_stream", without_locks)
  return request.param


@pytest.fixture
def holder(tmp_path, way):
  """Another process that holds the lock of tmp_path / "out"."""
  process = subprocess.Popen(
      [sys.executable, "-c", _HOLD, str(tmp_path / "out"), way],
      stdout=subprocess.PIPE, text=True,
  )  # fmt: skip
  assert process.stdout.readline() == "held\n"
  yield process
  process.kill()
  process.communicate()


def test_a_second_program_is_refused_with_process_and_start(tmp_path, holder):
  with pytest.raises(InputError) as caught, files.locked(tmp_path / "out", "--run_dir"):
    pass
  message = str(caught.value)
  assert "\n" not in message and f"process {holder.pid}, started 20" in message
  assert re.search(r"started \d{4}-\d\d-\d\d \d\d:\d\d:\d\d UTC", message)
  with pytest.raises(InputError, match="--run_dir .*out must be free"):
    files.check_unlocked(tmp_path / "out", "--run_dir")


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_the_lock_ends_with_its_program(tmp_path, holder, end):
  holder.send_signal(end)
  holder.wait()
  with files.locked(tmp_path / "out", "--run_dir"):
    assert json.loads((tmp_path / "out" / ".lock").read_text())["process"] == os.getpid()


def test_the_lock_of_another_machine_is_no_stale_one(tmp_path, monkeypatch):
  monkeypatch.setattr(files, "lock_stream", without_locks)
  entry = {"process": 1, "started": "2026-01-01 00:00:00 UTC", "ticks": 1, "machine": "elsewhere"}
  (tmp_path / ".lock").write_text(json.dumps(entry))
  with pytest.raises(InputError, match=r"if it has died, remove .*\.lock"):
    files.check_unlocked(tmp_path, "--run_dir")


def test_another_process_of_the_same_number_is_not_taken_for_the_holder(tmp_path, monkeypatch):
  monkeypatch.setattr(files, "lock_stream", without_locks)
  with files.locked(tmp_path, "--run_dir"):
    entry = json.loads((tmp_path / ".lock").read_text())
  (tmp_path / ".lock").write_text(json.dumps({**entry, "ticks": entry["ticks"] - 1}))
  files.check_unlocked(tmp_path, "--run_dir")


def test_nothing_is_left_of_a_lock_nor_of_the_folders_made_for_it(tmp_path, way):
  with files.locked(tmp_path / "a" / "b", "--run_dir"):
    assert (tmp_path / "a" / "b" / ".lock").is_file()
  assert list(tmp_path.iterdir()) == []
  with files.locked(tmp_path / "a" / "b", "--run_dir"):
    (tmp_path / "a" / "b" / "result").write_text("")
  assert [path.name for path in (tmp_path / "a" / "b").iterdir()] == ["result"]


def test_a_lock_names_no_host(tmp_path):
  with files.locked(tmp_path, "--run_dir"):
    assert os.uname().nodename not in (tmp_path / ".lock").read_text()


def test_a_lock_file_removed_by_its_holder_meanwhile_is_not_taken(tmp_path, monkeypatch):
  waits = [lambda: (tmp_path / ".lock").unlink()]

  def removed_once(stream):
    fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    if waits:
      waits.pop()()

  monkeypatch.setattr(files, "lock_stream", removed_once)
  with files.locked(tmp_path, "--run_dir"):
    assert (tmp_path / ".lock").is_file()
