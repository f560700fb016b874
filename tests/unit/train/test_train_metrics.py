"""Reduction of metrics, the lines that survive a resume, grids."""

import asyncio
import errno
import gc
import json
import os
import sys
import time
import types

import jax.numpy as jnp
import numpy as np
from PIL import Image
import pytest

from blip3o_jax.train import metrics


def _bins(*rows):
  return [
    {
      "loss": jnp.float32(a),
      "lr": jnp.float32(a),
      "t/sum": jnp.asarray(s),
      "t/count": jnp.asarray(c),
    }
    for a, s, c in rows
  ]


def test_bins_are_divided_once_over_the_interval():
  found = metrics.reduce(_bins((1.0, [2.0, 0.0], [1.0, 0.0]), (3.0, [4.0, 0.0], [5.0, 0.0])))
  assert found["loss"] == 2.0
  assert found["lr"] == 3.0
  assert found["t"][0] == 1.0
  assert np.isnan(found["t"][1])
  assert set(found) == {"loss", "lr", "t"}


def test_lines_after_the_resumed_step_are_dropped(tmp_path):
  with metrics.Writer(tmp_path, 0, 10, tensorboard=False) as writer:
    for step in (2, 4, 6):
      writer.scalars(step, {"loss": float(step), "t": [1.0, float("nan")]})
  with (tmp_path / "metrics.jsonl").open("a") as file:
    file.write('{"step": 7, "lo')  # a process that died while writing
  with metrics.Writer(tmp_path, 4, 10, tensorboard=False) as writer:
    writer.scalars(5, {"loss": float("inf")})
  lines = [json.loads(x) for x in (tmp_path / "metrics.jsonl").read_text().splitlines()]
  assert [x["step"] for x in lines] == [2, 4, 5]
  assert abs(lines[0].pop("time") - time.time()) < 600
  assert lines[0] == {"step": 2, "loss": 2.0, "t": [1.0, None]}
  assert lines[2]["loss"] is None


def test_pictures(tmp_path):
  images = np.arange(3 * 4 * 5 * 3, dtype=np.uint8).reshape(3, 4, 5, 3)
  with metrics.Writer(tmp_path, 0, 10) as writer:
    writer.images(7, "samples", images)
    with pytest.raises(ValueError, match=r"expected uint8\[n, H, W, 3\], got float64"):
      writer.images(7, "samples", images / 2)
  with Image.open(tmp_path / "samples" / "step_00000007.png") as picture:
    found = np.asarray(picture)
  assert found.shape == (4 * 2 + 2, 5 * 2 + 2, 3)
  np.testing.assert_array_equal(found[6:, :5], images[2])
  assert list((tmp_path / "tensorboard").iterdir())


def test_due():
  assert [s for s in range(1, 8) if metrics.due(s, 3, 7)] == [3, 6, 7]
  assert not any(metrics.due(s, 0, 7) for s in range(1, 8))


def test_progress_bar_on_a_terminal(tmp_path, monkeypatch, capsys):
  monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
  with metrics.Writer(tmp_path, 2, 10, tensorboard=False) as writer:
    writer.advance(5)
    writer.scalars(5, {"loss": 0.25})
  assert "5/10" in capsys.readouterr().err


@pytest.mark.parametrize(
  ("kind", "share"), [("TPU v5", 0.5), ("TPU v5 lite", 459 / 197 / 2), ("cpu", None)]
)
def test_the_share_of_the_peak_is_of_chips_that_are_known(kind, share):
  """MFU by hand: 4 devices, 459e12 operations a second each at 0.5 of v5p's peak."""
  devices = [types.SimpleNamespace(device_kind=kind, id=i, coords=(i, 0, 0)) for i in range(4)]
  found = metrics.rates(64, 4 * 0.5 * 459e12 * 8, 8.0, devices)
  assert found["images_per_second"] == 8
  assert found["samples_per_second_per_device"] == 2
  assert found["model_tflops_per_second_per_device"] == pytest.approx(459 / 2)
  assert found.get("mfu") == (share and pytest.approx(share))
  assert set(metrics.rates(64, 0.0, 8.0, devices)) == {
    "images_per_second",
    "samples_per_second_per_device",
  }


@pytest.mark.parametrize(("number", "heard"), [(errno.EFBIG, False), (errno.EBADF, True)])
def test_a_write_that_nobody_waits_for_is_heard_unless_the_disk_is_full(caplog, number, heard):
  """As the checkpoint library leaves it: of two writes in threads the first to fail is raised."""

  def fail() -> None:
    raise OSError(number, os.strerror(number))

  async def both() -> None:
    late = asyncio.ensure_future(asyncio.to_thread(fail))
    await asyncio.wait([late])

  with metrics.without_chatter():
    asyncio.run(both())
    gc.collect()
  assert ("exception was never retrieved" in caplog.text) == heard
