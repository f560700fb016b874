"""What `checking` found, as a table of text and as one HTML page."""

import base64
from collections.abc import Mapping
from collections.abc import Sequence
import html
from typing import Any

from blip3o_jax.data.checking import Shown
from blip3o_jax.data.index import printable

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 70em; margin: 2em auto; padding: 0 1em; }
table { border-collapse: collapse; } td { padding: .2em .8em; vertical-align: top; }
tr:nth-child(even) { background: #f3f3f3; } figure { display: inline-block; margin: .3em;
width: 11em; vertical-align: top; } figcaption { font-size: 12px; line-height: 1.25;
overflow-wrap: anywhere; } code { color: #666; }
"""
CAPTION = 70  # letters of a caption in the table
ON_PAGE = 300
Facts = Mapping[str, Any]


def lines(facts: Facts) -> list[str]:
  """A set as lines of text; `facts` are of `checking.check`, with `name`."""
  out = [heading(facts)]
  before = ""
  for name, text in _rows(facts):
    out.append(f"  {'' if name == before else name:<12} {text}")
    before = name
  return out


def heading(facts: Facts) -> str:
  """The set in a line."""
  files = len(facts["parts"])
  of = f" in {files:,} files" if files > 1 else ""
  return f"{printable(facts['name'])}: {facts['layout']}, {facts['records']:,} records{of}"


def page(sets: Sequence[tuple[Facts, Sequence[Shown]]]) -> str:
  """One HTML page, in ASCII: a section a set, with its table and its first pictures."""
  body = "".join(
    f"<h2>{html.escape(heading(facts))}</h2>{_table(facts)}<h3>The first</h3>"
    + "".join(map(_figure, shown))
    for facts, shown in sets
  )
  title = f"{sum(facts['records'] for facts, _ in sets):,} records"
  text = (
    f"<!doctype html><meta charset='utf-8'><title>{title}</title><style>{STYLE}</style>"
    f"<h1>{title}</h1>{body}"
  )
  return text.encode("ascii", "xmlcharrefreplace").decode()  # lone surrogates too


def _table(facts: Facts) -> str:
  rows = "".join(
    f"<tr><td>{html.escape(name)}</td><td>{html.escape(text)}</td></tr>"
    for name, text in _rows(facts)
  )
  return f"<table>{rows}</table>"


def _figure(shown: Shown) -> str:
  image = ""
  if shown.picture is not None:
    data = base64.b64encode(shown.picture).decode()
    image = f'<img src="data:image/jpeg;base64,{data}" alt="">'
  said = html.escape(_short(shown.caption, ON_PAGE))
  name = html.escape(printable(shown.id))
  return f"<figure>{image}<figcaption>{said}<br><code>{name}</code></figcaption></figure>"


def _rows(facts: Facts) -> list[tuple[str, str]]:
  """(what it is about, what is to be said of it), several of one thing one after another."""
  out = [("licence", facts["licence"])] if "licence" in facts else []
  out += [("pictures", text) for text in _pictures(facts["pictures"])]
  out += [("captions", text) for text in _captions(facts["captions"])]
  out += [("buckets", text) for text in _buckets(facts["buckets"])]
  out += [("duplicates", _copies(of, what)) for what, of in facts["duplicates"].items()]
  if "used" in facts:
    used = facts["used"]
    out.append(("used", f"{used['records']:,} records are of the split {used['split']!r}"))
  for name, of in (("damaged", facts["damaged"]), ("left out", facts["left_out"])):
    counted = [
      f"{each['count']:,} {each.get('what', what)}{_example(each)}" for what, each in of.items()
    ]
    out += [(name, text) for text in counted or ["nothing"]]
  out += [
    ("noted", f"{each['count']:,} {what}{_example(each)}") for what, each in facts["noted"].items()
  ]
  out += [("files", f"{file}: {what}") for file, what in facts["damaged_files"].items()]
  for each in facts["first"]:
    size = f"{each['width']} x {each['height']}" if each["width"] else "no picture"
    said = f"{printable(each['id'])}, {size}: {_short(each['caption'], CAPTION)}"
    out.append(("first", said))
  return out


def _example(each: Facts) -> str:
  return f", the first {printable(each['first'])}" if each["first"] else ""


def _pictures(facts: Facts) -> list[str]:
  looked = f"{facts['looked_at']:,} records looked at"
  inputs = f", {facts['inputs']:,} of them inputs" if facts["inputs"] else ""
  out = [f"{facts['pictures']:,} in {looked}{inputs}"]
  if facts["pictures"]:
    out += [f"{side} {_range(facts['sizes'][side])}" for side in ("width", "height")]
    most = facts["sizes"]["most"][:3]
    shown = ", ".join(f"{x['width']} x {x['height']} ({x['count']:,})" for x in most)
    out.append(f"the most frequent sizes {shown}")
    out.append(f"modes {_counts(facts['modes'])}; formats {_counts(facts['formats'])}")
  if facts["features"]:
    out.append(f"cached features {_counts(facts['features'])}")
  return out


def _captions(facts: Facts) -> list[str]:
  out = []
  for unit in ("tokens", "words", "bytes"):
    if facts.get(unit):
      around = ", with the prompt around them" if facts.get("template") else ""
      out.append(f"{unit} {_range(facts[unit])}{around}")
  if facts.get("words"):
    out.append("no tokenizer was named; --tokenizer DIR counts tokens")
  return [*out, f"{facts['empty']:,} of {facts['of']:,} are empty"]


def _buckets(facts: Facts | None) -> list[str]:
  if facts is None:
    return ["none: there is no text"]
  out = []
  for name in ("current", "best"):
    each = facts[name]
    cut = f", {each['cut']:,} rows are cut" if each.get("cut") else ""
    shown = ", ".join(map(str, each["buckets"]))
    out.append(f"{name} {shown} ({facts['unit']}): {100 * each['padding']:.1f} % padding{cut}")
  return out


def _copies(facts: Facts, what: str) -> str:
  text = f"{facts['copies']:,} of {facts['of']:,} {what} repeat another"
  if most := facts.get("most_frequent"):
    names = ", ".join(map(printable, most["records"]))
    said = f" {_short(most['caption'], CAPTION)}" if "caption" in most else ""
    text += f"; {most['count']:,} times{said} ({names})"
  return text


def _counts(counts: Mapping[str, int]) -> str:
  return ", ".join(f"{name} {count:,}" for name, count in counts.items())


def _range(facts: Facts) -> str:
  return (
    f"{facts['least']:,} to {facts['most']:,}, half up to {facts['half']:,}, 95 % up to "
    f"{facts['95 %']:,}, mean {facts['mean']:,.1f}"
  )


def _short(text: str, most: int) -> str:
  text = printable(" ".join(text.split()))
  return repr(text if len(text) <= most else f"{text[:most]}...")
