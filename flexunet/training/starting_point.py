"""The trained network that a run starts from: a run folder, or a `.keras` file."""

from __future__ import annotations

import dataclasses
import pathlib

import keras

from flexunet import run_folder
from flexunet.datasets.errors import InputError
from flexunet.network import inspection, knobs


@dataclasses.dataclass(frozen=True)
class StartingPoint:
  """A trained network on disk.

  Attributes:
    path: The `.keras` file.
    name: How messages call it.
    knobs: Of the network.
    class_names: What its head tells apart; None for a file without a run around it.
  """

  path: pathlib.Path
  name: str
  knobs: knobs.Knobs
  class_names: list[str] | None

  def load(self) -> keras.Model:
    return keras.saving.load_model(self.path, compile=False)

  def about_classes(self, mine: list[str]) -> str:
    """Returns a sentence, led by a blank, where the classes differ; else nothing."""
    if self.class_names in (None, mine):
      return ""
    return f" It tells {', '.join(self.class_names or [])}; this dataset has {', '.join(mine)}."


def open_start(path: str) -> StartingPoint:
  """Opens what `--init_from` names, reading no weights yet.

  Raises:
    InputError: There is no trained FlexUNet.
  """
  given = pathlib.Path(path).expanduser()
  if not given.exists():
    raise InputError(f"--init_from {given} must be a run folder or a .keras file; it is not there.")
  names = None
  file = given
  if given.is_dir():
    run = run_folder.RunFolder(given)
    if not run.config_json.is_file() or not run.model_keras.is_file():
      raise InputError(
          f"--init_from {given} must be the folder of a trained run, with config.json and"
          " model.keras."
      )
    file = run.model_keras
    names = [entry["name"] for entry in run.read_config().dataset_facts.label_scheme]
  found = inspection.knobs_of_keras_file(file)
  return StartingPoint(file, given.name, found, names)


def check_same_kind(start: StartingPoint, mine: knobs.Knobs) -> None:
  """Refuses a network whose weights would mean something else than where they come from.

  What differs in shape is refused by `fine_tuning.transfer_weights`; these differ in no shape.
  """
  for name in ("activation", "dilation", "input_normalization", "normalization"):
    theirs, wanted = getattr(start.knobs, name), getattr(mine, name)
    if theirs != wanted:
      raise InputError(
          f"--{name} must be {theirs}, that of the network to start from ({start.name}). Got:"
          f" {wanted}. Pass --{name}={theirs}."
      )
