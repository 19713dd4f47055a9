"""The rules of WORKSPACE.md that a machine can check."""

import ast
import configparser
import functools
import pathlib

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent
# Each layer imports from itself and from those before it.
LAYERS = ("core", "imaging", "datasets", "pipelines", "flexunet", "tools")
FOLDERS = ("datasets", "flexunet", "pipelines", "tools")
MOST_LINES, MOST_FUNCTION_LINES = 500, 60
SOURCES = sorted(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py"))
IDS = [str(path.relative_to(ROOT)) for path in SOURCES]


def module_of(path: pathlib.Path) -> str:
  """Returns the name under which a file is imported."""
  parts = list(path.relative_to(ROOT).with_suffix("").parts)
  parts = parts if parts[0] == "flexunet" else ["flexunet", *parts]
  return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_of(path): path for path in SOURCES}


def layer_of(module: str) -> int:
  """Returns the place of a module's layer in LAYERS."""
  second = (*module.split("."), "")[1]
  return LAYERS.index(second if second in LAYERS else "flexunet")


@functools.cache
def tree_of(path: pathlib.Path) -> ast.Module:
  return ast.parse(path.read_text(encoding="utf-8"))


def imported_modules(tree: ast.AST) -> set[str]:
  """Returns which of our modules a syntax tree imports, type hints counted."""
  names = set()
  for node in ast.walk(tree):
    if isinstance(node, ast.ImportFrom) and node.module:
      for alias in node.names:
        full = f"{node.module}.{alias.name}"
        names.add(full if full in MODULES else node.module)
    elif isinstance(node, ast.Import):
      names |= {alias.name for alias in node.names}
  return {name for name in names if name.split(".")[0] == "flexunet"}


def uphill(module: str, tree: ast.AST) -> set[str]:
  own = layer_of(module)
  return {name for name in imported_modules(tree) if layer_of(name) > own}


@pytest.mark.parametrize("path", SOURCES, ids=IDS)
def test_imports_point_downhill(path):
  assert not uphill(module_of(path), tree_of(path))


def test_an_uphill_import_is_seen():
  def seen(module, source):
    return uphill(module, ast.parse(source))

  assert seen("flexunet.core.files", "from flexunet.imaging import nifti")
  assert seen("flexunet.imaging.nifti", "import flexunet.datasets.catalog")
  assert seen("flexunet.pipelines.order", "from flexunet import config")
  assert seen("flexunet.train", "from flexunet.tools import build")
  assert not seen("flexunet.tools.build", "from flexunet.core import flags")


def find_circle(arrows: dict[str, set[str]]) -> list[str]:
  """Returns modules that import each other in a ring, or nothing."""
  state: dict[str, int] = {}
  path: list[str] = []

  def visit(name: str) -> list[str]:
    state[name] = 1
    path.append(name)
    for other in sorted(arrows.get(name, ())):
      if state.get(other) == 1:
        return path[path.index(other) :]
      if other not in state and (ring := visit(other)):
        return ring
    path.pop()
    state[name] = 2
    return []

  for name in sorted(arrows):
    if name not in state and (ring := visit(name)):
      return ring
  return []


def test_no_modules_import_each_other_in_a_circle():
  arrows = {name: imported_modules(tree_of(path)) - {name} for name, path in MODULES.items()}
  assert find_circle(arrows) == []


def test_a_circle_is_seen():
  assert find_circle({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["b", "c"]
  assert find_circle({"a": {"b", "c"}, "b": {"c"}, "c": set()}) == []


@pytest.mark.parametrize("path", SOURCES, ids=IDS)
def test_nothing_is_evaluated_unpickled_or_relative(path):
  for node in ast.walk(tree_of(path)):
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
      assert node.func.id not in {"eval", "exec"}, f"line {node.lineno}"
    if isinstance(node, ast.Import):
      assert not {alias.name for alias in node.names} & {"pickle", "dill"}, f"line {node.lineno}"
    if isinstance(node, ast.ImportFrom):
      assert node.level == 0, f"line {node.lineno}: imports are absolute"
    if isinstance(node, ast.Attribute):
      assert node.attr != "Lambda", f"line {node.lineno}"


def functions_of(path: pathlib.Path) -> list[ast.FunctionDef]:
  return [node for node in ast.walk(tree_of(path)) if isinstance(node, ast.FunctionDef)]


@pytest.mark.parametrize("path", SOURCES, ids=IDS)
def test_a_file_is_one_concept_and_a_function_one_screen(path):
  assert len(path.read_text(encoding="utf-8").splitlines()) <= MOST_LINES
  long = {
      node.name: node.end_lineno - node.lineno + 1
      for node in functions_of(path)
      if node.end_lineno - node.lineno + 1 > MOST_FUNCTION_LINES
  }
  assert not long


def public_functions(tree: ast.Module) -> list[tuple[ast.FunctionDef, bool]]:
  """Returns (function, whether it is a method) of what other modules may call."""
  found = [(node, False) for node in tree.body if isinstance(node, ast.FunctionDef)]
  for owner in tree.body:
    if isinstance(owner, ast.ClassDef) and not owner.name.startswith("_"):
      found += [(node, True) for node in owner.body if isinstance(node, ast.FunctionDef)]
  return [(node, method) for node, method in found if not node.name.startswith("_")]


def untyped(node: ast.FunctionDef, method: bool) -> list[str]:
  """Returns the arguments without a type, and "return" where that has none."""
  arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
  static = any(isinstance(d, ast.Name) and d.id == "staticmethod" for d in node.decorator_list)
  if method and not static:
    arguments = arguments[1:]
  missing = [one.arg for one in arguments if one.annotation is None]
  return missing + ([] if node.returns is not None else ["return"])


@functools.cache
def documented_methods() -> frozenset[str]:
  """Returns the names of the methods that some class of ours documents."""
  return frozenset(
      node.name
      for path in SOURCES
      for node, method in public_functions(tree_of(path))
      if method and ast.get_docstring(node)
  )


@pytest.mark.parametrize("path", SOURCES, ids=IDS)
def test_public_functions_are_documented_and_typed(path):
  problems = []
  for node, method in public_functions(tree_of(path)):
    if method and node.name in KNOWN_METHODS:
      continue
    inherited = method and node.name in documented_methods()
    if not (ast.get_docstring(node) or inherited or node.name in ("main", "run")):
      problems.append(f"{node.name} (line {node.lineno}) has no docstring")
    if missing := untyped(node, method):
      problems.append(f"{node.name} (line {node.lineno}): no type for {', '.join(missing)}")
  assert not problems


# Methods whose meaning and types are those of the library whose class they override.
KNOWN_METHODS = frozenset({
    "build", "call", "compute_output_shape", "compute_output_spec", "get_config", "from_config",
    "compute_loss", "train_step", "test_step", "predict_step", "update_state", "result",
    "reset_state", "on_train_begin", "on_train_end", "on_epoch_begin", "on_epoch_end",
    "on_train_batch_begin", "on_train_batch_end", "on_test_begin", "on_test_end",
    "on_test_batch_begin", "on_test_batch_end", "set_model", "set_params",
})  # fmt: skip


def late_imports(path: pathlib.Path) -> list[tuple[str, int]]:
  """Returns (top-level package, line) of each import inside a function."""
  found = set()
  for function in functions_of(path):
    for node in ast.walk(function):
      if isinstance(node, ast.Import):
        found |= {(alias.name.split(".")[0], node.lineno) for alias in node.names}
      elif isinstance(node, ast.ImportFrom) and node.module:
        found.add((node.module.split(".")[0], node.lineno))
  return sorted(found)


@pytest.mark.parametrize("path", SOURCES, ids=IDS)
def test_imports_stand_at_the_top_or_once_with_a_reason(path):
  lines = path.read_text(encoding="utf-8").splitlines()
  late = late_imports(path)
  blocks = [(name, line) for name, line in late if (name, line - 1) not in late]
  names = [name for name, _ in blocks if name != "flexunet"]
  twice = {name for name in names if names.count(name) > 1}
  assert not twice, f"imported inside several functions: {sorted(twice)}"
  bare = [line for _, line in late if not has_reason(lines, line)]
  assert not bare, f"an import inside a function says why: lines {bare}"


def has_reason(lines: list[str], line: int) -> bool:
  """Returns whether a comment stands right above a block of imports."""
  above = line - 2
  while above >= 0 and (
      not lines[above].strip() or lines[above].lstrip().startswith(("import ", "from "))
  ):
    above -= 1
  text = lines[above].strip() if above >= 0 else ""
  return text.startswith("#")


def test_setup_cfg_lists_every_package_folder():
  config = configparser.ConfigParser()
  config.read(ROOT / "setup.cfg")
  listed = set(config["options"]["packages"].split())
  assert listed == {module_of(path) for path in SOURCES if path.name == "__init__.py"}


def test_the_top_level_is_the_fixed_one():
  tracked_folders = {p.name for p in ROOT.iterdir() if p.is_dir() and (p / "__init__.py").exists()}
  assert tracked_folders <= {"datasets", "flexunet", "pipelines", "tools", "tests"}


def test_tests_lie_where_their_module_is():
  tests = ROOT / "tests"
  for path in tests.rglob("test_*.py"):
    folder = path.parent.relative_to(tests)
    of_all = folder in (pathlib.Path(), pathlib.Path("fuzz"))
    assert of_all or (ROOT / folder).is_dir(), f"{path}: no such folder"
  helpers = {p.parent.relative_to(tests).parts[:1] for p in tests.rglob("*.py")
             if not p.name.startswith("test_") and p.name != "conftest.py"}  # fmt: skip
  assert helpers <= {("support",), ("fuzz",)}


def test_the_house_keeps_its_size():
  modules = [path for path in SOURCES if path.name != "__init__.py"]
  assert len(modules) <= 325
  assert len(list((ROOT / "datasets").glob("*.py"))) <= 6
  assert len(list((ROOT / "flexunet" / "training").glob("*.py"))) <= 22
