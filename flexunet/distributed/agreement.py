"""What the processes of one run agree on before its first step: flags, plan and data."""

from __future__ import annotations

import dataclasses
import importlib.metadata
from collections.abc import Callable, Mapping
from typing import Any

import keras
import tensorflow as tf

import flexunet
from flexunet import config
from flexunet.distributed import hosts

# Where the data lie on each host is its own affair.
_OWN = ("data_dir", "cache_dir")


def check_flags(given: Mapping[str, Any], resume: bool) -> None:
  """Raises InputError in all processes unless they have the same flags and versions.

  Args:
    given: Part -> config as given, with open fields.
    resume: Whether a run is to be continued.
  """
  if hosts.count() == 1:
    return
  # Others would compute other numbers, or be other programs.
  versions = {
      "flexunet": flexunet.__version__,
      "keras": keras.__version__,
      "tensorflow": tf.__version__,
      "jax": importlib.metadata.version("jax"),
  }
  hosts.check_same("the same versions", versions)
  flags = {"--resume": resume}
  for part in given.values():
    for name, value in dataclasses.asdict(part).items():
      if name not in _OWN:
        flags[f"--{name}"] = value
  hosts.check_same("the same flags", flags)


def config_of_first(
    make: Callable[[], config.RunConfig], own: config.DataConfig
) -> config.RunConfig:
  """Returns the config that the first process makes, with this one's folders of data.

  What is planned depends on measurements of the machine, which differ from host to host.

  Args:
    make: Called in the first process alone.
    own: This process's.

  Raises:
    InputError: The first process has raised it.
  """
  if hosts.count() == 1:
    return make()
  made = config.RunConfig.from_json(hosts.on_first(lambda: make().to_json()))
  folders = {name: getattr(own, name) for name in _OWN}
  return dataclasses.replace(made, data=dataclasses.replace(made.data, **folders))
