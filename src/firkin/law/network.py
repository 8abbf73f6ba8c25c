"""What a sandbox may reach.

Only internet-or-not is expressible today. Finer rules are refused by the server
until a driver enforces them; `network.policy` stays unreported until then.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkPolicy:
    """`internet`: outbound connections to public addresses.

    The host, other sandboxes, private, link-local and metadata addresses are
    refused in either case.
    """

    internet: bool = False
