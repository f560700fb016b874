"""The commands of README and docs, as they stand there."""

import os
from pathlib import Path
import re
import shlex
import signal
import subprocess
import sys
import time
import urllib.request

ROOT = Path(__file__).parents[1]
PAGES = (ROOT / "README.md", ROOT / "launch" / "README.md", *sorted((ROOT / "docs").glob("*.md")))
_COMMAND = re.compile(r"^(?: {4,}|\$ )?(?:[A-Z_]+=\S+ )*blip3o ([a-z].*)$", re.M)


def commands(text: str) -> list[str]:
  """Each line of code that begins with the command, joined where it goes on, without comments."""
  found = _COMMAND.findall(re.sub(r"\\\n\s*", " ", text))
  return list(dict.fromkeys(re.sub(r"\s+#.*$", "", line).strip() for line in found))


def words(line: str) -> list[str]:
  """What a shell gives to the command: up to a pipe; what is in brackets is taken."""
  found = shlex.split(re.sub(r"[\[\]]", "", line).replace("...", "x"))
  return found[: next((i for i, w in enumerate(found) if w in (">", "|", "&&", "&")), None)]


def serve(line: list[str], folder: Path) -> None:
  """Starts a server as a person does: it comes up, gives the page, and leaves when told to."""
  port = str(48_000 + os.getpid() % 1000)  # which nobody else uses
  if "--port" in line:
    line = [port if word == "8000" else word for word in line]
  else:
    line = [*line, "--port", port]
  environment = os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
  command = [sys.executable, "-m", "blip3o_jax.cli", *line]
  ready, page = 0, b""
  with subprocess.Popen(command, cwd=folder, env=environment) as process:
    try:
      for _ in range(240):
        try:
          ready = urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=5).status
        except OSError:
          time.sleep(0.5)
          continue
        break
      page = urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=5).read()
      process.send_signal(signal.SIGTERM)
      assert process.wait(timeout=60) == 0
    finally:
      process.kill()
  assert ready == 200
  assert b"<html" in page.lower()
