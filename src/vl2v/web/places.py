"""Where a server listens."""

from __future__ import annotations

import ipaddress

from vl2v.errors import ConfigError


def check_host(host: str) -> bool:
    """Return whether a host to listen on is of this machine alone.

    Raises:
        ConfigError: neither an IP address nor localhost.
    """
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        raise ConfigError(f"--host {host!r}: an IP address, for example 127.0.0.1 or 0.0.0.0") from None
