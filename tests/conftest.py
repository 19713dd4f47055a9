"""What every test leaves behind as it found it."""

import sys

import pytest


@pytest.fixture(autouse=True)
def undo_determinism():
  """A run switches the whole process to deterministic operations, where Keras refuses XLA."""
  yield
  if "tensorflow" in sys.modules:
    from tensorflow.python.framework import config

    config.disable_op_determinism()
