"""Records as a dataset of PyTorch; the only module of the readers that imports it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
import torch.utils.data


class TorchRecords(torch.utils.data.Dataset):
  """The records of a split for `torch.utils.data.DataLoader`, with workers of any start method.

  A record is a dict: arrays are tensors of the same axes (images [H, W, C]), text is str.
  """

  def __init__(
      self,
      records: Sequence[dict[str, Any]],
      transform: Callable[[dict[str, Any]], Any] | None = None,
  ):
    """Takes the records.

    Args:
      records: `Records`, or any other sequence of dicts.
      transform: Changes the dict of a record.
    """
    self.records, self.transform = records, transform

  def __len__(self) -> int:
    return len(self.records)

  def __getitem__(self, index: int) -> Any:
    record = {name: _tensor(value) for name, value in self.records[index].items()}
    return record if self.transform is None else self.transform(record)


def _tensor(value: Any) -> Any:
  """Returns numbers as a tensor that shares their memory, anything else as it is."""
  if isinstance(value, np.ndarray) and value.dtype != object:
    return torch.from_numpy(value)
  if isinstance(value, np.generic):
    return torch.from_numpy(np.asarray(value))
  return value
