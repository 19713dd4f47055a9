"""What a reader must know before trusting the figures of a report, a sentence each."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from flexunet import config
from flexunet.reporting import html_parts as page

_FEW_SUBJECTS = 10


def caveats(
    evaluations: Mapping[str, Mapping[str, Any]],
    run_config: config.RunConfig,
    model_sha256: str | None,
) -> list[str]:
  """Returns what a reader must know before trusting the figures, one sentence (HTML) each.

  Args:
    evaluations: Split -> its entry in `metrics.json`.
    run_config: What the run is.
    model_sha256: Hash of the run's present model, None where there is none.
  """
  if not evaluations:
    unseen = (
        "Nothing has been evaluated yet; the curves below are of training and validation. Run"
        " <code>flexunet-evaluate</code> on a split that training has not seen."
    )
    return [unseen]
  found = []
  for split, figures in evaluations.items():
    evaluated = figures["evaluated"]
    sentences = _people_caveats(split, evaluated, run_config.data)
    sentences += _volume_caveats(figures)
    sentences += _class_caveats(figures)
    sentences += [page.text(warning) for warning in evaluated["warnings"]]
    if evaluated["fingerprint"] != run_config.dataset_facts.fingerprint:
      sentences.append("evaluated on other records than the run was trained on.")
    if model_sha256 and evaluated["model_sha256"] != model_sha256:
      sentences.append("evaluated with an earlier checkpoint of this run. Evaluate again.")
    found += [f"<b>{page.text(split)}</b>: {sentence}" for sentence in sentences]
  return found


def left_out(splits: Collection[str]) -> list[str]:
  """Returns a sentence (HTML) for each split whose stored scores cannot be shown."""
  return [
      f"<b>{page.text(split)}</b>: its scores were written by another version of FlexUNet and are"
      " not shown. Evaluate again."
      for split in sorted(splits)
  ]


def _people_caveats(
    split: str, evaluated: Mapping[str, Any], data: config.DataConfig
) -> list[str]:
  """Returns what limits the figures as a statement about new people."""
  subjects = page.count(evaluated["subjects"], "subject")
  sentences = []
  if evaluated["subjects"] < _FEW_SUBJECTS:
    sentences.append(
        f"only {subjects}. The figures may be quite different for other people; no interval shows a"
        " failure that none of these few has."
    )
  if evaluated["subjects_also_trained_on"] is None:  # No names: what is left are those of splits.
    if split == data.validation_split:
      sentences.append("it chose the best checkpoint, so its figures are optimistic.")
    if split == data.train_split:
      sentences.append("the network was trained on it. Its figures say nothing about new people.")
    sentences.append(
        "its subjects have no names: whether the network was trained on them is not known."
    )
  return sentences


def _volume_caveats(figures: Mapping[str, Any]) -> list[str]:
  """Returns which volumes have no Dice or no distances."""
  evaluated, empty = figures["evaluated"], figures["foreground_dice"]["n_empty"]
  volumes = page.count(evaluated["volumes"], "volume")
  sentences = []
  if empty:
    sentences.append(
        f"{empty} of {volumes} empty in truth and prediction: no Dice, not part of its means."
    )
  if flat := evaluated["volumes_with_2d_distances"]:
    missed, false_alarms = (
        sum(entry[f"slices_{kind}"] for entry in figures["per_class"].values())
        for kind in ("missed", "false_alarm")
    )
    sentences.append(
        f"{flat} of {volumes} with gaps between slices, or with a single slice: surfaces are"
        " compared within slices, in figures of their own. There a class was missed in a slice"
        f" {page.count(missed, 'time')}, and found in a slice without it"
        f" {page.count(false_alarms, 'time')}; a volume with such a slice has no distance."
    )
  if unknown := evaluated.get("volumes_without_spacing"):
    sentences.append(
        f"{unknown} of {volumes} without a known spacing: no distances in millimetres."
    )
  return sentences


def _class_caveats(figures: Mapping[str, Any]) -> list[str]:
  """Returns which classes are absent from the truth, and which were never found."""
  sentences = []
  for name, entry in figures["per_class"].items():
    presence = entry["presence"]
    present = presence["both_present"] + presence["missed"]
    volumes = page.count(figures["evaluated"]["volumes"], "volume")
    if not present:
      found = presence["false_alarm"]
      more = f", yet it was predicted in {found}" if found else ""
      sentences.append(
          f"{page.words(name)} is absent from the truth of all {volumes}{more}: whether it would be"
          " found is not known."
      )
    elif not presence["both_present"]:
      sentences.append(
          f"{page.words(name)} was found in none of the {page.count(present, 'volume')} that have"
          " it."
      )
  return sentences


def caveat_box(sentences: Sequence[str]) -> str:
  """Returns the sentences in a box of their own, as HTML; nothing where there are none."""
  if not sentences:
    return ""
  items = "".join(f"<li>{sentence}</li>" for sentence in sentences)
  return f'<div class="caveats"><h3>Before you trust the figures</h3><ul>{items}</ul></div>'
