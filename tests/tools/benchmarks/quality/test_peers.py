"""nnU-Net and MONAI answer a task, where their environment is (FLEXUNET_PEERS_ENV)."""

import json
import os
import pathlib

import numpy as np
import pytest

from flexunet.tools.benchmarks.quality import jobs, running

pytestmark = pytest.mark.peers


def write_set(folder: pathlib.Path, slices: int) -> None:
  """Writes volumes of two bright boxes, or images (one slice)."""
  (folder / "cases").mkdir(parents=True)
  random, cases = np.random.default_rng(0), []
  for split, count in (("train", 4), ("validation", 2), ("test", 1)):
    for number in range(count):
      label = np.zeros((slices, 44, 52), np.uint8)
      for class_id in (1, 2):
        z, (top, left) = random.integers(0, max(1, slices - 10)), random.integers(4, 28, 2)
        label[z : z + 10, top : top + 10, left : left + 12] = class_id
      image = np.array([60, 140, 220], np.uint8)[label] + random.integers(0, 20, label.shape)
      arrays = {"image": image.astype(np.uint8)[None], "label": label}
      if split == "test":
        del arrays["label"]
      name = f"{split}_{number:05}.npz"
      np.savez(folder / "cases" / name, **arrays)
      known = [1.5, 1.0, 1.0] if slices > 1 else [None] * 3
      cases.append({"file": name, "split": split, "subject": name, "spacing_mm": known})
  listed = {
      "classes": ["background", "dim", "bright"], "channels": ["image"], "mirroring": slices == 1,
      "dimensions": 3 if slices > 1 else 2, "cases": cases,
  }  # fmt: skip
  (folder / "cases" / "set.json").write_text(json.dumps(listed))


@pytest.mark.parametrize(
    ("name", "slices"),
    [
        *((name, 20) for name, (program, *_) in jobs.SYSTEMS.items() if program),
        ("nnunet_2d_small", 1), ("monai_unet", 1), ("monai_swinunetr", 1),
    ],
)  # fmt: skip
def test_each_peer_labels_the_test_cases(name, slices, tmp_path):
  folder = os.environ.get("FLEXUNET_PEERS_ENV")
  if not folder:
    pytest.skip("needs the environment of other systems (FLEXUNET_PEERS_ENV)")
  write_set(tmp_path, slices)
  (job,) = jobs.all_jobs(
      jobs.parse_sets("x=/nowhere"), jobs.parse_systems(name), [0.02], [1]
  )
  places = running.Places(
      data=tmp_path / "cases", work=tmp_path / "work", shared=tmp_path, log=tmp_path / "log.txt"
  )
  places.work.mkdir()
  outcome = running.train_peer(job, places, running.peers_python(folder), 1, 20.0)
  assert outcome.steps >= 1 and outcome.details["parameters"] > 1000
  assert 0 < outcome.training_s < outcome.with_setup_s
  labels = np.load(places.predictions / "test_00000.npz")
  assert sorted(labels) == (["label", "mirrored"] if slices == 1 else ["label"])
  for label in labels.values():
    assert label.shape == (slices, 44, 52) and label.max() <= 2


def test_volumes_are_asked_for_where_a_peer_needs_them(tmp_path):
  folder = os.environ.get("FLEXUNET_PEERS_ENV")
  if not folder:
    pytest.skip("needs the environment of other systems (FLEXUNET_PEERS_ENV)")
  write_set(tmp_path, 1)
  places = running.Places(
      data=tmp_path / "cases", work=tmp_path / "work", shared=tmp_path, log=tmp_path / "log.txt"
  )
  places.work.mkdir()
  python = running.peers_python(folder)
  for name in ("nnunet_3d", "monai_unet_3d"):
    (job,) = jobs.all_jobs(jobs.parse_sets("x=/nowhere"), jobs.parse_systems(name), [0.02], [1])
    with pytest.raises(running.JobError, match="takes volumes, and this set has images"):
      running.train_peer(job, places, python, 1, 20.0)
