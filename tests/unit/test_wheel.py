"""A wheel built from the tree holds the package and works outside the checkout."""

import os
from pathlib import Path
import shutil
import subprocess
import sys
import sysconfig
import zipfile

import numpy as np
from PIL import Image
import pytest
from safetensors.numpy import load_file

import blip3o_jax
from blip3o_jax import cli
from blip3o_jax.miniature import shipped

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]
PARTS = ("pyproject.toml", "README.md", "LICENSE", "blip3o_jax")
IMPORT_ALL = """
import importlib, importlib.util, pathlib, pkgutil, sys
import blip3o_jax
home = pathlib.Path(blip3o_jax.__file__).resolve()
assert home.is_relative_to(pathlib.Path(sys.prefix).resolve()), home
names = [m.name for m in pkgutil.walk_packages(blip3o_jax.__path__, "blip3o_jax.")]
# What needs a package that no dependency brings, and some versions of Python have not.
extras = {"verify.torch.": "torch", "evaluate.torch.": "torchmetrics"}
extras["evaluate.lmms_model"] = "lmms_eval"
for name in names:
  wanted = [p for m, p in extras.items() if name.removeprefix("blip3o_jax.").startswith(m)]
  if all(importlib.util.find_spec(package) for package in wanted):
    importlib.import_module(name)
print(len(names), blip3o_jax.__version__)
"""
CHECKOUT = f"""
import sys
sys.path.insert(0, {str(ROOT)!r})
from blip3o_jax import cli
assert cli.__file__.startswith({str(ROOT)!r}), cli.__file__
sys.exit(cli.main())
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
  # What the lists of the shipped miniatures name, too, whatever the patterns of package data say.
  for system in shipped.systems():
    listed = (*shipped.verify(shipped.directory(system)), shipped.SUMS)
    assert {f"{shipped.name(system)}/{name}" for name in listed} <= names


def test_every_module_imports_elsewhere(python, tmp_path):
  count, version = run(python, "-c", IMPORT_ALL, cwd=tmp_path).split()
  assert int(count) > 20
  assert version


def test_the_shipped_miniature_draws_the_same_elsewhere(python, tmp_path):
  """The same picture as the checkout's, bit for bit, and the same answer about it."""
  asked = ("a red circle left of a blue square", "two green stars", "--seed", "3")
  prefixes = {"wheel": [python.with_name("blip3o")], "tree": [sys.executable, "-c", CHECKOUT]}
  pixels, answers = [], []
  for name, prefix in prefixes.items():
    run(*prefix, "generate", *asked, "--output", f"{name}.png", cwd=tmp_path)
    pixels.append(np.asarray(Image.open(tmp_path / f"{name}.png")))
    words = ("chat", "how many circles are there?", "--image", "wheel.png")
    answers.append(run(*prefix, *words, cwd=tmp_path))
  np.testing.assert_array_equal(pixels[0], pixels[1])
  assert answers[0] == answers[1] != ""


def test_the_command_works_elsewhere(python, tmp_path):
  command = python.with_name("blip3o")
  shown = run(command, "--help", cwd=tmp_path)
  for verb in cli.EXAMPLES:
    assert verb in shown
  assert run(command, "--version", cwd=tmp_path).split()[1] == blip3o_jax.__version__
  assert run(python, "-m", "blip3o_jax", "--help", cwd=tmp_path) == shown
  assert "--config.batch=512" in run(
    command, "train", "--config=blip3o_4b_sft", "--workdir=x", "--show", cwd=tmp_path
  )


def test_the_command_converts_and_plans_elsewhere(python, tmp_path):
  """What a checkout's tools do, without one: there, back, what it is, and the plan of a step."""
  command, tiny = python.with_name("blip3o"), ROOT / "tests" / "data" / "tiny-blip3o"
  run(command, "convert", "import", "--source", tiny, "--output", "orbax", cwd=tmp_path)
  run(command, "convert", "export", "--source", "orbax", "--output", "again", cwd=tmp_path)
  assert "released layout" in run(command, "inspect", "again", cwd=tmp_path)
  for file in tiny.glob("model*.safetensors"):
    ours, theirs = load_file(tmp_path / "again" / file.name), load_file(file)
    assert ours.keys() == theirs.keys()
  run(command, "verify", "--help", cwd=tmp_path)
  small = ROOT / "configs" / "shapes_objective_smoke.py"
  assert "a sample by formula" in run(
    command, "plan", f"--config={small}", "--topology=here", cwd=tmp_path
  )
