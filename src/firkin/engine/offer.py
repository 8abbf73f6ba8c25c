"""What this engine offers over a driver: the driver's own report, within what the engine does."""

from __future__ import annotations

from firkin.law.capabilities import (
    AGENT_CAPABILITIES,
    Capabilities,
    CapabilityName,
    CapabilityReason,
    Permanent,
)

_C = CapabilityName

ENGINE_ALONE = (
    _C.RUNTIME_CREATE,
    _C.RUNTIME_ATTACH,
    _C.RUNTIME_LIST,
    _C.RUNTIME_DEADLINE,
    _C.SANDBOX_STOP,
    _C.SANDBOX_KILL,
    _C.SANDBOX_DELETE,
    _C.TEMPLATE_PREPARE,
    _C.TEMPLATE_DATA_PLANE_NONE,
    _C.TEMPLATE_DATA_PLANE_ENVD_INJECT,
    _C.SANDBOX_DATA_PLANE_INIT,
    _C.WARM_POOL_PREWARM,
    _C.WARM_POOL_CHECKOUT,
    _C.EVENTS_SUBSCRIBE,
    _C.METRICS_HOST,
)

FROM_DRIVER = (
    *AGENT_CAPABILITIES,
    _C.TEMPLATE_READY,
    _C.NETWORK_POLICY,
    _C.SNAPSHOT_CAPTURE,
    _C.SNAPSHOT_RESTORE,
    _C.PAUSE_CAPTURE,
    _C.PAUSE_RESUME,
)

# What the engine does itself with files that a driver captured.
WITH_CAPTURES = (_C.SNAPSHOT_DELETE, _C.SNAPSHOT_EXPORT, _C.SNAPSHOT_IMPORT)

_NOT_BUILT: tuple[tuple[CapabilityReason, tuple[CapabilityName, ...]], ...] = (
    (
        Permanent("nobody watches a template's source; prepare it again, with force, for what is there now"),
        (_C.TEMPLATE_FRESHNESS,),
    ),
    (Permanent("domains are served by the E2B server, not by the engine"), (_C.PORTS_DOMAIN_PROXY,)),
)


def engine_offer(driver: Capabilities) -> Capabilities:
    """The report of a backend over a driver that reports `driver`. Exposing ports needs connecting to them."""
    offer = Capabilities.all_unsupported(Permanent("not offered by this engine")).with_supported(*ENGINE_ALONE)
    for reason, names in _NOT_BUILT:
        offer = offer.with_unsupported(reason, *names)
    for name in FROM_DRIVER:
        offer = _taking(offer, name, driver.refusal(name))
    offer = _taking(offer, _C.TEMPLATE_DATA_PLANE_ENVD_VERIFY, driver.refusal(_C.TEMPLATE_READY))
    for name in WITH_CAPTURES:
        offer = _taking(offer, name, driver.refusal(_C.SNAPSHOT_CAPTURE))
    return _taking(offer, _C.PORTS_EXPOSE, driver.refusal(_C.PORTS_CONNECT))


def _taking(offer: Capabilities, name: CapabilityName, refusal: CapabilityReason | None) -> Capabilities:
    return offer.with_supported(name) if refusal is None else offer.with_unsupported(refusal, name)
