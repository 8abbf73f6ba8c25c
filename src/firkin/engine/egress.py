"""What sandboxes send out, as far as the engine has a say: secrets found, gateways told, authorities trusted."""

from __future__ import annotations

import logging
import re
from dataclasses import replace

from firkin.engine.ledger import Ledger, Why
from firkin.engine.links import Inside
from firkin.engine.roster import Resident, Roster
from firkin.engine.sealed_policies import require_open
from firkin.engine.secret_store import SecretStore
from firkin.engine.substrate import substrate
from firkin.engine.trust import VARIABLES, make_trusted
from firkin.law.driver import Driver
from firkin.law.errors import FirkinError, InvalidReason, InvalidSpec
from firkin.law.ids import SandboxId
from firkin.law.network import NetworkPolicy
from firkin.law.secrets import SECRET_PLACEHOLDER, named_secrets
from firkin.law.states import SandboxState

LEAD_WITHIN_S = 30.0
_ANY_PLACEHOLDER = re.compile(r"\$\{e2b\.[^}]*\}?")
_log = logging.getLogger("firkin.engine")


class Egress:
    """Leads inspected sandboxes. One that is not led reaches nothing: a failure here closes and never opens."""

    def __init__(self, driver: Driver, secrets: SecretStore | None, *, roster: Roster, ledger: Ledger) -> None:
        self._driver = driver
        self._secrets = secrets
        self._roster = roster
        self._ledger = ledger
        if secrets is not None:
            secrets.changed = self._secrets_changed
        if driver.egress is not None:
            driver.egress.report(self._reported)

    async def check(self, operation: str, owner: str, policy: NetworkPolicy) -> None:
        """`InvalidSpec` for a placeholder that nothing fills, a secret that `owner` does not have, a bad password."""
        wanted = _wanted(policy)
        self._check_proxy(operation, policy)
        for value in (value for rule in policy.rules for value in rule.headers.values()):
            strange = _ANY_PLACEHOLDER.search(SECRET_PLACEHOLDER.sub("", value))
            if strange is not None:
                detail = f"{strange[0][:64]!r} in a rule is not offered; ${{e2b.secrets.NAME}} is"
                raise InvalidSpec(operation, InvalidReason.INVALID_NETWORK, detail)
        if not wanted:
            return
        known = {info.name for info in await self._secrets.list(owner)} if self._secrets is not None else set()
        missing = sorted(wanted - known)
        if missing:
            detail = f"a rule names the secret {missing[0]!r}, which does not exist; create it first"
            raise InvalidSpec(operation, InvalidReason.MISSING_SECRET, detail)

    def _check_proxy(self, operation: str, policy: NetworkPolicy) -> None:
        require_open(policy)
        proxy = policy.egress_proxy
        if proxy is None:
            return
        if any(letter < " " for letter in proxy.username + proxy.password):
            detail = "the egress proxy's user name and password must not have control characters"
            raise InvalidSpec(operation, InvalidReason.INVALID_NETWORK, detail)
        if proxy.password and self._secrets is None:
            detail = "the egress proxy's password is kept sealed with a server secret, and this runtime has none"
            raise InvalidSpec(operation, InvalidReason.INVALID_NETWORK, detail)

    async def lead(self, operation: str, resident: Resident) -> None:
        """Have its gateway know what holds for it. Raises when that fails: then it reaches nothing."""
        keeper, info = self._driver.egress, resident.info
        if keeper is None or not info.network.is_inspected:
            return
        require_open(info.network)
        values = {}
        if self._secrets is not None:
            values = await self._secrets.values(info.owner, _wanted(info.network))
        async with substrate(operation, self._driver.name, within_s=LEAD_WITHIN_S, sandbox_id=resident.id):
            certificate = await keeper.lead(resident.id, owner=info.owner, policy=info.network, secrets=values)
        if certificate != resident.trusts:
            resident.to_trust = certificate

    async def settle(self, resident: Resident, inside: Inside) -> None:
        """Have the sandbox trust its gateway's authority, unless it does already."""
        if resident.to_trust:
            await make_trusted(inside.files, resident.to_trust)
            resident.trusts, resident.to_trust = resident.to_trust, ""
            resident.inside = replace(inside, env={**VARIABLES, **inside.env})

    async def _secrets_changed(self, owner: str) -> None:
        """Running sandboxes send the new values from their next request on."""
        for resident in list(self._roster):
            info = resident.info
            if info.owner != owner or resident.instance is None or not _wanted(info.network):
                continue
            try:
                await self.lead("change a secret", resident)
            except FirkinError as error:
                _log.error("secrets not changed sandbox=%s error=%s", resident.id, error)

    def _reported(self, sandbox_id: SandboxId, text: str) -> None:
        """Into the journal of one that lives."""
        resident = self._roster.get(sandbox_id)
        if resident is not None and resident.info.state in (SandboxState.RUNNING, SandboxState.PAUSED):
            self._ledger.jot(resident, why=Why(cause=text, actor="engine"))


def _wanted(policy: NetworkPolicy) -> frozenset[str]:
    return named_secrets(value for rule in policy.rules for value in rule.headers.values())
