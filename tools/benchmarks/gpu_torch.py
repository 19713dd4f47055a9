"""A plain U-Net in PyTorch of the shape of ours, and its training step: what ours stands beside.

Same stages, channels, kernels, dilations, dropouts and normalization, so the same number of
parameters; written as one would write it by hand, with channels last, which is faster on a GPU.
"""

from __future__ import annotations

import contextlib
import itertools
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import nn

from flexunet.network.architecture import ModelConfig, Stage

_MAX_GROUPS = 8  # As ours.
_SMOOTHING = 1.0  # Pixels.


def _normalization(kind: str, channels: int) -> nn.Module:
  if kind == "batch":
    return nn.BatchNorm2d(channels)
  if kind == "none":
    return nn.Identity()
  groups = channels if kind == "instance" else math.gcd(channels, _MAX_GROUPS)
  return nn.GroupNorm(groups, channels)


def _block(before: int, stage: Stage, config: ModelConfig) -> nn.Sequential:
  """Returns two convolutions with what stands between them."""
  parts: list[nn.Module] = []
  reach = stage.dilation * (stage.kernel - 1) // 2
  for place, channels in enumerate((before, stage.filters)):
    convolution = nn.Conv2d(
        channels, stage.filters, stage.kernel, padding=reach, dilation=stage.dilation
    )
    nn.init.kaiming_normal_(convolution.weight, nonlinearity="relu")
    nn.init.zeros_(convolution.bias)
    parts += [convolution, _normalization(config.normalization, stage.filters), nn.ReLU()]
    if place == 0 and stage.dropout_rate:
      parts.append(nn.Dropout(stage.dropout_rate))
  return nn.Sequential(*parts)


class PlainUNet(nn.Module):
  """Image uint8 [B, H, W, C] -> logits [B, classes, H, W]."""

  def __init__(self, config: ModelConfig):
    super().__init__()
    stages = config.stages()
    before = [config.image_channels, *(stage.filters for stage in stages)]
    self.down = nn.ModuleList(
        _block(channels, stage, config) for channels, stage in zip(before, stages, strict=False)
    )
    upper = stages[-2::-1]
    self.up = nn.ModuleList(
        nn.ConvTranspose2d(stages[stage.index + 1].filters, stage.filters, 2, 2) for stage in upper
    )
    self.join = nn.ModuleList(_block(2 * stage.filters, stage, config) for stage in upper)
    self.head = nn.Conv2d(stages[0].filters, config.num_classes, 1)

  def forward(self, image: torch.Tensor) -> torch.Tensor:
    """Returns the logits."""
    # A view of [B, H, W, C] as [B, C, H, W] has its channels last in memory.
    x = image.permute(0, 3, 1, 2).float() / 255.0
    kept: list[torch.Tensor] = []
    for place, block in enumerate(self.down):
      x = block(x)
      if place + 1 < len(self.down):
        kept.append(x)
        x = nn.functional.max_pool2d(x, 2)
    for up, join in zip(self.up, self.join, strict=True):
      x = join(torch.cat([up(x), kept.pop()], 1))
    return self.head(x)


def count_parameters(network: nn.Module) -> int:
  """Returns how many there are as Keras counts them: with the statistics of normalizations."""
  buffers = sum(one.numel() for one in network.buffers() if one.ndim)
  return sum(one.numel() for one in network.parameters()) + buffers


def dice_cross_entropy(logits: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
  """Returns the Dice loss of the foreground over the whole batch plus the cross-entropy.

  Args:
    logits: [B, classes, H, W].
    label: Class ids int64 [B, H, W].
  """
  logits = logits.float()
  share = logits.softmax(1)
  truth = nn.functional.one_hot(label, logits.shape[1]).permute(0, 3, 1, 2).float()
  overlap = (share * truth).sum((0, 2, 3))[1:]
  total = (share + truth).sum((0, 2, 3))[1:]
  dice = (2 * overlap + _SMOOTHING) / (total + _SMOOTHING)
  return 1 - dice.mean() + nn.functional.cross_entropy(logits, label)


class TorchTraining:
  """Trains a plain U-Net by AdamW.

  Attributes:
    parameters: How many the network has.
    loss: That of the last step.
  """

  def __init__(
      self,
      config: ModelConfig,
      precision: str,
      image: np.ndarray,
      label: np.ndarray,
      compiled: bool = False,
  ):
    """Makes the network.

    Args:
      config: Its shape.
      precision: "float32" or "bfloat16", by autocast: weights are float32 in both.
      image, label: uint8 [B, H, W, C] and [B, H, W], the batch of `step`.
      compiled: Whether `torch.compile` is used.
    """
    self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.backends.cudnn.benchmark = True
    network = PlainUNet(config).to(self._device, memory_format=torch.channels_last)
    self.parameters = count_parameters(network)
    self._network: Any = torch.compile(network) if compiled else network
    self._optimizer = torch.optim.AdamW(network.parameters(), 1e-3, weight_decay=1e-4)
    self._narrow = precision == "bfloat16"
    self._image, self._label = self._placed(image, label)
    self._loss = torch.zeros(())

  def _placed(self, image: np.ndarray, label: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
    tensors = (torch.from_numpy(image), torch.from_numpy(label))
    if self._device.type == "cuda":  # From pinned memory a copy does not hold up the next step.
      tensors = (tensors[0].pin_memory(), tensors[1].pin_memory())
    on_device = [one.to(self._device, non_blocking=True) for one in tensors]
    return on_device[0], on_device[1].long()

  def _train(self, image: torch.Tensor, label: torch.Tensor) -> None:
    narrow = torch.autocast(self._device.type, torch.bfloat16)
    self._optimizer.zero_grad(set_to_none=True)
    with narrow if self._narrow else contextlib.nullcontext():
      logits = self._network(image)
    loss = dice_cross_entropy(logits, label)
    loss.backward()
    self._optimizer.step()
    self._loss = loss.detach()

  @property
  def loss(self) -> float:
    """Waits until the device is done."""
    return float(self._loss)

  def step(self, times: int) -> None:
    """Trains so many times on the batch that lies on the device, and waits until it is done."""
    for _ in range(times):
      self._train(self._image, self._label)
    self._wait()

  def fit(self, batches: Iterator[tuple[np.ndarray, np.ndarray]], steps: int) -> None:
    """Trains on so many batches of the host, and waits until it is done."""
    for image, label in itertools.islice(batches, steps):
      self._train(*self._placed(image, label))
    self._wait()

  def _wait(self) -> None:
    if self._device.type == "cuda":
      torch.cuda.synchronize()

  def device(self) -> dict[str, Any]:
    """Returns what it runs on, by its kind."""
    seen = self._device.type == "cuda"
    kind = torch.cuda.get_device_name(0) if seen else "cpu"
    return {"gpu": seen, "device_kind": kind, "software": {"torch": torch.__version__}}

  def peak_memory_bytes(self) -> int | None:
    """Returns the most memory of the device that was in use; None where it is not counted."""
    return torch.cuda.max_memory_allocated() if self._device.type == "cuda" else None
