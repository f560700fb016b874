"""Runs the application until the process is told to end, and then to the end of what it has."""

from collections.abc import Callable
import logging
import socket
import time
from types import FrameType

from fastapi import FastAPI
import uvicorn

from blip3o_jax.serve.service import Service

CLOSING = 5.0  # seconds for answers that are being sent at the end
# Seconds that a connection stays without a request: more than clients keep theirs, or they would
# send the next one just when it is closed.
KEPT = 75
Tell = Callable[[str], None]


class Server(uvicorn.Server):
  """Of one application; a first signal drains it, a second ends it at once.

  Args:
    tell: takes lines for whoever started it: that it is ready, that it ends.
  """

  def __init__(self, app: FastAPI, *, log: str = "warning", tell: Tell = lambda text: None):
    # One loop and one protocol everywhere, whatever else is installed.
    super().__init__(
      uvicorn.Config(
        app,
        loop="asyncio",
        http="h11",
        log_level=log,
        access_log=False,
        server_header=False,
        timeout_keep_alive=KEPT,
        timeout_graceful_shutdown=int(CLOSING),
      )
    )
    self._service: Service = app.state.service
    self._until, self._tell = 0.0, tell
    self._told: set[str] = set()

  def drain(self) -> None:
    """Takes nothing more: /readyz says so, what was taken is finished."""
    self._until = time.monotonic() + self._service.settings.drain
    self._service.draining = True
    self._service.worker.end()

  def handle_exit(self, sig: int, frame: FrameType | None) -> None:
    """A signal. Not uvicorn's, which would close the port before the work is done."""
    if self._service.draining:
      self.should_exit = self.force_exit = True
    else:
      self.drain()

  async def on_tick(self, counter: int) -> bool:
    """Ten times a second: whether the server ends."""
    worker = self._service.worker
    if self._service.ready:
      self._once(f"{self._service.settings.name}: ready")
    if self._service.draining:
      self._once("ending: what was taken is finished; a second signal ends at once")
      late = time.monotonic() > self._until
      if late:
        worker.stop(0)
      if late or not any(worker.counts()):
        self.should_exit = True
    if worker.fault is not None:
      self.should_exit = True
    return await super().on_tick(counter)

  def _once(self, text: str) -> None:
    """Tells a line that was not told before; here and no sooner, as a signal may cut into one."""
    if text not in self._told:
      self._told.add(text)
      self._tell(text)


def listen(host: str, port: int) -> socket.socket:
  """A socket that listens at an address; port 0 is any.

  Raises:
    OSError: no such host, or somebody listens there.
  """
  try:
    kind, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
  except OSError as error:
    raise OSError(f"host {host}: {error.strerror}") from None
  found = socket.socket(kind, socket.SOCK_STREAM)
  try:
    found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    found.bind(address)
    found.listen(2048)
  except OSError as error:
    found.close()
    raise OSError(f"{host}, port {port}: {error.strerror}") from None
  return found


def run(app: FastAPI, listening: socket.socket, tell: Tell = lambda text: None) -> bool:
  """Serves until the process is told to end; returns whether the model's thread has ended.

  Args:
    tell: see `Server`.

  Raises:
    ValueError: the model could not be warmed.
  """
  logging.getLogger("blip3o.serve").setLevel(logging.WARNING)
  own: Service = app.state.service
  server = Server(app, tell=tell)
  server.run(sockets=[listening])
  if own.worker.fault is not None:
    raise ValueError(f"the model could not draw its first picture: {own.worker.fault}")
  return own.worker.stop(CLOSING)
