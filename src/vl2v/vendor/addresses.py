"""Images by address: fetched over https from hosts on an allow-list, never from inside the network."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from urllib.parse import SplitResult, urlsplit

import httpx2

from vl2v.errors import ConfigError

SECONDS = 10.0  # for all images of a request
_TUNNELS = [ip_network(net) for net in ("64:ff9b::/96", "2001::/32", "2002::/16")]  # IPv4 addresses inside IPv6 ones


class Unfetched(Exception):
    """An image that isn't fetched; the text is for the client."""


@dataclass(frozen=True)
class Address:
    """Where an image is; `named` if the allow-list has this very port."""

    url: SplitResult
    host: str
    port: int
    named: bool


class Addresses:
    """What may be fetched.

    The name is resolved once, its address is checked, and that is what is connected to: a name that stands for
    something else a moment later helps nobody. Redirects are not followed, and no proxy of the environment is used.

    Args:
        allowed: "HOST", for https at port 443 of a public address; or "HOST:PORT", for that port wherever it is, and
            also http if that is this machine itself.
        most: bytes of all images of a request.
        context: of TLS; by default what Python trusts.

    Raises:
        ConfigError: an entry that is neither.
    """

    def __init__(self, allowed: Sequence[str], most: int, context: ssl.SSLContext | None = None) -> None:
        self._allowed = {_entry(text) for text in allowed}
        self._most = most
        self._client = httpx2.AsyncClient(
            verify=context or ssl.create_default_context(),
            timeout=SECONDS,
            limits=httpx2.Limits(
                max_connections=64, max_keepalive_connections=0
            ),  # no host's connection serves another
            trust_env=False,
        )

    def parse(self, text: str) -> Address:
        """Return a checked address.

        Raises:
            Unfetched: not an address of https, or not of an allowed host.
        """
        try:
            url = urlsplit(text)
            host, port = url.hostname or "", url.port or (443 if url.scheme == "https" else 80)
        except ValueError:
            raise Unfetched("not an address") from None
        named = (host, port) in self._allowed
        plain = url.scheme == "https" and port == 443 and (host, None) in self._allowed
        if not (plain or named) or url.scheme not in ("https", "http") or url.username is not None:
            raise Unfetched("this address is not on the list of those that are fetched")
        return Address(url, host, port, named)

    async def fetch(self, addresses: Sequence[Address]) -> list[bytes]:
        """Return the bytes at each address.

        Raises:
            Unfetched: one isn't there, isn't public, is too large, or it takes too long.
        """
        fetching = _Fetching(self._client, self._most)
        try:
            async with asyncio.timeout(SECONDS), asyncio.TaskGroup() as group:
                tasks = [group.create_task(fetching.one(address)) for address in addresses]
        except TimeoutError:
            raise Unfetched(f"not fetched within {SECONDS:g} s") from None
        except ExceptionGroup as errors:
            raise errors.exceptions[0] from None
        return [task.result() for task in tasks]

    async def close(self) -> None:
        """Close all connections."""
        await self._client.aclose()


class _Fetching:
    """The images of one request, whose bytes are counted together while they stream in."""

    def __init__(self, client: httpx2.AsyncClient, most: int) -> None:
        self._client = client
        self._most = self._left = most

    async def one(self, address: Address) -> bytes:
        where = await _checked(address)
        netloc = f"[{where}]" if where.version == 6 else str(where)
        url = address.url._replace(netloc=f"{netloc}:{address.port}", fragment="").geturl()
        headers = {"Host": address.url.netloc, "Accept": "image/*", "Accept-Encoding": "identity"}
        named = {"sni_hostname": address.host}  # the certificate is the name's, too
        parts = []
        try:
            async with self._client.stream("GET", url, headers=headers, extensions=named) as response:
                if response.status_code != 200:
                    raise Unfetched(f"can't be fetched (status {response.status_code})")
                async for part in response.aiter_raw():
                    self._left -= len(part)
                    if self._left < 0:
                        raise Unfetched(f"too large: at most {self._most} bytes a request")
                    parts.append(part)
        except (httpx2.HTTPError, httpx2.InvalidURL):
            raise Unfetched("can't be fetched") from None
        return b"".join(parts)


async def _checked(address: Address) -> IPv4Address | IPv6Address:
    """Return what a name stands for.

    Raises:
        Unfetched: nothing, or something that isn't public and not named in the allow-list.
    """
    try:
        found = await asyncio.to_thread(socket.getaddrinfo, address.host, address.port, type=socket.SOCK_STREAM)
    except OSError:
        raise Unfetched("no such host") from None
    found_ips = [ip_address(str(where[0]).partition("%")[0]) for *_, where in found]
    if address.url.scheme == "http" and not all(ip.is_loopback for ip in found_ips):
        raise Unfetched("only https is fetched")
    if not address.named and not all(_public(ip) for ip in found_ips):
        raise Unfetched("its host is not public")
    return found_ips[0]


def _public(ip: IPv4Address | IPv6Address) -> bool:
    inner = getattr(ip, "ipv4_mapped", None) or ip
    return inner.is_global and not inner.is_multicast and not any(inner in net for net in _TUNNELS)


def _entry(text: str) -> tuple[str, int | None]:
    try:
        url = urlsplit(f"//{text}")
        host, port = url.hostname, url.port
    except ValueError:
        host, port = None, None
    if not host or url.netloc != text or url.username is not None:
        raise ConfigError(f"--allow-url-host {text!r}: write it as HOST or HOST:PORT, for example images.example.org")
    return host, port
