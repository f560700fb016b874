"""The guard that keeps every test off the network."""

import socket
import urllib.request

import pytest


def test_a_name_is_not_looked_up(refused):
  with pytest.raises(OSError, match="touch no network: getaddrinfo"):
    socket.create_connection(("example.org", 443), timeout=1)
  assert refused == ["getaddrinfo 'example.org'"]
  refused.clear()


@pytest.mark.parametrize("address", ["192.0.2.1", "10.0.0.1"])
def test_an_address_is_not_connected(address, refused):
  with socket.socket() as sock, pytest.raises(OSError, match="touch no network: connect "):
    sock.connect((address, 80))
  with socket.socket(type=socket.SOCK_DGRAM) as sock, pytest.raises(OSError, match="sendto"):
    sock.sendto(b"x", (address, 80))
  assert len(refused) == 2
  refused.clear()


def test_a_library_that_hides_the_error_is_seen(refused):
  with pytest.raises(OSError, match="tests touch no network"):
    urllib.request.urlopen("http://example.org", timeout=1)
  assert refused
  refused.clear()


def test_loopback_works():
  with socket.socket() as server:
    server.bind(("127.0.0.1", 0))
    server.listen()
    with socket.create_connection(("localhost", server.getsockname()[1]), timeout=5) as client:
      other, _ = server.accept()
      with other:
        client.sendall(b"here")
        assert other.recv(4) == b"here"
