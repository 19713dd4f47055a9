"""Every flag changes what it says: a table over the config fields, observed in what is built.

What shows only while a run trains is in test_flag_runs.py; what is refused, in
test_flag_conflicts.py. A field without a row in any of them fails the first test.
"""

import dataclasses
import functools

import flagged
import numpy as np
import pytest

DEEP = ("--num_layers=3",)
PATCHES = ("--patch_size=16",)
FOREGROUND = ("--foreground_fraction=0.5",)
SMALL = ("--image_size=16,48",)


def head_bias(run):
  return np.array(run.layer("head").bias).tolist()


def subjects(table):
  return sorted(set(table.subject.tolist()))


def first_filter(run):
  return float(np.asarray(run.layer("encoder0_conv0").kernel).ravel()[0])


def air(run):
  """Returns how many pixels of the training slices, as they are loaded, are of their background."""
  return int((run.streams.train_cache.images == 10).sum())


def air_of_records():
  return sum(int((one["label"] == 0).sum()) for one in flagged.records("abc", 0))


# flag -> (the flag, what is observed, what must be seen, flags beside it)
ROWS = {
    "image_size": ("32,48", lambda r: r.network.input_shape[1:3], (32, 48)),
    "image_channels": ("3", lambda r: r.first_batch()[0].shape[-1], 3),
    "base_filters": ("8", lambda r: r.layer("encoder0_conv0").filters, 8),
    "base_kernels": ("5", lambda r: r.layer("encoder0_conv0").kernel_size, (5, 5)),
    "num_layers": ("3", lambda r: sum("pool" in layer.name for layer in r.network.layers), 2),
    "dropout_rate": ("0.3", lambda r: r.layer("encoder1_dropout").rate, 0.3),
    "dilation": ("2", lambda r: r.layer("encoder0_conv0").dilation_rate, (2, 2)),
    "normalization": (
        "layer", lambda r: type(r.layer("encoder0_norm0")).__name__, "LayerNormalization"
    ),
    "activation": ("elu", lambda r: r.layer("encoder0_act0").activation.__name__, "elu"),
    "kernel_initializer": (
        "glorot_uniform",
        lambda r: type(r.layer("encoder0_conv0").kernel_initializer).__name__,
        "GlorotUniform",
    ),
    "input_normalization": (
        "per_image", lambda r: type(r.layer("scale")).__name__ == "Rescaling", False
    ),
    "stem": ("half", lambda r: any(layer.name == "stem" for layer in r.network.layers), True),
    "block": (
        "residual", lambda r: any(layer.name == "encoder1_add1" for layer in r.network.layers), True
    ),
    "encoder_blocks": (
        "2", lambda r: sum("encoder1_conv" in layer.name for layer in r.network.layers), 4
    ),
    "decoder_convolutions": (
        "1", lambda r: sum("decoder0_conv" in layer.name for layer in r.network.layers), 1
    ),
    "upsampling": ("nearest", lambda r: type(r.layer("up0")).__name__ == "UpSampling2D", True),
    "max_filters": ("4", lambda r: r.layer("encoder1_conv0").filters, 4),
    "deep_supervision": ("true", lambda r: len(r.network.outputs), 2, DEEP),
    "train_split": ("test", lambda r: subjects(r.data.train), ["e"]),
    "validation_split": ("test", lambda r: subjects(r.data.validation), ["e"]),
    # Subjects a, b, c have the folds 0, 1, 2, and d has 0.
    "fold": ("0", lambda r: subjects(r.data.validation), ["a", "d"]),
    "image_key": ("label", lambda r: int(r.first_batch()[0].max()), 2),
    "label_key": ("image", lambda r: int(r.first_batch()[1].max()), 240),
    # Stretched, the blobs reach the last column; with a border they cannot.
    "resize_mode": ("stretch", lambda r: bool((r.first_batch()[0][:, :, -1] == 0).all()), False,
                    SMALL),
    "crop_foreground": ("true", lambda r: air(r) < air_of_records(), True),
    "context_slices": ("1", lambda r: bool(np.ptp(r.first_batch()[0], axis=-1).any()), True,
                       ("--image_channels=3",)),
    "patch_size": ("16", lambda r: r.first_batch()[0].shape[1:3], (16, 16)),
    "patch_foreground_share": ("0.25", lambda r: r.order.centered, 1, PATCHES),
    "epoch_passes": ("3", lambda r: r.order.passes, 3),
    "foreground_fraction": ("0.5", lambda r: r.order.drawn, 2),
    "class_balance": ("true", lambda r: len(r.order.pools), 2, FOREGROUND),
    "cache": ("none", lambda r: r.streams.cache_choice.mode, "none"),
    "augment_on": ("device", lambda r: r.streams.device_input is not None, True,
                   ("--augmentation=default",)),
    "batch_size": ("3", lambda r: len(r.first_batch()[0]), 3),
    "learning_rate": ("0.125", lambda r: float(r.optimizer.learning_rate), 0.125),
    "optimizer": ("sgd", lambda r: type(r.optimizer).__name__, "SGD"),
    "weight_average": ("0.25", lambda r: "_TailAverage" in str(type(r.optimizer).__mro__), True),
    "label_smoothing": ("0.1", lambda r: r.network.output_loss.parts[1].label_smoothing, 0.1),
    "weight_decay": ("0.5", lambda r: r.optimizer.weight_decay, 0.5),
    "momentum": ("0.5", lambda r: r.optimizer.momentum, 0.5, ("--optimizer=sgd",)),
    "clipvalue": ("0.25", lambda r: r.optimizer.clipvalue, 0.25),
    "clipnorm": ("2", lambda r: (r.optimizer.clipnorm, r.optimizer.clipvalue), (2.0, None)),
    "gradient_accumulation": ("4", lambda r: r.optimizer.gradient_accumulation_steps, 4),
    "loss": ("focal", lambda r: r.network.output_loss.name, "focal"),
    "loss_options": ("gamma=3", lambda r: r.network.output_loss.gamma, 3, ("--loss=focal",)),
    "class_weights": ("1,2,3", lambda r: r.network.output_loss.class_weights, [1.0, 2.0, 3.0],
                      ("--loss=cross_entropy",)),
    "class_prior": ("false", head_bias, [0.0, 0.0, 0.0]),
    "metrics": ("iou", lambda r: r.config.training.metrics, ("iou",)),
    "precision": ("mixed_float16", lambda r: r.layer("encoder0_conv0").compute_dtype, "float16"),
    "jit_compile": ("on", lambda r: r.network.jit_compile, True),
    "steps_per_execution": ("2", lambda r: r.network.steps_per_execution, 2),
    "augmentation": ("strong", lambda r: r.config.augmentation.rotation_degrees, 30.0),
}  # fmt: skip
# Rows that need more than an expected value; each is a test of its own below or elsewhere.
OWN_TESTS = {
    "dataset", "data_dir", "cache_dir", "skip_corrupt", "seed", "deterministic", "shown_channel",
    "budget", "network_size",  # tests/flexunet/training/test_planning.py
    "log_to",  # tests/flexunet/training/test_monitoring.py
    "data_service", "data_service_timeout_s",  # tests/flexunet/training/test_served_runs.py
    # Of datasets built elsewhere: tests/pipelines/test_foreign_dataset.py.
    "label_values", "subject_key", "volume_key", "slice_key", "spacing_key",
}  # fmt: skip


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
  return flagged.write_dataset(tmp_path_factory.mktemp("data"))


def test_every_flag_has_a_test_of_its_effect():
  fields = {
      field.name
      for name, part in flagged.PARTS.items()
      for field in dataclasses.fields(part)
      # The strengths and probabilities have a test over all of them.
      if name != "augmentation" or field.name == "augmentation"
  }
  tested = {*ROWS, *OWN_TESTS, *flagged.SEEN_IN_RUNS, *flagged.REFUSED}
  assert fields == tested


# What it makes it makes once, for all the flags that are compared with it.
plain_run = functools.lru_cache(flagged.setup)


@pytest.mark.parametrize("name", ROWS)
def test_a_flag_changes_what_it_says(data_dir, name):
  value, observe, expected, *beside = ROWS[name]
  beside = beside[0] if beside else ()
  changed = flagged.setup(data_dir, *beside, f"--{name}={value}")
  assert observe(changed) == pytest.approx(expected)
  plain = () if name == "context_slices" else beside
  assert observe(plain_run(data_dir, *plain)) != pytest.approx(expected)


def test_a_dataset_is_found_by_name_below_its_data_dir(data_dir, tmp_path):
  found = flagged.setup(data_dir.parents[2], "--dataset=blobs/slices")
  assert found.data.source.path == data_dir
  other = flagged.write_dataset(tmp_path)
  assert flagged.setup(other).data.source.path == other


def test_a_cache_on_disk_lies_where_it_is_told(data_dir, tmp_path):
  folder = tmp_path / "cache"
  run = flagged.setup(data_dir, "--cache=disk", f"--cache_dir={folder}")
  assert run.streams.cache_choice.mode == "disk" and list(folder.rglob("*"))


def test_a_record_that_cannot_be_read_is_left_out(tmp_path):
  version = flagged.write_dataset(tmp_path)
  shard = next(version.glob("*train*"))
  data = bytearray(shard.read_bytes())
  start = data.index(b"\x89PNG")
  data[start + 8 : start + 60] = bytes(52)
  shard.write_bytes(data)
  run = flagged.setup(version, "--skip_corrupt=1")
  assert len(run.data.train) == 12 and len(run.prepared.data.train) == 11
  assert len(run.prepared.left_out) == 1


def test_another_seed_gives_other_weights_and_another_order(data_dir):
  one, same, other = (flagged.setup(data_dir, f"--seed={seed}") for seed in (1, 1, 2))
  assert first_filter(one) == first_filter(same) != first_filter(other)
  batches = [run.first_batch()[0] for run in (one, same, other)]
  assert (batches[0] == batches[1]).all() and (batches[0] != batches[2]).any()


@pytest.mark.parametrize(
    ("name", "kind"), [("muon", "Muon"), ("schedule_free", "ScheduleFreeAdamW")]
)
def test_the_newer_optimizers_are_those_asked_for(data_dir, name, kind):
  run = flagged.setup(data_dir, f"--optimizer={name}", "--weight_decay=0.25")
  assert type(run.optimizer).__name__ == kind and run.optimizer.weight_decay == 0.25
  assert (run.config.training.schedule == "constant") == (name == "schedule_free")


def test_determinism_is_what_was_asked_for(data_dir):
  assert flagged.setup(data_dir, "--deterministic").config.training.deterministic
  assert not flagged.setup(data_dir, "--nodeterministic").config.training.deterministic


def test_balanced_weights_are_inverse_to_the_pixels(data_dir):
  run = flagged.setup(data_dir, "--class_weights=balanced", "--loss=cross_entropy")
  pixels = run.data.train.pixels.sum(axis=0)
  np.testing.assert_allclose(
      run.network.output_loss.class_weights, pixels.sum() / 3 / pixels, rtol=1e-5
  )
  assert "balanced" in run.config.reasons["class_weights"]


@pytest.mark.parametrize("given", ["dice_coef_multiclass", "iou,specificity", ""])
def test_the_scores_are_those_asked_for_and_dice(data_dir, given):
  run = flagged.setup(data_dir, f"--metrics={given}")
  names = set(run.network.test_on_batch(*run.first_batch(), return_dict=True))
  assert ("foreground_iou" in names) == ("iou" in given)
  assert ("dice_coef_multiclass" in names) == ("dice_coef" in given)
  assert {"foreground_dice", "dice_dim", "loss"} <= names
