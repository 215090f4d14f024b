"""`vl2v vendor serve`: a teacher behind HTTP, for paying clients."""

from __future__ import annotations

import logging
import signal
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from queue import SimpleQueue

from vl2v.errors import ConfigError, need_extra
from vl2v.privacy import public_name
from vl2v.teachers import open_teacher
from vl2v.vendor.keys import Keys, read_keys
from vl2v.vendor.meter import Meter
from vl2v.web.server import check_host, freeze_gc, listen

_log = logging.getLogger(__name__)


def serve(
    spec: str,
    keys: Path,
    ledger: Path,
    *,
    name: str | None = None,
    host: str = "127.0.0.1",
    port: int = 8000,
    allow_url_hosts: Sequence[str] = (),
    announce: Callable[[str], None] = lambda address: None,
) -> None:
    """Serve until SIGTERM or SIGINT; requests that were accepted are answered and billed first.

    SIGHUP reads the keys again; where their file is invalid then, the former ones stay.

    Args:
        spec: of a local teacher.
        keys: a TOML file from `vl2v vendor keys add`.
        ledger: a SQLite file of sales, created if missing.
        name: what clients call the model; by default as `spec` does, of a folder its last part.
        host: to listen on.
        port: to listen on; 0 takes a free one.
        allow_url_hosts: hosts that images given by address are fetched from; see `vl2v.vendor.addresses`.
        announce: called with the address.

    Raises:
        ConfigError: there is no key, the host can't be listened on, or one of `allow_url_hosts` is not a host.
        TeacherError: the teacher can't be opened.
        StoreError: the ledger can't be written.
        MissingExtra: uvicorn, httptools, msgspec or prometheus_client isn't installed.
    """
    for module in ("uvicorn", "httptools", "msgspec", "prometheus_client"):
        need_extra(module, "vendor")
    from vl2v.vendor.addresses import Addresses
    from vl2v.vendor.app import create_app
    from vl2v.vendor.requests import BODY

    found = read_keys(keys)
    if not found.keys:
        raise ConfigError(f"{keys}: no [[key]] in it; `vl2v vendor keys add NAME --keys {keys}` adds one")
    check_host(host)
    addresses = Addresses(allow_url_hosts, BODY)
    meter = Meter(ledger)
    app = create_app(open_teacher(spec), found, meter, name=name or public_name(spec), addresses=addresses)
    _reload_on_hangup(found, keys)
    freeze_gc()
    try:
        listen(app, host, port, announce)
    finally:
        meter.close()


def _reload_on_hangup(keys: Keys, file: Path) -> None:
    """Read the keys again on SIGHUP, in a thread: a handler that the next one interrupts would end with older keys."""
    hangups: SimpleQueue[int] = SimpleQueue()

    def reload() -> None:
        while hangups.get():
            try:
                keys.replace(read_keys(file).keys)
            except Exception as error:  # whatever it is, the next SIGHUP counts
                _log.error("the keys stay as they were: %s", error)
            else:
                _log.warning("%s: %d keys are accepted", file, keys.accepted)

    if hasattr(signal, "SIGHUP"):
        threading.Thread(target=reload, name="vl2v-keys", daemon=True).start()
        signal.signal(signal.SIGHUP, lambda number, frame: hangups.put(number))
