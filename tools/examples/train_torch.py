"""A plain PyTorch U-Net on the records of a built dataset, scored by FlexUNet's evaluation.

  python train_torch.py DATASET_FOLDER OUT_FOLDER [--steps=300] [--size=128] [--workers=0]

DATASET_FOLDER is a version folder of slices. Labels of the test scans are written to OUT_FOLDER as
NIfTI, their scores to OUT_FOLDER/scores.json. Needs torch, numpy, pillow, nibabel, scipy.
"""

import argparse
import itertools
import json
import pathlib

import nibabel as nib
import numpy as np
import torch
from torch import nn

from flexunet.evaluation import scores
from flexunet.records import open_records


def centred(array: np.ndarray, size_hw: tuple[int, ...]) -> np.ndarray:
  """Returns [H, W, ...] cut or filled up with zeros to [h, w, ...], centre on centre."""
  out = np.zeros((*size_hw, *array.shape[2:]), array.dtype)
  # The way back of a size is the way to it: half a pixel falls to the same side.
  starts = [have // 2 - want // 2 for have, want in zip(array.shape, size_hw)]
  there = tuple(slice(max(0, s), max(0, s) + n) for s, n in zip(starts, size_hw))
  part = array[there]
  out[tuple(slice(max(0, -s), max(0, -s) + n) for s, n in zip(starts, part.shape))] = part
  return out


class Centred:
  """A record as (image float32 [C, size, size], label int64 [size, size]); may be pickled."""

  def __init__(self, size: int):
    self.size = size

  def __call__(self, record: dict) -> tuple[torch.Tensor, torch.Tensor]:
    image = torch.from_numpy(centred(record["image"].numpy(), (self.size,) * 2))
    label = torch.from_numpy(centred(record["label"].numpy()[..., 0], (self.size,) * 2))
    return image.permute(2, 0, 1).float() / 255, label.long()


def block(before: int, after: int) -> nn.Sequential:
  """Returns two convolutions."""
  own = [[nn.Conv2d(n, after, 3, padding=1), nn.BatchNorm2d(after), nn.ReLU()]
         for n in (before, after)]  # fmt: skip
  return nn.Sequential(*own[0], *own[1])


class UNet(nn.Module):
  """Three stages."""

  def __init__(self, channels: int, classes: int, width: int = 16):
    super().__init__()
    self.down = nn.ModuleList([block(channels, width), block(width, 2 * width)])
    self.middle = block(2 * width, 4 * width)
    self.up = nn.ModuleList(nn.ConvTranspose2d(2 * n, n, 2, 2) for n in (2 * width, width))
    self.join = nn.ModuleList([block(4 * width, 2 * width), block(2 * width, width)])
    self.head = nn.Conv2d(width, classes, 1)

  def forward(self, x: torch.Tensor) -> torch.Tensor:
    """Image [B, C, H, W] -> logits [B, classes, H, W]."""
    kept = []
    for stage in self.down:
      kept.append(stage(x))
      x = nn.functional.max_pool2d(kept[-1], 2)
    x = self.middle(x)
    for up, join in zip(self.up, self.join, strict=True):
      x = join(torch.cat([up(x), kept.pop()], 1))
    return self.head(x)


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("dataset", type=pathlib.Path)
  parser.add_argument("out", type=pathlib.Path)
  for name, default in (("steps", 300), ("size", 128), ("workers", 0)):
    parser.add_argument(f"--{name}", type=int, default=default)
  given = parser.parse_args()
  torch.manual_seed(0)
  records = open_records(given.dataset, "train", features=("image", "label"))
  network = UNet(records[0]["image"].shape[-1], len(records.class_names))
  loader = torch.utils.data.DataLoader(
      records.as_torch(Centred(given.size)), batch_size=8, shuffle=True, drop_last=True,
      num_workers=given.workers)  # fmt: skip
  optimizer = torch.optim.Adam(network.parameters(), 3e-3)
  epochs = itertools.chain.from_iterable(itertools.repeat(loader))
  for step, (image, label) in enumerate(itertools.islice(epochs, given.steps), 1):
    loss = nn.functional.cross_entropy(network(image), label)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    if step % 50 == 0 or step == given.steps:
      print(f"step {step}: loss {loss.item():.4f}", flush=True)
  network.eval()
  given.out.mkdir(parents=True, exist_ok=True)
  rows = []
  for volume in open_records(given.dataset, "test").volumes():
    found = np.zeros_like(volume.label)
    for index, image in enumerate(volume.image):
      framed = torch.from_numpy(centred(image, (given.size,) * 2)).permute(2, 0, 1)[None]
      with torch.no_grad():
        label = network(framed.float() / 255)[0].argmax(0).numpy().astype(np.uint8)
      found[index] = centred(label, image.shape[:2])  # What was cut off is background.
    spacing = tuple(volume.spacing_mm)
    scored = scores.label_scores(volume.label, found, records.class_names, spacing, (1.0,))
    rows += [{"volume": volume.volume, **row} for row in scored]
    affine = np.diag([*np.nan_to_num(spacing, nan=1.0), 1.0])
    nib.save(nib.Nifti1Image(found, affine), given.out / f"{volume.volume}.nii.gz")
  (given.out / "scores.json").write_text(json.dumps(rows, indent=1, default=str))
  mean = np.nanmean([row["dice"] for row in rows])
  print(f"mean Dice of {len(rows)} volumes and classes: {mean:.3f}")


if __name__ == "__main__":
  main()
