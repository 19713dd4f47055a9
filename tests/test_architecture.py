"""The rules of WORKSPACE.md that a machine can check."""

import ast
import configparser
import pathlib

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent
ARROWS = {
    "datasets": set(),
    "pipelines": {"datasets"},
    "flexunet": {"datasets", "pipelines"},
    "tools": {"datasets", "pipelines", "flexunet"},
}
SOURCES = sorted(path for folder in ARROWS for path in (ROOT / folder).rglob("*.py"))


def imported_parts(source: str) -> set[str]:
  """Returns which of the four folders the source imports."""
  names = set()
  for node in ast.walk(ast.parse(source)):
    if isinstance(node, ast.ImportFrom) and node.module:
      names |= {f"{node.module}.{alias.name}" for alias in node.names}
    elif isinstance(node, ast.Import):
      names |= {alias.name for alias in node.names}
  ours = [name.split(".") for name in names if name.split(".")[0] == "flexunet"]
  return {p[1] if len(p) > 1 and p[1] in ARROWS else "flexunet" for p in ours}


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_downhill(path):
  folder = path.relative_to(ROOT).parts[0]
  # The name of the package itself (its version, build_model) belongs to the flexunet folder.
  uphill = imported_parts(path.read_text(encoding="utf-8")) - ARROWS[folder] - {folder}
  assert not uphill, f"{path.name} in {folder}/ imports from {sorted(uphill)}"


def test_an_uphill_import_is_seen():
  assert imported_parts("from flexunet.tools import build") == {"tools"}
  assert imported_parts("import flexunet.pipelines.order") == {"pipelines"}
  assert imported_parts("from flexunet import model") == {"flexunet"}


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_nothing_is_evaluated_unpickled_or_relative(path):
  for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
      assert node.func.id not in {"eval", "exec"}, f"line {node.lineno}"
    if isinstance(node, ast.Import):
      assert not {alias.name for alias in node.names} & {"pickle", "dill"}, f"line {node.lineno}"
    if isinstance(node, ast.ImportFrom):
      assert node.level == 0, f"line {node.lineno}: imports are absolute"
    if isinstance(node, ast.Attribute):
      assert node.attr != "Lambda", f"line {node.lineno}"


def test_setup_cfg_lists_every_package_folder():
  config = configparser.ConfigParser()
  config.read(ROOT / "setup.cfg")
  listed = set(config["options"]["packages"].split())
  found = set()
  for init in ROOT.glob("*/**/__init__.py"):
    parts = init.parent.relative_to(ROOT).parts
    if parts[0] in ARROWS:
      found.add(".".join(("flexunet", *parts) if parts[0] != "flexunet" else parts))
  assert listed == found


def test_the_top_level_is_the_fixed_one():
  tracked_folders = {p.name for p in ROOT.iterdir() if p.is_dir() and (p / "__init__.py").exists()}
  assert tracked_folders <= {"datasets", "flexunet", "pipelines", "tools", "tests"}
