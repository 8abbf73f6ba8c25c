"""The page of what each driver offers under this engine: written by ``scripts/capabilities``, held to by a test.

What is shown is a driver's word for a machine that has everything it could need:
its class method `declared()`, or where there is none the report of a new one.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any  # an entry point is untyped by nature

from firkin.bootstrap.driver_loading import driver_names, load_driver, load_driver_class
from firkin.bootstrap.tier_assembly import TIERS
from firkin.engine.offer import engine_offer
from firkin.law.capabilities import Capabilities, CapabilityName

PAGE = "docs/capabilities.md"
_HEAD = """# What each driver can do

Written by `scripts/capabilities`; a test holds it to what the drivers say. It shows what a driver offers under the
engine on a machine that has everything it needs. What yours lacks is told by `firkin doctor` and, from a running
server, by `GET /firkin/v1/tiers`. What is not offered is refused with the reason, never ignored.
"""


def shown_drivers() -> list[str]:
    """Firkin's own that are installed: the default first, the one without a kernel last."""
    known = driver_names()
    ranked = sorted(TIERS, key=lambda name: (name != "namespaces", name))
    return [name for name in (*ranked, "memory") if name in known]


def page(drivers: Sequence[str] | None = None) -> str:
    """The whole page, as Markdown. Loads the drivers."""
    names = shown_drivers() if drivers is None else drivers
    return render({name: engine_offer(_declared(name)) for name in names})


def render(offers: Mapping[str, Capabilities]) -> str:
    """One row a capability, one column a driver; the reasons of refusals below, each once."""
    reasons: dict[str, int] = {}
    rows = []
    for name in CapabilityName:
        cells = [_cell(offer, name, reasons) for offer in offers.values()]
        rows.append(f"| `{name.value}` | {' | '.join(cells)} |")
    titles = [_title(name) for name in offers]
    table = [f"| capability | {' | '.join(titles)} |", f"|---|{'---|' * len(offers)}", *rows]
    notes = [f"{number}. {reason}" for reason, number in reasons.items()]
    return "\n".join([_HEAD, *table, "", "Not offered, because:", "", *notes, ""])


def _title(driver: str) -> str:
    tier = TIERS.get(driver)
    return f"`{driver}`" if tier is None or tier.value == driver else f"`{driver}` ({tier.value})"


def _cell(offer: Capabilities, name: CapabilityName, reasons: dict[str, int]) -> str:
    reason = offer.refusal(name)
    return "yes" if reason is None else f"no ({reasons.setdefault(str(reason), len(reasons) + 1)})"


def _declared(name: str) -> Capabilities:
    driver_class: Any = load_driver_class(name)
    if hasattr(driver_class, "declared"):
        declared: Capabilities = driver_class.declared()
        return declared
    return asyncio.run(load_driver(name, Path("unused"), {}).capabilities())
