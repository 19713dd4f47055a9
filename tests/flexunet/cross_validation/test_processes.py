"""How folds are run: places at the machine, failures, signals, what a killed command leaves."""

import io
import os
import signal
import subprocess
import sys
import threading
import time
import types

import pytest

from flexunet.core import files, machine
from flexunet.core.errors import InputError
from flexunet.cross_validation import processes

# Stands in for the program of a fold: does what its stage says.
STAND_IN = """
import json, signal, sys, time
task = json.loads(sys.stdin.readline())
print(f"place {task['place']} of {task['sharing']}", flush=True)
if task["stage"] == "fail":
  print("error: no such thing.")
  sys.exit(1)
if task["stage"] == "die":
  print("a trace", flush=True)
  sys.exit(3)
if task["stage"] == "wait":
  signal.signal(signal.SIGTERM, lambda *_: sys.exit("saved"))
  print("waiting", flush=True)
  time.sleep(60)
"""


@pytest.fixture(autouse=True)
def stand_in(monkeypatch):
  monkeypatch.setattr(processes, "_PROGRAM", STAND_IN)
  monkeypatch.setattr(processes, "_LOOK_S", 0.05)


def task(folder, fold, *stages):
  run = folder / f"fold_{fold}"
  return processes.FoldTask(fold, run, run / "log.txt", tuple({"stage": one} for one in stages))


def test_gpus_are_dealt_out_and_each_place_has_as_many():
  places = processes.environments(2, 5, ["0", "1", "4", "5", "6"])
  assert [place["CUDA_VISIBLE_DEVICES"] for place in places] == ["0,1", "4,5"]
  assert len(processes.environments(0, 5, ["0", "1", "2"])) == 3
  # No more places than folds; the only one has the whole machine.
  assert processes.environments(0, 1, ["0", "1"]) == [{}]
  assert processes.environments(0, 5, []) == [{}]


def test_more_folds_at_a_time_than_there_are_devices_are_refused(monkeypatch):
  with pytest.raises(InputError, match="--parallel must be at most 1: .* a GPU of its own. Got: 2"):
    processes.environments(2, 5, ["0"])
  monkeypatch.setattr(machine, "available_cpus", lambda: 2)
  assert processes.environments(2, 5, []) == [{}, {}]
  with pytest.raises(InputError, match="at most 2: .* a processor"):
    processes.environments(3, 5, [])


@pytest.mark.parametrize(("given", "found"), [("", []), ("-1", []), ("0, 2", ["0", "2"])])
def test_gpus_are_those_that_the_user_left_visible(monkeypatch, given, found):
  monkeypatch.setenv("CUDA_VISIBLE_DEVICES", given)
  assert processes.visible_gpus() == found


def test_parts_of_a_gpu_stand_for_it(monkeypatch):
  listed = ["GPU 0: NVIDIA A (UUID: GPU-1)", "  MIG 1g.10gb  Device  0: (UUID: MIG-7)",
            "GPU 1: NVIDIA A (UUID: GPU-2)"]  # fmt: skip
  monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)

  def answer(lines):
    done = subprocess.CompletedProcess([], 0, "\n".join(lines))
    monkeypatch.setattr(processes.subprocess, "run", lambda *_, **__: done)
    return processes.visible_gpus()

  assert answer(listed) == ["MIG-7"] and answer(listed[::2]) == ["0", "1"]


def test_a_fold_that_fails_is_named_and_the_others_finish(tmp_path, capsys):
  ended = []
  tasks = [task(tmp_path, 0, "train", "score"), task(tmp_path, 1, "fail", "score"),
           task(tmp_path, 2, "train", "die"), task(tmp_path, 3, "score")]  # fmt: skip
  runner = processes.FoldRunner([{}, {}], lambda one, stage: ended.append((one.fold, stage)))
  problems = runner.run(tasks)
  assert problems == {1: "no such thing.", 2: "it ended with code 3: a trace."}
  assert sorted(ended) == [(0, "score"), (0, "train"), (2, "train"), (3, "score")]
  assert "of 2" in (tmp_path / "fold_3" / "log.txt").read_text()
  said = capsys.readouterr().err
  assert "fold 1 has failed: no such thing. Its log:" in said


def test_a_signal_lets_the_processes_save_and_starts_no_more(tmp_path):
  tasks = [task(tmp_path, fold, "wait") for fold in range(3)]
  log = tasks[0].log

  def interrupt():
    while not log.is_file() or "waiting" not in log.read_text():
      time.sleep(0.02)
    os.kill(os.getpid(), signal.SIGTERM)

  before = signal.getsignal(signal.SIGTERM)
  threading.Thread(target=interrupt, daemon=True).start()
  with pytest.raises(processes.Stopped, match="SIGTERM") as caught:
    processes.FoldRunner([{}], lambda *_: None).run(tasks)
  assert caught.value.signal_number == signal.SIGTERM
  assert "saved" in log.read_text() and not tasks[1].log.exists()
  assert signal.getsignal(signal.SIGTERM) is before


def test_what_a_killed_command_has_left_behind_is_waited_for(tmp_path):
  def hold():
    with files.locked(tmp_path / "fold_0", "--run_dir"):
      held.set()
      time.sleep(0.5)

  held, holder = threading.Event(), threading.Thread(target=hold)
  holder.start()
  held.wait()
  started = time.monotonic()
  assert processes.FoldRunner([{}], lambda *_: None).run([task(tmp_path, 0, "train")]) == {}
  assert time.monotonic() - started > 0.4
  holder.join()


def test_a_process_asks_itself_to_end_when_its_starter_has_died():
  program = (
      "import threading, time\n"
      "from flexunet.cross_validation import fold_program\n"
      "source = open(0, 'rb', buffering=0, closefd=False)\n"
      "threading.Thread(target=fold_program._end_with_the_starter, args=(source,)).start()\n"
      "time.sleep(60)"
  )
  process = subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE)
  process.stdin.close()  # As the system does for a process that has died.
  assert process.wait(timeout=60) == -signal.SIGTERM


def test_the_view_of_several_folds_fits_the_line_of_a_terminal(monkeypatch):
  class Terminal(io.StringIO):
    def isatty(self):
      return True

  monkeypatch.setattr(sys, "stderr", Terminal())
  monkeypatch.setenv("COLUMNS", "60")
  runner = processes.FoldRunner([{}, {}], lambda *_: None)
  runner._status = {3: "val_dice 0.873  loss 0.214  epoch 1/3  0:50 left", 1: "starting"}
  shown = []
  runner._show(types.SimpleNamespace(
      set_description_str=lambda text, refresh: shown.append(text), update=lambda: None
  ), 5)  # fmt: skip
  assert shown == ["0/5 folds  |  fold 1: starting  |  fold 3: val_dice 0.8"]
  assert len(shown[0]) < 60
