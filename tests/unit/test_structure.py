"""The structure of the house: who imports whom, and the budgets. Offenders are printed."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT, PACKAGE = Path(__file__).parents[2], "blip3o_jax"
TREES = (PACKAGE, "configs", "launch", "tools", "tests")
LINES, FUNCTION_LINES, PARAMETERS = 400, 80, 8
BAD_NAMES = {"util", "utils", "common", "misc", "manager", "handler", "helper", "helpers"}
ROOTS = (
  "config",
  "trees",
  "files",
  "chips",
  "sharding",
  "attention",
  "remat",
  "rotary",
  "stacks",
  "layers",
  "quantized",
)
BELOW = (*ROOTS, "models", "diffusion", "weights", "data")
PARTS = (*BELOW, "systems/parts", "train/checkpoint")
# A room -> what else it may import; the longest name that fits decides, and `*` stands for one
# file or folder, which is then a room of its own. What is not here brings everything together.
MAY_IMPORT: dict[str, tuple[str, ...]] = {
  **{room: ROOTS[:i] for i, room in enumerate(ROOTS)},
  "models/*": ("sharding", "attention", "remat", "rotary", "layers", "quantized"),
  "diffusion": (),
  "weights": ("trees", "files"),
  "data": ("config", "trees", "files"),
  "systems/*": PARTS,
  "compiling": (),
  "train": (*ROOTS, "compiling", "weights", "data", "systems/parts/loading"),
  "recipes": (*BELOW, "systems", "train"),
  "convert": (*BELOW, "systems", "train"),
  "verify": (*BELOW, "systems"),
  "evaluate": ("files", "data"),
  "plan": (*BELOW, "train", "runtime", "compiling"),
  "use": (*BELOW, "systems", "train", "miniature/shipped"),
  "serve": ("files", "data", "use", "evaluate"),
  "commands/*": (
    *(*BELOW, "systems", "train", "recipes", "convert", "verify", "plan"),
    *("use", "evaluate", "serve", "asking", "joining"),
    *("commands/measure", "miniature/scores"),  # what `evaluate` hands over to
  ),
}
OUTSIDE = ("configs", "launch", "tools", "tests")
TORCH = ("torch", "diffusers", f"{PACKAGE}/verify/torch")


def imports(source: str) -> Iterator[str]:
  """What a file imports, at any depth, as paths: `from a.b import c` gives a/b/c."""
  for node in ast.walk(ast.parse(source)):
    if isinstance(node, ast.Import):
      yield from (alias.name.replace(".", "/") for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
      name = f"{'/' * node.level}{node.module or ''}"
      yield from (f"{name}/{alias.name}".replace(".", "/") for alias in node.names)


def within(name: str, rooms: tuple[str, ...]) -> bool:
  return any(f"{name}/".startswith(f"{room}/") for room in rooms)


def is_fault(importer: str, name: str) -> bool:
  """Whether a module of the package, by its path in it, may not import a name."""
  if within(name, TORCH):
    return not within(importer, ("verify/torch", "weights/pickles", "evaluate/torch"))
  if name.startswith("/") or within(name, OUTSIDE):
    return True
  if within(name, ("jax", "flax")):
    return importer in ("config", "trees", "chips") or within(importer, ("data",))
  top, _, rest = importer.partition("/")
  own = f"{top}/{rest.partition('/')[0]}"
  rules, room = (MAY_IMPORT.get(f"{top}/*"), own) if rest else (None, top)
  rules = MAY_IMPORT.get(top) if rules is None else rules
  target = name.removeprefix(f"{PACKAGE}/")
  if rules is None or target == name or not target[:1].islower():  # __version__ is free
    return False
  return not within(target, (room if f"{top}/*" in MAY_IMPORT else top, *rules))


def test_who_imports_whom():
  found = [
    (path.relative_to(ROOT / PACKAGE).with_suffix("").as_posix().removesuffix("/__init__"), name)
    for path in (ROOT / PACKAGE).rglob("*.py")
    for name in imports(path.read_text())
  ]
  assert len(found) > 500, "the walk saw no imports"
  faults = [f"{importer}: {name}" for importer, name in found if is_fault(importer, name)]
  assert not faults, "\n".join(faults)


@pytest.mark.parametrize(
  ("importer", "name"),
  [
    ("models/eva_vit", f"{PACKAGE}/models/unet"),
    ("systems/contrast", f"{PACKAGE}/systems/blip3o/model"),
    ("systems/parts/slots", f"{PACKAGE}/systems/pixels"),
    ("train/loop", f"{PACKAGE}/systems/blip3o"),
    ("data/text/chat", "jax/numpy"),
    ("convert/source", f"{PACKAGE}/verify/torch/qwen"),
    ("cli", "tools/convert"),
    ("commands/plan", f"{PACKAGE}/cli"),
  ],
)
def test_a_forbidden_import_is_found(importer, name):
  assert is_fault(importer, name)


def test_files_functions_and_names_keep_the_budgets():
  faults = []
  for path in (p for tree in TREES for p in (ROOT / tree).rglob("*.py")):
    name, text = path.relative_to(ROOT), path.read_text()
    if len(text.splitlines()) > LINES or BAD_NAMES & set(name.with_suffix("").parts):
      faults.append(f"{name}: {len(text.splitlines())} lines, or a name that says nothing")
    for node in ast.walk(ast.parse(text)):
      if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
        args = (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)
        wide = len([a for a in args if a.arg not in ("self", "cls")])
        long = (node.end_lineno or 0) - node.lineno + 1
        if wide > PARAMETERS or long > FUNCTION_LINES:
          faults.append(f"{name}: {node.name} has {wide} parameters and {long} lines")
  assert not faults, "\n".join(faults)
