"""The network of a run: built, initialized and compiled, and the form of it that is kept.

Two networks stand side by side: the one in training, which gives logits, so that no pixel is too
wrong to learn from, and the one that is validated, drawn and saved (`evaluation_network`), which
gives probabilities, has the main output alone and, where the run keeps an average
(`optimizers.run_optimizer`), averaged weights. So nothing is ever swapped in and out of the trained
weights, and a checkpoint may be taken at any moment.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import keras
import numpy as np

from flexunet import config
from flexunet.network import model, pretrained, probabilities
from flexunet.objectives import loss_settings, losses, metrics
from flexunet.optimizers import run_optimizer
from flexunet.training import callbacks, device_step


class TrainingNetwork(keras.Model):
  """A network whose outputs are logits, learns from one label and is scored by its first output."""

  def compile(self, optimizer: Any = "rmsprop", loss: Any = None, **kwargs: Any) -> None:
    """Takes one loss, applied to every output with its weight."""
    super().compile(optimizer, loss=None, **kwargs)
    self.output_loss = loss
    self.output_weights = model.deep_supervision_weights(self)

  def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
    outputs = _listed(y_pred)
    if not training:
      return self.output_loss(y, outputs[0], sample_weight)
    costs = [self.output_loss(y, output, sample_weight) for output in outputs]
    return sum(w * cost for w, cost in zip(self.output_weights, costs, strict=True))

  def compute_metrics(
      self, x: Any, y: Any, y_pred: Any, sample_weight: Any = None
  ) -> dict[str, Any]:
    """Scores the probabilities of the first output."""
    probability = probabilities.to_probability(_listed(y_pred)[0])
    return super().compute_metrics(x, y, probability, sample_weight=sample_weight)


class EvaluationNetwork(keras.Model):
  """A network of probabilities, validated volume by volume: see `input_pipeline.Streams`.

  Its targets are {"label": [batch, height, width], "volume": int32 [batch]}.

  Attributes:
    volume_scores: Set before the first batch.
  """

  volume_scores: metrics.VolumeScores

  def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
    return super().compute_loss(x, y["label"], y_pred, sample_weight, training)

  def compute_metrics(
      self, x: Any, y: Any, y_pred: Any, sample_weight: Any = None
  ) -> dict[str, Any]:
    """Counts the pixels of each volume beside the metrics it is compiled with."""
    self.volume_scores.update_state(y, y_pred, sample_weight)
    return super().compute_metrics(x, y["label"], y_pred, sample_weight)


class DeviceTrainingNetwork(device_step.DeviceStep, TrainingNetwork):
  """One whose batches are finished on the device."""


def _listed(outputs: Any) -> Any:
  """Returns the outputs as a sequence: Keras gives a single one as it is."""
  return outputs if isinstance(outputs, (list, tuple)) else [outputs]


def build(
    run_config: config.RunConfig, device_input: device_step.DeviceInput | None = None
) -> keras.Model:
  """Returns the network in training, with fresh weights; its outputs are logits.

  Args:
    run_config: Complete.
    device_input: What its step does with a batch first; None: batches come finished.
  """
  twin = model.logits_twin(model.build_model(run_config.data.step_model(run_config.model)))
  outputs = twin.outputs if run_config.model.deep_supervision else twin.outputs[0]
  if device_input is None:
    return TrainingNetwork(twin.input, outputs, name=twin.name)
  network = DeviceTrainingNetwork(twin.input, outputs, name=twin.name)
  network.device_input = device_input
  return network


def set_first_weights(
    network: keras.Model, run_config: config.RunConfig, pixel_shares: np.ndarray | None
) -> str | None:
  """Sets the class prior and transfers the weights of `init_from`.

  Args:
    network: New, from `build`; changed in place.
    run_config: Complete.
    pixel_shares: Share of the drawn pixels of each class; None where unknown.

  Returns:
    Which layers were transferred or reinitialized, as a sentence for the user; None without
    `init_from`.

  Raises:
    InputError: The network of `init_from` does not fit.
  """
  settings = run_config.training
  if settings.class_prior and pixel_shares is not None:
    model.set_class_prior(network, pixel_shares.tolist())
  if not settings.init_from:
    return None
  start = pretrained.open_start(settings.init_from)
  mine = run_config.dataset_facts.label_scheme.names
  done = pretrained.transfer_weights(
      start.load(), network, same_classes=start.class_names in (None, mine)
  )
  return f"Starting from {start.name}: {done.sentence()}{start.about_classes(mine)}"


def compile_model(network: keras.Model, run_config: config.RunConfig) -> None:
  """Compiles with the optimizer, loss and scores of the config."""
  settings, num_classes = run_config.training, run_config.model.num_classes
  chosen = ["dice", *settings.metrics]  # Dice steers and is drawn, whatever else is asked for.
  if isinstance(network, EvaluationNetwork):  # Its hard scores are those of volumes.
    chosen = [name for name in chosen if name not in metrics.hard_scores(chosen)]
  network.compile(
      optimizer=run_optimizer.make(settings),
      loss=losses.make(
          settings.loss,
          num_classes,
          from_logits=isinstance(network, TrainingNetwork),
          **loss_settings.options(settings),
      ),
      weighted_metrics=metrics.training_metrics(
          chosen, num_classes, run_config.dataset_facts.label_scheme.names
      ),
      jit_compile=settings.jit_compile == "on",
      steps_per_execution=settings.steps_per_execution or 1,
  )


def evaluation_network(
    network: keras.Model, run_config: config.RunConfig, num_volumes: int
) -> EvaluationNetwork:
  """Returns the compiled network that is validated, drawn and saved.

  It gives probabilities, and its layers are those of a plain model, which can be loaded anywhere.
  It shares the weights; where the run keeps an average it has its own, set by `copy_averages`.

  Args:
    network: In training.
    run_config: Complete.
    num_volumes: Those it is validated on.
  """
  if run_optimizer.keeps_average(run_config.training):
    plain = dataclasses.replace(run_config.model, deep_supervision=False)
    twin = model.build_model(**dataclasses.asdict(plain))
  else:
    twin = model.probability_twin(network)
    if run_config.data.patch_hw:
      twin = _of_size(twin, run_config.model)
  kept = EvaluationNetwork(twin.input, twin.output, name=twin.name)
  kept.volume_scores = metrics.VolumeScores(
      run_config.model.num_classes,
      num_volumes,
      run_config.dataset_facts.label_scheme.names,
      metrics.hard_scores(run_config.training.metrics),
  )
  compile_model(kept, run_config)
  return kept


def _of_size(network: keras.Model, shape: config.ModelConfig) -> keras.Model:
  """Returns the same network, weights shared, for images of the size of a config."""
  if shape.padded_size != shape.image_size:
    network = model.accept_any_size(network)  # Pads, which a network of patches does not.
  inputs = keras.Input((*shape.image_size, shape.image_channels), name="image")
  return keras.models.clone_model(
      keras.Model(network.input, network.output, name=network.name),
      input_tensors=inputs, clone_function=lambda layer: layer,
  )  # fmt: skip


def copy_averages(network: keras.Model, kept: keras.Model) -> None:
  """Copies the averaged weights of `network` into the evaluation network.

  What is not trained, such as the running statistics of batch normalization, is an average
  already and is copied as it is.
  """
  averages = run_optimizer.averages(network.optimizer)
  by_path = {
      variable.path: average
      for variable, average in zip(network.trainable_variables, averages, strict=True)
  }
  for layer in (one for one in kept.layers if one.weights):
    sources = network.get_layer(layer.name).weights
    for target, source in zip(layer.weights, sources, strict=True):
      # JAX would let both share an array, which the next training step takes away.
      target.assign(keras.ops.copy(by_path.get(source.path, source)))


class WeightAverages(keras.callbacks.Callback):
  """Brings the evaluation network up to date at each epoch's end; before those that use it.

  Where the average is that of the last share of the run, it also starts it.
  """

  def __init__(self, kept: keras.Model, clock: callbacks.RunClock, last_share: float = 0.0):
    """Takes what is kept.

    Args:
      kept: The evaluation network.
      clock: Clock of the run.
      last_share: Share of the run whose weights are averaged; 0: the optimizer decides.
    """
    super().__init__()
    self._kept, self._clock, self._last_share = kept, clock, last_share

  def on_train_batch_begin(self, batch, logs=None):
    if self._last_share:
      averages = self._clock.progress >= 1.0 - self._last_share
      run_optimizer.inner(self.model.optimizer).averaging.assign(float(averages))

  def on_epoch_end(self, epoch, logs=None):
    copy_averages(self.model, self._kept)


def weight_averages(
    kept: keras.Model, settings: config.TrainingConfig, clock: callbacks.RunClock
) -> list[WeightAverages]:
  """Returns the callback of a run that keeps an average, in a list."""
  if not run_optimizer.keeps_average(settings):
    return []
  return [WeightAverages(kept, clock, settings.weight_average or 0.0)]
