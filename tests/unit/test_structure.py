"""The structure of the house: who imports whom, and the budgets. Offenders are printed."""

import ast
from collections.abc import Iterator
from pathlib import Path
import sys

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = "blip3o_jax"
TREES = (PACKAGE, "configs", "launch", "tools", "tests")
LINES, FUNCTION_LINES, PARAMETERS, NESTING = 400, 80, 8, 3
BAD_NAMES = ("util", "utils", "common", "misc", "manager", "handler", "helper", "helpers")

CORE = ("config", "trees", "sharding", "attention", "layers")
BELOW_SYSTEMS = (*CORE, "models", "diffusion", "weights", "data")
# Part of the package (a folder, or a module) -> what else of the package it may import.
MAY_IMPORT: dict[str, tuple[str, ...]] = {
  "config": (),
  "trees": (),
  "files": (),
  "sharding": ("trees",),
  "attention": ("sharding",),
  "layers": ("attention", "sharding"),
  "models": ("trees", "sharding", "attention", "layers"),
  "diffusion": ("trees",),
  "weights": ("trees",),
  "data": ("config", "trees", "files"),
  "data/pipeline": ("config", "trees", "sharding"),
  "train": ("config", "trees", "sharding", "weights", "data"),
  "systems": BELOW_SYSTEMS,
  "evaluate": ("systems", *BELOW_SYSTEMS),
  "recordings": ("systems", *BELOW_SYSTEMS),
  # The oracle: nothing of ours but the reader of files, the tokenizer and the names of recordings.
  "reference": ("weights/files", "data/tokenizer", "recordings/names"),
  "serve": ("systems", *BELOW_SYSTEMS),
  "convert": ("systems", "train", *BELOW_SYSTEMS),
}
# The only siblings that a module of a part may import; a part that is not here is free inside.
PIECES = tuple(f"systems/{name}" for name in ("slots", "features", "decoder_files", "cost"))
SIBLINGS: dict[str, tuple[str, ...]] = {
  "models": (),
  **{f"systems/{system}": PIECES for system in ("blip3o", "contrast", "pixels")},
  **dict.fromkeys(PIECES, ()),
  **dict.fromkeys(("recordings/names", "recordings/compare"), ()),
  "weights": ("weights/table",),
  "weights/table": (),
}
JOINS = ("weights/blip3o",)  # brings the tables of one checkpoint together
ARRAY_LIBRARIES = ("jax", "flax", "numpy", "einops", "absl", PACKAGE)
DATA_LIBRARIES_BARRED = ("jax", "flax", "optax", "orbax")
OUTSIDE = ("configs", "launch", "tools", "tests")


def sources(*trees: str) -> list[Path]:
  return sorted(path for tree in trees for path in (ROOT / tree).rglob("*.py"))


def module_name(path: Path) -> str:
  """blip3o_jax/models/unet.py -> "models/unet"; blip3o_jax/models/__init__.py -> "models"."""
  parts = path.relative_to(ROOT / PACKAGE).with_suffix("").parts
  return "/".join(p for p in parts if p != "__init__")


def imports(path: Path) -> Iterator[tuple[str, str]]:
  """("file:line", dotted name) of every import, at any depth; `from a import b` gives "a.b"."""
  for node in ast.walk(ast.parse(path.read_text())):
    names = []
    if isinstance(node, ast.Import):
      names = [alias.name for alias in node.names]
    elif isinstance(node, ast.ImportFrom):
      names = [f"{'.' * node.level}{node.module or ''}.{alias.name}" for alias in node.names]
    yield from ((f"{path.relative_to(ROOT)}:{node.lineno}", name) for name in names)


def internal(dotted: str) -> str:
  """blip3o_jax.models.unet.UNet -> "models/unet": the longest prefix that is a module."""
  parts = dotted.split(".")[1:]
  for end in range(len(parts), 0, -1):
    path = ROOT.joinpath(PACKAGE, *parts[:end])
    if path.is_dir() or path.with_suffix(".py").exists():
      return "/".join(parts[:end])
  return ""


def import_fault(module: str, dotted: str) -> str:
  """Why `module` of the package may not import `dotted`; empty when it may."""
  part, library = module.split("/")[0], dotted.split(".")[0]
  if not library:
    return "a relative import"
  if library in OUTSIDE:
    return f"nothing imports {library}"
  if part in ("models", "diffusion"):
    if library not in ARRAY_LIBRARIES and library not in sys.stdlib_module_names:
      return f"{part} are arrays in, arrays out"
  elif part in ("config", "trees") and library in ("jax", "flax"):
    return f"{part} imports no jax"
  elif part == "data" and library in DATA_LIBRARIES_BARRED and module != "data/pipeline":
    return "data is numpy; jax only in data/pipeline"
  target = internal(dotted) if library == PACKAGE else ""
  if part not in MAY_IMPORT or target in ("", part, module):  # cli brings everything together
    return ""
  if target.split("/")[0] == part:
    allowed = None if module in JOINS else SIBLINGS.get(module, SIBLINGS.get(part))
    return (
      "" if allowed is None or target in allowed else f"of its own part it may import {allowed}"
    )
  rules = MAY_IMPORT.get(module, MAY_IMPORT[part])
  return (
    ""
    if {target, target.split("/")[0]} & set(rules)
    else f"{module} may import {', '.join(rules) or '-'}"
  )


def parameters(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
  """How many a caller has to think of; `self` and `cls` are not among them."""
  args = node.args
  named = [a.arg for a in (*args.posonlyargs, *args.args, *args.kwonlyargs)]
  stars = sum(a is not None for a in (args.vararg, args.kwarg))
  return sum(name not in ("self", "cls") for name in named) + stars


BRANCHES = (ast.For, ast.AsyncFor, ast.While, ast.If, ast.Match)


def nesting(node: ast.AST, depth: int = 0) -> int:
  """Loops and branches inside each other, at the deepest place of a function.

  `elif` is no deeper than its `if`; `with` and `try` guard and do not branch.
  """
  deepest = depth
  for child in ast.iter_child_nodes(node):
    if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
      continue  # counted by itself
    elif_ = isinstance(node, ast.If) and isinstance(child, ast.If) and node.orelse == [child]
    deepest = max(deepest, nesting(child, depth + (isinstance(child, BRANCHES) and not elif_)))
  return deepest


def function_faults(source: str) -> Iterator[tuple[int, str]]:
  """(line, fault) for every function that is over a budget."""
  for node in ast.walk(ast.parse(source)):
    if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
      continue
    length = (node.end_lineno or node.lineno) - node.lineno + 1
    found = {"lines": length, "parameters": parameters(node), "levels of nesting": nesting(node)}
    budget = {"lines": FUNCTION_LINES, "parameters": PARAMETERS, "levels of nesting": NESTING}
    for what, count in found.items():
      if count > budget[what]:
        yield node.lineno, f"{node.name} has {count} {what}, budget {budget[what]}"


def reads_environment(path: Path) -> Iterator[str]:
  """Places where flags, the environment or a module named by a string are read."""
  barred = {("os", "environ"), ("os", "getenv"), ("importlib", "import_module")}
  for place, name in imports(path):
    parts = name.split(".")
    if name.startswith(("absl.flags", "absl.app")) or tuple(parts[:2]) in barred:
      yield f"{place}: {name}"
  for node in ast.walk(ast.parse(path.read_text())):
    if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
      if (node.value.id, node.attr) in barred:
        yield f"{path.relative_to(ROOT)}:{node.lineno}: {node.value.id}.{node.attr}"
    elif isinstance(node, ast.Name) and node.id == "__import__":
      yield f"{path.relative_to(ROOT)}:{node.lineno}: __import__"


def builds(path: Path) -> bool:
  body = ast.parse(path.read_text()).body
  return any(isinstance(node, ast.FunctionDef) and node.name == "build" for node in body)


def report(offenders: list[str]) -> None:
  assert not offenders, "\n  " + "\n  ".join(offenders)


def test_who_imports_whom():
  found = [(module_name(path), *item) for path in sources(PACKAGE) for item in imports(path)]
  assert len(found) > 100, "the walk saw no imports"
  report([f"{place}: {name}: {f}" for m, place, name in found if (f := import_fault(m, name))])


def test_the_oracle_stays_outside():
  """Torch is in the test extra; what runs needs neither it nor the networks written in it.

  One file reads PyTorch's own format when it is asked to.
  """
  barred = ("torch", "diffusers", f"{PACKAGE}.reference")
  report(
    [
      f"{place}: {name}"
      for path in sources(PACKAGE)
      if module_name(path).split("/")[0] != "reference" and module_name(path) != "convert/pickles"
      for place, name in imports(path)
      if f"{name}.".startswith(tuple(f"{b}." for b in barred))
    ]
  )


def test_every_system_is_held_apart():
  """A file of systems/ that builds a module is a system; the others join or serve them."""
  found = {m for p in sources(f"{PACKAGE}/systems") if builds(p) and (m := module_name(p))}
  assert found == {m for m in SIBLINGS if m.startswith("systems/")} - set(PIECES)


def test_configs_tools_and_launch_do_not_import_each_other():
  trees = ("configs", "launch", "tools")
  report(
    [
      f"{place}: {name}"
      for path in sources(*trees)
      for place, name in imports(path)
      if name.split(".")[0] in OUTSIDE
    ]
  )


def test_library_reads_no_flags_and_no_environment():
  paths = [p for p in sources(PACKAGE) if module_name(p) != "cli"]
  report([line for path in paths for line in reads_environment(path)])


def test_files_are_short():
  counts = {p: len(p.read_text().splitlines()) for p in sources(*TREES)}
  report(
    [f"{p.relative_to(ROOT)}: {n} lines, budget {LINES}" for p, n in counts.items() if n > LINES]
  )


def test_functions_are_short():
  report(
    [
      f"{path.relative_to(ROOT)}:{line}: {fault}"
      for path in sources(*TREES)
      for line, fault in function_faults(path.read_text())
    ]
  )


def test_names_say_what_is_inside():
  names = [p.relative_to(ROOT) for p in sources(*TREES)]
  report([str(p) for p in names if set(p.with_suffix("").parts) & set(BAD_NAMES)])


def test_test_files_have_names_of_their_own():
  """Pytest imports them by base name: two of one name would hide one."""
  seen: dict[str, Path] = {}
  doubles = [(seen.setdefault(p.name, p), p) for p in sources("tests") if p.name != "conftest.py"]
  report([f"{a} and {b}" for a, b in doubles if a != b])


@pytest.mark.parametrize(
  ("module", "dotted"),
  [
    ("models/eva_vit", "blip3o_jax.models.unet.UNet"),
    ("models/eva_vit", "blip3o_jax.diffusion.flow"),
    ("models/eva_vit", "transformers"),
    ("diffusion/flow", "blip3o_jax.models.next_dit"),
    ("train/loop", "blip3o_jax.systems.blip3o"),
    ("train/loop", "blip3o_jax.models"),
    ("data/records", "jax.numpy"),
    ("trees", "jax"),
    ("sharding", "blip3o_jax.layers"),
    ("weights/unet", "blip3o_jax.weights.safetensors"),
    ("weights/table", "blip3o_jax.models.unet"),
    ("weights/table", "blip3o_jax.weights.rows.unet"),
    ("systems/contrast", "blip3o_jax.systems.blip3o"),
    ("systems/blip3o", "blip3o_jax.train.step"),
    ("systems/blip3o", "configs.blip3o_4b_pretrain"),
    ("systems/slots", "blip3o_jax.systems.blip3o"),
    ("reference/system", "blip3o_jax.models.eva_vit"),
    ("reference/checkpoint", "blip3o_jax.weights.rows.eva_vit"),
    ("systems/inference", "blip3o_jax.verify.torch.qwen"),
    ("recordings/compare", "blip3o_jax.systems.blip3o.replay"),
    ("cli", ".models"),
    ("cli", "tools.convert"),
  ],
)
def test_a_forbidden_import_is_found(module, dotted, monkeypatch):
  monkeypatch.setattr(f"{__name__}.internal", lambda name: "/".join(name.split(".")[1:3]))
  assert import_fault(module, dotted)


def test_budgets_are_counted():
  deep = "def f(a, *, b):\n  for x in a:\n    if x:\n      while b:\n        if a:\n          a()\n"
  assert list(function_faults(deep)) == [(1, "f has 4 levels of nesting, budget 3")]
  chain = "def f(a):\n" + "  if a: b()\n" + "".join("  elif a: b()\n" for _ in range(9))
  assert not list(function_faults(chain))
  wide = "def f(self, a, b, c, d, e, f, g, *, h): pass\ndef g(a, b, c, d, e, f, g, h, **i): pass"
  assert list(function_faults(wide)) == [(2, "g has 9 parameters, budget 8")]
  long = "def f():\n" + "  a = 1\n" * 80
  assert list(function_faults(long)) == [(1, "f has 81 lines, budget 80")]
