"""What a start writes: packages, devices, the commit of the checkout."""

import json
import os
import shutil
import subprocess
import sys

from etils import epath
import jax

import blip3o_jax
from blip3o_jax.train import distributed
from blip3o_jax.train import starts


def test_facts_and_a_line_a_start(tmp_path):
  found = starts.facts(distributed.make_mesh(distributed.Mesh(fsdp=1)))
  assert found["version"] == blip3o_jax.__version__
  assert found["packages"]["jax"] == jax.__version__
  assert found["devices"] == {jax.devices()[0].device_kind: 1}
  assert found["mesh"]["fsdp"] == 1
  for step in (0, 7):
    starts.write(epath.Path(tmp_path), step, found, {"train": {"steps": 3}})
  lines = [json.loads(x) for x in (tmp_path / starts.NAME).read_text().splitlines()]
  assert [line["step"] for line in lines] == [0, 7]
  assert lines[1]["config"] == {"train": {"steps": 3}}
  assert lines[1]["pid"] == os.getpid()


def test_the_commit_of_a_checkout_and_of_none(tmp_path):
  """A package that lies in somebody's repository is not told that one's commit."""
  git = ["git", "-c", "user.name=a", "-c", "user.email=a@b", "-C", str(tmp_path)]
  made = tmp_path / "blip3o_jax"
  (made / "train").mkdir(parents=True)
  (made / "__init__.py").write_text('__version__ = "0"\n')
  (made / "train" / "__init__.py").write_text("")
  shutil.copy(starts.__file__, made / "train")

  def said(root) -> str:
    code = "from blip3o_jax.train import starts; print(starts.commit())"
    env = os.environ | {"PYTHONPATH": str(root)}
    command = [sys.executable, "-c", code]
    out = subprocess.run(command, env=env, cwd=root, stdout=subprocess.PIPE, check=True)
    return out.stdout.decode().strip()

  assert said(tmp_path) == ""
  subprocess.run([*git, "init", "-q"], check=True)
  subprocess.run([*git, "add", "."], check=True)
  subprocess.run([*git, "commit", "-qm", "x"], check=True)
  head = subprocess.run([*git, "rev-parse", "HEAD"], check=True, stdout=subprocess.PIPE)
  assert said(tmp_path) == head.stdout.decode().strip()
  (made / "__init__.py").write_text('__version__ = "1"\n')
  assert said(tmp_path) == head.stdout.decode().strip() + "-dirty"
  (tmp_path / "site").mkdir()
  made.rename(tmp_path / "site" / "blip3o_jax")
  assert said(tmp_path / "site") == ""
