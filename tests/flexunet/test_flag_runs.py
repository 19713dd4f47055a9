"""What flags do while a run trains: steps, averages, callbacks; and two short runs as a whole."""

import flagged
import keras
import numpy as np
import pytest

from flexunet import run_folder
from flexunet.training import callbacks, checkpointing, monitoring, networks, trainer

STEPS = 3  # Twelve slices in batches of four.
CONSTANT = ("--schedule=constant", "--warmup_steps=0", "--learning_rate=0.5")


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
  return flagged.write_dataset(tmp_path_factory.mktemp("data"))


def weights(network):
  return [np.array(variable) for variable in network.trainable_variables]


def trainer_of(data_dir, folder, *given):
  run = flagged.setup(data_dir, *given)
  built = trainer.Trainer(run_folder.RunFolder(folder), run.config, run.prepared)
  for one in built.steering:
    one.set_model(run.prepared.network)
  return built


def callback(built, kind):
  return next(one for one in built.steering if isinstance(one, kind))


def rate_at(built, step):
  callback(built, callbacks.RunClock).step = step
  return callback(built, callbacks.LearningRate).current()


@pytest.mark.parametrize(
    ("given", "step", "rate"),
    [
        (CONSTANT, 3, 0.5),
        ((*CONSTANT, "--schedule=cosine"), 3, 0.25),  # Half way through two epochs of three steps.
        ((*CONSTANT, "--schedule=poly"), 3, 0.5 * 0.5**0.9),
        ((*CONSTANT, "--schedule=cosine", "--epochs=4"), 6, 0.25),
        ((*CONSTANT, "--warmup_steps=4"), 0, 0.125),
        ((*CONSTANT, "--warmup_steps=4"), 4, 0.5),
    ],
)
def test_the_learning_rate_follows_the_schedule(data_dir, tmp_path, given, step, rate):
  assert rate_at(trainer_of(data_dir, tmp_path, *given), step) == pytest.approx(rate)


def test_a_plateau_lowers_the_learning_rate_by_the_factor(data_dir, tmp_path):
  for patience, wanted in ((0, [0.5] * 4), (1, [0.5, 0.125, 0.03125, 0.0078125]),
                           (2, [0.5, 0.5, 0.125, 0.125])):  # fmt: skip
    flags = (*CONSTANT, f"--reduce_lr_patience={patience}", "--reduce_lr_factor=0.25")
    built = trainer_of(data_dir, tmp_path, *flags)
    steering, rates = callback(built, callbacks.LearningRate), []
    for epoch in range(4):
      steering.on_epoch_end(epoch, {"val_loss": 1.0})
      rates.append(steering.current())
    assert rates == pytest.approx(wanted)


@pytest.mark.parametrize(("monitor", "last"), [("dice", 4), ("loss", 3)])
def test_early_stopping_waits_by_the_figure_it_watches(data_dir, tmp_path, monitor, last):
  built = trainer_of(data_dir, tmp_path, "--early_stopping_patience=2", f"--monitor={monitor}")
  stop = callback(built, callbacks.EarlyStop)
  # Best by Dice in epoch 2, by loss in epoch 1.
  figures = [(0.1, 9.0), (0.2, 1.0), (0.3, 2.0), (0.3, 2.0), (0.3, 2.0), (0.3, 2.0)]
  stop.model.stop_training = False
  for epoch, (dice, loss) in enumerate(figures):
    stop.on_epoch_end(epoch, {callbacks.MONITOR: dice, "val_loss": loss})
    if stop.model.stop_training:
      break
  assert stop.stopped_epoch == last


@pytest.mark.parametrize(
    ("given", "kept"),
    [((), [0, 2]), (("--monitor=loss",), [0, 1]), (("--nosave_best",), [0, 1, 2, 3])],
)
def test_the_kept_model_is_the_best_or_the_last(data_dir, tmp_path, monkeypatch, given, kept):
  saved = []
  best = callback(trainer_of(data_dir, tmp_path, *given), callbacks.BestModel)
  figures = [(0.2, 3.0), (0.1, 2.0), (0.4, 2.5), (0.3, 2.5)]
  for epoch, (dice, loss) in enumerate(figures):
    monkeypatch.setattr(callbacks, "save_model", lambda *_, epoch=epoch: saved.append(epoch))
    best.on_epoch_end(epoch, {callbacks.MONITOR: dice, "val_loss": loss})
  assert saved == kept


def test_of_equal_scores_the_later_model_is_kept(data_dir, tmp_path, monkeypatch):
  saved = []
  best = callback(trainer_of(data_dir, tmp_path), callbacks.BestModel)
  monkeypatch.setattr(callbacks, "save_model", lambda *_: saved.append(best.best_epoch))
  for epoch in range(3):  # Nothing has been found yet.
    best.on_epoch_end(epoch, {callbacks.MONITOR: 0.0, "val_loss": 1.0})
  assert saved == [0, 1, 2]


def test_checkpoints_within_an_epoch_are_taken_as_often_as_asked(data_dir, tmp_path):
  built = trainer_of(data_dir, tmp_path, "--checkpoint_steps=7")
  assert callback(built, checkpointing.Checkpointer).every_steps == 7


def test_previews_are_drawn_of_so_many_slices_or_none(data_dir, tmp_path):
  built = trainer_of(data_dir, tmp_path, "--previews=3")
  assert len(callback(built, monitoring.Previews)._slices) == 3
  none = trainer_of(data_dir, tmp_path, "--previews=0")
  assert not any(isinstance(one, monitoring.Previews) for one in none.steering)


@pytest.mark.slow
def test_what_is_validated_with_ema_is_the_average_of_the_trained_weights(data_dir):
  run = flagged.setup(data_dir, "--ema_momentum=0.75", *CONSTANT)
  network, kept = run.network, run.kept
  image, label = run.first_batch()
  average = None
  for _ in range(3):
    network.train_on_batch(image, label)
    now = weights(network)
    # The first step starts the average.
    average = now if average is None else [
        0.75 * old + 0.25 * new for old, new in zip(average, now)
    ]  # fmt: skip
  networks.copy_averages(network, kept)
  for mine, wanted, trained in zip(weights(kept), average, weights(network)):
    np.testing.assert_allclose(mine, wanted, atol=1e-5)
    np.testing.assert_array_equal(trained, now.pop(0))
  # Running statistics of batch normalization go along.
  names = ("encoder0_norm0", "decoder0_norm1")
  for one, two in ((network.get_layer(n), kept.get_layer(n)) for n in names):
    np.testing.assert_array_equal(one.moving_mean, two.moving_mean)


@pytest.mark.slow
def test_keras_does_not_put_the_averages_into_the_trained_weights(data_dir):
  run = flagged.setup(data_dir, "--ema_momentum=0.9", *CONSTANT)
  image, label = run.first_batch()
  for _ in range(2):
    run.network.train_on_batch(image, label)
  before = weights(run.network)
  run.optimizer.finalize_variable_values(run.network.trainable_variables)
  for old, new in zip(before, weights(run.network)):
    np.testing.assert_array_equal(old, new)


@pytest.mark.slow
def test_accumulated_gradients_change_the_weights_at_every_second_batch(data_dir):
  run = flagged.setup(data_dir, "--gradient_accumulation=2", "--optimizer=sgd", *CONSTANT)
  image, label = run.first_batch()
  kernel = run.layer("encoder0_conv0").kernel
  start = np.array(kernel)
  run.network.train_on_batch(image, label)
  assert (np.array(kernel) == start).all()
  run.network.train_on_batch(image, label)
  assert (np.array(kernel) != start).any()


@pytest.mark.slow
def test_deep_supervision_learns_from_all_outputs_and_keeps_the_main_one(data_dir):
  flags = ("--num_layers=3", "--dropout_rate=0", "--normalization=none")
  deep = flagged.setup(data_dir, *flags, "--deep_supervision")
  image, label = deep.first_batch()
  main, coarse = deep.network(image)  # Logits.
  loss = deep.network.output_loss
  wanted = float(loss(label, main)) * 2 / 3 + float(loss(label, coarse)) / 3
  told = deep.network.train_on_batch(image, label, return_dict=True)
  assert told["loss"] == pytest.approx(wanted, rel=1e-5)
  assert "foreground_dice" in told
  kept = deep.kept
  assert len(kept.outputs) == 1
  main = deep.network(image)[0]
  np.testing.assert_allclose(kept(image), keras.ops.softmax(main), atol=1e-6)
  # A validation is judged by the main output, so that its loss compares with other runs.
  target = {"label": label, "volume": np.zeros(len(label), np.int32)}
  judged = kept.test_on_batch(image, target, return_dict=True)
  assert judged["loss"] == pytest.approx(float(loss(label, main)), rel=1e-4)


@pytest.fixture(scope="module")
def trained(data_dir, tmp_path_factory):
  flags = ("--epochs=4", "--validation_epochs=2", "--previews=2", "--keep_checkpoints=1",
           "--num_layers=3", "--deep_supervision", "--ema_momentum=0.5")  # fmt: skip
  made = flagged.setup(data_dir, *flags)
  return trainer.fit(made.config, tmp_path_factory.mktemp("runs") / "run", made.data)


@pytest.mark.slow
def test_a_run_with_many_flags_keeps_to_them(trained):
  run, rows = trained
  assert [row["epoch"] for row in rows] == [1, 2, 3, 4]
  assert [row["epoch"] for row in rows if "val_loss" in row] == [2, 4]
  assert len(list(run.previews.glob("*.png"))) >= 2
  assert len(list(run.checkpoints.glob("*_step_*"))) == 1
  model = keras.saving.load_model(run.model_keras, compile=False)
  assert len(model.outputs) == 1


@pytest.mark.slow
def test_a_run_ends_by_time_when_that_is_asked(data_dir, tmp_path):
  made = flagged.setup(data_dir, "--max_minutes=0.03", "--epochs=10000")
  _, rows = trainer.fit(made.config, tmp_path / "run", made.data)
  assert len(rows) < 10000 and "val_loss" in rows[-1]


@pytest.mark.slow
def test_a_run_starts_from_another_ones_weights(data_dir, trained, capsys):
  run, _ = trained
  model = keras.saving.load_model(run.model_keras, compile=False)
  made = flagged.setup(data_dir, "--num_layers=3", f"--init_from={run.path}")
  image = made.first_batch()[0]
  np.testing.assert_allclose(made.kept(image), model(image), atol=1e-6)
  other = flagged.setup(
      data_dir, f"--init_from={run.model_keras}", "--image_channels=3", "--num_layers=3"
  )
  said = networks.set_first_weights(other.network, other.config, None)
  assert said and "encoder0_conv0 adapted to the number of channels" in said
  np.testing.assert_allclose(other.kept(np.repeat(image, 3, -1)), model(image), atol=1e-5)


@pytest.mark.slow
def test_a_run_with_augmentation_resumes_exactly(data_dir, tmp_path):
  flags = ("--schedule=constant", "--warmup_steps=0", "--ema_momentum=0.8", "--nosave_best",
           "--augmentation=default")  # fmt: skip

  def weights_after(name, epochs, resume=False):
    made = flagged.setup(data_dir, *flags, f"--epochs={epochs}")
    run, _ = trainer.fit(made.config, tmp_path / name, made.data, resume=resume)
    model = keras.saving.load_model(run.model_keras, compile=False)
    return [np.array(w) for w in model.weights]

  whole = weights_after("whole", 2)
  weights_after("halved", 1)
  for one, two in zip(whole, weights_after("halved", 2, resume=True), strict=True):
    np.testing.assert_array_equal(one, two)
