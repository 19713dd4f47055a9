"""Compares runs on the same subjects: paired differences, intervals, tests, wins and losses.

  flexunet compare RUN RUN ... [--split=test] [--output=compare.html] [--json]

RUN is the folder of an evaluated run or ensemble, or of a cross-validation. Only volumes that every
run has scored count; others are named. Differences are second minus first, by subject, with a 95 %
interval; p values are corrected for all classes and pairs of runs (Holm). Settings that differ
come first.
"""

from __future__ import annotations

import json
import math
import pathlib
from collections.abc import Sequence

from flexunet.core import command_line, files, flags, progress
from flexunet.core.errors import InputError
from flexunet.tools.compare import comparison, paired, stress_table
from flexunet.tools.compare.comparison import Comparison
from flexunet.tools.compare.paired import PairedResult

_PROGRAM = flags.Program(__doc__, usage="flexunet compare RUN RUN ... [flags]")
_SPLIT = _PROGRAM.string("split", "test", "Split whose scores are compared.")
_TEST = _PROGRAM.enum(
    "test", "permutation", list(paired.TESTS),
    "Test of the differences by subject: 'permutation' of the mean over their signs, or Wilcoxon's"
    " signed ranks.",
)  # fmt: skip
_OUTPUT = _PROGRAM.string("output", None, "Page to write (.html), with a chart of every subject.")
_JSON = _PROGRAM.boolean("json", False, "Prints one JSON object instead of tables.")


def main(argv: Sequence[str]) -> None:
  output = None if _OUTPUT.value is None else pathlib.Path(_OUTPUT.value).expanduser()
  if output is not None and output.suffix.lower() != ".html":
    raise InputError(f"--output must end in .html. Got: {output}.")
  paths = [pathlib.Path(word).expanduser() for word in argv[1:]]
  found = comparison.compare(paths, str(_SPLIT.value), str(_TEST.value))
  if output is not None:
    # Draws with Matplotlib, which a table on the terminal must not wait for.
    from flexunet.tools.compare import page

    files.write_bytes(output, page.render(found).encode("utf-8", "backslashreplace"))
  if _JSON.value:
    print(json.dumps(found.to_json(), indent=2, allow_nan=False))
    return
  print(_text(found))
  if output is not None:
    print(f"\nPage  {output}")


def _text(found: Comparison) -> str:
  """Returns what the terminal shows."""
  parts = [
      f"{', '.join(found.names)}: {progress.count(found.subjects, 'subject')},"
      f" {progress.count(found.volumes, 'volume')}"
  ]
  if found.settings:
    rows = [("setting", *found.names)]
    rows += [(name, *map(comparison.shown, values)) for name, values in found.settings]
    parts.append(progress.table(rows))
  else:
    parts.append("No setting differs.")
  parts += [f"warning: {line}" for line in found.warnings]
  for score in found.score_names:
    own = [one for one in found.results if one.score == score]
    for first, second in dict.fromkeys((one.first, one.second) for one in own):
      rows = [(score, first, second, "difference", "95 %", "Holm p", "won lost tied")]
      rows += [_row(one) for one in own if (one.first, one.second) == (first, second)]
      parts.append(progress.table(rows))
  if rows := stress_table.rows(found.scored):
    parts.append(progress.table(rows))
  return "\n\n".join([*parts, *found.notes])


def _row(one: PairedResult) -> tuple[str, ...]:
  between = "-"
  if one.interval is not None:
    between = f"{one.interval['low']:+.3f} {one.interval['high']:+.3f}"
  return (
      one.class_name, f"{one.mean_first:.3f}", f"{one.mean_second:.3f}",
      f"{one.difference:+.3f}", between,
      "-" if math.isnan(one.p_holm) else f"{one.p_holm:.3g}",
      f"{one.wins} {one.losses} {one.ties}",
  )  # fmt: skip


def run() -> None:
  command_line.run(main, _PROGRAM)


if __name__ == "__main__":
  run()
