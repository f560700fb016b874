"""A wheel built from the tree holds the package and works outside the checkout."""

import os
from pathlib import Path
import shutil
import subprocess
import sys
import sysconfig
import zipfile

import pytest

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]
PARTS = ("pyproject.toml", "README.md", "LICENSE", "blip3o_jax")
IMPORT_ALL = """
import importlib, importlib.util, pathlib, pkgutil, sys
import blip3o_jax
home = pathlib.Path(blip3o_jax.__file__).resolve()
assert home.is_relative_to(pathlib.Path(sys.prefix).resolve()), home
names = [m.name for m in pkgutil.walk_packages(blip3o_jax.__path__, "blip3o_jax.")]
for name in names:
  # The oracle needs the test extra, which some versions of Python have not.
  if importlib.util.find_spec("torch") or not name.startswith("blip3o_jax.reference."):
    importlib.import_module(name)
print(len(names), blip3o_jax.__version__)
"""


def run(*command: object, cwd: Path) -> str:
  """The output of a command that sees nothing of the checkout."""
  env = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PYTHONHOME")}
  words = [str(word) for word in command]
  done = subprocess.run(words, cwd=cwd, env=env, capture_output=True, text=True, timeout=300)
  assert done.returncode == 0, f"{' '.join(words)}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
  return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
  """The wheel of a copy of the tree, so that no build folder is left in the checkout."""
  folder = tmp_path_factory.mktemp("wheel")
  copy = folder / "tree"
  copy.mkdir()
  for part in PARTS:
    source = ROOT / part
    if source.is_dir():
      shutil.copytree(source, copy / part, ignore=shutil.ignore_patterns("__pycache__"))
    else:
      shutil.copy(source, copy / part)
  build = ("-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", folder, copy)
  run(sys.executable, *build, cwd=folder)
  (found,) = folder.glob("*.whl")
  return found


@pytest.fixture(scope="module")
def python(wheel, tmp_path_factory):
  """The interpreter of a new environment that holds the wheel and borrows what it depends on."""
  folder = tmp_path_factory.mktemp("elsewhere")
  run(sys.executable, "-m", "venv", "--without-pip", folder / "env", cwd=folder)
  python = folder / "env" / "bin" / "python"
  site = run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=folder)
  # A folder named in a .pth comes after the environment's own, and its own .pth files (an editable
  # install of the checkout is one) are not read.
  borrowed = {sysconfig.get_path(kind) for kind in ("purelib", "platlib")}
  (Path(site.strip()) / "borrowed.pth").write_text("\n".join(sorted(borrowed)) + "\n")
  install = ("-m", "pip", "--python", python, "install", "-q", "--no-deps", "--no-index", wheel)
  run(sys.executable, *install, cwd=folder)
  return python


def test_the_wheel_holds_the_package_and_nothing_else(wheel):
  names = set(zipfile.ZipFile(wheel).namelist())
  tops = {name.split("/")[0] for name in names}
  assert tops == {"blip3o_jax", *(t for t in tops if t.endswith(".dist-info"))}
  assert any(name.endswith("licenses/LICENSE") for name in names)
  files = [p for p in (ROOT / "blip3o_jax").rglob("*") if p.is_file()]
  expected = {str(p.relative_to(ROOT)) for p in files if "__pycache__" not in p.parts}
  assert expected - names == set()


def test_every_module_imports_elsewhere(python, tmp_path):
  count, version = run(python, "-c", IMPORT_ALL, cwd=tmp_path).split()
  assert int(count) > 20
  assert version


def test_the_command_works_elsewhere(python, tmp_path):
  command = python.with_name("blip3o")
  shown = run(command, "--help", cwd=tmp_path)
  for verb in ("train", "generate", "chat", "reconstruct"):
    assert verb in shown
