"""A preset is found by name, and flags beside it win wherever they stand."""

import pytest
from absl import flags

from flexunet.core.errors import InputError
from flexunet.datasets import catalog
from flexunet.presets import preset_files


def test_there_is_a_published_preset_for_each_of_the_five_datasets():
  published = {name.removeprefix("published/") for name in preset_files.names()}
  assert published == set(catalog.NAMES) - {"image_mask", "scan_label"}


@pytest.mark.parametrize(
    "given", [["--preset=published/brain_ich_ct"], ["--preset", "published/brain_ich_ct"]]
)
@pytest.mark.parametrize("first", [True, False])
def test_a_flag_beside_a_preset_wins_on_either_side(given, first):
  values = flags.FlagValues()
  for name in ("preset", "dataset", "loss", "epochs"):
    flags.DEFINE_string(name, None, "", flag_values=values)
  words = ["--epochs=3", *given] if first else [*given, "--epochs=3"]
  # The other flags of the preset are not defined here.
  values(preset_files.expand(["train", *words]), known_only=True)
  assert (values.epochs, values.loss, values.dataset) == ("3", "cross_entropy", "brain_ich_ct")


def test_without_a_preset_the_command_line_stays_as_it_is():
  words = ["train", "--epochs=3", "--", "--preset=x"]
  assert preset_files.expand(words) == words


@pytest.mark.parametrize(
    ("word", "message"),
    [("--preset=published/hipocampus_t1w", "Did you mean 'published/hippocampus_t1w'"),
     ("--preset=../config", "Known: published/brain_ich_ct"), ("--preset", "Got nothing")],
)  # fmt: skip
def test_an_unknown_preset_lists_the_known_ones(word, message):
  with pytest.raises(InputError, match=message):
    preset_files.expand(["train", word])
