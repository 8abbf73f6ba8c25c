"""Who may read or write a file over ``/files``, and which file a request means."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from dataclasses import dataclass

from firkin.e2b.directory import SandboxDirectory, is_secure
from firkin.e2b.exchange import Exchange, Refused
from firkin.e2b.guest_paths import resolve
from firkin.e2b.signatures import READ, WRITE, SignedLink, equal
from firkin.law.errors import InvalidSpec
from firkin.law.files import SandboxPath
from firkin.law.processes import GuestUser
from firkin.law.sandboxes import SandboxInfo

TOKEN_HEADER = b"x-access-token"
UNAUTHORIZED = "unauthorized access, please provide a valid access token or method signing if supported"
_SECONDS = re.compile(r"[+-]?[0-9]{1,15}")


@dataclass(frozen=True, slots=True)
class FileCaller:
    """The account that a file request acts for."""

    info: SandboxInfo
    user: GuestUser

    def path(self, text: str) -> SandboxPath:
        try:
            return resolve(text, self.user, self.info)
        except InvalidSpec as error:
            raise Refused(400, str(error), should_retry=False) from error


def signed_link(exchange: Exchange) -> SignedLink | None:
    """The signature of a request, if it has one. Raises `Refused` for a malformed expiry."""
    query = exchange.query
    if "signature" not in query:
        return None
    expiry = query.get("signature_expiration", "")
    if expiry and _SECONDS.fullmatch(expiry) is None:
        raise Refused(400, "signature_expiration must be a Unix time in seconds", should_retry=False)
    return SignedLink(
        path=query.get("path", ""),
        operation=WRITE if exchange.method == "POST" else READ,
        username=query.get("username", ""),
        signature=query["signature"],
        expires_at=int(expiry) if expiry else None,
    )


def check_token(exchange: Exchange, info: SandboxInfo, directory: SandboxDirectory) -> None:
    """Every call but health and files asks for the token. Raises `Refused` (401)."""
    if not is_secure(info):
        return
    given = exchange.text_header(TOKEN_HEADER)
    if given is None or not equal(given, directory.mint.data_plane(info.id)):
        raise Refused(401, UNAUTHORIZED)


def may_wake(exchange: Exchange, info: SandboxInfo, directory: SandboxDirectory) -> bool:
    """Whether the request shows what its sandbox asks for. Health, which needs nothing of one that runs, does too."""
    check = check_file_access if exchange.path == "/files" else check_token
    try:
        check(exchange, info, directory)
    except Refused:
        return False
    return True


def check_file_access(
    exchange: Exchange, info: SandboxInfo, directory: SandboxDirectory, *, now: Callable[[], float] = time.time
) -> None:
    """The token, or else a signature, or else nothing for a sandbox that is not secure. Raises `Refused` (401)."""
    if not is_secure(info):
        return
    token = directory.mint.data_plane(info.id)
    given = exchange.text_header(TOKEN_HEADER)
    if given is not None:
        if not equal(given, token):
            raise Refused(401, "access token present in header but does not match")
        return
    link = signed_link(exchange)
    if link is None:
        raise Refused(401, "missing signature query parameter")
    if not link.matches(token):
        raise Refused(401, "invalid signature")
    if link.expired(now()):
        raise Refused(401, "signature is already expired")
