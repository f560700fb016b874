"""A job as its request sees it: events until it is done, its time is over or the client leaves."""

import asyncio
from collections.abc import AsyncIterator
import contextlib
import dataclasses
import time

from fastapi import Request

from blip3o_jax.serve.faults import ClientLeft
from blip3o_jax.serve.faults import Refused
from blip3o_jax.serve.jobs import Answered
from blip3o_jax.serve.jobs import Drawn
from blip3o_jax.serve.jobs import Event
from blip3o_jax.serve.jobs import Failed
from blip3o_jax.serve.jobs import Job
from blip3o_jax.serve.worker import Worker


class Mailbox:
  """Takes events in any thread and gives them to the loop that made it."""

  def __init__(self) -> None:
    self._loop = asyncio.get_running_loop()
    self.events: asyncio.Queue[Event] = asyncio.Queue()

  def post(self, event: Event) -> None:
    with contextlib.suppress(RuntimeError):  # the loop has ended, and with it the request
      self._loop.call_soon_threadsafe(self.events.put_nowait, event)


@dataclasses.dataclass
class Followed:
  """A job that was taken.

  Attributes:
    until: the end of its time, of `time.monotonic`. seconds: it was given.
  """

  worker: Worker
  job: Job
  mailbox: Mailbox
  request: Request
  seconds: float
  until: float

  async def events(self) -> AsyncIterator[Event]:
    """Everything of the job, to its end; however this ends, the job is left.

    Raises:
      Refused: the job failed, or its time is over (504). ClientLeft: nobody waits any more.
    """
    leaving = asyncio.create_task(_left(self.request))
    waiting: asyncio.Task[Event] | None = None
    rest = len(self.job.items)
    try:
      while rest:
        waiting = asyncio.create_task(self.mailbox.events.get())
        left = max(0.0, self.until - time.monotonic())
        done, _ = await asyncio.wait(
          (waiting, leaving), timeout=left, return_when=asyncio.FIRST_COMPLETED
        )
        if waiting in done:
          event = waiting.result()
          if isinstance(event, Failed):
            raise event.error
          rest -= isinstance(event, Drawn | Answered)
          yield event
        elif leaving in done:
          raise ClientLeft
        else:
          raise Refused(504, f"not done within {self.seconds:g} s, given up", code="timeout")
    finally:
      leaving.cancel()
      if waiting is not None:
        waiting.cancel()
      self.worker.leave(self.job)


def follow(
  worker: Worker, job: Job, mailbox: Mailbox, request: Request, seconds: float
) -> Followed:
  """Hands a job to the worker.

  Raises:
    Refused: see `Worker.submit`.
  """
  until = time.monotonic() + seconds
  worker.submit(job)
  return Followed(worker, job, mailbox, request, seconds, until)


async def _left(request: Request) -> None:
  """Returns when the client has left; the body is read by then."""
  while (await request.receive())["type"] != "http.disconnect":
    pass
