"""README and docs: links lead somewhere, and each command in them is one that its parser takes."""

import argparse
from pathlib import Path
import re
from typing import Any

import documented
from documented import PAGES
import pytest

from blip3o_jax import cli
from blip3o_jax import config

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


def pages() -> list[tuple[str, str]]:
  """(page, command) of all pages."""
  return [(page.name, line) for page in PAGES for line in documented.commands(page.read_text())]


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


@pytest.mark.parametrize(("page", "line"), pages())
def test_a_command_is_one_that_its_parser_takes(page, line, parse_only, monkeypatch):
  monkeypatch.setenv("BLIP3O_TRACEBACK", "1")
  # Where the rest of a line may be overrides, what follows parsing looks for the data first.
  with pytest.raises((Parsed, FileNotFoundError)):
    cli.main(documented.words(line))


def test_there_are_commands():
  assert len(pages()) > 40
