"""nnU-Net (nnunetv2) as a peer: its planning, preprocessing, augmentation, loss and optimizer.

What differs from its own programs: the poly schedule follows the clock and ends with the time, no
validation is made in between (its final network does not depend on it), on sets whose sides must
not be exchanged nothing is mirrored (as its trainer NoMirroring), and labels are predicted without
mirrored views and, in a second answer, with them, as nnU-Net does by default. It runs in the
environment of the peers and knows nothing of flexunet.

Options: --configuration=2d|3d_fullres, --memory_gb (of its planner; its default is 8),
--base_features (of the first stage; its default is 32).
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import pathlib
import random
import sys
import time
from typing import Any

import nnunetv2.training.nnUNetTrainer.nnUNetTrainer as own_trainer
import numpy as np
import peer_task
import SimpleITK as sitk
import torch
from nnunetv2.experiment_planning import plan_and_preprocess_api
from nnunetv2.experiment_planning.experiment_planners.default_experiment_planner import (
  ExperimentPlanner,
)
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

_DEFAULTS = {"configuration": "2d", "memory_gb": 8.0, "base_features": 32}
_DATASET = "Dataset001_bench"
_SUFFIX = ".nii"
_LEARNING_RATE, _POWER = 1e-2, 0.9  # nnU-Net's.
_OF_IMAGES_MM = 999.0  # How nnU-Net marks the missing third axis of an image.


class BudgetTrainer(own_trainer.nnUNetTrainer):
  """nnU-Net's trainer, driven by the time instead of by epochs."""

  mirroring = True

  def configure_rotation_dummyDA_mirroring_and_inital_patch_size(self) -> tuple:
    """Returns what nnU-Net does, without mirrored axes where sides must not be exchanged."""
    rotation, dummy, patch, axes = (
        super().configure_rotation_dummyDA_mirroring_and_inital_patch_size()
    )
    if not self.mirroring:
      axes = self.inference_allowed_mirroring_axes = None
    return rotation, dummy, patch, axes

  def train_for(self, budget: peer_task.Budget) -> float:
    """Trains until the time is over and returns the seconds it took."""
    self.network.train()

    def step(progress: float) -> float:
      for group in self.optimizer.param_groups:
        group["lr"] = _LEARNING_RATE * (1 - min(progress, 0.999)) ** _POWER
      return float(self.train_step(next(self.dataloader_train))["loss"])

    return budget.run(step)

  def close(self) -> None:
    """Ends the processes that load data, so that prediction has the machine for itself."""
    for loader in (self.dataloader_train, self.dataloader_val):
      if hasattr(loader, "_finish"):
        loader._finish()


def write_raw(task: peer_task.Task, folder: pathlib.Path) -> None:
  """Writes the cases of training and validation as nnU-Net reads them."""
  for name in ("imagesTr", "labelsTr"):
    (folder / name).mkdir(parents=True, exist_ok=True)
  cases = task.cases("train", "validation")
  for case in cases:
    arrays, stem = task.arrays(case), pathlib.Path(case["file"]).stem
    images = enumerate(arrays["image"])
    written = {f"imagesTr/{stem}_{channel:04}": voxels for channel, voxels in images}
    for name, voxels in {**written, f"labelsTr/{stem}": arrays["label"]}.items():
      image = sitk.GetImageFromArray(voxels)
      image.SetSpacing(spacing_of(case, task)[::-1])
      sitk.WriteImage(image, str(folder / f"{name}{_SUFFIX}"))
  channels = enumerate(task.data_set["channels"])
  classes = enumerate(task.data_set["classes"])
  listed = {
      "channel_names": {str(number): f"channel_{name}" for number, name in channels},
      "labels": {("background" if number == 0 else name): number for number, name in classes},
      "numTraining": len(cases),
      "file_ending": _SUFFIX,
  }
  (folder / "dataset.json").write_text(json.dumps(listed))
  train, held = ([pathlib.Path(case["file"]).stem for case in task.cases(split)]
                 for split in ("train", "validation"))  # fmt: skip
  (folder / "splits_final.json").write_text(json.dumps([{"train": train, "val": held or train}]))


def spacing_of(case: dict[str, Any], task: peer_task.Task) -> list[float]:
  """Returns (slice, row, column) as nnU-Net takes it; 1 mm where the source states none."""
  known = [1.0 if value is None else value for value in case["spacing_mm"]]
  return [_OF_IMAGES_MM, *known[1:]] if task.data_set["dimensions"] == 2 else known


def prepare(task: peer_task.Task, given: dict[str, Any], plans_name: str) -> float:
  """Plans and preprocesses, or finds it done; returns the seconds that it took then."""
  root = task.shared / "nnunet"
  kept = root / f"{plans_name}.setup.json"
  places = {name: root / name for name in ("nnUNet_raw", "nnUNet_preprocessed")}
  os.environ.update({
      **{name: str(path) for name, path in places.items()},
      "nnUNet_results": str(task.work / "nnUNet_results"),
      "nnUNet_n_proc_DA": str(task.processors),
  })
  if kept.is_file():
    return float(json.loads(kept.read_text())["seconds"])
  started = time.monotonic()
  write_raw(task, places["nnUNet_raw"] / _DATASET)
  plan_and_preprocess_api.extract_fingerprint_dataset(
      1, num_processes=task.processors, verbose=False, show_progress_bar=False
  )
  planner = ExperimentPlanner(
      _DATASET, gpu_memory_target_in_gb=given["memory_gb"], plans_name=plans_name
  )
  planner.UNet_base_num_features = given["base_features"]
  planner.plan_experiment()
  plan_and_preprocess_api.preprocess_dataset(
      1, plans_name, (given["configuration"],), [task.processors], show_progress_bar=False
  )
  kept.write_text(json.dumps({"seconds": time.monotonic() - started}))
  return 0.0


def predict(task: peer_task.Task, trainer: BudgetTrainer) -> None:
  """Writes the labels of the test cases, and those of mirrored views where the set allows them."""
  trainer.set_deep_supervision_enabled(False)
  trainer.network.eval()
  predictor = nnUNetPredictor(
      use_mirroring=trainer.mirroring, device=torch.device("cpu"), allow_tqdm=False,
      perform_everything_on_device=False,
  )  # fmt: skip
  predictor.manual_initialization(
      trainer.network, trainer.plans_manager, trainer.configuration_manager,
      [trainer.network.state_dict()], trainer.dataset_json, type(trainer).__name__,
      trainer.inference_allowed_mirroring_axes,
  )  # fmt: skip
  for case in task.cases("test"):
    image = task.arrays(case)["image"].astype(np.float32)
    found = {}
    for name in ("label", "mirrored") if trainer.mirroring else ("label",):
      predictor.use_mirroring = name == "mirrored"
      properties = {"spacing": spacing_of(case, task)}
      found[name] = predictor.predict_single_npy_array(image, properties)
    task.keep(case, **found)


def main(path: str) -> None:
  task = peer_task.read(path)
  given = peer_task.options(task, _DEFAULTS)
  if given["configuration"] != "2d" and task.data_set["dimensions"] == 2:
    sys.exit(f"error: nnU-Net {given['configuration']} takes volumes, and this set has images.")
  random.seed(task.seed)
  np.random.seed(task.seed)
  torch.manual_seed(task.seed)
  torch.set_num_threads(task.processors)
  plans_name = "bench_{configuration}_{memory_gb:g}gb_{base_features}".format(**given)
  cached_setup_s = prepare(task, given, plans_name)
  folder = task.shared / "nnunet" / "nnUNet_preprocessed" / _DATASET
  plans = json.loads((folder / f"{plans_name}.json").read_text())
  trainer = BudgetTrainer(
      {**plans, "continue_training": False}, given["configuration"], 0,
      json.loads((folder / "dataset.json").read_text()), torch.device("cpu"),
  )  # fmt: skip
  trainer.mirroring = task.data_set["mirroring"]
  trainer.on_train_start()
  budget = peer_task.Budget(task.minutes)
  training_s = trainer.train_for(budget)
  trainer.close()
  started = time.monotonic()
  predict(task, trainer)
  planned = trainer.configuration_manager
  task.finish(
      training_s=training_s,
      steps=budget.steps,
      inference_s=time.monotonic() - started,
      cached_setup_s=cached_setup_s,
      details={
          **given,
          "patch_size": [int(edge) for edge in planned.patch_size],
          "batch_size": int(planned.batch_size),
          "parameters": sum(one.numel() for one in trainer.network.parameters()),
          "mirroring": trainer.mirroring,
      },
      versions={name: importlib.metadata.version(name) for name in ("nnunetv2", "torch")},
  )


if __name__ == "__main__":  # The processes that load data import this file again.
  main(sys.argv[1])
