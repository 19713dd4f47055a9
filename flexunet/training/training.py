"""Trains a planned run into its folder, from the start or from its last checkpoint."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from typing import Any

from flexunet import config, run_folder
from flexunet.evaluation import evaluation_run
from flexunet.network import initial_weights
from flexunet.training import (
  device_step,
  devices,
  faults,
  live_view,
  manifest,
  networks,
  resuming,
  streams,
  trainer,
)


def fit(
    run_config: config.RunConfig,
    run_dir: str | os.PathLike,
    opened: streams.TrainingData,
    argv: Sequence[str] = (),
    *,
    resume: bool = False,
) -> tuple[run_folder.RunFolder, list[dict[str, Any]]]:
  """Trains, writing everything into the run folder.

  Args:
    resume: Goes on with the run in `run_dir`, bit for bit as if it had never stopped; starts one
      where there is none yet.

  Returns:
    (the run folder, its history with one row an epoch).

  Raises:
    checkpointing.Interrupted: SIGTERM or SIGINT came; everything is saved.
  """
  existing = resuming.existing_run(run_dir) if resume else None
  if existing is not None:
    run_config = resuming.merge(existing.read_config(), run_config)
  run = existing or run_folder.RunFolder(run_folder.check_new(run_dir))
  devices.prepare(run_config.training)
  with faults.explained(run_config, opened):
    prepared = prepare(run_config, opened)
  trainer_of_run = trainer.Trainer(run, run_config, prepared)
  ended = trainer_of_run.resume()
  if not ended:
    # Only now, when nothing is left that could be refused.
    run.path.mkdir(parents=True, exist_ok=True)
    run.write_config(run_config)
    _write_manifest(run, run_config, prepared, argv, started=existing is None)
    trainer_of_run.train()
  return run, trainer_of_run.report()


def prepare(run_config: config.RunConfig, opened: streams.TrainingData) -> trainer.Prepared:
  """Opens the data, decodes them where a cache keeps them, and builds the network."""
  settings = run_config.training
  strategy = devices.strategy(settings.num_devices, settings.batch_size)
  opened, left_out = faults.leave_out_corrupt(run_config, opened)
  epoch_order = streams.make_order(run_config, opened.train)
  opened_batches = streams.make_streams(
      run_config, opened, replicas=strategy.num_replicas_in_sync if strategy else 1
  )
  with devices.scope(strategy), devices.precision(settings.precision):
    network = networks.build(run_config, opened_batches.device_input)
    initial_weights.set_from_seed(network, settings.seed)
    shares = streams.drawn_pixel_shares(opened.train, epoch_order)
    if started_from := networks.set_first_weights(network, run_config, shares):
      live_view.say(started_from)
    networks.compile_model(network, run_config)
    network.optimizer.build(network.trainable_variables)  # A checkpoint may be put back into it.
    kept = networks.evaluation_network(network, run_config)
    if strategy and opened_batches.device_input:
      device_step.build_metrics(network, run_config.model, settings.batch_size)
  return trainer.Prepared(
      network=network,
      kept=kept,
      data=opened,
      epoch_order=epoch_order,
      batches=opened_batches,
      left_out=left_out,
      replicas=strategy.num_replicas_in_sync if strategy else 1,
  )


def _write_manifest(
    run: run_folder.RunFolder,
    run_config: config.RunConfig,
    prepared: trainer.Prepared,
    argv: Sequence[str],
    started: bool,
) -> None:
  told = manifest.collect(argv, run_config.dataset_facts.fingerprint, devices.device_names())
  told["splits"] = evaluation_run.split_counts(prepared.data.source)
  told["left_out"] = prepared.left_out
  told["cache"] = dataclasses.asdict(prepared.batches.cache_choice)
  told["steps_per_epoch"] = prepared.epoch_order.steps_per_epoch
  told["devices_sharing_a_batch"] = prepared.replicas
  manifest.write(run.manifest_json, told, started)
  for record in prepared.left_out:
    live_view.say(f"Left out, because it cannot be read: {record}.")
