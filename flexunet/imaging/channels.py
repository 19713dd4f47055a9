"""How the features of the channels of a scan are called in a record; loads no library."""

from __future__ import annotations


def channel_suffixes(count: int) -> list[str]:
  """Returns how the features of each channel end in a record: "", "_2", "_3", ..."""
  return ["" if number == 1 else f"_{number}" for number in range(1, count + 1)]


def image_features(count: int) -> list[str]:
  """Returns the features of the images of each channel, in order."""
  return [f"image{suffix}" for suffix in channel_suffixes(count)]
