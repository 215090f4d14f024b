"""Where a server listens, and what it calls things that may be paths of this machine."""

from __future__ import annotations

import ipaddress
from pathlib import Path

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


def public_name(spec: str) -> str:
    """Return what clients may see of a teacher's spec: of a path its last part."""
    last = spec.rpartition(":")[2]
    return Path(last).name if Path(last).exists() else spec
