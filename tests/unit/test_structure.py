"""The structure of the house: who imports whom, and the budgets. Offenders are printed."""

import ast
from pathlib import Path
import shutil
import subprocess
import sys

ROOT, PACKAGE = Path(__file__).parents[2], "blip3o_jax"
TREES = (PACKAGE, "configs", "launch", "tools", "tests")
LINES, FUNCTION_LINES = 400, 80  # ruff counts parameters
BAD_NAMES = {"util", "utils", "common", "misc", "manager", "handler", "helper", "helpers"}
FORBIDDEN = (
  ("models/eva_vit", f"{PACKAGE}.models.unet"),
  ("diffusion/flow", f"{PACKAGE}.trees"),
  ("evaluate/measures", f"{PACKAGE}.models.unet"),
  ("systems/contrast", f"{PACKAGE}.systems.blip3o.model"),
  ("systems/parts/slots", f"{PACKAGE}.systems.pixels"),
  ("systems/parts/loading", f"{PACKAGE}.train.loop"),
  ("train/loop", f"{PACKAGE}.systems.blip3o"),
  ("train/step", f"{PACKAGE}.models.unet"),
  ("data/text/chat", "jax"),
  ("convert/source", f"{PACKAGE}.verify.torch.qwen"),
  ("cli", "tools"),
  ("serve/jobs", f"{PACKAGE}.systems"),
  ("commands/plan", f"{PACKAGE}.cli"),
  ("use/model", "torch"),
)


def contracts(folder: Path) -> tuple[int, str]:
  """Whether the package in a folder keeps the contracts of its pyproject.toml: status, report."""
  command = [sys.executable, "-c", "from importlinter.cli import *; lint_imports_command()"]
  run = subprocess.run([*command, "--no-cache"], cwd=folder, text=True, capture_output=True)
  return run.returncode, run.stdout + run.stderr


def test_who_imports_whom():
  status, report = contracts(ROOT)
  assert status == 0, report


def test_a_forbidden_import_is_found(tmp_path):
  shutil.copytree(ROOT / PACKAGE, tmp_path / PACKAGE, ignore=shutil.ignore_patterns("assets"))
  shutil.copy(ROOT / "pyproject.toml", tmp_path)
  for importer, name in FORBIDDEN:
    with (tmp_path / PACKAGE / f"{importer}.py").open("a") as file:
      file.write(f"import {name}\n")
  status, report = contracts(tmp_path)
  assert status == 1
  for importer, name in FORBIDDEN:
    assert f"{PACKAGE}.{importer.replace('/', '.')} -> {name} (l." in report, report


def test_files_functions_and_names_keep_the_budgets():
  faults = []
  for path in (p for tree in TREES for p in (ROOT / tree).rglob("*.py")):
    name, text = path.relative_to(ROOT), path.read_text()
    if len(text.splitlines()) > LINES or BAD_NAMES & set(name.with_suffix("").parts):
      faults.append(f"{name}: {len(text.splitlines())} lines, or a name that says nothing")
    for node in ast.walk(ast.parse(text)):
      if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
        long = (node.end_lineno or 0) - node.lineno + 1
        faults += [f"{name}: {node.name} has {long} lines"] * (long > FUNCTION_LINES)
  assert not faults, "\n".join(faults)
