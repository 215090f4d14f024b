"""Where a server listens."""

from __future__ import annotations

import ipaddress
import os
import socket
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from vl2v.errors import ConfigError


def is_local(host: str) -> bool:
    """Return whether a name or IP address is of this machine alone, whoever resolves it."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def check_host(host: str) -> bool:
    """Return whether a host to listen on is of this machine alone.

    Raises:
        ConfigError: neither an IP address nor localhost.
    """
    if host != "localhost":
        try:
            ipaddress.ip_address(host)
        except ValueError:
            raise ConfigError(f"--host {host!r}: an IP address, for example 127.0.0.1 or 0.0.0.0") from None
    return is_local(host)


def listen(app: Any, host: str, port: int, told: Callable[[str], None]) -> None:
    """Serve until the process is told to stop (SIGTERM, SIGINT); what was accepted is answered first.

    Args:
        app: of ASGI.
        host: an IP address, or localhost.
        port: 0 takes a free one.
        told: is given the address that is listened on.

    Raises:
        ConfigError: nothing can be listened on there.
    """
    import uvicorn

    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        bound = socket.create_server((host, port), family=family)
    except OSError as error:
        reason = os.strerror(error.errno or 0)
        raise ConfigError(f"--host {host} --port {port}: can't be listened on ({reason}); choose others") from None
    config = uvicorn.Config(app, log_level="warning", access_log=False, server_header=False)
    with bound, suppress(KeyboardInterrupt):
        name = f"[{host}]" if family == socket.AF_INET6 else host
        told(f"http://{name}:{bound.getsockname()[1]}")
        uvicorn.Server(config).run([bound])
