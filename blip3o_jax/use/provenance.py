"""Which code drew a picture: the commit of the package's checkout, where it lies in one."""

import functools
from pathlib import Path
import subprocess

_HOME = Path(__file__).parents[1]


@functools.cache
def commit() -> str:
  """The commit, 40 digits, with "-dirty" behind it where files differ; "" outside a checkout.

  An installed package that happens to lie below somebody's own checkout has none.
  """
  if not _git("ls-files", "--error-unmatch", "__init__.py"):
    return ""
  return _git("describe", "--always", "--abbrev=40", "--dirty", "--exclude=*")


def _git(*words: str) -> str:
  """What git says about the folder of the package; "" where it fails, or there is none."""
  try:
    done = subprocess.run(
      ["git", "-C", str(_HOME), *words], capture_output=True, text=True, timeout=30, check=False
    )
  except (OSError, subprocess.TimeoutExpired):
    return ""
  return done.stdout.strip() if done.returncode == 0 else ""
