"""The benchmark of training without TensorFlow: what is fed, counted and refused; no time is."""

import importlib.util
import itertools
import json
import subprocess
import sys

import numpy as np
import pytest

from flexunet.core.errors import InputError
from flexunet.network import cost
from flexunet.network.architecture import ModelConfig
from flexunet.records import open_records
from flexunet.tools.benchmarks import gpu, gpu_rates, processes

SHAPE = ModelConfig(
    image_size=(16, 16), num_classes=2, base_filters=2, base_kernels=3, num_layers=2,
    dropout_rate=0.1, normalization="batch", stem="full",
    decoder_convolutions=2,
)  # fmt: skip


def run_benchmark(*arguments: str) -> subprocess.CompletedProcess:
  return subprocess.run(
      [sys.executable, "-m", "flexunet.tools.benchmarks.gpu", *arguments],
      capture_output=True, text=True, check=False,
  )  # fmt: skip


def figures_of(systems: str, *arguments: str) -> dict:
  done = run_benchmark(
      f"--systems={systems}", "--image_sizes=16", "--batch_sizes=2", "--base_filters=2",
      "--num_layers=2", "--steps=2", "--rounds=1", *arguments,
  )  # fmt: skip
  assert done.returncode == 0, done.stderr[-3000:]
  found = json.loads(done.stdout)
  assert not any(one["tensorflow_loaded"] for one in found["devices"].values())
  if not found["gpu_seen"]:
    assert "no GPU was seen" in found["note"]
  return found


@pytest.mark.needs_extra("jax")
@pytest.mark.needs_extra("torch")
def test_networks_train_side_by_side_without_tensorflow(blob_data):
  found = figures_of("keras_jax,torch", f"--data_dir={blob_data}")
  assert found["records"]["records"] == 36 and found["records"]["size_hw_of_the_first"] == [20, 28]
  assert [cell["precision"] for cell in found["cells"]] == ["float32", "bfloat16"]
  for cell in found["cells"]:
    for system in ("keras_jax", "torch"):
      figures = cell["systems"][system]
      assert figures["parameters"] == found["parameters"]
      assert all(figures[way]["images_per_s"] > 0 for way in ("step", "memory", "records"))
      assert 0 <= figures["idle_share_fed_by_records"] < 1 and np.isfinite(figures["loss"])
      assert ("images_per_s_to_float32" in figures) == (cell["precision"] == "bfloat16")
    assert set(cell["keras_jax_images_per_s_to"]) == {"torch"}


@pytest.mark.needs_extra("torch")
def test_keras_trains_on_pytorch_too():
  found = figures_of("keras_torch", "--precisions=bfloat16")
  [cell] = found["cells"]
  figures = cell["systems"]["keras_torch"]
  assert figures["step"]["wall_ms"] > 0 and "records" not in figures
  assert found["records"] is None and found["network"]["num_classes"] == 4


@pytest.mark.needs_extra("torch")
@pytest.mark.parametrize(
    "knobs",
    [
        {}, {"num_layers": 4, "base_kernels": 7, "dilation": 3},
        {"max_filters": 4, "num_layers": 4},
        {"normalization": "instance"}, {"normalization": "group", "base_filters": 12},
        {"normalization": "none", "num_classes": 5, "image_channels": 3},
    ],
)  # fmt: skip
def test_the_plain_network_has_our_shape(knobs):
  import torch

  from flexunet.tools.benchmarks import gpu_torch

  config = gpu.dataclasses.replace(SHAPE, **knobs)
  network = gpu_torch.PlainUNet(config)
  assert gpu_torch.count_parameters(network) == cost.count_parameters(config)
  image = torch.zeros((2, 16, 24, config.image_channels), dtype=torch.uint8)
  assert network(image).shape == (2, config.num_classes, 16, 24)


@pytest.mark.needs_extra("torch")
def test_the_plain_loss_is_ours():
  import torch

  from flexunet.objectives import losses
  from flexunet.tools.benchmarks import gpu_torch

  draw = np.random.default_rng(0)
  logits = draw.normal(size=(2, 6, 5, 3)).astype(np.float32)
  label = draw.integers(0, 3, (2, 6, 5))
  ours = losses.make("dice_cross_entropy", 3, from_logits=True)(label, logits)
  plain = gpu_torch.dice_cross_entropy(
      torch.from_numpy(logits).permute(0, 3, 1, 2), torch.from_numpy(label)
  )
  assert float(plain) == pytest.approx(float(ours), rel=1e-5)


def test_slices_stand_in_the_middle_of_their_frame():
  image = np.arange(1, 13, dtype=np.uint8).reshape(2, 6, 1)
  framed = gpu_rates.framed(image, (4, 2))[..., 0]
  assert framed.tolist() == [[0, 0], [3, 4], [9, 10], [0, 0]]
  assert gpu_rates.framed(framed, (4, 2)) is not framed


def test_batches_hold_every_record_once_before_any_comes_again(blob_data):
  records = open_records(blob_data, features=("image", "label"))
  config = gpu.dataclasses.replace(SHAPE, image_size=(20, 28), num_classes=9)
  with gpu_rates.RecordBatches(records, config, 5, threads=3) as batches:
    taken = list(itertools.islice(batches, 8))
  images = np.concatenate([image for image, _ in taken])[: len(records)]
  labels = np.concatenate([label for _, label in taken])[: len(records)]
  assert images.shape == (36, 20, 28, 1) and images.dtype == labels.dtype == np.uint8
  expected = sorted(record["image"].tobytes() + record["label"].tobytes() for record in records)
  pairs = zip(images, labels, strict=True)
  assert sorted(image.tobytes() + label.tobytes() for image, label in pairs) == expected


def test_a_split_smaller_than_a_batch_is_repeated():
  rows = next(gpu_rates._batch_rows(3, 7))
  assert np.bincount(rows[:6]).tolist() == [2, 2, 2] and len(rows) == 7


def test_figures_are_medians_of_the_turns():
  def turn(wall: float, cpu: float) -> dict:
    return {"wall_s": wall, "cpu_s": cpu, "loss": 0.5, "peak_memory_bytes": 7}

  task = gpu_rates.Task(
      system="torch", knobs=gpu.dataclasses.asdict(SHAPE), precision="float32", batch_size=4,
      steps=2, folder=None, split="train", threads=1,
  )  # fmt: skip
  first = {"parameters": 9, "first_step_s": 1.0, "ways": ["step", "memory", "records"]}
  turns = [("step", turn(0.1, 0.2)), ("memory", turn(0.3, 0.3)), ("records", turn(0.4, 0.3)),
           ("step", turn(0.3, 0.2)), ("step", turn(0.2, 0.4))]  # fmt: skip
  figures = gpu._figures(first, turns, task)
  assert figures["step"]["wall_ms"] == 200 and figures["step"]["cpu_ms"] == 200
  assert figures["step"]["images_per_s"] == 20  # 4 in 0.2 s.
  assert figures["idle_share_fed_by_records"] == 0.25  # 0.1 of 0.4 s.
  # 3 for forward and backward, 2 for a multiply-add.
  operations = 3 * 2 * 4 * sum(row.multiply_adds for row in cost.rows(SHAPE))
  assert figures["step"]["tflop_per_s"] == pytest.approx(operations / 0.2 / 1e12, abs=1e-4)


def test_tensorflow_is_as_if_it_were_not_installed():
  program = (
      "import importlib.util, sys\n"
      "from flexunet.tools.benchmarks import gpu_rates\n"
      "sys.meta_path.insert(0, gpu_rates.WithoutTensorFlow())\n"
      "importlib.util.find_spec('tensorflow')\n"
      "try:\n  import tensorflow\n"
      "except ImportError:\n  print('tensorflow' in sys.modules, 'keras' in sys.modules)\n"
  )
  done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
  assert done.stdout == "False False\n"


@pytest.mark.parametrize(
    ("knobs", "said"),
    [
        ({"stem": "half"}, "has stem=full only. Got: half"),
        ({"normalization": "layer"}, "normalization=none or batch or group or instance only"),
        ({"encoder_blocks": 2}, "encoder_blocks=1 only. Got: 2"),
    ],
)
def test_the_plain_network_refuses_knobs_that_it_does_not_have(knobs, said):
  shape = gpu.dataclasses.replace(SHAPE, **knobs)
  with pytest.raises(InputError, match=said):
    gpu.check_system("torch", shape, "some/python")


def test_a_missing_package_is_named(monkeypatch):
  monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "jax" else name)
  with pytest.raises(InputError, match="keras_jax needs jax, not installed beside"):
    gpu.check_system("keras_jax", SHAPE, None)


@pytest.mark.parametrize(
    ("flag", "said"),
    [
        ("--systems=keras_jaxx", "--systems must be one of"),
        ("--precisions=float16", "--precisions must be one of"),
        ("--image_sizes=0", "--image_sizes must be numbers from 1 on. Got: 0"),
        ("--dataset=hippocampus_t1w", "--dataset needs --data_dir"),
    ],
)
def test_wrong_flags_are_refused_in_one_line(flag, said, capsys):
  with pytest.raises(SystemExit):
    gpu.command_line.run(gpu.main, gpu._PROGRAM, argv=["benchmark_gpu", flag])
  assert said in capsys.readouterr().err


def test_a_process_that_ends_says_so():
  with (
      pytest.raises(processes.EndedError, match="exit code"),
      processes.started(sys.executable, "flexunet.tools.no_such_module", [[]], {}),
  ):
    pass
