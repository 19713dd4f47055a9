"""The names that flags and help list are those that there are."""

from flexunet.objectives import losses, metrics, names


def test_every_loss_has_a_meaning_of_one_line_and_no_name_is_invented():
  assert list(names.LOSSES) == list(losses.LOSSES)
  assert all(text and "\n" not in text for text in names.LOSSES.values())


def test_every_metric_has_a_meaning_of_one_line_and_can_be_made():
  assert list(names.METRICS) == ["dice_coef_multiclass", *metrics.SCORES]
  assert all(text and "\n" not in text for text in names.METRICS.values())
  for name in names.METRICS:
    assert metrics.training_metrics([name], 3)
