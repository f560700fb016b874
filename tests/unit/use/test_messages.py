"""Conversations in the form of transformers and of OpenAI: what is read, and what is refused."""

import base64
import io

import numpy as np
from PIL import Image
import pytest

from blip3o_jax.systems.parts.talking import Message
from blip3o_jax.use import messages
from blip3o_jax.use.picture import Picture

RED = np.full((4, 6, 3), (200, 30, 40), np.uint8)


def link(image=None, kind="PNG", head="data:image/png;base64,"):
  out = io.BytesIO()
  (image or Image.fromarray(RED)).save(out, kind)
  return head + base64.b64encode(out.getvalue()).decode()


def user(*parts):
  return {"role": "user", "content": list(parts)}


def text(value):
  return {"type": "text", "text": value}


def shown(value):
  return {"type": "image", "image": value}


def plain(found):
  """Messages with pictures as sizes."""
  return [Message(m.role, m.texts, [np.asarray(p).shape[:2] for p in m.pictures]) for m in found]


def test_texts_and_pictures_where_they_stand():
  found = messages.read(
    [
      {"role": "system", "content": [text("Be "), text("brief.")], "name": None},
      user(text("Look "), shown(RED), text("and "), text("here: "), shown(RED)),
      {"role": "assistant", "content": "Red.", "refusal": None, "tool_calls": []},
      user(shown(RED), shown(RED), text("so"), text("?")),
      {"role": "assistant", "content": [text("See: "), shown(RED)]},
      user(shown(RED)),
      {"role": "user", "content": "And <image>?", "name": "me"},
    ]
  )
  side = (4, 6)
  assert plain(found) == [
    Message("system", ["Be brief."], []),
    Message("user", ["Look ", "and here: ", ""], [side, side]),
    Message("assistant", ["Red."], []),
    Message("user", ["so?"], [side, side]),  # before it, as the model was trained
    Message("assistant", ["See: ", ""], [side]),
    Message("user", ["", ""], [side]),
    Message("user", ["And <image>?"], []),
  ]
  assert messages.read(found) == found


def test_one_conversation_or_several():
  one = [{"role": "user", "content": "hi"}]
  assert not messages.are_several(one)
  assert messages.are_several([one, one])
  assert messages.are_several((one,))
  assert not messages.are_several([])
  assert not messages.are_several("hi")
  assert not messages.are_several(messages.read(one))
  assert messages.are_several([messages.read(one)])


def test_pictures_of_every_kind(tmp_path):
  path = tmp_path / "red.png"
  Image.fromarray(RED).save(path)
  values = [
    shown(RED),
    shown(Image.fromarray(RED)),
    shown(Image.fromarray(RED).convert("RGBA")),
    shown(path),
    shown(str(path)),
    shown(Picture(RED, "", 0, {})),
    shown(link()),
    {"type": "image", "path": str(path)},
    {"type": "image", "url": link()},
    {"type": "image_url", "image_url": {"url": link(), "detail": "low"}},
    {"type": "image_url", "image_url": link(head="DATA:image/x;name=a;Base64,")},
  ]
  (found,) = messages.read([user(*values, text("what?"))])
  assert len(found.pictures) == len(values)
  for picture in found.pictures:
    assert isinstance(picture, Image.Image)
    np.testing.assert_array_equal(np.asarray(picture), RED)
  for kind in ("JPEG", "WEBP", "GIF"):
    (found,) = messages.read([user(shown(link(kind=kind)))])
    assert found.pictures[0].size == (6, 4)


def test_no_file_is_opened_where_none_may_be(tmp_path):
  path = tmp_path / "red.png"
  Image.fromarray(RED).save(path)
  for value in (str(path), path, "../red.png", "/etc/passwd"):
    with pytest.raises(ValueError, match=r"messages\[0\]\.content\[0\]\.image: no file is opened"):
      messages.read([user(shown(value))], paths=False)
  assert messages.read([user(shown(link()))], paths=False)
  with pytest.raises(FileNotFoundError, match=r"content\[0\]\.image: 'absent.png': no such image"):
    messages.read([user(shown("absent.png"))])
  (tmp_path / "bad.png").write_bytes(b"no picture")
  with pytest.raises(ValueError, match=r"content\[0\]\.image: .*bad\.png: the image cannot be dec"):
    messages.read([user(shown(tmp_path / "bad.png"))])


def test_bombs(monkeypatch):
  """Refused by their header, before a pixel is decoded."""
  bomb = link(Image.new("1", (5000, 4000)))
  assert len(bomb) < 10_000
  opened = []
  load = Image.Image.load
  monkeypatch.setattr(Image.Image, "load", lambda self: opened.append(1) or load(self))
  for pixels in (1000, 5000 * 4000 - 1):
    with pytest.raises(ValueError, match=rf"5000 x 4000 has more than {pixels} pixels"):
      messages.read([user(shown(bomb))], pixels=pixels)
  assert not opened
  monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
  with pytest.raises(ValueError, match=r"content\[0\]\.image: Image size \(20000000 pixels\) exc"):
    messages.read([user(shown(bomb))])
  with pytest.raises(ValueError, match=r"content\[0\]\.image: the picture's file has more than 60"):
    messages.read([user(shown(link()))], size=60)


def web(url):
  return [user({"type": "image_url", "image_url": {"url": url}})]


GREY = Image.new("RGB", (2, 2))
AT = "messages[0].content[0]"
WRONG = [
  ("hi", "messages: expected a list of messages with role and content, got str"),
  (None, "messages: expected a list of messages with role and content, got NoneType"),
  ({"role": "user"}, "messages: expected a list of messages with role and content, got dict"),
  ([], "messages: expected at least one message"),
  (["hi"], "messages[0]: expected an object, got 'hi'"),
  (
    [{"role": "user", "content": "a"}, Message("user", ["b"], [])],
    "[1]: expected an object, got M",
  ),
  ([{"content": "a"}], "messages[0].role is absent"),
  ([{"role": None, "content": "a"}], "messages[0].role is absent"),
  ([{"role": "user"}], "messages[0].content is absent"),
  ([{"role": "user", "content": None}], "messages[0].content is absent"),
  ([{"role": "tool", "content": "a"}], "messages[0].role: expected one of system, user, assistant"),
  ([{"role": ["user"], "content": "a"}], "messages[0].role: expected one of system"),
  ([{"role": "user", "content": 5}], "messages[0].content: expected a text or a list of parts, go"),
  ([{"role": "user", "content": b"a"}], "messages[0].content: expected a text or a list of parts"),
  ([{"role": "user", "content": []}], "messages[0].content: expected a text or a list of parts"),
  ([{"role": "user", "content": " \n"}], "messages[0].content is empty; say what is wanted"),
  ([user(text(""))], "messages[0].content is empty"),
  ([{"role": "user", "content": "a\ud800"}], "messages[0].content: no text of Unicode"),
  ([user(text("a\ud800"))], f"{AT}.text: no text of Unicode"),
  ([{"role": "user", "content": "a", "tool_calls": [{}]}], "messages[0].tool_calls: unknown; know"),
  ([{"role": "user", "content": "a"}, {"role": "system", "content": "b"}], "messages[1].role: a s"),
  ([{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}], "messages[1].role: "),
  ([{"role": "system", "content": [shown(GREY)]}], f"{AT}: a system message shows no picture"),
  ([user("a")], f"{AT}: expected an object, got 'a'"),
  ([user({"text": "a"})], f"{AT}.type is absent"),
  ([user({"type": "video", "video": "a"})], f"{AT}.type: expected text, image or image_url, got "),
  ([user({"type": ["text"]})], f"{AT}.type: expected text, image or image_url, got list"),
  ([user({"type": "text"})], f"{AT}.text is absent"),
  ([user({"type": "text", "text": 5})], f"{AT}.text: expected a text, got 5"),
  ([user({"type": "text", "text": "a", "cache": 1})], f"{AT}.cache: unknown; known are type, text"),
  ([user({"type": "image"})], f"{AT}: expected one of the fields image, path, url, found none"),
  ([user({"type": "image", "image": GREY, "url": "x"})], "found image and url"),
  ([user(shown(5))], f"{AT}.image: expected a picture, of PIL or an array"),
  ([user(shown(np.zeros((2, 2))))], f"{AT}.image: an image array is uint8[h, w, 3], not float64"),
  ([user({"type": "image_url"})], f"{AT}.image_url is absent"),
  ([user({"type": "image_url", "image_url": 5})], f"{AT}.image_url: expected an object, got 5"),
  ([user({"type": "image_url", "image_url": {}})], f"{AT}.image_url.url is absent"),
  ([user({"type": "image_url", "image_url": {"url": 5}})], f"{AT}.image_url.url: expected a data "),
  ([user({"type": "image_url", "image_url": {"url": "data:,a", "size": 3}})], "size: unknown"),
  (
    web("https://a.b/c.png"),
    f"{AT}.image_url.url: nothing is fetched from the web; expected a dat",
  ),
  ([user(shown("http://a.b/c.png"))], f"{AT}.image: nothing is fetched from the web"),
  ([user(shown("file:///etc/passwd"))], f"{AT}.image: nothing is fetched from the web"),
  (web("/etc/passwd"), f"{AT}.image_url.url: nothing is fetched from the web"),
  (web(""), f"{AT}.image_url.url: nothing is fetched from the web"),
  (web("data:image/png;base64"), "expected data:image/...;base64,..., got"),
  (web("data:text/plain;base64,YQ=="), f"{AT}.image_url.url: expected data:image/...;base64,..."),
  (web("data:image/png,abc"), f"{AT}.image_url.url: a data URL of a picture is in base64"),
  (web("data:image/png;base64,a*b"), f"{AT}.image_url.url: no base64"),
  (web("data:image/png;base64,aé"), f"{AT}.image_url.url: no base64"),
  (web("data:image/png;base64,"), f"{AT}.image_url.url: no picture that can be read; expected one"),
  (web("data:image/png;base64,YWJj"), f"{AT}.image_url.url: no picture that can be read"),
  (web(link(kind="BMP")), f"{AT}.image_url.url: no picture that can be read; expected one of PNG"),
  (
    web(link(Image.effect_noise((64, 64), 90))[:-900] + "A" * 4),
    f"{AT}.image_url.url: the image c",
  ),
]


@pytest.mark.parametrize(("given", "message"), WRONG)
def test_odd_input_is_named(given, message):
  with pytest.raises(ValueError) as error:  # noqa: PT011
    messages.read(given)
  assert message in str(error.value)
  assert len(str(error.value)) < 300
  assert "\n" not in str(error.value)


def test_the_place_of_the_fault_is_named_among_several():
  good = {"role": "user", "content": "a"}
  with pytest.raises(ValueError, match=r"talks\[3\]\[2\]\.content\[1\]\.image: expected a picture"):
    messages.read([good, good, user(text("a"), shown(5))], name="talks[3]")
