"""The text of an answer while its ids come.

Ids become text one by one, so that where an answer ends does not depend on how many are written at
once. What is heard meanwhile is never taken back: a character whose bytes are not all there waits,
as does what may become a stop string, and white space that may be the end of the answer.
"""

from collections.abc import Callable
from collections.abc import Collection
from collections.abc import Sequence

import numpy as np

from blip3o_jax.data.text import chat
from blip3o_jax.data.text.tokenizer import Tokenizer
from blip3o_jax.systems.parts import talking

CHUNK = 4  # ids that are written before somebody looks at them, where somebody does
UNFINISHED = "\ufffd"  # in place of bytes that are no character yet


class Text:
  """The text of one answer while its ids come.

  Args:
    stop, hear: see `talking.How`; `hear` without the row.

  Attributes:
    stopped: whether a stop string was found; it and what follows are left out.
  """

  def __init__(
    self, tokenizer: Tokenizer, stop: Sequence[str], hear: Callable[[str], None] | None = None
  ):
    self._decode, self._stop, self._hear = tokenizer.decode, tuple(stop), hear
    self._longest = max(map(len, stop), default=0)
    self._ids: list[int] = []  # whose bytes are no text yet
    self._text, self._after, self._told = "", 0, 0  # what stands after the last picture; was heard
    self.stopped = False

  def add(self, token: int) -> None:
    """The next id."""
    self._ids.append(token)
    piece = self._decode(self._ids)
    if not piece.endswith(UNFINISHED):
      self._append(piece)

  def mark(self) -> None:
    """A picture stands here; no stop string reaches over it."""
    self._append(self._decode(self._ids))
    if not self.stopped:
      self._text += chat.MARK
      self._after = len(self._text)
      self._tell(self._after)

  def close(self) -> str:
    """The whole text; the rest of it is heard."""
    if not self.stopped:
      self._append(self._decode(self._ids))
    self._tell(len(self._text))
    return self._text.strip()

  def _append(self, piece: str) -> None:
    first = max(self._after, len(self._text) - self._longest + 1)
    self._text, self._ids = self._text + piece, []
    found = [at for stop in self._stop if (at := self._text.find(stop, first)) >= 0]
    if found:
      self._text, self.stopped = self._text[: min(found)], True
    self._tell(len(self._text) - (0 if found else self._held()))

  def _held(self) -> int:
    """How many characters at the end may begin a stop string."""
    room = min(self._longest - 1, len(self._text) - self._after)
    ends = (n for n in range(room, 0, -1) if any(s.startswith(self._text[-n:]) for s in self._stop))
    return next(ends, 0)

  def _tell(self, end: int) -> None:
    """Lets the text up to there be heard, without white space around it."""
    if self._hear is None:
      return
    begin = self._told or len(self._text) - len(self._text.lstrip())
    end = len(self._text[:end].rstrip())
    if begin < end:
      self._told = end
      self._hear(self._text[begin:end])


class Writing:
  """One answer while its ids come.

  Args:
    ends: ids that end it. mark: that a picture follows, and that ends nothing.

  Attributes:
    tokens: ids that it has. finish: how it ended.
  """

  def __init__(
    self,
    tokenizer: Tokenizer,
    ends: Collection[int],
    how: talking.How,
    row: int,
    mark: int | None = None,
  ):
    hear = how.hear
    heard = None if hear is None else lambda text: hear(row, text)
    self._text = Text(tokenizer, how.stop, heard)
    self._ends, self._mark = ends, mark
    self.tokens, self.finish = 0, "length"

  def take(self, ids: Sequence[int]) -> bool:
    """The next ids, up to its end; returns whether it goes on."""
    for token in ids:
      self.tokens += 1
      if token == self._mark:
        self._text.mark()
      elif token not in self._ends:
        self._text.add(token)
      if token in self._ends or self._text.stopped:
        self.finish = "stop"
        return False
    return True

  def reply(self, prompt_tokens: int, pictures: Sequence[np.ndarray] = ()) -> talking.Reply:
    """The answer, after its last id."""
    finish: talking.Finish = "stop" if self.finish == "stop" else "length"
    return talking.Reply(self._text.close(), finish, self.tokens, prompt_tokens, tuple(pictures))
