"""One self-contained HTML page, or one picture, from numbers and pictures. Knows no model."""

import base64
from collections.abc import Mapping
from collections.abc import Sequence
import html
import io
import textwrap
from typing import Any

import numpy as np
from PIL import Image
from PIL import ImageDraw
from PIL import ImageFont

COLORS = {"yes": (0, 119, 0), "no": (170, 0, 0), "": (0, 0, 0)}
STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 60em; margin: 2em auto; padding: 0 1em; }
table { border-collapse: collapse; } td, th { padding: .2em .8em; text-align: left; }
tr:nth-child(even) { background: #f3f3f3; } figure { display: inline-block; margin: .3em;
width: 8.5em; vertical-align: top; } figure img { width: 128px; image-rendering: pixelated; }
figcaption { font-size: 12px; line-height: 1.25; } .no { color: #a00; } .yes { color: #070; }
svg { background: #fafafa; margin-right: 1em; }
"""


def image_tag(image: np.ndarray) -> str:
  """uint8[h, w, 3] as an <img> with its data inside."""
  buffer = io.BytesIO()
  Image.fromarray(image).save(buffer, "PNG")
  data = base64.b64encode(buffer.getvalue()).decode()
  return f'<img src="data:image/png;base64,{data}" alt="">'


def figures(images: Sequence[np.ndarray], captions: Sequence[str], marks: Sequence[str]) -> str:
  """Pictures with captions; a mark is a CSS class, "yes", "no" or ""."""
  return "".join(
    f'<figure>{image_tag(i)}<figcaption class="{m}">{html.escape(c)}</figcaption></figure>'
    for i, c, m in zip(images, captions, marks, strict=True)
  )


def sheet(
  images: Sequence[np.ndarray], captions: Sequence[str], marks: Sequence[str], columns: int
) -> Image.Image:
  """Pictures uint8[h, w, 3] in rows, each at twice its size over its caption, as one picture.

  A mark is "yes" (green), "no" (red) or "". Of a caption the first three lines are shown.
  """
  side, gap, text = 2 * max(image.shape[1] for image in images), 10, 52
  rows = -(-len(images) // columns)
  out = Image.new("RGB", (columns * (side + gap) + gap, rows * (side + text) + gap), "white")
  draw, font = ImageDraw.Draw(out), ImageFont.load_default(11)
  for i, (image, caption, mark) in enumerate(zip(images, captions, marks, strict=True)):
    x, y = gap + i % columns * (side + gap), gap + i // columns * (side + text)
    big = Image.fromarray(image).resize((side, side), Image.Resampling.NEAREST)
    out.paste(big, (x, y))
    lines = textwrap.wrap(caption, side // 6)[:3]
    draw.multiline_text((x, y + side + 3), "\n".join(lines), COLORS[mark], font, spacing=1)
  return out


def rates_table(groups: Mapping[str, Mapping[str, Mapping[str, float]]]) -> str:
  """A table of shares with their 95 % intervals.

  Args:
    groups: {heading: {row: rate}}; several groups of the same rows stand side by side.
  """
  heads = "".join(
    f"<th>{html.escape(f'{name} right'.strip())}</th><th>95 %</th><th>of</th>" for name in groups
  )
  rows = {row: None for group in groups.values() for row in group}
  body = "".join(
    f"<tr><td>{html.escape(row)}</td>"
    + "".join(_cells(group[row]) if row in group else "<td></td>" * 3 for group in groups.values())
    + "</tr>"
    for row in rows
  )
  return f"<table><tr><th></th>{heads}</tr>{body}</table>"


def _cells(rate: Mapping[str, float]) -> str:
  return (
    f"<td>{rate['rate']:.2f}</td><td>{rate['low']:.2f} to {rate['high']:.2f}</td>"
    f"<td>{rate['count']:.0f}</td>"
  )


def curve(points: Sequence[tuple[int, float]], title: str) -> str:
  """A line of (step, value) as an inline picture; values are scaled to what occurs."""
  if len(points) < 2:
    return ""
  x, y = np.asarray(points, float).T
  low, high = float(y.min()), float(y.max())
  across = 10 + 260 * (x - x.min()) / max(float(np.ptp(x)), 1e-9)
  down = 130 - 110 * (y - low) / max(high - low, 1e-9)
  path = " ".join(f"{a:.1f},{b:.1f}" for a, b in zip(across, down, strict=True))
  return (
    f'<svg width="280" height="150"><polyline points="{path}" fill="none" stroke="#246"/>'
    f'<text x="10" y="14" font-size="12">{html.escape(title)}</text>'
    f'<text x="10" y="147" font-size="11">{low:.3g} to {high:.3g}, {x.max():.0f} steps</text>'
    "</svg>"
  )


def page(title: str, sections: Sequence[tuple[str, str]]) -> str:
  """The page: (heading, HTML) sections under a title."""
  body = "".join(f"<h2>{html.escape(head)}</h2>{text}" for head, text in sections)
  return (
    f"<!doctype html><meta charset='utf-8'><title>{html.escape(title)}</title>"
    f"<style>{STYLE}</style><h1>{html.escape(title)}</h1>{body}"
  )


def dialogue(rows: Sequence[Mapping[str, Any]], images: Sequence[np.ndarray]) -> str:
  """Pictures with question and answer below, marked by whether the answer is the wanted one."""
  captions = [f"{r['question']} {r['answer'] or '(nothing)'}" for r in rows]
  marks = ["yes" if r["answer"] == r["wanted"] else "no" for r in rows]
  return figures(images, captions, marks)
