"""One item is read ahead, one written behind, and each keeps its own result or error."""

import contextlib
import threading

import pytest

from flexunet.prediction import overlap


def results(items, read=lambda item: item, answer=lambda _, given: given, write=None):
  write = write or (lambda _, answered: answered)
  return [(item, result()) for item, result in overlap.in_turns(items, read, answer, write)]


@pytest.mark.parametrize("count", [0, 1, 2, 5])
def test_results_come_in_order(count):
  found = results(
      list(range(count)),
      read=lambda item: item + 10,
      answer=lambda item, given: (item, given),
      write=lambda item, answered: (*answered, item),
  )
  assert found == [(item, (item, item + 10, item)) for item in range(count)]


def test_the_next_item_is_read_and_the_last_written_while_one_is_answered():
  # Each waits for the other: without overlap this would never end.
  read, written = [threading.Event() for _ in range(4)], [threading.Event() for _ in range(4)]
  answered = [threading.Event() for _ in range(4)]

  def answer(item, _):
    if item < 3:
      assert read[item + 1].wait(30)  # Read meanwhile.
    answered[item].set()
    if item:
      assert written[item - 1].wait(30)  # Written meanwhile.

  def write(item, _):
    if item < 3:
      assert answered[item + 1].wait(30)
    written[item].set()

  assert len(results(list(range(4)), lambda item: read[item].set(), answer, write)) == 4


def test_no_more_than_one_item_is_ahead_and_one_behind():
  lock, alive, most = threading.Lock(), set(), [0]

  def read(item):
    with lock:
      alive.add(item)
      most[0] = max(most[0], len(alive))

  def write(item, _):
    with lock:
      alive.remove(item)

  results(list(range(20)), read, lambda *_: None, write)
  assert most[0] <= 3 and not alive


@pytest.mark.parametrize("stage", ["read", "answer", "write"])
def test_an_error_belongs_to_its_item_and_loses_no_other(stage):
  def failing(name):
    def run(item, given=None):
      if name == stage and item == 1:
        raise OSError("bad")
      return item

    return run

  found = {}
  for item, result in overlap.in_turns(
      [0, 1, 2], failing("read"), failing("answer"), failing("write")
  ):
    try:
      found[item] = result()
    except OSError as error:
      found[item] = str(error)
  assert found == {0: 0, 1: "bad", 2: 2}


def test_what_stops_the_work_lets_the_writing_finish_and_begins_no_other():
  begun, finished = [], []
  released = threading.Event()

  def answer(item, _):
    if item == 1:
      released.set()
      raise KeyboardInterrupt
    return item

  def write(item, _):
    assert released.wait(30)
    finished.append(item)

  turns = overlap.in_turns(list(range(9)), begun.append, answer, write)
  with pytest.raises(KeyboardInterrupt), contextlib.closing(turns):
    for _, result in turns:
      result()
  assert finished == [0]
  assert len(begun) <= 3
