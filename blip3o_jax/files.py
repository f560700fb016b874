"""Text files that are whole or not there."""

from pathlib import Path


def write_text(path: Path, text: str) -> None:
  """Writes a file under another name beside it and renames it: a crash leaves the earlier one."""
  partial = path.with_name(f".{path.name}.partial")
  partial.write_text(text)
  partial.replace(path)
