"""Options of a driver of boxes, as an operator writes them."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field

from firkin.law.errors import InvalidReason, InvalidSpec

_KNOWN = ("ready_slots", "ready_boxes", "open_files", "attached_layers", "egress_trust")


@dataclass(frozen=True, slots=True, kw_only=True)
class BoxOptions:
    """`ready_slots`: slots kept ready for bursts (0.5 MB of kernel memory each). `ready_boxes`: up to how many
    boxes are half made ahead of need (2 MB each); 0 makes none. `open_files`: RLIMIT_NOFILE inside,
    never above the host's own. `attached_layers`: use the way of kernels before 6.13 although this one is newer.
    `egress_trust`: a file of authorities (PEM) that egress gateways trust servers by, beside the system's.
    `more`: what only one driver knows, as it was written."""

    ready_slots: int = 104
    ready_boxes: int = 8
    open_files: int = 1 << 20
    attached_layers: bool = False
    egress_trust: str = ""
    more: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def parse(cls, options: Mapping[str, str], driver: str, *more: str) -> BoxOptions:
        """`more` are the names that only `driver` knows. Raises `InvalidSpec` for an unknown name or a wrong value."""
        unknown = sorted(set(options) - {*_KNOWN, *more})
        if unknown:
            raise invalid(f"the {driver} driver has no option {unknown[0]!r}")
        try:
            ready = int(options.get("ready_slots", cls().ready_slots))
            boxes = int(options.get("ready_boxes", cls().ready_boxes))
            files = int(options.get("open_files", cls().open_files))
        except ValueError:
            raise invalid("ready_slots, ready_boxes and open_files must be whole numbers") from None
        if not 1 <= ready <= 2048 or not 0 <= boxes <= 64 or not 64 <= files <= 1 << 20:
            raise invalid("ready_slots must be 1…2048, ready_boxes 0…64 and open_files 64…1048576")
        attached = options.get("attached_layers", "false")
        if attached not in ("true", "false"):
            raise invalid("attached_layers must be true or false")
        trust = options.get("egress_trust", "")
        if trust and not os.access(trust, os.R_OK):
            raise invalid(f"egress_trust names {trust!r}, which cannot be read")
        own = {name: options[name] for name in more if name in options}
        return cls(
            ready_slots=ready,
            ready_boxes=boxes,
            open_files=files,
            attached_layers=attached == "true",
            egress_trust=trust,
            more=own,
        )


def invalid(detail: str) -> InvalidSpec:
    """The refusal of an option, for those that only one driver knows too."""
    return InvalidSpec("read driver options", InvalidReason.INVALID_SETTINGS, detail)
