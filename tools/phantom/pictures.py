"""Writes phantom slices as the ready-made folders: {train,valid,test}/{images,masks} of pictures.

Masks are RGB in the palette of the published full-head masks and, as those, were enlarged with
interpolation: colours between those of the palette run along every edge.
"""

from __future__ import annotations

import pathlib

import numpy as np
from PIL import Image

from flexunet.tools.phantom import anatomy, appearance

Size = tuple[int, ...]
PICTURE_SIZE = (256, 8)  # Edge in pixels, and slices a subject.
# Background, air, grey, white, fluid, bone, soft tissue.
PALETTE = ((0, 0, 0), (10, 180, 10), (255, 255, 255), (128, 128, 128), (0, 128, 255),
           (255, 255, 0), (180, 100, 100))  # fmt: skip
_FIELD_MM = 230.0


def side_of(index: int) -> str:
  """Published side of a subject: of each five, three train, one valid, one test."""
  return ("train", "valid", "test", "train", "train")[index % 5]


def write_subject(out: pathlib.Path, index: int, rng: np.random.Generator, size: Size) -> None:
  """All slices of one subject, named `<1001 + index>_<slice>`.

  Images are grey, stored as RGB; every second subject has JPEG images beside PNG masks.
  """
  edge, slices = size
  coarse = max(8, edge * 4 // 5)
  field_mm = (_FIELD_MM, _FIELD_MM, 110.0)
  shape = (coarse, coarse, slices)
  grid = anatomy.Grid.covering(field_mm, shape, "LAS", (0.0, 0.0, 15.0))
  tissue, _ = anatomy.tissue_map(anatomy.draw_head(rng), grid)
  image = (appearance.mri(tissue, "t1", rng, bias=0.15) * 1.6).clip(0, 255).astype(np.uint8)
  mask = np.array(PALETTE, np.uint8)[tissue]
  folder = out / side_of(index)
  for kind in ("images", "masks"):
    (folder / kind).mkdir(parents=True, exist_ok=True)
  for k in range(slices):
    stem = f"{1001 + index}_{10 * (k + 1)}"
    picture = Image.fromarray(np.ascontiguousarray(np.rot90(image[..., k])))
    colors = Image.fromarray(np.ascontiguousarray(np.rot90(mask[..., k, :])))
    suffix = "jpg" if index % 2 == 1 else "png"
    picture = picture.resize((edge, edge), Image.Resampling.BILINEAR).convert("RGB")
    picture.save(folder / "images" / f"{stem}.{suffix}")
    colors = colors.resize((edge, edge), Image.Resampling.BILINEAR)
    colors.save(folder / "masks" / f"{stem}.png")
