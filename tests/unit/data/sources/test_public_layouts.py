"""The layouts of public sets, each from its files to records; see `layouts`."""

import io

from layouts import ALL
from PIL import Image
import pytest

from blip3o_jax.data import sources
from blip3o_jax.data.sources.reading import Reading


@pytest.mark.parametrize("name", ALL)
def test_a_public_set(tmp_path, name):
  path, reading, expected = ALL[name](tmp_path)
  source = sources.opened(str(path), Reading(**reading))
  records = [source[i] for i in range(len(source))]
  assert [(record.prompt, len(record.inputs)) for record in records] == expected
  words = [source.words(i) for i in range(len(source))]
  assert [w.prompt for w in words] == [p for p, _ in expected]
  assert [w.extra["inputs"] for w in words] == [len(r.inputs) for r in records]
  assert [w.extra["pictures"] for w in words] == [len(r.inputs) + 1 for r in records]
  for record in records:
    for data in (record.image, *record.inputs):
      assert Image.open(io.BytesIO(data)).size[0] in (24, 40)
  assert len({record.name for record in records}) == len(records)
  assert source.hashes(0, len(source)).shape == (len(source),)
