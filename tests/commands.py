"""The tools of tools/, called in the process of a test: what they compile is kept."""

from collections.abc import Callable
import importlib.util
from pathlib import Path

TOOLS = Path(__file__).parents[1] / "tools"


def command(name: str) -> Callable[..., int]:
  """command(name)(*arguments): the exit status of tools/<name>.py."""
  spec = importlib.util.spec_from_file_location(f"tool_{name}", TOOLS / f"{name}.py")
  assert spec is not None
  assert spec.loader is not None
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return lambda *arguments: module.main([str(a) for a in arguments])
