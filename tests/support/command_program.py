"""The command `flexunet` as a program of `forked.py`."""

from flexunet.__main__ import run as main

__all__ = ["main"]
