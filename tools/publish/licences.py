"""What a licence permits and asks for, and whether a dataset may be passed on by its licences."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence

from flexunet.core.errors import InputError, unknown_name

ATTRIBUTION, NON_COMMERCIAL, SHARE_ALIKE = "attribution", "non-commercial", "share-alike"
_IN_WORDS = {
    ATTRIBUTION: "name the authors",
    NON_COMMERCIAL: "no commercial use",
    SHARE_ALIKE: "pass copies on under the same licence",
}
_OF_CREATIVE_COMMONS = {"by": ATTRIBUTION, "nc": NON_COMMERCIAL, "sa": SHARE_ALIKE}
_NO_DERIVATIVES = "nd"


@dataclasses.dataclass(frozen=True)
class Terms:
  """What one licence says.

  Attributes:
    name: SPDX identifier where it has one, else as the source calls it.
    may_be_passed_on: None where its text does not say.
    conditions: Of those above.
    url: Where its text is.
  """

  name: str
  may_be_passed_on: bool | None
  conditions: frozenset[str] = frozenset()
  url: str = ""


def _creative_commons(letters: str, version: str) -> Terms:
  parts = letters.lower().split("-")
  return Terms(
      f"CC-{letters.upper()}-{version}",
      # Records are derived from the scans: resampled, windowed, cut.
      _NO_DERIVATIVES not in parts,
      frozenset(_OF_CREATIVE_COMMONS[part] for part in parts if part != _NO_DERIVATIVES),
      f"https://creativecommons.org/licenses/{letters.lower()}/{version}/",
  )


_COMMONS_LETTERS = ("BY", "BY-SA", "BY-NC", "BY-NC-SA", "BY-ND", "BY-NC-ND")
_VERSIONS = ("2.0", "2.5", "3.0", "4.0")
_COMMONS = [_creative_commons(letters, one) for letters in _COMMONS_LETTERS for one in _VERSIONS]
_OTHERS = [
    Terms("CC0-1.0", True, url="https://creativecommons.org/publicdomain/zero/1.0/"),
    Terms("PDDL-1.0", True, url="https://opendatacommons.org/licenses/pddl/1-0/"),
    Terms(
        "ODC-By-1.0", True, frozenset([ATTRIBUTION]), "https://opendatacommons.org/licenses/by/1-0/"
    ),
    Terms(
        "ODbL-1.0", True, frozenset([ATTRIBUTION, SHARE_ALIKE]),
        "https://opendatacommons.org/licenses/odbl/1-0/",
    ),
    Terms("CDLA-Permissive-2.0", True, url="https://cdla.dev/permissive-2-0/"),
    Terms(
        "Apache-2.0", True, frozenset([ATTRIBUTION]), "https://www.apache.org/licenses/LICENSE-2.0"
    ),
    Terms("MIT", True, frozenset([ATTRIBUTION]), "https://opensource.org/license/mit"),
]  # fmt: skip
BY_IDENTIFIER = {terms.name: terms for terms in (*_COMMONS, *_OTHERS)}
_COMMONS_ADDRESS = re.compile(
    r"creativecommons\.org/licenses/(by(?:-nc)?(?:-(?:sa|nd))?)/(\d\.\d)", re.IGNORECASE
)
_COMMONS_NAME = re.compile(
    r"\bCC[ -](BY(?:-NC)?(?:-(?:SA|ND))?)(?:[ -](\d\.\d))?(?![\w-])", re.IGNORECASE
)
_PUBLIC_DOMAIN = re.compile(r"publicdomain/zero|\bCC[ -]?0\b", re.IGNORECASE)
# Texts of licences under which nobody may pass data on.
_FORBIDDING = re.compile(
    r"restricted|credentialed|data use agreement|not (?:to )?be (?:passed on|redistributed|shared)"
    r"|no redistribution|all rights reserved",
    re.IGNORECASE,
)
_NOT_FOR_TRADE = re.compile(r"non-?commercial|research|education", re.IGNORECASE)


def read(text: str) -> Terms:
  """Returns what the text, address or SPDX identifier of a licence says."""
  if _FORBIDDING.search(text):
    return Terms(text, False)
  if found := _COMMONS_ADDRESS.search(text):
    return _creative_commons(found[1], found[2])
  if found := _COMMONS_NAME.search(text):
    return _creative_commons(found[1], found[2] or "4.0")
  if _PUBLIC_DOMAIN.search(text):
    return BY_IDENTIFIER["CC0-1.0"]
  for terms in _OTHERS:
    if text.lower() == terms.name.lower() or (terms.url and terms.url in text):
      return terms
  asked = frozenset([NON_COMMERCIAL]) if _NOT_FOR_TRADE.search(text) else frozenset()
  return Terms(text, None, asked)


def of_identifier(identifier: str) -> Terms:
  """Returns the terms of an SPDX identifier.

  Raises:
    InputError: It is none that is known, or it forbids what a built dataset is.
  """
  by_lower = {name.lower(): terms for name, terms in BY_IDENTIFIER.items()}
  terms = by_lower.get(identifier.lower())
  if terms is None:
    raise unknown_name("SPDX identifier in --licence", identifier, BY_IDENTIFIER)
  if not terms.may_be_passed_on:
    raise InputError(
        f"--licence={identifier} allows no derived works, and records are derived from scans."
        " Name the licence under which the publisher of the scans lets you pass them on."
    )
  return terms


@dataclasses.dataclass(frozen=True)
class Decision:
  """Whether a dataset may be passed on, and how.

  Attributes:
    terms: All licences that hold for the records; empty where it may not be passed on.
    reason: In words, what holds or what is in the way.
    remedy: What to do about it; "" where it may be passed on.
  """

  terms: tuple[Terms, ...]
  reason: str
  remedy: str = ""

  @property
  def conditions(self) -> list[str]:
    """What all licences together ask for, in a fixed order."""
    asked = frozenset().union(*(terms.conditions for terms in self.terms))
    return [condition for condition in _IN_WORDS if condition in asked]


def in_words(conditions: Sequence[str]) -> str:
  """Returns conditions as a phrase."""
  return ", ".join(_IN_WORDS[one] for one in conditions) or "no conditions"


def decide(stated: Sequence[str], given: str = "") -> Decision:
  """Decides by the licences that a dataset states.

  Args:
    stated: A text each; all of them hold.
    given: SPDX identifier under which the user knows that the scans may be passed on, where the
      dataset does not say so; "": none.

  Raises:
    InputError: `given` is no known identifier.
  """
  all_terms = [read(text) for text in stated]
  own = of_identifier(given) if given else None
  if forbidding := [terms for terms in all_terms if terms.may_be_passed_on is False]:
    return Decision(
        (), f"forbids passing the records on: {forbidding[0].name}",
        "Keep the dataset to yourself; pass on how it was built, so that others build their own.",
    )  # fmt: skip
  unknown = [terms for terms in all_terms if terms.may_be_passed_on is None]
  if own is None and (unknown or not all_terms):
    what = unknown[0].name if unknown else "the dataset states none"
    return Decision(
        (), f"not known to allow passing the records on: {what}",
        "Ask the publisher of the scans, and name the licence: --licence=SPDX-ID, e.g. CC-BY-4.0.",
    )  # fmt: skip
  known = [terms for terms in all_terms if terms.may_be_passed_on]
  if own is not None:
    asked = frozenset().union(*(terms.conditions for terms in all_terms))
    if not unknown and all_terms and own not in known:
      return Decision(
          (), f"the source states {', '.join(terms.name for terms in known)}, not {own.name}",
          "Leave out --licence: it is for datasets that do not state theirs.",
      )  # fmt: skip
    if lacking := [one for one in _IN_WORDS if one in asked and one not in own.conditions]:
      return Decision(
          (), f"{own.name} drops what the source asks for: {in_words(lacking)}",
          "Name a licence that asks for it too.",
      )  # fmt: skip
    known = [*known, own] if own not in known else known
  alike = sorted({terms.name for terms in known if SHARE_ALIKE in terms.conditions})
  if len(alike) > 1:
    return Decision(
        (), f"its licences exclude each other: {' and '.join(alike)}, both share-alike",
        "Build the parts as datasets of their own.",
    )  # fmt: skip
  named = " and ".join(dict.fromkeys(terms.name for terms in known))
  decision = Decision(tuple(dict.fromkeys(known)), named)
  return dataclasses.replace(decision, reason=f"{named}: {in_words(decision.conditions)}")
