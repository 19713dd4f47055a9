"""The command `flexunet`: one name for every program of the package.

  flexunet COMMAND --flags        e.g. flexunet train --dataset=hippocampus_t1w --run_dir=RUN
  flexunet COMMAND --help         explains the flags of one program
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence

import flexunet
from flexunet.core.errors import unknown_name

# Command -> (module with `run`, what it does), in the order of the work.
COMMANDS = {
    "build": ("flexunet.tools.build", "raw scans become records, split by subject"),
    "plan": ("flexunet.tools.plan", "what a training would do and take, without training"),
    "train": ("flexunet.train", "train a network on a built dataset"),
    "cross_validate": (
        "flexunet.tools.cross_validate", "train and score every fold, pool the held-out"
    ),
    "calibrate": (
        "flexunet.calibrate", "temperature, clean-up, margins, from validation subjects"
    ),
    "evaluate": ("flexunet.evaluate", "score a run on a split, per volume and class"),
    "predict": ("flexunet.predict", "segment scans with a run"),
    "export": (
        "flexunet.tools.export_model.__main__", "a run as SavedModel, ONNX, LiteRT or weights"
    ),
    "compare": (
        "flexunet.tools.compare.__main__", "runs on the same subjects: paired differences and tests"
    ),
    "data_service": (
        "flexunet.tools.data_service.__main__", "processes that compute batches for trainings"
    ),
    "verify": ("flexunet.tools.verify_records", "read every record against the build report"),
    "publish": (
        "flexunet.tools.publish.__main__", "check whether a dataset may be passed on, and do so"
    ),
    "report": ("flexunet.tools.dataset_report.__main__", "an HTML page about a built dataset"),
    "inspect": ("flexunet.tools.inspect_model", "layers, parameters and memory of a network"),
    "preview_augmentation": (
        "flexunet.tools.preview_augmentation", "a sheet of every transformation"
    ),
    "augment_offline": (
        "flexunet.tools.augment_offline.__main__", "augmented copies of the training split"
    ),
    "export_images": ("flexunet.tools.export_images", "records as folders of images and masks"),
    "convert_config": (
        "flexunet.tools.convert_config.__main__", "a published config file as a file of flags"
    ),
    "phantom": ("flexunet.tools.phantom.__main__", "synthetic raw scans of each dataset"),
    "benchmark_build": ("flexunet.tools.benchmarks.build", "speed and memory of a build"),
    "benchmark_input": ("flexunet.tools.benchmarks.input", "images per second of the input"),
    "benchmark_readers": (
        "flexunet.tools.benchmarks.readers", "the readers without TensorFlow beside tf.data"
    ),
    "benchmark_step": ("flexunet.tools.benchmarks.step", "training steps of networks, by layer"),
    "benchmark_gpu": (
        "flexunet.tools.benchmarks.gpu", "training by Keras on JAX beside PyTorch, no TensorFlow"
    ),
    "benchmark_trainer": (
        "flexunet.tools.benchmarks.trainer", "what the trainer adds to a bare Keras fit"
    ),
    "benchmark_devices": (
        "flexunet.tools.benchmarks.devices", "steps a second of 1, 2, 4 devices that share a batch"
    ),
    "benchmark_step_times": (
        "flexunet.tools.benchmarks.step_times", "the table that times are predicted from"
    ),
    "benchmark_predict": (
        "flexunet.tools.benchmarks.predict", "volumes a minute, against a loop over slices"
    ),
    "benchmark_coverage": (
        "flexunet.tools.benchmarks.coverage", "how often margins and volume intervals hold"
    ),
    "benchmark_contrast": (
        "flexunet.tools.benchmarks.contrast", "whether scans of one person are labelled alike"
    ),
    "benchmark_scaling": (
        "flexunet.tools.benchmarks.scaling", "what a thousand times the data would cost"
    ),
    "benchmark_quality": (
        "flexunet.tools.benchmarks.quality.__main__", "Dice over minutes, beside nnU-Net and MONAI"
    ),
}  # fmt: skip
_HELP_WORDS = ("--help", "-h", "-help", "--helpshort", "--helpfull", "help")


def overview() -> str:
  """Returns what `flexunet --help` prints."""
  width = max(map(len, COMMANDS)) + 2
  lines = [f"  {name.ljust(width)}{about}" for name, (_, about) in COMMANDS.items()]
  return "\n".join([
      "FlexUNet: from raw brain scans to a segmentation one can trust.",
      "",
      "Usage: flexunet COMMAND [flags]",
      "",
      *lines,
      "",
      "flexunet COMMAND --help explains the flags of a command.",
  ])


def main(argv: Sequence[str]) -> None:
  """Runs the command that `argv[1]` names with the words after it; exits 1 where there is none."""
  word = argv[1] if len(argv) > 1 else "--help"
  if word in _HELP_WORDS:
    print(overview())
  elif word == "--version":
    print(flexunet.__version__)
  elif word in COMMANDS:
    sys.argv = [f"flexunet {word}", *argv[2:]]
    importlib.import_module(COMMANDS[word][0]).run()
  else:
    print(f"error: {unknown_name('command', word, COMMANDS)}", file=sys.stderr)
    sys.exit(1)


def run() -> None:
  main(sys.argv)


if __name__ == "__main__":
  run()
