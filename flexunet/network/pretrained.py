"""The trained network that a run starts from: a run folder, or a `.keras` file."""

from __future__ import annotations

import dataclasses
import pathlib

import keras
import numpy as np

from flexunet import run_folder
from flexunet.core.errors import InputError
from flexunet.network import architecture, cost, weights


@dataclasses.dataclass(frozen=True)
class StartingPoint:
  """A trained network on disk.

  Attributes:
    path: The `.keras` file.
    name: How messages call it.
    config: Shape of the network.
    class_names: The classes of its head; None for a file without a run around it.
  """

  path: pathlib.Path
  name: str
  config: architecture.ModelConfig
  class_names: list[str] | None

  def load(self) -> keras.Model:
    """Returns the network with its weights, not compiled."""
    return weights.read_model(self.path)

  def about_classes(self, mine: list[str]) -> str:
    """Returns a sentence, led by a blank, where the classes differ; else an empty text."""
    if self.class_names in (None, mine):
      return ""
    theirs = ", ".join(self.class_names or [])
    return f" It has the classes {theirs}; this dataset has {', '.join(mine)}."


def open_start(path: str) -> StartingPoint:
  """Opens what `--init_from` names, reading no weights yet.

  Raises:
    InputError: There is no trained FlexUNet.
  """
  given = pathlib.Path(path).expanduser()
  file = run_folder.network_file(given, "--init_from")
  names = None
  if given.is_dir():
    names = run_folder.RunFolder(given).read_config().dataset_facts.label_scheme.names
  found = cost.config_of_keras_file(file)
  return StartingPoint(file, given.name, found, names)


def check_same_kind(start: StartingPoint, mine: architecture.ModelConfig) -> None:
  """Refuses a network whose weights would mean something else than where they come from.

  What differs in shape is refused by `transfer_weights`; these differ in none, or in that of the
  first kernel alone.
  """
  for name in ("activation", "dilation", "input_normalization", "normalization", "stem"):
    theirs, wanted = getattr(start.config, name), getattr(mine, name)
    if theirs != wanted:
      raise InputError(
          f"--{name} must be {theirs}, that of the network to start from ({start.name}). Got:"
          f" {wanted}. Pass --{name}={theirs}."
      )


@dataclasses.dataclass(frozen=True)
class Transfer:
  """What became of the layers, by name.

  Attributes:
    copied: Taken over as they are.
    adapted: Taken over for another number of input channels.
    fresh: Left as they were made: heads of another number of classes or new outputs.
  """

  copied: list[str]
  adapted: list[str]
  fresh: list[str]

  def sentence(self) -> str:
    """Returns one line for the log."""
    text = f"{len(self.copied)} layers taken over"
    if self.adapted:
      text += f", {', '.join(self.adapted)} adapted to the number of channels"
    if self.fresh:
      text += f", {', '.join(sorted(self.fresh))} reinitialized"
    return f"{text}."


def transfer_weights(
    source: keras.Model, target: keras.Model, *, same_classes: bool = True
) -> Transfer:
  """Copies weights layer by layer, by name; `target` changes in place.

  The two may differ in image size, channels, classes, dropout and deep supervision, not in what
  decides the shape of the other weights.

  Args:
    source: A trained network.
    target: A new one.
    same_classes: False leaves the heads as they are even where their shapes agree, since a head
      knows its own classes alone.

  Raises:
    InputError: The networks differ in stages, filters, kernels or normalization.
  """
  theirs = {layer.name: layer for layer in source.layers if layer.weights}
  mine = {layer.name: layer for layer in target.layers if layer.weights}
  heads = {name for name in {*theirs, *mine} if name.startswith("head")}
  pixels = 4 if any(layer.name == "stem" for layer in target.layers) else 1
  if alone := sorted((theirs.keys() ^ mine.keys()) - heads):
    raise InputError(
        "The network to start from must have the stages and normalization of the new one. Only"
        f" one of them has {', '.join(alone[:3])} ({len(alone)} layers in all)."
    )
  done = Transfer([], [], [])
  planned = []
  for name, layer in mine.items():
    if name not in theirs or (name in heads and not same_classes):
      done.fresh.append(name)
      continue
    old, new = theirs[name].get_weights(), layer.get_weights()
    if [w.shape for w in old] == [w.shape for w in new]:
      done.copied.append(name)
    elif name in heads:
      done.fresh.append(name)
      continue
    elif name == "encoder0_conv0" and old[0].shape[-1:] == new[0].shape[-1:] and (
        old[0].shape[:2] == new[0].shape[:2]
    ):
      old = [_for_channels(old[0], new[0].shape[2], pixels), *old[1:]]
      done.adapted.append(name)
    else:
      raise InputError(
          "The network to start from must have the filters and kernels of the new one. Layer"
          f" {name}: {old[0].shape} there, {new[0].shape} here."
      )
    planned.append((layer, old))
  for layer, values in planned:  # Only now: a refused network is left untouched.
    layer.set_weights(values)
  return done


def _for_channels(kernel: np.ndarray, channels: int, pixels: int) -> np.ndarray:
  """Returns [h, w, channels, filters] that answers equally to images of equal channels.

  Args:
    kernel: [h, w, other number of channels, filters].
    channels: Those of the result.
    pixels: Pixels of the image that lie one after another in either number of channels.
  """
  height, width, _, filters = kernel.shape
  apart = kernel.reshape(height, width, pixels, -1, filters)
  mean = apart.sum(axis=3, keepdims=True) * (pixels / channels)
  return np.repeat(mean, channels // pixels, axis=3).reshape(height, width, channels, filters)
