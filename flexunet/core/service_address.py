"""Addresses of services, grpc://HOST:PORT: read, and asked whether anything answers there."""

from __future__ import annotations

import dataclasses
import re
import socket

from flexunet.core.config_fields import Checked, knob
from flexunet.core.errors import InputError

_FORM = re.compile(r"(?:grpc://)?(\[[0-9A-Fa-f:.]+\]|[^\s:/]+):(\d{1,5})")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ServiceFlags(Checked):
  """The flags of a training that has its batches computed elsewhere."""

  data_service: str | None = knob(
      None,
      "tf.data service whose workers read, decode and augment the training batches, grpc://HOST:PORT"
      " (flexunet data_service starts one). The batches are those of a run without it. Not kept in"
      " config.json: each command names its own.",
      unset="none, the trainer does it",
      group="Data",
  )
  data_service_timeout_s: float = knob(
      120.0,
      "Seconds without the next batch after which a training gives its service up: it saves what it"
      " has done and ends, saying who does not answer.",
      minimum=1.0,
      group="Data",
  )

  def __post_init__(self):
    super().__post_init__()
    if self.data_service:
      parse(self.data_service, "--data_service")


def without_address(word: str) -> str:
  """Returns a word of a command without the machine that it names, for what is kept of a run.

  Args:
    word: A flag with its value, or a value alone, of --data_service or --coordinator.
  """
  name, separator, value = word.rpartition("=")
  return f"{name}{separator}HOST:PORT" if _FORM.fullmatch(value) else word


def parse(address: str, flag: str) -> tuple[str, int]:
  """Returns (host, port) of an address; brackets around an IPv6 host are taken off.

  Args:
    address: grpc://HOST:PORT, or HOST:PORT.
    flag: Named where it is neither.
  """
  found = _FORM.fullmatch(address.strip())
  if found is None or not 0 < int(found[2]) < 2**16:
    raise InputError(f"{flag} must be grpc://HOST:PORT, e.g. grpc://node7:5050. Got: {address!r}.")
  return found[1].strip("[]"), int(found[2])


def problem(host: str, port: int, timeout_s: float = 5.0) -> str | None:
  """Returns why nothing can be reached there, in a few words; None where something answers."""
  try:
    socket.create_connection((host, port), timeout_s).close()
  except OSError as error:
    return error.strerror or str(error) or type(error).__name__
  return None


def free_port(port: int = 0) -> int:
  """Returns `port`, or any that is free where it is 0.

  Raises:
    OSError: Another program listens there.
  """
  with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as found:
    # As servers do: a port whose connections are just being closed is free.
    found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    found.bind(("", port))
    return found.getsockname()[1]


def joined(host: str, port: int) -> str:
  """Returns HOST:PORT, with brackets around an IPv6 host."""
  return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def check_reachable(address: str, flag: str, remedy: str) -> None:
  """Refuses what is no address, and one where nothing listens.

  Args:
    address: grpc://HOST:PORT.
    flag: That gave it.
    remedy: What to do where nothing answers.
  """
  host, port = parse(address, flag)
  if reason := problem(host, port):
    raise InputError(
        f"{flag} must be the address of a service that runs, but nothing answers at"
        f" grpc://{joined(host, port)}: {reason}. {remedy}"
    )
