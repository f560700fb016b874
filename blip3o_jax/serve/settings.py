"""How a server is run, and what it refuses to take."""

import dataclasses

MIB = 2**20
LENGTH = 256  # tokens of an answer, unless asked otherwise


@dataclasses.dataclass(frozen=True)
class Limits:
  """What a request may be.

  Attributes:
    prompt: characters of a prompt, or of all texts of a conversation. body: bytes of a request.
    body_seconds: that sending it may take. requests: that are in hand at once.
    image_bytes: of one encoded picture. image_pixels: of one. images: in one request.
    drawn_pixels: of a picture that is asked for, where the model draws any size.
    waiting_pixels: of all pictures that wait. tokens: of an answer.
  """

  prompt: int = 32_000
  body: int = 32 * MIB
  body_seconds: float = 60.0
  requests: int = 256
  image_bytes: int = 16 * MIB
  image_pixels: int = 2**24
  images: int = 16
  drawn_pixels: int = 2**22
  waiting_pixels: int = 2**28
  tokens: int = 4096


@dataclasses.dataclass(frozen=True)
class Settings:
  """How a server is run.

  Attributes:
    name: of the model, for clients. batch: pictures or conversations at once, a power of two.
    wait: seconds that a batch waits for more. queue: pictures and conversations that may wait.
    timeout: seconds that a request may take. drain: seconds for what runs when the server is told
      to end.
    key: that clients must send; empty for none. hosts: names by which the server may be called;
      empty for any. remote: whether pictures are fetched from other servers.
    prompts, questions: examples for the page.
  """

  name: str = "blip3o"
  batch: int = 8
  wait: float = 0.005
  queue: int = 64
  timeout: float = 120.0
  drain: float = 30.0
  key: str = ""
  hosts: tuple[str, ...] = ()
  remote: bool = False
  prompts: tuple[str, ...] = ("a photo of a cat on a chair",)
  questions: tuple[str, ...] = ("What is in this picture?",)
  limits: Limits = Limits()

  def __post_init__(self) -> None:
    """Raises ValueError for numbers that cannot serve."""
    if self.batch < 1 or self.batch & (self.batch - 1):
      raise ValueError(f"batch {self.batch}: expected a power of two, the sizes that are compiled")
    if self.queue < 10:
      raise ValueError(f"queue {self.queue}: expected 10 or more, the pictures of one request")
