"""Asks an exported file for its answers by the runtime of its format, and by nothing else.

  python exported_answers.py FORMAT FILE QUESTIONS.npz ANSWERS.npz

`tools.export_model.check` runs a copy of this file in a process of its own, which imports nothing
of flexunet: what it gets is what anybody gets. QUESTIONS holds an array "N/INPUT" for each input
of each question N; ANSWERS one array per question, under its number.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np

_SLICES_PER_STEP = 8
_Ask = Callable[[dict[str, np.ndarray]], np.ndarray]


def _tensorflow() -> Any:
  # ONNX files are asked without it.
  import tensorflow as tf

  return tf


def _saved_model(path: str) -> _Ask:
  tf = _tensorflow()
  serve = tf.saved_model.load(path).signatures["serving_default"]

  def ask(inputs: dict[str, np.ndarray]) -> np.ndarray:
    (answer,) = serve(**{name: tf.constant(value) for name, value in inputs.items()}).values()
    return answer.numpy()

  return ask


def _onnx(path: str) -> _Ask:
  # Part of the extra `export`; other formats are asked without it.
  import onnxruntime

  session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
  return lambda inputs: session.run(None, inputs)[0]


def _litert(path: str) -> _Ask:
  with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # TensorFlow's own interpreter advertises its successor.
    try:
      # Optional: TensorFlow's own interpreter serves where it is not installed.
      from ai_edge_litert.interpreter import Interpreter
    except ImportError:
      Interpreter = _tensorflow().lite.Interpreter
    interpreter = Interpreter(model_path=path)
  runner = interpreter.get_signature_runner("serving_default")

  def ask(inputs: dict[str, np.ndarray]) -> np.ndarray:
    (answer,) = runner(**inputs).values()
    return answer

  return ask


RUNTIMES = {"saved_model": (_saved_model, _SLICES_PER_STEP), "onnx": (_onnx, _SLICES_PER_STEP),
            "litert": (_litert, 1)}  # fmt: skip


def main(format_name: str, path: str, questions: str, answers: str) -> None:
  opened, most = RUNTIMES[format_name]
  ask = opened(path)
  given: dict[str, dict[str, np.ndarray]] = {}
  with np.load(questions) as arrays:
    for key in arrays.files:
      number, name = key.split("/")
      given.setdefault(number, {})[name] = arrays[key]
  found: dict[str, Any] = {}
  for number, inputs in given.items():
    image = inputs["image"]
    steps = [
        ask({**inputs, "image": image[start : start + most]})
        for start in range(0, len(image), most)
    ]
    found[number] = np.concatenate(steps)
  if "flexunet" in sys.modules:
    raise RuntimeError("An exported file must answer without flexunet, but it was imported.")
  np.savez(answers, **found)


if __name__ == "__main__":
  main(*sys.argv[1:])
