"""What a checkpoint holds, taken from a run in training and put back into one."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import keras
import numpy as np

from flexunet.datasets.errors import InputError
from flexunet.pipelines.record_table import RecordTable
from flexunet.training import callbacks, checkpoints

_FORMAT = 1


class RunState:
  """The variables of a network in training and the states of the callbacks that steer it.

  `model.variables` includes the states of the dropout seeds, which no file format of Keras keeps.
  """

  def __init__(
      self,
      network: keras.Model,
      steering: Sequence[keras.callbacks.Callback],
      identity: Mapping[str, Any],
  ):
    """Takes a compiled network; `identity` (JSON) must be the same when the run goes on.

    Its optimizer must be built: before the first step there is nothing to put back into otherwise.
    """
    self._network = network
    self._identity = dict(identity)
    self._taken: dict[str, list[Any]] = {}
    self._callbacks: dict[str, callbacks.RunCallback] = {}
    for callback in steering:
      if isinstance(callback, callbacks.RunCallback):
        name = type(callback).__name__
        if name in self._callbacks:
          raise ValueError(f"Two callbacks of the class {name}: their states would be mixed up.")
        self._callbacks[name] = callback

  def take(self, step: int, *, within_epoch: bool = False, **more: Any) -> checkpoints.Checkpoint:
    """Copies the state into main memory, the same memory each time.

    What was taken before must have been written: it is overwritten. New memory for each copy would
    cost more than the copy, since the system clears it first.

    Args:
      step: Training steps done.
      within_epoch: Keeps the running metrics, which the rest of the epoch adds to.
      **more: JSON that is kept in the state.
    """
    return checkpoints.Checkpoint(
        arrays={
            name: self._copies(name, variables)
            for name, variables in self._groups(within_epoch).items()
        },
        state={
            "format": _FORMAT,
            "step": step,
            "identity": self._identity,
            "callbacks": {name: callback.state() for name, callback in self._callbacks.items()},
            **more,
        },
    )

  def _copies(self, group: str, variables: list) -> list[np.ndarray]:
    before = self._taken.get(group, [])
    pairs = itertools.zip_longest(before[: len(variables)], variables)
    self._taken[group] = [_copy_into(target, variable) for target, variable in pairs]
    return self._taken[group]

  def put_back(self, checkpoint: checkpoints.Checkpoint) -> None:
    """Sets variables and callbacks; the running metrics wait for `put_back_metrics`."""
    state = checkpoint.state
    if state.get("format") != _FORMAT:
      raise InputError(
          f"The checkpoint must have the format {_FORMAT}. Got: {state.get('format')}. Go on with"
          " the version of flexunet that wrote it (manifest.json)."
      )
    for name, now in self._identity.items():
      saved = state["identity"].get(name)
      if saved != now:
        raise InputError(
            f"--resume needs what the run was started with: {name} was {saved}, now it is {now}."
            " Give back the same data and devices, or start a new run in another folder."
        )
    for name, variables in self._groups(within_epoch=False).items():
      _assign(name, variables, checkpoint.arrays[name])
    for name, callback in self._callbacks.items():
      callback.load_state(state["callbacks"][name])

  def put_back_metrics(self, checkpoint: checkpoints.Checkpoint) -> None:
    if values := checkpoint.arrays.get("metrics"):
      _assign("metrics", self._groups(within_epoch=True)["metrics"], values)

  def _groups(self, within_epoch: bool) -> dict[str, list]:
    network = self._network
    groups = {
        "model": _parts(network, network.variables),
        "optimizer": list(network.optimizer.variables),  # Updated alike on each device.
    }
    if within_epoch:
      groups["metrics"] = _parts(network, network.metrics_variables)
    return groups


def data_identity(tables: Mapping[str, RecordTable], fingerprint: str | None) -> dict[str, Any]:
  """Returns what tells the records of two runs apart, wherever their files lie."""
  told: dict[str, Any] = {"data fingerprint": fingerprint}
  for name, table in tables.items():
    digest = hashlib.sha256()
    for column in (table.shard, table.offset):
      digest.update(np.ascontiguousarray(column, np.int64).tobytes())
    told[f"{name} records"] = f"{len(table)} ({digest.hexdigest()[:12]})"
  return told


def _copy_into(target: np.ndarray | None, variable: Any) -> np.ndarray:
  """Returns `target`, or new memory where that does not fit, with what the variable holds."""
  if keras.backend.backend() == "tensorflow":
    import tensorflow as tf

    # The variable's own memory; what Keras and TensorFlow give as NumPy is a copy already.
    values = np.asarray(tf.convert_to_tensor(variable))
  else:
    values = np.asarray(keras.ops.convert_to_numpy(variable))
  if target is None or (target.shape, target.dtype) != (values.shape, values.dtype):
    target = np.empty(values.shape, values.dtype)
  np.copyto(target, values)
  return target


def _parts(network: keras.Model, variables: Iterable) -> list:
  """Returns the variables, those that no gradient keeps alike device by device.

  Each device has running metrics and statistics of batch normalization of its own, which would be
  brought together, or those of the first one taken, by reading them as one.
  """
  variables = list(variables)
  strategy = getattr(network, "distribute_strategy", None)
  if strategy is None or strategy.num_replicas_in_sync == 1:
    return variables
  parts: list[Any] = []
  for variable in variables:
    alike = variable.trainable
    parts += [variable] if alike else strategy.experimental_local_results(variable.value)
  return parts


def _assign(group: str, variables: list, values: Sequence[np.ndarray]) -> None:
  shapes = [tuple(variable.shape) for variable in variables]
  saved = [value.shape for value in values]
  if shapes != saved:
    raise InputError(
        f"The {group} variables of the checkpoint must fit the run: {len(saved)} were saved,"
        f" {len(shapes)} are there, of other shapes. Go on with the versions of manifest.json."
    )
  for variable, value in zip(variables, values, strict=True):
    variable.assign(value)
