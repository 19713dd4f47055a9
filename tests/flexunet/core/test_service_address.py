"""Addresses of services: read, and asked whether anything answers."""

import socket

import pytest

from flexunet.core import service_address
from flexunet.core.errors import InputError


@pytest.mark.parametrize(
    ("address", "host", "port"),
    [("grpc://node7:5050", "node7", 5050), ("10.0.0.3:80", "10.0.0.3", 80),
     ("grpc://[::1]:5050", "::1", 5050)],
)  # fmt: skip
def test_an_address_is_a_host_and_a_port(address, host, port):
  assert service_address.parse(address, "--data_service") == (host, port)
  assert service_address.joined(host, port) == address.removeprefix("grpc://")


@pytest.mark.parametrize(
    "address", ["node7", "grpc://node7", "http://node7:80", "node7:0", "node7:70000", "a b:1"]
)
def test_what_is_no_address_is_one_line_with_an_example(address):
  with pytest.raises(InputError, match=r"--data_service must be grpc://HOST:PORT, e\.g\.") as found:
    service_address.parse(address, "--data_service")
  assert "\n" not in str(found.value) and repr(address) in str(found.value)


def test_where_nothing_listens_the_remedy_is_named():
  with socket.socket() as listening:
    listening.bind(("localhost", 0))
    port = listening.getsockname()[1]
    with pytest.raises(InputError, match=f"nothing answers at grpc://localhost:{port}: .* Start"):
      service_address.check_reachable(f"grpc://localhost:{port}", "--data_service", "Start one.")
    listening.listen()
    service_address.check_reachable(f"grpc://localhost:{port}", "--data_service", "Start one.")
    with pytest.raises(OSError, match="in use"):
      service_address.free_port(port)
  assert service_address.free_port() > 0


def test_a_kept_command_names_no_machine():
  kept = service_address.without_address
  assert kept("--data_service=grpc://node7:5050") == "--data_service=HOST:PORT"
  assert kept("--coordinator=node7.example.org:61500") == "--coordinator=HOST:PORT"
  assert kept("[::1]:5050") == "HOST:PORT"  # The value stands in a word of its own.
  for word in ("--epochs=3", "--data_service", "--loss_options=gamma=2"):
    assert kept(word) == word
