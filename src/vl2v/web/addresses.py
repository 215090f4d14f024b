"""Where a server listens."""

from __future__ import annotations

import ipaddress

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
