"""Damaged configs, manifests, checkpoints, models and results of a run."""

import shutil

import fuzz_damage
import fuzz_inputs
import fuzz_judge
import numpy as np
import pytest
import run_samples
from fuzz_judge import Seen

from flexunet import run_folder
from flexunet.network import cost, weights
from flexunet.reporting import report
from flexunet.training import checkpoints

pytestmark = pytest.mark.fuzz


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
  return fuzz_inputs.write_run(tmp_path_factory.mktemp("trained"))


def fixed_part(run: run_folder.RunFolder) -> dict:
  """Returns the config of a run without what its user may change, and without the reasons."""
  return run_folder.fixed_fields(run.read_config().to_json())


def damages(count: int, whole: bytes, rng, kinds=tuple(fuzz_damage.BYTES)):
  """Yields (what, damaged bytes): flipped bits, then a tenth as many of what is worse."""
  for _ in range(fuzz_judge.trials(count)):
    yield fuzz_damage.flip(whole, rng)
  for number in range(fuzz_judge.trials(count // 10)):
    kind = kinds[number % len(kinds)]
    yield kind, fuzz_damage.BYTES[kind](whole, rng)


def edits(count: int, whole: bytes, rng):
  """Yields (what, damaged bytes): one thing changed in JSON."""
  for _ in range(fuzz_judge.trials(count)):
    what, text = fuzz_damage.edit_json(whole.decode("utf-8"), rng)
    yield what, text.encode("utf-8")


def attack(name, path, damaged_ones, read, same, names):
  """Judges each damaged form of one file; it is whole again afterwards."""
  whole = path.read_bytes()
  category = fuzz_judge.category(name)
  for what, damaged in damaged_ones(whole, fuzz_judge.generator(name)):
    path.write_bytes(damaged)
    category.judge(what, lambda: Seen(read()), same, names)
  path.write_bytes(whole)
  category.check()


@pytest.mark.parametrize("kind", ["flips", "edits"])
def test_config(trained, kind):
  run = run_folder.RunFolder.open(trained.path)
  whole = fixed_part(run)
  of_kind = {"flips": damages, "edits": edits}[kind]
  count = {"flips": 500, "edits": 80}[kind]
  attack(
      f"config.json, {kind}", run.config_json,
      lambda data, rng: of_kind(count, data, rng),
      lambda: fixed_part(run), lambda result: result == whole, ["config.json"],
  )  # fmt: skip


@pytest.mark.parametrize("kind", ["flips", "edits"])
def test_manifest(trained, kind):
  run = run_folder.RunFolder.open(trained.path)
  whole = fixed_part(run)
  of_kind = {"flips": damages, "edits": edits}[kind]

  def read():
    run.check_model()
    return fixed_part(run)

  attack(
      f"manifest.json, {kind}", run.manifest_json,
      lambda data, rng: of_kind(80, data, rng),
      read, lambda result: result == whole, ["manifest.json", "config.json", "model.keras"],
  )  # fmt: skip


def values_of(network) -> list[np.ndarray]:
  return [np.asarray(value) for value in network.weights]


def same_values(one, other) -> bool:
  return len(one) == len(other) and all(
      np.array_equal(a, b) for a, b in zip(one, other, strict=True)
  )


def test_model_of_a_run(trained):
  run = run_folder.RunFolder.open(trained.path)
  attack(
      "model.keras of a run", run.model_keras, lambda data, rng: damages(500, data, rng),
      run.check_model, lambda result: False, ["model.keras"],
  )  # fmt: skip


def test_model_alone(trained, tmp_path):
  path = tmp_path / "alone.keras"
  shutil.copyfile(trained.path / "model.keras", path)
  shape, values = cost.config_of_keras_file(path), values_of(weights.read_model(path))

  def read():
    return cost.config_of_keras_file(path), values_of(weights.read_model(path))

  attack(
      "model.keras alone", path, lambda data, rng: damages(500, data, rng), read,
      lambda result: result[0] == shape and same_values(result[1], values), ["alone.keras"],
  )  # fmt: skip


def test_checkpoints(tmp_path):
  rng = fuzz_judge.generator("checkpoints")
  store = checkpoints.CheckpointStore(tmp_path / "checkpoints")
  arrays = {
      "model": [rng.random((3, 4), np.float32), np.arange(7)],
      "optimizer": [np.float32(0.5), rng.random(5)],
  }
  for step in (4, 8):
    store.write(checkpoints.Checkpoint(arrays, {"step": step, "callbacks": {"best": 0.5}}))
  _, newest, _ = store.read()
  folder = tmp_path / "checkpoints"
  files = sorted(path for path in folder.rglob("*") if path.is_file())
  category = fuzz_judge.category("checkpoints")

  def read():
    found, name, damaged = store.read()
    whole = all(same_values(found.arrays[group], arrays[group]) for group in arrays)
    state = {"step": 4 if name != newest else 8, "callbacks": {"best": 0.5}}
    return Seen((name, whole, found.state == state), damaged)

  for number in range(fuzz_judge.trials(600)):
    path = files[rng.integers(len(files))]
    whole = path.read_bytes()
    kind = list(fuzz_damage.BYTES)[number % 10] if number % 5 == 0 else "flip"
    if kind == "flip":
      what, damaged = fuzz_damage.flip(whole, rng)
    else:
      what, damaged = kind, fuzz_damage.BYTES[kind](whole, rng)
    path.write_bytes(damaged)
    category.judge(
        f"{path.relative_to(folder)}: {what}",
        read,
        lambda result: result == (newest, True, True),
        [path.parent.name],
    )
    path.write_bytes(whole)
  category.check()


@pytest.mark.parametrize("name", ["metrics.json", "cases.csv", "examples_test.npz", "history.csv"])
def test_results(tmp_path, name):
  run = run_samples.evaluated_run(tmp_path / "run", subjects=2)
  [path] = run.path.rglob(name)
  report.write_report(run)
  whole = run.report_html.read_text()
  reason = "" if name.endswith(".npz") else "JSON and CSV hold no checksum"
  category = fuzz_judge.category(f"report of {name}", reason)
  rng = fuzz_judge.generator(category.name)
  data = path.read_bytes()

  def read():
    report.write_report(run)
    return Seen(run.report_html.read_text())

  for what, damaged in damages(40, data, rng):
    path.write_bytes(damaged)
    category.judge(what, read, lambda text: text == whole, [name], checked=not reason)
  path.write_bytes(data)
  category.check()


