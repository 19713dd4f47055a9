"""What is planned follows from the slices, the classes and the device, each with a reason."""

import dataclasses

import numpy as np
import pytest
import run_samples

from flexunet import config
from flexunet.network import cost, step_time
from flexunet.pipelines.augmentation.config import AugmentationConfig
from flexunet.pipelines.laterality import Laterality
from flexunet.pipelines.record_table import RecordTable
from flexunet.presets import budgets, recipe
from flexunet.training import planning


def table(height=176, width=176, pixels=((10, 1),), times=20):
  pixels = np.repeat(np.array(pixels), times, axis=0)
  count = len(pixels)
  zeros = np.zeros(count, int)
  return RecordTable(
      files=["f"], shard=zeros, offset=np.arange(count), subject=np.full(count, "a"),
      volume=np.full(count, "a"), slice_index=np.arange(count), fold=zeros,
      height=np.full(count, height), width=np.full(count, width), pixels=pixels,
  )  # fmt: skip


def planned(records=None, model=(), data=(), training=(), augmentation=(), **facts):
  records = table() if records is None else records
  names = ["background", *(f"class_{n}" for n in range(records.pixels.shape[1] - 1))]
  facts = {"train": records, "validation": records, "class_names": names, **facts}
  return planning.plan(
      config.ModelConfig(**{"stem": "full", **dict(model)}),
      config.DataConfig(**{"patch_size": "none", **dict(data)}),
      config.TrainingConfig(**dict(training)),
      AugmentationConfig(**dict(augmentation)),
      planning.Facts(**facts),
  )


@pytest.mark.parametrize(
    ("size", "layers"),
    [((176, 176), 5), ((650, 650), 5), ((64, 90), 5), ((40, 90), 4), ((9, 90), 2)],
)
def test_stages_end_where_the_slice_has_no_edge_left(size, layers):
  # Four pixels are left of an edge of 64 after four poolings; of 40 already after three, five.
  assert planned(table(*size)).model.num_layers == layers


def test_a_run_of_few_steps_on_a_cpu_gets_a_lighter_network():
  def shape(minutes, model=(), **facts):
    made = planned(model=model, training={"max_minutes": minutes}, **facts)
    network = made.model
    return network.num_layers, network.decoder_convolutions, network.dropout_rate, made.reasons

  *few, reasons = shape(1.0)
  assert few == [4, 1, 0.0]
  for name in ("num_layers", "decoder_convolutions", "dropout_rate"):
    assert "steps of the usual network" in reasons[name]
  usual = [5, 2, 0.02]
  assert list(shape(600.0)[:3]) == usual
  assert list(shape(1.0, model={"stem": "half_refined"})[:3]) == usual  # It lost there.
  assert list(shape(1.0, device="gpu")[:3]) == usual
  assert list(shape(0.0)[:3]) == usual  # Without a limit nothing hurries.
  *given, reasons = shape(1.0, model={"num_layers": 6, "dropout_rate": 0.1})
  assert given == [6, 1, 0.1] and reasons["num_layers"] == "given"


def test_the_reason_tells_how_far_the_network_sees():
  made = planned()
  seen = cost.receptive_fields(run_samples.published(**vars(made.model)))[0].decoder
  assert f"see {seen} pixels" in made.reasons["num_layers"]


def test_a_first_stage_at_half_size_leaves_a_stage_less_and_is_padded_further():
  # The first stage of an edge of 64 works at 32, of which four pixels are left after three.
  made = planned(table(64, 90), model={"stem": "half"})
  assert (made.model.num_layers, made.model.multiple) == (4, 16)
  assert made.model.image_size == (64, 96)
  deep = planned(model={"stem": "half"})
  assert deep.model.image_size == (192, 192)  # The multiple of 2 x 2 ** 4 above 176.
  assert f"see {cost.output_field(deep.model)} pixels" in deep.reasons["num_layers"]


@pytest.mark.parametrize(
    ("size", "foreground", "facts", "stem"),
    [
        ((176, 176), 300, {}, "half_refined"),  # 1 % of 30,976 pixels.
        ((176, 176), 3000, {}, "full"),  # 10 %.
        ((176, 176), 300, {"device": "gpu"}, "full"),
        ((176, 120), 300, {}, "full"),
    ],
)
def test_small_structures_are_learnt_at_half_the_size_on_a_cpu(size, foreground, facts, stem):
  records = table(*size)
  pixels = np.tile([size[0] * size[1] - foreground, foreground], (len(records), 1))
  made = planned(dataclasses.replace(records, pixels=pixels), model={"stem": None}, **facts)
  assert made.model.stem == stem
  assert planned(records, model={"stem": "half"}, **facts).model.stem == "half"


def test_the_batch_shrinks_until_it_fits_into_the_memory():
  free = planned()
  assert free.training.batch_size == 8
  tight = planned(memory_bytes=200_000_000)
  assert tight.training.batch_size in (1, 2, 4)
  assert "would need about" in tight.reasons["batch_size"]
  assert planned(memory_bytes=1).training.batch_size == 1
  assert planned(memory_bytes=1, training={"batch_size": 6}).training.batch_size == 6


def test_a_scaled_slice_tells_what_becomes_of_its_pixel():
  large = planned(table(512, 512), spacing_mm=(0.5, 0.5))
  assert large.model.image_size == (256, 256)
  assert "a pixel of 0.50 mm becoming 1.00" in large.reasons["image_size"]


def test_cropped_slices_are_planned_by_their_boxes_and_told_so():
  whole = table(500, 500)
  boxes = np.tile([3, 5, 170, 130], (len(whole), 1))
  cut = dataclasses.replace(whole, boxes=boxes, height=boxes[:, 2], width=boxes[:, 3])
  made = planned(cut)
  assert made.model.image_size == (176, 144) and made.data.resize_mode == "pad"
  told = made.reasons["image_size"]
  assert "the largest slice cropped to its foreground, 170x130, as it is" in told
  assert "cropped" not in planned(whole).reasons["image_size"]


def test_a_rare_class_is_drawn_in_turns_where_a_share_is_drawn():
  # Background only in six of ten slices; the second class in one of those four.
  pixels = [(9, 0, 0)] * 16 + [(8, 1, 0)] * 8 + [(7, 1, 1)]
  rare = planned(table(pixels=pixels, times=1))
  assert rare.data.foreground_fraction == 0.5 and rare.data.class_balance
  assert "class_1 is in 1 slices" in rare.reasons["class_balance"]
  even = planned(table(pixels=[(9, 0, 0)] * 3 + [(8, 1, 1)], times=5))
  assert even.data.foreground_fraction == 0.5 and not even.data.class_balance
  everywhere = planned(table(pixels=pixels[16:], times=1))
  assert everywhere.data.foreground_fraction == 0 and not everywhere.data.class_balance


def test_images_are_mirrored_where_they_may_be_and_the_reason_is_given():
  made = planned(laterality=Laterality(False, "slices are sagittal"))
  assert made.augmentation.flip_horizontal_probability == 0
  assert made.augmentation.rotation_probability > 0
  assert "no mirror images, since slices are sagittal" in made.reasons["augmentation"]
  made = planned(laterality=Laterality())
  assert made.augmentation.flip_horizontal_probability == 0.5
  assert "mirror" not in made.reasons["augmentation"]



def test_the_network_to_start_from_gives_what_is_left_open():
  start = run_samples.published(base_filters=8, base_kernels=7, num_layers=3, normalization="group")
  made = planned(start=start, model={"base_kernels": 5})
  assert (made.model.base_filters, made.model.num_layers) == (8, 3)
  assert made.model.normalization == "group" and made.model.base_kernels == 5
  assert made.reasons["base_filters"] == "as in the network to start from"


@pytest.mark.parametrize(
    ("model", "training", "rate"),
    [({}, {}, 3e-3), ({}, {"optimizer": "adam"}, 3e-3), ({}, {"optimizer": "sgd"}, 0.01),
     # 3 steps an epoch: 166 epochs are 498 steps, 167 are 501.
     ({}, {"epochs": 166}, 6e-3), ({}, {"epochs": 167}, 3e-3),
     ({"normalization": "none"}, {}, 3e-4), ({}, {"learning_rate": 0.5}, 0.5)],
)  # fmt: skip
def test_the_learning_rate_suits_optimizer_and_normalization(model, training, rate):
  assert planned(model=model, training=training).training.learning_rate == rate


def test_the_warm_up_of_a_short_run_is_short():
  # 20 slices in batches of 8 are 3 steps an epoch.
  assert planned(training={"epochs": 10}).training.warmup_steps == 3
  assert planned(training={"epochs": 1000}).training.warmup_steps == 50
  timed = planned(training={"max_minutes": 0.2}).training.warmup_steps
  assert 0 < timed < planned(training={"max_minutes": 60.0}).training.warmup_steps == 50


def test_weights_are_averaged_in_runs_that_outlast_their_first_steps():
  # 3 steps an epoch: 166 epochs are 498 steps, 167 are 501.
  assert planned(training={"epochs": 166}).training.ema_momentum == 0
  assert planned(training={"epochs": 167}).training.ema_momentum == 0.98
  assert planned(training={"epochs": 167, "ema_momentum": 0.0}).training.ema_momentum == 0
  assert planned(training={"max_minutes": 0.2}).training.ema_momentum == 0
  assert planned(training={"max_minutes": 60.0}).training.ema_momentum == 0.98
  # The epochs may end a run long before its time.
  assert planned(training={"max_minutes": 60.0, "epochs": 9}).training.ema_momentum == 0


def test_a_run_keeps_one_average_of_its_weights():
  long = {"epochs": 167}
  tail = planned(training={**long, "weight_average": 0.25})
  assert (tail.training.weight_average, tail.training.ema_momentum) == (0.25, 0)
  assert "--weight_average keeps another average" in tail.reasons["ema_momentum"]
  free = planned(training={**long, "optimizer": "schedule_free"}).training
  assert (free.weight_average, free.ema_momentum, free.schedule) == (0, 0, "constant")
  assert planned(training=long).training.weight_average == 0
  assert planned(training={"weight_average": 0.0, **long}).training.ema_momentum == 0.98


def test_the_recipe_may_prefer_the_mean_of_the_last_share(monkeypatch):
  monkeypatch.setattr(recipe, "WEIGHT_AVERAGE", 0.2)
  made = planned(training={"epochs": 167}).training
  assert (made.weight_average, made.ema_momentum) == (0.2, 0)
  assert planned(training={"epochs": 166}).training.weight_average == 0
  assert planned(training={"epochs": 167, "ema_momentum": 0.9}).training.weight_average == 0


@pytest.mark.parametrize("name", recipe.LEARNING_RATES)
def test_each_optimizer_has_its_numbers(name):
  made = planned(training={"optimizer": name, "epochs": 167}).training
  assert made.learning_rate == recipe.LEARNING_RATES[name][1]
  assert made.weight_decay == recipe.WEIGHT_DECAY.get(name, 0)
  assert made.momentum == recipe.MOMENTUM.get(name, 0)


def test_an_epoch_of_few_slices_has_several_passes_unless_epochs_are_given():
  # 20 slices in batches of 8 are 3 steps a pass: 17 passes are 51 steps.
  assert planned().data.epoch_passes == 17
  assert planned(training={"max_minutes": 1.0}).data.epoch_passes == 17
  assert planned(training={"epochs": 5}).data.epoch_passes == 1
  assert planned(table(times=400)).data.epoch_passes == 1


@pytest.mark.parametrize(
    ("training", "augmentation", "preset"),
    [
        ({"epochs": recipe.FEW_PASSES - 1}, {}, "none"),
        ({"epochs": recipe.FEW_PASSES}, {}, "default"),
        ({"epochs": recipe.FEW_PASSES - 1}, {"augmentation": "strong"}, "strong"),
        ({"epochs": recipe.FEW_PASSES - 1}, {"rotation_degrees": 30.0}, "default"),
        ({"max_minutes": 0.1}, {}, "none"),
        ({"max_minutes": 240.0}, {}, "default"),
    ],
)
def test_a_run_that_sees_slices_a_few_times_only_is_not_augmented(training, augmentation, preset):
  # 2,000 slices of 176x176: some 9 GFLOP each and pass, at 70 GFLOP/s a core.
  made = planned(table(times=2000), training=training, augmentation=augmentation)
  assert made.augmentation.augmentation == preset
  assert (made.augmentation.rotation_probability > 0) == (preset != "none")


def test_the_passes_that_a_time_limit_allows_grow_with_time_and_cores():
  def told(**facts):
    network = {"num_layers": 5, "decoder_convolutions": 2}  # The same one, however many steps.
    reason = planned(table(times=2000), network, training={"max_minutes": 20.0}, **facts).reasons
    return float(reason["augmentation"].split("about ")[1].split()[0])

  shape = run_samples.published(
      image_size=(176, 176), image_channels=1, num_classes=2, base_filters=16, base_kernels=3,
      num_layers=5, dropout_rate=0.02, normalization="batch",
  )  # fmt: skip
  speed = step_time.speed(shape, step_time.Machine())
  images = 1200 * speed / (6 * sum(row.multiply_adds for row in cost.rows(shape)))
  assert told() == pytest.approx(images / 2000, rel=0.05)
  assert told(cpu_cores=4) == pytest.approx(4 * images / 2000, rel=0.05)
  # A machine on which a convolution takes twice the time does half of it.
  slow = step_time.table()["measured"][0]["convolution_speed"] / 2
  fast = told(convolution_speed=2 * slow)
  assert told(convolution_speed=slow) == pytest.approx(fast / 2, rel=0.05)


def test_slices_with_foreground_are_seen_more_often_where_they_are_drawn():
  # 16 of 160 slices hold foreground: with half of a batch of 8 drawn, a pass takes 40 steps, and
  # in each four of the 16 are drawn. Four passes: 4 + 160 * 4 / 16 = 44.
  rare = table(pixels=[(10, 0)] * 9 + [(9, 1)], times=16)
  made = planned(rare, training={"epochs": 4})
  assert made.data.foreground_fraction == 0.5 and made.augmentation.augmentation == "default"
  assert "about 44 passes over slices with foreground" in made.reasons["augmentation"]


@pytest.mark.parametrize("name", budgets.BUDGETS)
def test_a_budget_sets_the_time_and_what_is_given_wins(name):
  budget = budgets.BUDGETS[name]
  made = planned(training={"budget": name})
  low, high = budget.minutes / 2, budget.minutes * 2
  assert low <= made.training.max_minutes <= high and made.training.schedule == "cosine"
  assert f"--budget={name}" in made.reasons["max_minutes"]
  assert planned(training={"budget": name, "max_minutes": 7.0}).training.max_minutes == 7
  given = planned(training={"budget": name, "epochs": 3}).training
  assert (given.max_minutes, given.epochs) == (0, 3)
  wide = planned(training={"budget": name, "network_size": "L"}).model.base_filters
  assert wide == budgets.FILTERS["cpu"]["L"]
  assert planned(training={"budget": name}, model={"base_filters": 5}).model.base_filters == 5


def test_a_budget_gives_large_data_more_time_and_small_data_less():
  small, large = (
      planned(table(times=times), training={"budget": "standard"}).training.max_minutes
      for times in (20, 20_000)
  )
  assert (small, large) == (8, 30)  # Half and twice of 15 minutes; whole ones above five.


@pytest.mark.parametrize(("device", "size", "filters"), [
    ("cpu", None, 16), ("cpu", "S", 8), ("cpu", "L", 32), ("gpu", None, 32), ("gpu", "S", 16),
])  # fmt: skip
def test_the_width_follows_the_network_size_and_the_device(device, size, filters):
  made = planned(training={"network_size": size}, device=device)
  assert made.model.base_filters == filters
  assert f"on a {device}" in made.reasons["base_filters"]


def test_every_value_has_a_reason():
  made = planned()
  for part in (config.ModelConfig, config.DataConfig, config.TrainingConfig):
    for name, field in part.__dataclass_fields__.items():
      if field.default is None and field.metadata["unset"] == "planned from the data":
        assert made.reasons[name], name
