"""The report is one page that needs nothing else."""

import re

import numpy as np

from blip3o_jax.evaluate import page as pages
from blip3o_jax.evaluate import shapes as scorer


def test_the_page_is_self_contained():
  image = np.full((4, 4, 3), 200, np.uint8)
  rows = [{"question": "how many <b>?", "answer": "2", "wanted": "2"}]
  page = pages.page(
    "a & b",
    [
      ("Drawings", pages.figures([image], ["a <circle>"], ["yes"])),
      ("Rates", pages.rates_table({"": {"single": scorer.rate(3, 4)}})),
      ("Losses", pages.curve([(1, 2.0), (2, 1.0)], "loss")),
      ("Dialogues", pages.dialogue(rows, [image])),
    ],
  )
  assert not re.findall(r"https?:|//|<script|<link|@import|url\(", page)
  assert set(re.findall(r'src="([a-z]+:[a-z]+/[a-z]+)', page)) == {"data:image/png"}
  assert "a &lt;circle&gt;" in page
  assert "how many &lt;b&gt;?" in page
  assert "a &amp; b" in page
  assert "0.75" in page


def test_rates_of_two_models_stand_side_by_side():
  groups = {"new": {"a": scorer.rate(3, 4), "b": scorer.rate(1, 4)}}
  groups["shipped"] = {"a": scorer.rate(2, 4)}
  rows = re.findall(r"<tr>(.*?)</tr>", pages.rates_table(groups))
  cells = [re.findall(r"<t[dh]>(.*?)</t[dh]>", row) for row in rows]
  assert [len(row) for row in cells] == [7, 7, 7]
  assert cells[0][1::3] == ["new right", "shipped right"]
  assert (cells[1][0], *cells[1][1::3]) == ("a", "0.75", "0.50")
  assert (cells[2][0], *cells[2][1::3]) == ("b", "0.25", "")


def test_a_sheet_shows_pictures_over_captions():
  images = [np.full((8, 8, 3), value, np.uint8) for value in (10, 20, 30)]
  found = np.asarray(pages.sheet(images, ["a circle", "two", "x " * 40], ["yes", "no", ""], 2))
  assert found.shape == (2 * (16 + 52) + 10, 2 * 26 + 10, 3)
  assert [int(found[y, x, 0]) for y, x in ((12, 12), (12, 38), (80, 12))] == [10, 20, 30]
  assert (found[26:70, 10:30] == (0, 119, 0)).all(-1).any()  # green words below the first


def test_a_curve_of_one_point_is_nothing():
  assert pages.curve([(1, 2.0)], "loss") == ""
  assert "<polyline" in pages.curve([(1, 2.0), (5, 2.0)], "flat")


def test_a_rate_has_its_interval():
  found = scorer.rate(50, 100)
  assert found["rate"] == 0.5
  assert 0.39 < found["low"] < 0.41
  assert 0.59 < found["high"] < 0.61
