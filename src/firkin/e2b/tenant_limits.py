"""What holders of API keys may not make this server reach for them.

It stands in the operator's network, and they do not. The limits hold on a server that
several share; whoever holds the only key is the operator.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from firkin.e2b.exchange import Refused
from firkin.law.network import NetworkPolicy
from firkin.law.reach import NEVER, PRIVATE
from firkin.law.templates import OciSource, TemplateSource


@dataclass(frozen=True, slots=True, kw_only=True)
class TenantLimits:
    """`private_networks`: those private networks that their sandboxes may be opened to.

    `require_image` raises `InvalidSpec` for a reference that names a registry which is not asked for them.
    """

    require_image: Callable[[str], None]
    private_networks: tuple[str, ...] = ()

    def require_source(self, source: TemplateSource) -> None:
        """Raises `InvalidSpec` for an image of a registry that this server does not ask for them."""
        if isinstance(source, OciSource):
            self.require_image(source.reference)

    def require_policy(self, policy: NetworkPolicy) -> None:
        """Raises `Refused` (400) for a policy that names a private network of the operator's.

        A name and a private proxy or DNS server reach only what is named by address as well.
        """
        for text in policy.allowed_networks:
            network = ipaddress.ip_network(text)
            if _within(network, PRIVATE) and not _within(network, (*NEVER, *self.private_networks)):
                raise Refused(400, self._closed(text), should_retry=False)

    def _closed(self, text: str) -> str:
        named = ", ".join(self.private_networks) or "none"
        return (
            f"network.allowOut names the private network {text}; private networks are open to API keys only as"
            f" tenant_private_networks of this server's settings says: {named}"
        )


def _within(network: ipaddress.IPv4Network | ipaddress.IPv6Network, blocks: Iterable[str]) -> bool:
    """NEVER counts as open: a policy that names it opens nothing by that."""
    return isinstance(network, ipaddress.IPv4Network) and any(
        network.subnet_of(ipaddress.IPv4Network(block)) for block in blocks
    )
