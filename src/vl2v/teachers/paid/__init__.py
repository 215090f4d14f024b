"""Teachers behind a vendor's API, and servers that speak as OpenAI's and Infinity's do."""

from __future__ import annotations

from functools import partial

from vl2v.errors import TeacherError
from vl2v.privacy import HIDDEN, canonical_url, without_secrets
from vl2v.teachers.paid.adapters import ADAPTERS
from vl2v.teachers.paid.client import RemoteTeacher
from vl2v.teachers.paid.limits import canonical_spec, find_limits


def open_remote(kind: str, rest: str) -> RemoteTeacher:
    """Open "MODEL" or "URL#MODEL", with "?dimensions=N" after it where the vendor offers a choice; sends nothing.

    However the address is spelt, its name, its bill and its fingerprint are the same.

    Raises:
        TeacherError: no model, no URL where one is needed, an option that there isn't, a password in the address, or a
            wrong vendors.toml.
    """
    given, adapter = f"{kind}:{rest}", ADAPTERS[kind]
    spec = without_secrets(given)
    address, _, query = rest.partition("?")
    if HIDDEN in spec and HIDDEN not in rest:
        raise TeacherError(
            f"{spec}: a user and a password in an address would end up in files; leave them out, and put the key into "
            f"the environment as {adapter.key}"
        )
    url, hash_, model = address.rpartition("#")
    option, equals, value = query.partition("=")
    if query and not (option == "dimensions" and value.isdecimal() and int(value)):
        what = f"{option!r}" if equals and option.isidentifier() else "after the question mark"
        raise TeacherError(
            f"{spec.partition('?')[0]}: unknown option {what}; there is ?dimensions=N, and a key belongs into the "
            f"environment as {adapter.key}"
        )
    url = url.replace(HIDDEN, "")
    limits = find_limits(kind, model, url or None)
    form = f"write it as {kind}:" + ("URL#MODEL" if not limits.url else "MODEL, or URL#MODEL")
    if not model or not (url or limits.url) or (hash_ and not url.lower().startswith(("http://", "https://"))):
        raise TeacherError(f"{spec}: {form}")
    try:
        canonical_url(url or limits.url)
    except ValueError as error:
        raise TeacherError(f"{spec}: {error}; {form}") from None
    return RemoteTeacher(
        canonical_spec(given), adapter, limits, url or limits.url, model, int(value) if query else None
    )


open_openai_compatible = partial(open_remote, "openai-compatible")
open_jina = partial(open_remote, "jina")
open_cohere = partial(open_remote, "cohere")
open_voyage = partial(open_remote, "voyage")
open_gemini = partial(open_remote, "gemini")
open_bedrock = partial(open_remote, "bedrock")
open_vllm = partial(open_remote, "vllm")
open_azure_vision = partial(open_remote, "azure-vision")

__all__ = ["RemoteTeacher", "open_cohere", "open_jina", "open_openai_compatible", "open_remote", "open_voyage"]
