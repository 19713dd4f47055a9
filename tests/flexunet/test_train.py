"""What a training says before its first step and at its end."""

import dataclasses

import run_samples

from flexunet import run_folder, train


def row(epoch: int, dice: float, loss: float) -> dict:
  return {"epoch": epoch, "step": epoch, "seconds": 60.0 * epoch, "val_loss": loss,
          "val_dice_a": dice - 0.1, "val_dice_b": dice + 0.1, "val_foreground_dice": dice,
          "val_dice_coef_multiclass": 0.99}  # fmt: skip


ROWS = [row(1, 0.5, 0.3), row(2, 0.7, 0.4), row(3, 0.7, 0.5), {"epoch": 4, "seconds": 240.0}]


def test_the_end_shows_the_scores_of_the_saved_model_and_the_next_command(tmp_path):
  settings = run_samples.run_config().training
  run = run_folder.RunFolder(tmp_path / "my run")
  assert train.result_text(run, settings, ROWS).splitlines() == [
      "",
      "Validation scores of model.keras (epoch 3 of 4, 4.0 minutes),",
      "means over the held-out volumes at the network's size",
      "class                 Dice",
      "a                    0.600",
      "b                    0.800",
      "mean of the volumes  0.700",
      "",
      f"Report  {run.report_html}",
      f"Next    flexunet evaluate --run_dir='{run.path}'",
  ]


def test_a_run_without_a_validation_has_no_scores_to_show(tmp_path):
  settings = run_samples.run_config().training
  text = train.result_text(run_folder.RunFolder(tmp_path), settings, ROWS[3:])
  assert "Validation" not in text and "Next    flexunet evaluate" in text


def test_the_saved_model_is_the_later_of_equals_or_of_least_loss_or_the_last():
  settings = dataclasses.replace(run_samples.run_config().training, monitor="dice", save_best=True)
  assert train.best_row(settings, ROWS)["epoch"] == 3
  assert train.best_row(dataclasses.replace(settings, monitor="loss"), ROWS)["epoch"] == 1
  assert train.best_row(dataclasses.replace(settings, save_best=False), ROWS[:2])["epoch"] == 2
  assert train.best_row(settings, []) is None
