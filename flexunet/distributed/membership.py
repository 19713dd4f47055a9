"""Which of several processes of one run this is: by flags, or by the variables of a launcher.

Several hosts train one run as one process per host, each with all GPUs that it sees. They share
every batch and find each other at the address of the first one, the coordinator. What the flags
leave open is taken from the variables of Keras (KERAS_DISTRIBUTION_...), of a Slurm step (`srun`)
and of an Indexed Job of Kubernetes.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import os
import re
import sys
from collections.abc import Mapping
from typing import Any

from flexunet.core import flags
from flexunet.core.errors import InputError

GROUP = "Several hosts"
BACKENDS = {
    "tensorflow": "the default",
    "jax": "needs the extra jax; the only one that several hosts train on",
    "torch": "needs the extra torch",
}
# Set for the process that trains by the one that watches it (`launch`).
VARIABLE = "FLEXUNET_MEMBER_OF_RUN"
_BACKEND = "KERAS_BACKEND"
_KERAS = "KERAS_DISTRIBUTION_"
# Above the ports that are handed out, and another one per job: several may share a host.
_FIRST_PORT, _NUM_PORTS = 61_440, 4_096
_ADDRESS = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[^\s:/\[\]]+):(\d{1,5})")


@dataclasses.dataclass(frozen=True)
class Membership:
  """A process's place among those of a run.

  Attributes:
    coordinator: HOST:PORT at which the first process listens.
    index: Its number, from 0 on; 0 writes the run folder.
    count: How many there are.
  """

  coordinator: str
  index: int
  count: int

  def to_json(self) -> str:
    """Returns what `of_json` reads."""
    return json.dumps(dataclasses.asdict(self))

  @classmethod
  def of_environment(cls) -> Membership | None:
    """Returns the place that the watching process has passed on; None: it is not watched."""
    text = os.environ.get(VARIABLE)
    return cls(**json.loads(text)) if text else None


class HostFlags:
  """The flags that say which process of a run this is, and on which backend it computes."""

  def __init__(self, program: flags.Program):
    """Defines them in a program."""
    self._coordinator = program.string(
        "coordinator",
        None,
        "HOST:PORT of the first process, where all find each other; the same for all. Under srun:"
        " the first node of the step, and a port by the number of the job.",
        group=GROUP,
    )
    self._num_processes = program.integer(
        "num_processes",
        None,
        "Processes that train this run together, one per host; each is started with the same flags"
        " and its own --process_id. 1: this one alone, whatever the variables of a launcher say.",
        group=GROUP,
        lower_bound=1,
    )
    self._process_id = program.integer(
        "process_id",
        None,
        "Number of this process, from 0 on; 0 runs on the host of --coordinator and writes the run"
        " folder. Default: that of Slurm (SLURM_PROCID) or Kubernetes (JOB_COMPLETION_INDEX).",
        group=GROUP,
        lower_bound=0,
    )
    self._backend = program.enum(
        "backend",
        None,
        BACKENDS,
        "What Keras computes with. Default: that of KERAS_BACKEND, or tensorflow; jax for several"
        " hosts.",
        group="Devices and precision",
    )

  def membership(self) -> Membership | None:
    """Returns the place of this process; None where it trains alone."""
    return find(
        self._coordinator.value, self._process_id.value, self._num_processes.value, os.environ
    )

  def set_backend(self, member: Membership | None) -> str:
    """Lets Keras take the backend that was chosen; call it before Keras is imported.

    Returns:
      Its name.

    Raises:
      InputError: It is not installed, or several hosts cannot train on it.
    """
    backend = chosen_backend(self._backend.value, member, os.environ)
    os.environ[_BACKEND] = backend
    return backend


def find(
    coordinator: str | None,
    process_id: int | None,
    num_processes: int | None,
    variables: Mapping[str, str],
) -> Membership | None:
  """Returns the place of this process among those of a run; None where it trains alone.

  Args:
    coordinator, process_id, num_processes: As given; None: not given.
    variables: The environment.

  Raises:
    InputError: A part is missing or does not fit the others.
  """
  if num_processes == 1:
    if process_id:
      raise InputError(f"--process_id must be 0 with --num_processes=1. Got: {process_id}.")
    return None
  found = _of_launcher(variables)
  chosen = {
      "--num_processes": _first(num_processes, found.get("count")),
      "--process_id": _first(process_id, found.get("index"), _of_kubernetes(variables)),
      "--coordinator": _first(coordinator, found.get("coordinator")),
  }
  given = (coordinator, process_id, num_processes)
  if all(value is None for value in given) and (chosen["--num_processes"] or 1) == 1:
    return None
  if missing := [flag for flag, value in chosen.items() if value is None]:
    raise InputError(
        f"A run of several processes needs {', '.join(chosen)}; missing: {', '.join(missing)}. No"
        " variable of Keras, Slurm (srun) or Kubernetes (Indexed Job) gives them."
    )
  index, count = int(chosen["--process_id"]), int(chosen["--num_processes"])
  if not 0 <= index < count:
    raise InputError(
        f"--process_id must lie in 0..{count - 1}, with --num_processes={count}. Got: {index}."
    )
  return Membership(_checked_address(str(chosen["--coordinator"])), index, count)


def _first(*values: Any) -> Any:
  return next((value for value in values if value is not None), None)


def _checked_address(text: str) -> str:
  found = _ADDRESS.fullmatch(text)
  if not found or not 0 < int(found[2]) < 65_536:
    raise InputError(
        f"--coordinator must be HOST:PORT of the first process, e.g. node1:61500. Got: {text:.99}."
    )
  return text


def _of_launcher(variables: Mapping[str, str]) -> dict[str, Any]:
  """Returns what the variables of Keras say, or else those of a Slurm step of several tasks."""
  if addresses := variables.get(f"{_KERAS}JOB_ADDRESSES"):
    named = addresses.split(",")
    return {
        "coordinator": named[0],
        "count": _number(variables, f"{_KERAS}NUM_PROCESSES", len(named) if named[1:] else None),
        "index": _number(variables, f"{_KERAS}PROCESS_ID"),
    }
  # Set by srun alone: the script of a batch job is one process, however many tasks it has.
  count = _number(variables, "SLURM_STEP_NUM_TASKS")
  if count is None or count < 2:
    return {}
  host = _first_node(variables.get("SLURM_STEP_NODELIST", ""))
  job = _number(variables, "SLURM_JOB_ID", 0) or 0
  return {
      "coordinator": f"{host}:{_FIRST_PORT + job % _NUM_PORTS}" if host else None,
      "count": count,
      "index": _number(variables, "SLURM_PROCID"),
  }


def _of_kubernetes(variables: Mapping[str, str]) -> int | None:
  return _number(variables, "JOB_COMPLETION_INDEX")


def _number(variables: Mapping[str, str], name: str, default: int | None = None) -> int | None:
  text = variables.get(name, "")
  if not text:
    return default
  if not text.isdecimal():
    raise InputError(f"The variable {name} must be a whole number. Got: {text:.99}.")
  return int(text)


def _first_node(nodes: str) -> str:
  """Returns the first host of a list as Slurm writes it, e.g. gpu01 of gpu[01-04,07],cpu3."""
  name, bracket, rest = nodes.partition(",")[0].partition("[")
  return name + re.split(r"[-,\]]", rest)[0] if bracket else name


def chosen_backend(
    given: str | None, member: Membership | None, variables: Mapping[str, str]
) -> str:
  """Returns the backend of Keras for this process.

  Args:
    given: That of `--backend`.
    member: Its place among several processes.
    variables: The environment.

  Raises:
    InputError: It is not installed, or several hosts cannot train on it.
  """
  backend = given or ("jax" if member else variables.get(_BACKEND, "tensorflow"))
  if member and backend != "jax":
    raise InputError(
        f"Several hosts train on --backend=jax. Got: {backend}. Leave --backend out, or train on"
        " one host with --num_processes=1."
    )
  if backend in ("jax", "torch") and importlib.util.find_spec(backend) is None:
    raise InputError(
        f"--backend={backend} needs the extra {backend}, which is not installed: pip install"
        f" 'flexunet[{backend}]'."
    )
  keras = sys.modules.get("keras")
  if keras is not None and keras.config.backend() != backend:
    raise InputError(
        f"--backend={backend} must be chosen before Keras is loaded, which computes with"
        f" {keras.config.backend()} here. Set KERAS_BACKEND={backend} for the whole program."
    )
  return backend
