"""The report's part on what a run learnt from its validation subjects: `calibration.json`."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping
from typing import Any

from flexunet.imaging.clean_up import ClassRule
from flexunet.reporting import html_parts as page


def decisions_section(learnt: Mapping[str, Any], model_sha256: str | None) -> str:
  """Returns temperature, clean-up and margins as HTML; nothing where nothing was learnt.

  Args:
    learnt: `calibration.json`; empty where there is none.
    model_sha256: Hash of model.keras; None where there is none.
  """
  if not learnt:
    return ""
  return (
      _learnt_on(learnt["learnt_on"], model_sha256)
      + _temperature(learnt.get("temperature"))
      + _clean_up(learnt.get("clean_up"))
      + _margins(learnt.get("conformal"))
      + _volumes(learnt.get("volume_interval"))
  )


def _learnt_on(origin: Mapping[str, Any], model_sha256: str | None) -> str:
  subjects = page.count(len(origin["subjects"]), origin.get("counted_by") or "subject")
  other = ""
  known = origin["model_sha256"]  # Of a cross-validation those of its folds.
  if model_sha256 and isinstance(known, str) and known != model_sha256:
    other = " <b>It was learnt with another model.keras: calibrate again.</b>"
  return (
      f"<p>Learnt after training from {subjects} of {page.text(origin['split'])}"
      f" ({page.text(origin['dataset'])}). Prediction and evaluation apply it unless"
      f" <code>--nocalibrated</code> or <code>--noclean_up</code> is passed.{other}</p>"
  )


def _temperature(found: Mapping[str, Any] | None) -> str:
  if not found:
    return ""
  value = found["temperature"]
  what = "sharper" if value < 1 else "softer" if value > 1 else "as they are"
  names = {"ece": "Expected calibration error", "brier": "Brier score",
           "nll": "Negative log-likelihood"}  # fmt: skip
  rows = [
      [name, *(page.number(found[time].get(key)) for time in ("before", "after"))]
      for key, name in names.items()
      if found.get("before") and found.get("after")
  ]
  table = page.table(["On these subjects", "Before", "After"], rows) if rows else ""
  return f"<h3>Temperature {value:.3g}: probabilities made {what}</h3>{table}"


def _clean_up(found: Mapping[str, Any] | None) -> str:
  """Returns what is done to the labels of each class, and why."""
  if not found:
    return ""
  reasons = found["evidence"].get("classes", {})
  rows = [
      [page.words(name), page.text(str(ClassRule(**found["rules"].get(name, {})))),
       page.text(str(reasons.get(name, {}).get("reason", page.DASH)))]
      for name in dict.fromkeys([*reasons, *found["rules"]])
  ]  # fmt: skip
  table = page.table(["Class", "What is done", "Why"], rows)
  kind = "images" if found["in_slices"] else "volumes"
  return f"<h3>Clean-up of labels</h3>{table}<p class=\"note\">Of whole {kind}.</p>"


def _margins(found: Mapping[str, Any] | None) -> str:
  """Returns the distances around each predicted structure within which the truth lay."""
  if not found:
    return ""
  unit = page.text(found["unit"])
  rows = []
  for name, entry in found["classes"].items():
    known = [one for one in entry["margins"] if one is not None]
    rows.append([
        page.words(name),
        page.number(len(entry["margins"])),
        page.number(statistics.median(known), 2) if known else page.DASH,
        page.number(max(known), 2) if known else page.DASH,
        page.number(len(entry["margins"]) - len(known)),
    ])
  flat = ", within slices" if found.get("geometry") == "2d" else ""
  return (
      "<h3>Conformal margins</h3>"
      + page.table(["Class", "Subjects", f"Median ({unit})", f"Largest ({unit})", "Missed"], rows)
      + '<p class="note">How far the predicted structure of each subject had to grow to hold its'
      f" truth{flat}. <code>flexunet predict --margin=LEVEL</code> takes from these the margin for"
      " the share of subjects that is asked for, and refuses a level for which they are too few."
      "</p>"
  )


def _volumes(found: Mapping[str, Any] | None) -> str:
  """Returns between which multiples of the predicted volume the true one lay."""
  if not found:
    return ""
  rows = []
  for name, entry in found["classes"].items():
    ratios = [math.exp(one) for pair in entry["log_ratios"] for one in pair if one is not None]
    rows.append([
        page.words(name),
        page.number(len(entry["log_ratios"])),
        page.interval({"low": min(ratios), "high": max(ratios)}, 2) if ratios else page.DASH,
    ])
  return (
      "<h3>Intervals of volumes</h3>"
      + page.table(["Class", "Subjects", "True over predicted volume"], rows)
      + '<p class="note">The smallest and the largest ratio of these subjects. <code>flexunet'
      " predict --volume_interval=LEVEL</code> takes the interval for the share of subjects that is"
      " asked for.</p>"
  )
