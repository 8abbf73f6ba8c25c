"""What a person sees in a browser when a sandbox's port has nothing to show. No scripts, nothing fetched."""

from __future__ import annotations

import re
from html import escape
from string import Template

from firkin.e2b.exchange import Refused
from firkin.e2b.routing import SandboxTarget

_BROWSER = re.compile(rb"mozilla|chrome|safari|firefox|edge|opera|msie", re.IGNORECASE)
_TITLES = {
    403: "This port is not public",
    409: "The sandbox is busy",
    429: "Too many connections",
    502: "The service gave no answer",
    504: "The service gave no answer in time",
}

_PAGE = Template(
    """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>$title</title>
<style>
body { font: 16px/1.5 system-ui, sans-serif; max-width: 34rem; margin: 12vh auto; padding: 0 1rem;
       color: #222; background: #fff; }
h1 { font-size: 1.4rem; }
code { background: #f2f2f2; padding: 0.1em 0.3em; border-radius: 3px; }
@media (prefers-color-scheme: dark) { body { color: #ddd; background: #181818; } code { background: #2a2a2a; } }
</style>
</head>
<body>
<h1>$title</h1>
<p>$text</p>
<p>Sandbox <code>$sandbox</code></p>
</body>
</html>
"""
)


def refusal_page(refusal: Refused, target: SandboxTarget) -> bytes:
    """The page that says what the refusal says."""
    if refusal.status == 502 and "port" in refusal.more:
        text = (
            f"The sandbox is running, but nothing listens on port <code>{target.port}</code> inside it. "
            "Start a server there and reload this page."
        )
        return _page("This port is closed", text, target.sandbox_id)
    if refusal.status == 502 and "was not found" in refusal.message:
        return _page(refusal.message, "It has ended, or there never was one of that name.", target.sandbox_id)
    title = _TITLES.get(refusal.status, "This request was refused")
    return _page(title, escape(refusal.message), target.sandbox_id)


def _page(title: str, text: str, sandbox_id: str) -> bytes:
    return _PAGE.substitute(title=escape(title), text=text, sandbox=escape(sandbox_id)).encode()


def is_browser(user_agent: bytes | None, accept: bytes | None) -> bool:
    """A person's browser: it says so, and does not ask for something else than a page (as scripts in pages do)."""
    if _BROWSER.search(user_agent or b"") is None:
        return False
    return accept is None or b"text/html" in accept or accept.startswith(b"*/*")
