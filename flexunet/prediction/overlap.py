"""Work on one thing after the other, while the next one is read and the last one written."""

from __future__ import annotations

import functools
from collections.abc import Callable, Generator, Sequence
from concurrent import futures
from typing import Any, TypeVar

_Item = TypeVar("_Item")
_Given = TypeVar("_Given")
_Answer = TypeVar("_Answer")
_Result = TypeVar("_Result")


def in_turns(
    items: Sequence[_Item],
    read: Callable[[_Item], _Given],
    answer: Callable[[_Item, _Given], _Answer],
    write: Callable[[_Item, _Answer], _Result],
) -> Generator[tuple[_Item, Callable[[], _Result]], None, None]:
  """Yields each item, in order, with what gives its result or raises its error.

  `answer` runs in the caller's thread, `read` and `write` in one thread each. No more than one item
  is read ahead and one is being written. What ends the iteration early, such as Ctrl-C, waits for
  the reading and the writing under way, and begins no other.

  The caller asks for each result before the next item, which waits for its writing.

  Args:
    items: What is worked on.
    read: Takes an item.
    answer: Takes an item and what was read.
    write: Takes an item and the answer.
  """
  with _Pool() as reader, _Pool() as writer:
    ahead = [reader.submit(read, item) for item in items[:1]]
    behind: list[tuple[_Item, Callable[[], _Result]]] = []
    for index, item in enumerate(items):
      given = ahead.pop()
      futures.wait([given])
      ahead = [reader.submit(read, following) for following in items[index + 1 : index + 2]]
      result: Callable[[], _Result]
      try:
        answered = answer(item, given.result())
      except Exception as error:
        result = functools.partial(_fail, error)
        yield from behind
      else:
        yield from behind
        result = _submitted(writer, write, item, answered)
        del answered
      del given
      behind = [(item, result)]
    yield from behind


def _submitted(
    writer: futures.Executor,
    write: Callable[[_Item, _Answer], _Result],
    item: _Item,
    answered: _Answer,
) -> Callable[[], _Result]:
  return writer.submit(write, item, answered).result


def _fail(error: Exception) -> Any:
  raise error


class _Pool(futures.ThreadPoolExecutor):
  """One thread, which begins nothing new once the block is left."""

  def __init__(self):
    super().__init__(max_workers=1)

  def __exit__(self, *error: object) -> None:
    self.shutdown(wait=True, cancel_futures=True)
