"""Rows that are conversations: what they become, and what is wrong with them. For `test_rows`."""

import json


def human(text):
  return {"from": "human", "value": text}


def gpt(text):
  return {"from": "gpt", "value": text}


def user(content):
  return {"role": "user", "content": content}


def assistant(content):
  return {"role": "assistant", "content": content}


# As `ROWS` and `DAMAGED` of the test.
TALKS = {
  "conversations that are preferred": (
    {
      "prompt": [user("<image>q")],
      "chosen": [assistant("yes")],
      "rejected": [assistant("no")],
      "images": ["0.png"],
    },
    {},
    [dict(prompt="q", answer="yes", image="0.png", rejected="no")],
  ),
  "LLaVA": (
    {"image": "1.jpg", "conversations": [human("<image>\nWhat?"), gpt("A cat.")]},
    {},
    [dict(prompt="What?", answer="A cat.", image="1.jpg")],
  ),
  "LLaVA, the mark behind the question": (
    {"image": "1.jpg", "conversations": [human("What?\n<image>"), gpt("A cat.")]},
    {},
    [dict(prompt="What?\n<image>", answer="A cat.", image="1.jpg", placed=True)],
  ),
  "LLaVA without a picture, several turns": (
    {"conversations": [human("a"), gpt("b"), human("c"), gpt("d")]},
    {},
    [dict(prompt="a", answer="b", turns=(("c", "d"),), image=None)],
  ),
  "a picture alone is the question": (
    {"image": "1.jpg", "conversations": [human("<image>"), gpt("A cat.")]},
    {},
    [dict(prompt="", answer="A cat.", image="1.jpg")],
  ),
  "several pictures in several turns": (
    {
      "images": ["1", "2", "3"],
      "messages": [
        {"role": "system", "content": "be kind"},
        user("<image><image>one?"),
        assistant("1"),
        user("and <image>?"),
        assistant("2"),
      ],
    },
    {},
    [
      dict(
        prompt="<image><image>one?",
        answer="1",
        turns=(("and <image>?", "2"),),
        image="1",
        inputs=("2", "3"),
        system="be kind",
        placed=True,
      )
    ],
  ),
  "content in parts": (
    {
      "images": ["1", "2"],
      "messages": [
        user([{"type": "image"}, {"type": "image"}, {"type": "text", "text": "which?"}]),
        assistant([{"type": "text", "text": "the first"}]),
      ],
    },
    {},
    [dict(prompt="which?", answer="the first", image="1", inputs=("2",))],
  ),
  "pictures in the parts themselves": (
    {
      "messages": [
        user(
          [
            {"type": "image_url", "image_url": {"url": "1.png"}},
            {"type": "text", "text": "which?"},
          ]
        ),
        assistant("it"),
      ],
    },
    {},
    [dict(prompt="which?", answer="it", image="1.png")],
  ),
  "messages as JSON in a text": (
    {"messages": json.dumps([user("a"), assistant("b")])},
    {},
    [dict(prompt="a", answer="b", image=None)],
  ),
  "Nexus-Gen, a drawing": (
    {"images": ["1"], "messages": [user("a lake"), assistant("Here is the image: <image>")]},
    {},
    [dict(prompt="a lake", image="1", reply="Here is the image:")],
  ),
  "Nexus-Gen, an edit": (
    {"images": ["1", "2"], "messages": [user("<image>bluer"), assistant("<image>")]},
    {},
    [dict(prompt="bluer", image="2", inputs=("1",))],
  ),
  "an edit that names its pictures": (
    {
      "images": ["1", "2", "3"],
      "messages": [user("<image> like <image>"), assistant("<image>")],
    },
    {},
    [dict(prompt="<image> like <image>", image="3", inputs=("1", "2"), placed=True)],
  ),
  "several drawings, each from the one before, and an answer at the end": (
    {
      "images": ["1", "2", "3", "4"],
      "messages": [
        user("<image>bluer"),
        assistant("<image>"),
        user("more, as <image>"),
        assistant("<image>"),
        user("what is it?"),
        assistant("a sky"),
      ],
    },
    {},
    [
      dict(prompt="bluer", image="2", inputs=("1",)),
      dict(prompt="<image>more, as <image>", image="4", inputs=("2", "3"), placed=True),
      dict(
        prompt="<image>bluer",
        answer="<image>",
        turns=(("more, as <image>", "<image>"), ("what is it?", "a sky")),
        image="1",
        inputs=("2", "3", "4"),
        placed=True,
      ),
    ],
  ),
  "a drawing after talk": (
    {
      "images": ["1", "2"],
      "messages": [user("<image>what?"), assistant("a cat"), user("a dog"), assistant("<image>")],
    },
    {},
    [dict(prompt="a dog", image="2", inputs=("1",), before=(("what?", "a cat"),))],
  ),
}
DAMAGED_TALKS = {
  "a mark too many": (
    {"image": "1", "conversations": [human("<image><image>?"), gpt("a")]},
    "lists",
    "2 marks <image> for 1 pictures",
  ),
  "a picture without a mark": (
    {"image": "1", "conversations": [human("?"), gpt("a")]},
    "lists",
    "0 marks <image> for 1 pictures",
  ),
  "nobody answers": ({"messages": [user("?")]}, "lists", "messages are of user; expected"),
  "an answer first": (
    {"messages": [assistant("a"), user("?")]},
    "lists",
    "messages are of assistant, user",
  ),
  "a role nobody has": ({"messages": [{"role": "robot", "content": "x"}]}, "lists", "'robot'"),
  "a message that is no object": ({"messages": ["?"]}, "lists", "a message is a str"),
  "a video": (
    {"messages": [user([{"type": "video"}]), assistant("a")]},
    "lists",
    "neither text nor image: 'video'",
  ),
  "two drawings in an answer": (
    {"images": ["1", "2"], "messages": [user("?"), assistant("<image><image>")]},
    "lists",
    "an answer holds 2 pictures",
  ),
  "an empty answer": ({"conversations": [human("?"), gpt(" ")]}, "empty", "is empty"),
}
