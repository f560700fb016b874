"""README and docs: links lead somewhere, and each command in them is one that its parser takes."""

import argparse
from pathlib import Path
import re
import shlex
from typing import Any

import pytest

from blip3o_jax import cli
from blip3o_jax import config

ROOT = Path(__file__).parents[2]
PAGES = (ROOT / "README.md", ROOT / "launch" / "README.md", *sorted((ROOT / "docs").glob("*.md")))
LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")


def anchors(page: Path) -> set[str]:
  """The anchors of a page's headings, as they are made of their words."""
  lines = re.sub(r"```.*?```", "", page.read_text(), flags=re.S).splitlines()
  heads = [line.lstrip("#").strip() for line in lines if re.match(r"#{1,6} ", line)]
  plain = [re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", head).lower() for head in heads]
  return {re.sub(r"[^\w\- ]", "", head).replace(" ", "-") for head in plain}


def test_links_lead_somewhere():
  faults, count = [], 0
  for page in PAGES:
    for target in LINK.findall(page.read_text()):
      if re.match(r"[a-z]+:", target):
        continue
      count += 1
      name, _, anchor = target.partition("#")
      file = (page.parent / name).resolve() if name else page
      if not file.exists():
        faults.append(f"{page.name}: {target}: no such file")
      elif anchor and anchor not in anchors(file):
        faults.append(f"{page.name}: {target}: no such heading")
  assert count > 30, "the walk saw no links"
  assert not faults, "\n".join(faults)


def commands() -> list[tuple[str, str]]:
  """(page, command) of all lines of code that begin with the command, joined where they go on."""
  found = []
  for page in PAGES:
    text = re.sub(r"\\\n\s*", " ", page.read_text())
    for line in re.findall(r"^(?: {4,}|\$ )?(?:[A-Z_]+=\S+ )*blip3o ([a-z].*)$", text, flags=re.M):
      found.append((page.name, re.sub(r"\s+#.*$", "", line).strip()))
  return list(dict.fromkeys(found))


class Parsed(Exception):
  """A parser took what it was given."""


@pytest.fixture
def parse_only(monkeypatch):
  """Commands end when their last parser has taken all."""
  whole = argparse.ArgumentParser.parse_args

  def parse(self: argparse.ArgumentParser, *args: Any) -> argparse.Namespace:
    whole(self, *args)
    raise Parsed

  monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parse)

  def load(spec: str, overrides: Any = (), named: Any = ()) -> Any:
    raise Parsed

  monkeypatch.setattr(config, "load", load)


@pytest.mark.parametrize(("page", "line"), commands())
def test_a_command_is_one_that_its_parser_takes(page, line, parse_only, monkeypatch):
  words = shlex.split(re.sub(r"[\[\]]", "", line).replace("...", "x"))
  words = words[: next((i for i, w in enumerate(words) if w in (">", "|", "&&", "&")), None)]
  monkeypatch.setenv("BLIP3O_TRACEBACK", "1")
  # Where the rest of a line may be overrides, what follows parsing looks for the data first.
  with pytest.raises((Parsed, FileNotFoundError)):
    cli.main(words)


def test_there_are_commands():
  assert len(commands()) > 40
