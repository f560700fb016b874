"""What a command settles before jax: programs kept in whatever a folder is, and no libtpu."""

from collections.abc import Callable
import gc
import os
from pathlib import Path
import subprocess
import sys
import time
from typing import Any

import pytest

from blip3o_jax import runtime

ROOT = Path(__file__).parents[2]
TINY = ROOT / "tests" / "data" / "tiny-blip3o"
# A process that keeps programs, compiles one and says whether it was kept before.
SMALL = """
import os, sys
from blip3o_jax import runtime
runtime.prepare()
import jax
events = []
jax.monitoring.register_event_listener(lambda name, **_: events.append(name.split("/")[-1]))
print(jax.jit(lambda x: x * 3 + 1)(2.0), events.count("cache_hits"), "libtpu" in sys.modules)
"""
FAKE = "from pathlib import Path\nPath(__file__).with_name('imported').touch()\nraise ImportError\n"

# A verb whose modules are imported, and whether garbage is looked for among them and in others.
VERB = """
import contextlib, gc
from blip3o_jax import cli
for _ in range(2):
  with contextlib.suppress(SystemExit):
    cli.main(["convert", "--help"])
  print(gc.get_freeze_count() > 100_000, gc.isenabled())
  gc.unfreeze()
"""


@pytest.fixture
def start(tmp_path) -> Callable[..., subprocess.Popen[str]]:
  """start(*command, **variables): a process whose cache folder is in tmp_path, with a libtpu."""
  (tmp_path / "site").mkdir()
  (tmp_path / "site" / "libtpu.py").write_text(FAKE)
  keep = ("JAX_", "TPU_", "XDG_", "XLA_")

  def run(*command: object, **variables: str) -> subprocess.Popen[str]:
    env = {k: v for k, v in os.environ.items() if not k.startswith(keep)}
    env["PYTHONPATH"] = f"{ROOT}:{tmp_path / 'site'}"
    env |= {"XDG_CACHE_HOME": str(tmp_path / "cache"), "XLA_FLAGS": os.environ["XLA_FLAGS"]}
    env |= {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"} | variables
    words = [sys.executable, *map(str, command)]
    pipe = subprocess.PIPE
    return subprocess.Popen(words, env=env, text=True, stdout=pipe, stderr=pipe, cwd=tmp_path)

  return run


@pytest.fixture
def small(start) -> Callable[..., tuple[int, str]]:
  """small(**variables): programs that were kept before, and stderr, of a process that ends well."""
  return lambda **variables: ended(start("-c", SMALL, **variables))


def ended(process: subprocess.Popen[str]) -> tuple[int, str]:
  out, err = process.communicate(timeout=120)
  assert process.returncode == 0, err
  value, hits, _ = out.split()
  assert value == "7.0"
  return int(hits), err


def kept(tmp_path: Path, kind: str = "cache") -> list[Path]:
  return sorted((tmp_path / "cache").rglob(f"*-{kind}"))


def test_a_program_is_compiled_once(small, tmp_path):
  """The folder is named once, is the user's alone, and what is damaged in it is made anew."""
  hits, said = small()
  (folder,) = {p.parent for p in kept(tmp_path)}
  assert folder.parent == tmp_path / "cache" / "blip3o_jax" / "programs"
  assert said == (
    f"compiled programs are kept in {folder}, at most 2 GiB; JAX_ENABLE_COMPILATION_CACHE=0 keeps "
    "none\n"
  )
  assert hits == 0
  assert folder.stat().st_mode & 0o077 == 0
  hits, said = small()
  assert (hits, said) == (len(kept(tmp_path)), "")
  whole = {p: p.read_bytes() for p in kept(tmp_path)}
  for path, data in whole.items():
    path.write_bytes(data[:40])
  hits, said = small()
  assert hits == 0
  assert "was compiled anew, reading it failed" in said
  assert "Warning" not in said
  # Killed between a program and its second file: JAX could not evict from there on.
  for path in kept(tmp_path, "atime"):
    path.unlink()
  for path in whole:
    path.write_bytes(b"half")
    os.utime(path, (time.time() - 100,) * 2)
  assert small() == (0, "")
  assert small() == (len(whole), "")


def test_several_at_once(start, tmp_path):
  for process in [start("-c", SMALL) for _ in range(2)]:
    _, said = ended(process)
    assert said == "" or said.startswith("compiled programs are kept in ")
  assert ended(start("-c", SMALL)) == (len(kept(tmp_path)), "")


def test_the_folder_is_bounded(small, tmp_path):
  small()
  first = kept(tmp_path)
  bound = sum(p.stat().st_size for p in first) * 3 // 2
  flags = "--xla_backend_optimization_level=2"  # another flag is another program
  small(XLA_FLAGS=flags, JAX_COMPILATION_CACHE_MAX_SIZE=str(bound))
  assert 0 < sum(p.stat().st_size for p in kept(tmp_path)) <= bound
  assert kept(tmp_path) != first


@pytest.mark.parametrize(
  ("home", "variables", "said"),
  [
    ("file", {}, "compiled programs are not kept: {here}/file/blip3o_jax"),
    ("read-only", {}, "compiled programs are not kept: {here}/read-only/blip3o_jax"),
    ("free", {"JAX_ENABLE_COMPILATION_CACHE": "false"}, ""),
    ("free", {"JAX_COMPILATION_CACHE_DIR": "/mine"}, ""),
  ],
)
def test_a_home_that_gets_no_folder(home, variables, said, start, tmp_path):
  """No error: the command goes on, and says in one line why it will compile."""
  (tmp_path / "file").write_text("")
  (tmp_path / "free").mkdir()
  (tmp_path / "read-only").mkdir(mode=0o500)
  if home == "read-only" and os.geteuid() == 0:
    pytest.skip("root writes everywhere")
  text = "import os; from blip3o_jax import runtime; runtime.prepare(); print(os.environ.get({!r}))"
  process = start(
    "-c", text.format("JAX_COMPILATION_CACHE_DIR"), XDG_CACHE_HOME=str(tmp_path / home), **variables
  )
  out, err = process.communicate(timeout=60)
  assert process.returncode == 0
  assert out.strip() == str(variables.get("JAX_COMPILATION_CACHE_DIR"))
  assert err.startswith(said.replace("{here}", str(tmp_path)))
  assert len(err.splitlines()) == bool(said)
  assert not list((tmp_path / "free").iterdir())


@pytest.mark.parametrize("folder", [{}, {"JAX_COMPILATION_CACHE_DIR": "/mine"}])
def test_the_threshold_is_ours_in_any_folder(folder, start):
  """Nothing that this small takes the second that JAX asks for."""
  name = "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"
  text = f"from blip3o_jax import runtime; runtime.prepare(); print(os.environ[{name!r}])"
  out, _ = start("-c", f"import os; del os.environ[{name!r}]; {text}", **folder).communicate()
  assert out == f"{runtime.SECONDS}\n"
  out, _ = start("-c", f"import os; {text}", **folder, **{name: "7"}).communicate()
  assert out == "7\n"


@pytest.mark.parametrize(
  ("environment", "folder"),
  [
    ({"XDG_CACHE_HOME": "/c"}, "/c/blip3o_jax/programs"),
    ({"XDG_CACHE_HOME": "not/absolute"}, "~/.cache/blip3o_jax/programs"),
    ({}, "~/.cache/blip3o_jax/programs"),
    ({"JAX_ENABLE_COMPILATION_CACHE": "true"}, "~/.cache/blip3o_jax/programs"),
    ({"JAX_ENABLE_COMPILATION_CACHE": "0"}, None),
    ({"JAX_ENABLE_COMPILATION_CACHE": "False"}, None),
    ({"JAX_COMPILATION_CACHE_DIR": "/mine"}, None),
    ({"JAX_COMPILATION_CACHE_DIR": ""}, None),
  ],
)
def test_where_programs_are_kept(environment, folder):
  found = runtime.folder_of_programs(environment)
  assert (found and str(found.parent)) == (folder and os.path.expanduser(folder))


@pytest.mark.parametrize(
  ("files", "environment", "may"),
  [
    ([], {}, False),
    (["accel0"], {}, True),
    (["vfio/0"], {}, True),
    (["vfio/vfio", "accel/accel0", "nvidia0", "null"], {}, False),
    ([], {"TPU_WORKER_ID": "0"}, True),
    ([], {"JAX_FORCE_TPU_INIT": "1"}, True),
    ([], {"TPU_NAME": ""}, False),
  ],
)
def test_where_a_tpu_may_be(files, environment, may, tmp_path):
  for name in files:
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).touch()
  assert runtime.may_have_tpu(environment, tmp_path) == may


@pytest.mark.parametrize(
  ("variables", "imported"),
  [({"JAX_PLATFORMS": ""}, False), ({"TPU_WORKER_ID": "0"}, True)],
)
def test_libtpu_is_left_alone_without_a_tpu(variables, imported, small, tmp_path):
  """Whoever names a platform gets what JAX makes of it; this machine has no TPU of its own."""
  if runtime.may_have_tpu({}):
    pytest.skip("a TPU may be here")
  small(**variables)
  assert (tmp_path / "site" / "imported").exists() == imported


def test_a_command_keeps_its_programs(start, tmp_path):
  """And prints nothing of libtpu; with --help it makes no folder."""
  chat: list[Any] = ["-m", "blip3o_jax", "chat", "what?", "--model", TINY, "--length", "2"]
  out, err = start(*chat, "--help").communicate(timeout=120)
  assert (out.split()[0], err) == ("usage:", "")
  process = start(*chat)
  out, err = process.communicate(timeout=120)
  assert process.returncode == 0, err
  lines = [line.split(" in ")[0] for line in err.splitlines()]
  assert lines == ["compiled programs are kept", f"loaded {TINY}"]
  assert any("more" in p.name for p in kept(tmp_path))
  assert not (tmp_path / "site" / "imported").exists()


def test_to_import_the_package_starts_no_backend():
  """Processes join before one is started: what they import must not ask for devices."""
  code = (
    "from blip3o_jax import cli, systems; from blip3o_jax.use import model; "
    "from blip3o_jax.train import loop; from jax._src import xla_bridge; "
    "assert not xla_bridge.backends_are_initialized()"
  )
  done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
  assert done.returncode == 0, done.stderr


def test_no_garbage_is_looked_for_among_the_modules_of_a_command(start):
  out, err = start("-c", VERB).communicate(timeout=120)
  said = [line for line in out.splitlines() if line.endswith(("True", "False"))]
  assert said == ["True True", "False True"], out + err
  before = gc.get_freeze_count()
  with runtime.uncollected():
    assert gc.isenabled()  # jax is imported here: its owner's collector stays as it is
  assert gc.get_freeze_count() == before
