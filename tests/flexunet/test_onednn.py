"""Convolutions are computed by oneDNN on every x86 processor, unless the user decides otherwise."""

import os
import platform
import subprocess
import sys

import pytest

_PROGRAM = """
import flexunet
from tensorflow.python.util import _pywrap_util_port

print(_pywrap_util_port.IsMklEnabled())
"""


@pytest.mark.slow
@pytest.mark.skipif(
    platform.machine() not in ("x86_64", "AMD64"), reason="others are left as TensorFlow has them"
)
@pytest.mark.parametrize(("given", "enabled"), [(None, "True"), ("0", "False")])
def test_convolutions_are_those_of_onednn_unless_the_user_has_decided(given, enabled):
  variables = {key: value for key, value in os.environ.items() if key != "TF_ENABLE_ONEDNN_OPTS"}
  if given is not None:
    variables["TF_ENABLE_ONEDNN_OPTS"] = given
  command = [sys.executable, "-c", _PROGRAM]
  done = subprocess.run(command, env=variables, capture_output=True, text=True, check=True)
  assert done.stdout.split() == [enabled]
