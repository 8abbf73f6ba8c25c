"""What a person sees in a browser when a sandbox's port has nothing to show. No scripts, nothing fetched."""

from __future__ import annotations

from html import escape
from string import Template

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


def closed_port_page(sandbox_id: str, port: int) -> bytes:
    text = (
        f"The sandbox is running, but nothing listens on port <code>{port}</code> inside it. "
        "Start a server there and reload this page."
    )
    return _page("This port is closed", text, sandbox_id)


def dead_sandbox_page(sandbox_id: str) -> bytes:
    return _page("The sandbox was not found", "It has ended, or there never was one of that name.", sandbox_id)


def _page(title: str, text: str, sandbox_id: str) -> bytes:
    return _PAGE.substitute(title=title, text=text, sandbox=escape(sandbox_id)).encode()


def is_browser(user_agent: bytes | None, accept: bytes | None) -> bool:
    """A person's browser: it says Mozilla and prefers HTML."""
    return b"Mozilla/" in (user_agent or b"") and b"text/html" in (accept or b"")
