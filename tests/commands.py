"""The tools of tools/, called in the process of a test: what they compile is kept."""

from collections.abc import Callable
from pathlib import Path
import runpy

TOOLS = Path(__file__).parents[1] / "tools"


def command(name: str) -> Callable[..., int]:
  """command(name)(*arguments): the exit status of tools/<name>.py."""
  main = runpy.run_path(str(TOOLS / f"{name}.py"))["main"]
  return lambda *arguments: main([str(a) for a in arguments])
