"""Results of a benchmark of quality: a file per training, the summary of all, and its tables."""

from __future__ import annotations

import json
import math
import os
import pathlib
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from flexunet.core import files, machine
from flexunet.core.errors import InputError

# Of a result; raised whenever its keys change their meaning.
FORM = 1
FOLDER = "results"
# Figure of a training -> what its column is called, and digits.
_FIGURES = {
    "mirrored_dice": ("mirrored views", 3),
    "validation_dice": ("validation", 3),
    "training_s": ("training s", 0),
    "with_setup_s": ("with set-up s", 0),
    "steps": ("steps", 0),
}
Result = Mapping[str, Any]


def machine_facts() -> dict[str, Any]:
  """Returns what of the machine bears on speed; nothing that names it."""
  cpu = ""
  info = pathlib.Path("/proc/cpuinfo")
  if info.is_file():
    lines = info.read_text(encoding="utf-8", errors="replace").splitlines()
    cpu = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model")
                and "name" in line), "")  # fmt: skip
  memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30
  return {
      "processors": machine.available_cpus(),
      "cpu": cpu,
      "memory_gib": round(memory, 1),
      # Above 0 before a training starts: something else was using the machine.
      "load_before": round(os.getloadavg()[0], 2),
  }


def path_of(folder: pathlib.Path, key: str) -> pathlib.Path:
  """Returns the file of a result."""
  return folder / FOLDER / f"{key}.json"


def finished(path: pathlib.Path, settings: Mapping[str, Any]) -> bool:
  """Returns whether a result is there and complete; a failed one is tried again.

  Args:
    path: Its file.
    settings: Those that it must have (`Job.settings`).

  Raises:
    InputError: It was made with others.
  """
  if not path.is_file():
    return False
  found = files.read_json(path)
  there = found.get("settings") if isinstance(found, dict) else None
  if not isinstance(there, dict) or found.get("form") != FORM:
    raise InputError(f"{path} must be a result of form {FORM}. Name another --output_dir.")
  if differing := [name for name, value in settings.items() if there.get(name) != value]:
    name = differing[0]
    raise InputError(
        f"{path.name} was made with {name}={there.get(name)!r}, and now it is {settings[name]!r}."
        " Results of one folder must be comparable: name another --output_dir."
    )
  return found["status"] == "done"


def read_all(folder: pathlib.Path) -> list[Result]:
  """Returns the results of a folder, those of earlier calls too, in the order of their names."""
  return [files.read_json(path) for path in sorted((folder / FOLDER).glob("*.json"))]


def summarize(found: Sequence[Result]) -> dict[str, Any]:
  """Returns the figures of all results.

  Args:
    found: Of one folder.

  Returns:
    `sets`, `systems`, `minutes`, `seeds` in the order of their first appearance (minutes rising),
    `entries`: one per set, system and minutes with `dice` (`mean` over seeds, of means over test
    subjects, `low`, `high`, `seeds`), `mirrored_dice` (of predictions with mirrored views) and
    `validation_dice` (means over seeds; None where the system tells none), `training_s`,
    `with_setup_s`, `steps`, `failed` (the error lines); and `means`: one per system and minutes
    with `dice` over the sets that it has, and `sets`, their number.
  """
  settings = [one["settings"] for one in found]
  sets, systems = (list(dict.fromkeys(one[name] for one in settings)) for name in ("set", "system"))
  minutes = sorted({one["minutes"] for one in settings})
  entries = [
      entry for name in sets for system in systems for budget in minutes
      if (entry := _entry(found, name, system, budget))
  ]  # fmt: skip
  means = []
  for system in systems:
    for budget in minutes:
      own = [
          one["dice"]["mean"] for one in entries
          if (one["system"], one["minutes"]) == (system, budget) and one["dice"]["seeds"]
      ]  # fmt: skip
      if own:
        mean = statistics.fmean(own)
        means.append({"system": system, "minutes": budget, "dice": mean, "sets": len(own)})
  machines = {json.dumps(_lasting(one["machine"]), sort_keys=True) for one in found}
  return {
      "form": FORM,
      "sets": sets,
      "systems": systems,
      "minutes": minutes,
      "seeds": sorted({one["seed"] for one in settings}),
      "machines": [json.loads(text) for text in sorted(machines)],
      "entries": entries,
      "means": means,
  }


def _lasting(facts: Mapping[str, Any]) -> dict[str, Any]:
  return {name: value for name, value in facts.items() if name != "load_before"}


def _entry(
    found: Sequence[Result], name: str, system: str, budget: float
) -> dict[str, Any] | None:
  wanted = (name, system, budget)
  own = [
      one for one in found
      if tuple(one["settings"][key] for key in ("set", "system", "minutes")) == wanted
  ]  # fmt: skip
  if not own:
    return None
  done = [one for one in own if one["status"] == "done"]
  dice = [score for one in done if (score := one["scores"]["foreground_dice"]) is not None]
  entry: dict[str, Any] = {"set": name, "system": system, "minutes": budget}
  entry["dice"] = {
      "mean": statistics.fmean(dice) if dice else None,
      "low": min(dice, default=None),
      "high": max(dice, default=None),
      "seeds": len(dice),
  }
  for key in _FIGURES:
    told = [value for one in done if (value := _figure(one, key)) is not None]
    entry[key] = statistics.fmean(told) if told else None
  entry["failed"] = [one["error"] for one in own if one["status"] == "failed"]
  return entry


def _figure(result: Result, key: str) -> float | None:
  if key == "mirrored_dice":
    return (result.get("mirrored_scores") or {}).get("foreground_dice")
  return result.get(key)


def rows(summary: Mapping[str, Any]) -> list[tuple[str, ...]]:
  """Returns the table, the heading first: a row per minutes and system, a column per set.

  Dice is the mean over seeds of the mean over test subjects, with half the range over seeds; the
  mean over sets stands only where a system has all sets. Dice with mirrored views, validation Dice
  (of systems that tell it), seconds and steps are means over sets.
  """
  by_key = {(one["set"], one["system"], one["minutes"]): one for one in summary["entries"]}
  means = {(one["system"], one["minutes"]): one for one in summary["means"]}
  table: list[tuple[str, ...]] = [
      ("minutes", "system", "mean", *summary["sets"], *(title for title, _ in _FIGURES.values()))
  ]
  for budget in summary["minutes"]:
    for system in summary["systems"]:
      own = [by_key.get((name, system, budget)) for name in summary["sets"]]
      if not any(own):
        continue
      mean = means.get((system, budget))
      whole = mean is not None and mean["sets"] == len(summary["sets"])
      table.append((
          f"{budget:g}",
          system,
          f"{mean['dice']:.3f}" if whole and mean else "-",
          *map(_cell, own),
          *(_mean(own, key, digits) for key, (_, digits) in _FIGURES.items()),
      ))  # fmt: skip
  return table


def markdown(table: Sequence[Sequence[str]]) -> str:
  """Returns a table as Markdown."""
  heading, *body = ["| " + " | ".join(row) + " |" for row in table]
  rule = "|" + "---|" * 2 + "---:|" * (len(table[0]) - 2)
  return "\n".join([heading, rule, *body]) + "\n"


def _cell(entry: Mapping[str, Any] | None) -> str:
  if entry is None:
    return ""
  dice = entry["dice"]
  if dice["mean"] is None:
    return "failed" if entry["failed"] else "-"
  spread = f" ± {(dice['high'] - dice['low']) / 2:.3f}" if dice["seeds"] > 1 else ""
  return f"{dice['mean']:.3f}{spread}{' (one failed)' if entry['failed'] else ''}"


def _mean(entries: Sequence[Mapping[str, Any] | None], key: str, digits: int) -> str:
  values = [one[key] for one in entries if one and one[key] is not None]
  mean = statistics.fmean(values) if values else math.nan
  return "-" if math.isnan(mean) else f"{mean:.{digits}f}"
