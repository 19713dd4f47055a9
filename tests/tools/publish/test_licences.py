"""What licences permit, and which datasets may be passed on."""

import pytest

from flexunet.core.errors import InputError
from flexunet.datasets import catalog
from flexunet.tools.publish import licences

BY = "https://creativecommons.org/licenses/by/4.0/"
BY_NC_SA = "https://creativecommons.org/licenses/by-nc-sa/4.0/"


@pytest.mark.parametrize(
    ("text", "name", "allowed", "conditions"),
    [
        (BY, "CC-BY-4.0", True, {"attribution"}),
        (BY_NC_SA, "CC-BY-NC-SA-4.0", True, {"attribution", "non-commercial", "share-alike"}),
        ("CC BY-NC 3.0", "CC-BY-NC-3.0", True, {"attribution", "non-commercial"}),
        ("CC BY-NC-ND 4.0", "CC-BY-NC-ND-4.0", False, {"attribution", "non-commercial"}),
        ("CC0", "CC0-1.0", True, set()),
        ("odbl-1.0", "ODbL-1.0", True, {"attribution", "share-alike"}),
        ("The licence of the scans", "The licence of the scans", None, set()),
        ("Research and education: https://a.b", None, None, {"non-commercial"}),
        ("PhysioNet Credentialed Health Data License 1.5.0", None, False, set()),
        # No licence of Creative Commons: a name that begins like one.
        ("CC BYSTANDER", "CC BYSTANDER", None, set()),
    ],
)
def test_a_licence_is_read(text, name, allowed, conditions):
  terms = licences.read(text)
  assert (terms.name, terms.may_be_passed_on) == (name or text, allowed)
  assert terms.conditions == conditions


def test_a_licence_that_forbids_is_refused_whatever_is_given():
  """As that of CT-ICH v1.3.1, whose open release v1.0.0 is CC BY."""
  for given in ("", "CC-BY-4.0"):
    decision = licences.decide(["PhysioNet restricted licence, not to be passed on"], given)
    assert decision.remedy and not decision.terms and "forbids" in decision.reason
  chosen = catalog.builder_class("brain_ich_ct")
  [of_images] = licences.decide([str(one) for one in chosen.LICENSES]).terms
  assert of_images.name == "CC-BY-4.0"


def test_what_states_no_licence_needs_one():
  assert "states none" in licences.decide([]).reason
  assert "--licence" in licences.decide([]).remedy
  assert licences.decide([], "CC0-1.0").reason == "CC0-1.0: no conditions"
  unknown = licences.decide(["The licence of the images"])
  assert unknown.remedy and "The licence of the images" in unknown.reason
  assert not licences.decide(["The licence of the images"], "cc-by-4.0").remedy


def test_a_given_licence_keeps_what_the_source_asks_for():
  """The stroke set: one half CC BY, the other for non-commercial use."""
  stroke = [str(one) for one in catalog.builder_class("brain_stroke_ct").LICENSES]
  assert licences.decide(stroke).remedy
  dropped = licences.decide(stroke, "CC-BY-4.0")
  assert dropped.reason == "CC-BY-4.0 drops what the source asks for: no commercial use"
  kept = licences.decide(stroke, "CC-BY-NC-4.0")
  assert not kept.remedy and kept.conditions == ["attribution", "non-commercial"]


def test_a_stated_licence_is_not_replaced():
  assert "not CC0-1.0" in licences.decide([BY], "CC0-1.0").reason
  assert not licences.decide([BY], "CC-BY-4.0").remedy


def test_two_share_alike_licences_exclude_each_other():
  assert "exclude each other" in licences.decide([BY_NC_SA, "CC BY-SA 4.0"]).reason


def test_an_unknown_identifier_is_named_with_its_nearest():
  with pytest.raises(InputError, match="Did you mean 'CC-BY-4.0'"):
    licences.decide([], "CC-BY-40")
  with pytest.raises(InputError, match="no derived works"):
    licences.decide([], "CC-BY-ND-4.0")


def test_the_licence_of_every_dataset_is_understood():
  """Which of ours may be passed on without asking anybody."""
  allowed = {
      name: not licences.decide([str(one) for one in catalog.builder_class(name).LICENSES]).remedy
      for name in catalog.NAMES
  }
  assert allowed == {
      "brain_ich_ct": True, "brain_stroke_ct": False, "full_head_t1w": True,
      "hippocampus_t1w": False, "image_mask": False, "ms_lesion_mri": True, "scan_label": False,
  }  # fmt: skip
