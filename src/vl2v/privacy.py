"""Keys, from the environment or a private file; addresses: what others may see of them, and one spelling for each."""

from __future__ import annotations

import codecs
import ipaddress
import os
import posixpath
import re
import socket
import stat
from functools import lru_cache
from pathlib import Path, PureWindowsPath
from urllib.parse import quote, unquote_to_bytes

from vl2v.errors import ConfigError

_PATH = re.compile(r"local-dir:|[/\\~.]|[A-Za-z]:[/\\]")  # how what is a path for sure begins
_URL = re.compile(r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]*)://(?P<authority>[^/?#\s]*)(?P<rest>\S*)")
_SECRET = re.compile(r"(?P<name>[?&;](?!dimensions=)[^=&;#?\s]+=)[^&;#?\s]+")
HIDDEN = "***@"  # stands for the user and password that an address had
_PORTS = {"http": "80", "https": "443"}
_SAFE = "!$&'()*+,;=:@/-._~"  # what may stand in a path as it is


def public_name(spec: str) -> str:
    """Return a teacher's spec, or a setting's text, without the folders and the address that it has here.

    Of a path the last part stays, of KIND:ADDRESS#MODEL the model: "recorded:/home/me/vendor" is "recorded:vendor".
    """
    spec = without_secrets(spec)
    kind, colon, what = spec.partition(":")
    if not colon or _PATH.match(spec):
        kind, colon, what = "", "", spec
    if "://" in what:
        what = what.partition("#")[2]
    here = _PATH.match(what) or "//" in what or kind == "recorded" or (colon and os.path.exists(what))
    return kind + colon + (PureWindowsPath(what.removeprefix("local-dir:")).name if here else what)


def without_secrets(text: str) -> str:
    """Return a text without what may be a secret in its URLs: user and password, and the values of a query string.

    >>> without_secrets("openai-compatible:https://me:pass@host/v1?api_key=abc#clip")
    'openai-compatible:https://***@host/v1?api_key=***#clip'
    """
    return _URL.sub(_cleaned, text) if "://" in text else text


def _cleaned(url: re.Match[str]) -> str:
    authority, rest = url["authority"], url["rest"]
    if "@" in authority:
        authority = HIDDEN + authority.rpartition("@")[2]
    elif "@" in rest and not (port_of(authority) or "0").isdecimal():  # a password with a / or # in it
        authority, rest = HIDDEN, rest.rpartition("@")[2]
    rest = _SECRET.sub(r"\g<name>***", rest)
    return f"{url['scheme']}://{authority}{rest}"


def port_of(authority: str) -> str:
    """Return what stands after the colon of HOST:PORT; "" where there is none."""
    return authority.rpartition("]")[2].partition(":")[2]


@lru_cache(maxsize=1024)
def canonical_url(url: str) -> str:
    """Return the one spelling of an address, so that what is counted for it is counted once.

    Case of scheme and host, default ports, percent-encoding, dots and slashes of the path and names with letters
    beyond ASCII follow RFC 3986, 6.2; all names of this machine's loopback interface are one.

    >>> canonical_url("HTTP://LocalHost:80/%761/")
    'http://127.0.0.1/v1'

    Args:
        url: without user, password and query.

    Raises:
        ValueError: it isn't an address; the message doesn't repeat it.
    """
    found = _URL.fullmatch(url.strip())
    if found is None or "@" in found["authority"] or not found["authority"]:
        raise ValueError("not an address")
    scheme, authority = found["scheme"].lower(), found["authority"]
    port = port_of(authority)
    host = authority.removesuffix(f":{port}") if port else authority.removesuffix(":")
    if port and not (port.isdecimal() and 0 < int(port) < 65536):
        raise ValueError("not an address: its port is no number from 1 to 65535")
    port = "" if not port or str(int(port)) == _PORTS.get(scheme) else f":{int(port)}"
    path = quote(unquote_to_bytes(found["rest"]), safe=_SAFE)
    path = re.sub("/+", "/", posixpath.normpath(path)) if path else ""
    return f"{scheme}://{_host(host)}{port}{path.rstrip('/')}"


def is_loopback(url: str) -> bool:
    """Return whether an address, in its canonical spelling, is this machine itself."""
    return bool(re.match(r"[a-z][a-z0-9+.-]*://127\.0\.0\.1(?![^:/])", url))


def _host(host: str) -> str:
    name = unquote_to_bytes(host.strip("[]")).decode("utf-8", "replace").rstrip(".").lower()
    if name == "localhost" or name.endswith(".localhost"):  # RFC 6761, 6.3
        return "127.0.0.1"
    address: ipaddress.IPv4Address | ipaddress.IPv6Address
    try:
        address = ipaddress.ip_address(name)
    except ValueError:
        try:
            address = ipaddress.IPv4Address(socket.inet_aton(name))  # 127.1, 0x7f.1
        except (OSError, UnicodeError):
            return _ascii(name)
    if isinstance(address, ipaddress.IPv6Address):
        address = address.ipv4_mapped or address
    if address.is_loopback or address.is_unspecified:
        return "127.0.0.1"
    return f"[{address}]" if address.version == 6 else str(address)


def _ascii(name: str) -> str:
    try:
        if name.isascii():
            return name
        import idna

        return idna.encode(name, uts46=True).decode()
    except (ImportError, UnicodeError):  # idna's errors are of the latter
        return name


def read_secret(variable: str) -> str:
    """Return the key that an environment variable holds, or that the file holds which `VARIABLE_FILE` names; else "".

    Raises:
        ConfigError: the file can't be read, others can read it, or it holds anything but one key.
    """
    key, file = os.environ.get(variable), os.environ.get(f"{variable}_FILE")
    if key or not file:
        return _one_line((key or "").encode("utf-8", "surrogateescape"), variable)
    try:
        if stat.S_IMODE(Path(file).stat().st_mode) & 0o077:
            raise ConfigError(f"{variable}_FILE: others can read {file}; chmod 600 it")
        return _one_line(Path(file).read_bytes(), f"{variable}_FILE: {file}")
    except OSError as error:
        raise ConfigError(f"{variable}_FILE: {file} can't be read ({error.strerror})") from None


def _one_line(content: bytes, where: str) -> str:
    """Return the key in a file's bytes, whatever editor wrote them; the key itself is never repeated.

    Raises:
        ConfigError: there are several lines, or characters that no header may have.
    """
    encoding = "utf-16" if content[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE) else "utf-8-sig"
    try:
        key = content.decode(encoding).strip()
    except UnicodeDecodeError:
        raise ConfigError(f"{where}: isn't text; it should hold the key alone, on one line") from None
    lines = len([line for line in key.splitlines() if line.strip()])
    if lines > 1:
        raise ConfigError(f"{where}: has {lines} lines; it should hold the key alone, on one line")
    if key and not (key.isascii() and key.isprintable() and " " not in key):
        raise ConfigError(f"{where}: has spaces or characters that no key has; it should hold the key alone")
    return key
