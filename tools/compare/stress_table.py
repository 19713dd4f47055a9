"""Compares what disturbances do to runs: at which strength the Dice of each has fallen."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from flexunet.evaluation import stress_summary
from flexunet.tools.compare.runs import ScoredRun


def common(scored: Sequence[ScoredRun]) -> list[dict[str, Any]]:
  """Returns what was tried on every run, as JSON: name, title, and of each run its figures.

  A figure holds `run`, `text` (where Dice has fallen, in words), `status` and `strength` of the
  fall, and `clean`, its undisturbed Dice; [] where a run was not tested. Each run's figures are
  those of its own stress test, over the volumes of that.
  """
  tested = [{one["name"]: one for one in run.stress.get("disturbances", ())} for run in scored]
  return [
      {
          "name": name,
          "title": one["title"],
          "runs": [
              _figure(run.name, own[name]) for run, own in zip(scored, tested, strict=True)
          ],
      }
      for name, one in tested[0].items()
      if one["graded"] and all(name in own for own in tested)
  ]


def _figure(run: str, entry: dict[str, Any]) -> dict[str, Any]:
  return {
      "run": run,
      "text": stress_summary.fall_text(entry),
      "status": entry["fall"]["status"],
      "strength": entry["fall"]["strength"],
      "clean": entry["clean"]["dice"],
  }


def rows(scored: Sequence[ScoredRun]) -> list[tuple[str, ...]]:
  """Returns a table, its heading first; [] where there is nothing to compare."""
  found = common(scored)
  if not found:
    return []
  heading = (f"Dice falls by {stress_summary.FALL:g} at", *(run.name for run in scored))
  return [heading, *((one["title"], *(own["text"] for own in one["runs"])) for one in found)]
