"""MONAI networks as a peer, by the recipe of its tutorials, fitted to minutes.

Crops around foreground and at random (RandCropByPosNegLabeld), intensities normalized per case,
shifted and scaled, left and right exchanged where the set allows it, cases cached; DiceCELoss,
AdamW, a cosine of the clock that ends with the time; the last weights count; sliding windows with
Gaussian weights, which overlap by a quarter, at prediction, without mirrored views and, in a second
answer, with left and right exchanged too. It runs in the environment of the peers and knows nothing
of flexunet.

Options: --network=unet|dynunet|swinunetr, --dimensions=2|3 (2: crops of slices), --patch (edge of
a crop), --batch_size (cases a step), --crops (of each case), --learning_rate, --base_filters,
--precision=bfloat16.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import math
import sys
import time
from collections.abc import Iterator
from typing import Any

import monai
import numpy as np
import peer_task
import torch
from monai import transforms
from monai.inferers import sliding_window_inference

_DEFAULTS = {
    "network": "unet", "dimensions": 2, "patch": 0, "batch_size": 0, "crops": 0,
    "learning_rate": 0.0, "base_filters": 0, "precision": "float32",
}  # fmt: skip
_PATCH = {2: 96, 3: 64}
_CASES_A_STEP = {2: 8, 3: 2}
_CROPS_OF_A_CASE = 2
_LEARNING_RATES = {"unet": 1e-3, "dynunet": 1e-3, "swinunetr": 4e-4}
_WEIGHT_DECAY = 1e-5
_GRID = 32  # SwinUNETR takes multiples of it, and the others of a part of it.
_MOST_FILTERS = {2: 512, 3: 320}


def complete(given: dict[str, Any], task: peer_task.Task) -> dict[str, Any]:
  """Returns the options with what was left open."""
  if given["network"] not in _LEARNING_RATES:
    sys.exit(f"error: --network must be one of {', '.join(_LEARNING_RATES)}.")
  if task.data_set["dimensions"] < given["dimensions"]:
    sys.exit("error: a MONAI network of 3 dimensions takes volumes, and this set has images.")
  spatial = given["dimensions"]
  filters = {"unet": 16, "dynunet": 32 if spatial == 2 else 16, "swinunetr": 24}
  return {
      **given,
      "patch": given["patch"] or _PATCH[spatial],
      "batch_size": given["batch_size"] or _CASES_A_STEP[spatial],
      "crops": given["crops"] or _CROPS_OF_A_CASE,
      "learning_rate": given["learning_rate"] or _LEARNING_RATES[given["network"]],
      "base_filters": given["base_filters"] or filters[given["network"]],
  }


def build(choices: dict[str, Any], channels: int, classes: int) -> torch.nn.Module:
  """Returns the network."""
  spatial, first = choices["dimensions"], choices["base_filters"]
  shape = {"spatial_dims": spatial, "in_channels": channels, "out_channels": classes}
  if choices["network"] == "unet":
    return monai.networks.nets.UNet(
        **shape, channels=[first * 2**n for n in range(5)], strides=[2] * 4, num_res_units=2
    )
  if choices["network"] == "dynunet":
    return monai.networks.nets.DynUNet(
        **shape, kernel_size=[3] * 5, strides=[1, 2, 2, 2, 2], upsample_kernel_size=[2] * 4,
        filters=[min(first * 2**n, _MOST_FILTERS[spatial]) for n in range(5)],
        norm_name="instance", deep_supervision=True, deep_supr_num=2,
    )  # fmt: skip
  return monai.networks.nets.SwinUNETR(**shape, feature_size=first)


def normalized(image: np.ndarray) -> np.ndarray:
  """Returns a case, [channels, slices, H, W], with mean 0 and spread 1 where it is not 0."""
  change = transforms.NormalizeIntensity(nonzero=True, channel_wise=True)
  return np.asarray(change(image.astype(np.float32)), np.float32)


def pipeline(choices: dict[str, Any], mirroring: bool) -> transforms.Compose:
  """Returns what becomes of a case before it is cached, and at each step.

  A crop of 2 dimensions is a part of one slice.
  """
  both, edge = ["image", "label"], choices["patch"]
  crop = [edge if choices["dimensions"] == 3 else 1, edge, edge]
  steps: list[Any] = [
      transforms.SpatialPadd(both, spatial_size=crop),
      transforms.FgBgToIndicesd("label"),
      transforms.RandCropByPosNegLabeld(
          both, label_key="label", spatial_size=crop, pos=1, neg=1,
          num_samples=choices["crops"], fg_indices_key="label_fg_indices",
          bg_indices_key="label_bg_indices",
      ),
      transforms.SelectItemsd(both),
      transforms.RandScaleIntensityd("image", factors=0.1, prob=0.5),
      transforms.RandShiftIntensityd("image", offsets=0.1, prob=0.5),
  ]  # fmt: skip
  if mirroring:  # The last axis runs from one side of the head to the other.
    steps.append(transforms.RandFlipd(both, prob=0.5, spatial_axis=2))
  if choices["dimensions"] == 2:
    steps.append(transforms.SqueezeDimd(both, dim=1))
  return transforms.Compose(steps)


def batches(task: peer_task.Task, choices: dict[str, Any]) -> Iterator[dict[str, torch.Tensor]]:
  """Yields batches without end, all cases in a new order each time."""
  found = []
  for case in task.cases("train"):
    arrays = task.arrays(case)
    found.append({"image": normalized(arrays["image"]), "label": arrays["label"][None]})
  changed = pipeline(choices, task.data_set["mirroring"])
  changed.set_random_state(seed=task.seed)
  # Crops are new arrays, so what is cached need not be copied.
  cached = monai.data.CacheDataset(
      found, changed, num_workers=task.processors, progress=False, copy_cache=False
  )
  size = min(choices["batch_size"], len(found))
  loader = monai.data.ThreadDataLoader(
      cached, batch_size=size, shuffle=True, drop_last=True, num_workers=0, buffer_size=2
  )

  def endless() -> Iterator[dict[str, torch.Tensor]]:
    while True:
      yield from loader

  return endless()


def loss_of(answer: torch.Tensor, label: torch.Tensor, loss: Any, heads: int) -> torch.Tensor:
  """Returns the loss; deeper heads, [B, heads, classes, ...], weigh half as much each."""
  if heads == 1:
    return loss(answer, label)
  parts = [0.5**n * loss(one, label) for n, one in enumerate(torch.unbind(answer, dim=1))]
  return sum(parts) / sum(0.5**n for n in range(len(parts)))


def train(
    task: peer_task.Task, network: torch.nn.Module, choices: dict[str, Any], precision: Any
) -> tuple[float, int]:
  """Trains until the time is over; returns seconds and steps."""
  stream = batches(task, choices)
  loss = monai.losses.DiceCELoss(to_onehot_y=True, softmax=True, batch=True)
  optimizer = torch.optim.AdamW(
      network.parameters(), lr=choices["learning_rate"], weight_decay=_WEIGHT_DECAY
  )
  heads = 3 if choices["network"] == "dynunet" else 1
  network.train()
  held: Iterator[Any] = iter([next(stream)])  # So that set-up ends here.

  def step(progress: float) -> float:
    for group in optimizer.param_groups:
      group["lr"] = choices["learning_rate"] * (1 + math.cos(math.pi * progress)) / 2
    batch = next(held, None) or next(stream)
    image, label = (batch[name].as_tensor() for name in ("image", "label"))
    optimizer.zero_grad(set_to_none=True)
    with precision():
      answer = network(image.float())
    value = loss_of(answer.float(), label, loss, heads)
    value.backward()
    torch.nn.utils.clip_grad_norm_(network.parameters(), 12.0)
    optimizer.step()
    return float(value.detach())

  budget = peer_task.Budget(task.minutes)
  return budget.run(step), budget.steps


def predict(
    task: peer_task.Task, network: torch.nn.Module, choices: dict[str, Any], precision: Any
) -> None:
  """Writes the labels of the test cases, and those of mirrored views where the set allows them."""
  network.eval()
  spatial, edge = choices["dimensions"], choices["patch"]

  def answer(windows: torch.Tensor) -> torch.Tensor:
    with precision():
      return network(windows).float()

  def probabilities(part: torch.Tensor) -> torch.Tensor:
    with torch.inference_mode():
      found = sliding_window_inference(
          part[None], [edge] * spatial, sw_batch_size=8, predictor=answer, overlap=0.25,
          mode="gaussian",
      )  # fmt: skip
    return found.softmax(dim=1)[0]

  for case in task.cases("test"):
    image = normalized(task.arrays(case)["image"])
    parts = [image] if spatial == 3 else [image[:, place] for place in range(image.shape[1])]
    labels: dict[str, list[np.ndarray]] = {"label": [], "mirrored": []}
    for part in map(torch.as_tensor, parts):
      found = probabilities(part)
      labels["label"].append(found.argmax(dim=0).numpy())
      if task.data_set["mirroring"]:
        found = found + probabilities(part.flip(-1)).flip(-1)
        labels["mirrored"].append(found.argmax(dim=0).numpy())
    join = (lambda found: found[0]) if spatial == 3 else np.stack
    task.keep(case, **{name: join(found) for name, found in labels.items() if found})


def main(path: str) -> None:
  task = peer_task.read(path)
  choices = complete(peer_task.options(task, _DEFAULTS), task)
  if choices["patch"] % _GRID:
    sys.exit(f"error: --patch must be a multiple of {_GRID}. Got: {choices['patch']}.")
  monai.utils.set_determinism(task.seed)
  torch.use_deterministic_algorithms(False)
  torch.set_num_threads(task.processors)
  classes = task.data_set["classes"]
  network = build(choices, len(task.data_set["channels"]), len(classes))
  precision: Any = contextlib.nullcontext
  if choices["precision"] == "bfloat16":
    precision = lambda: torch.autocast("cpu", dtype=torch.bfloat16)  # noqa: E731
  training_s, steps = train(task, network, choices, precision)
  started = time.monotonic()
  predict(task, network, choices, precision)
  task.finish(
      training_s=training_s,
      steps=steps,
      inference_s=time.monotonic() - started,
      cached_setup_s=0.0,
      details={
          **choices,
          "parameters": sum(one.numel() for one in network.parameters()),
          "mirroring": task.data_set["mirroring"],
      },
      versions={name: importlib.metadata.version(name) for name in ("monai", "torch")},
  )


if __name__ == "__main__":
  main(sys.argv[1])
