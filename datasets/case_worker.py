"""A worker process of the build: reads tasks from a pipe until that is closed.

Not a `multiprocessing` worker on purpose: those import the main program again, which costs many
seconds below `tfds build` and makes a script without a main guard start itself over and over.
When the parent is killed its end of the pipe closes, so no worker stays behind.
"""

from __future__ import annotations

import dataclasses
import importlib
import json
import os
import sys
import traceback
from typing import IO, Any

from flexunet.datasets import case_records


@dataclasses.dataclass(frozen=True)
class BuilderAddress:
  """How a worker makes the builder anew: builders themselves do not travel.

  Attributes:
    module, class_name: Where its class is.
    module_root: Folder that must be on the path for it (a builder may be loaded by its file).
    config: Name of a config of the class, or all fields of one made up by the user.
    voxel_dtype: What the volumes of this build store.
  """

  module: str
  class_name: str
  module_root: str
  config: str | dict[str, Any]
  voxel_dtype: str

  def load(self):
    """Imports and makes the builder in this process."""
    try:
      module = importlib.import_module(self.module)
    except ModuleNotFoundError:
      sys.path.append(self.module_root)
      module = importlib.import_module(self.module)
    builder_class = getattr(module, self.class_name)
    return builder_class.for_reading(self.config, self.voxel_dtype)


def main() -> None:
  """Runs a new interpreter as a worker; the first message it gets is a `BuilderAddress`."""
  # Whatever a library prints goes to standard error; standard output carries the answers.
  answers = os.fdopen(os.dup(1), "w")
  os.dup2(2, 1)
  serve(sys.stdin.buffer, answers, None)


def serve(messages: IO[bytes], answers: IO[str], builder: Any) -> None:
  """Answers each line of JSON, a task or the address of the builder, with one line of JSON.

  The answer is {"problem": message of bad input, or None} or {"fault": trace}.
  """
  for line in messages:
    answer: dict[str, str | None] = {"problem": None}
    try:
      message = json.loads(line)
      if "address" in message:
        builder = BuilderAddress(**message["address"]).load()
      else:
        task = case_records.CaseTask.from_json(message["task"])
        answer = {"problem": case_records.write_case(builder, task)}
    except Exception:
      answer = {"fault": traceback.format_exc()}
    print(json.dumps(answer), file=answers, flush=True)
