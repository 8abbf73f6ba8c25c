"""``firkin tls``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from firkin.cli.options import Place, Text, state_dir_option
from firkin.cli.output import json_option, show_json
from firkin.settings import read_settings

if TYPE_CHECKING:
    from firkin.bootstrap.certificates import Issued


@click.group()
def tls() -> None:
    """Certificates, so that sandboxes are reached by https."""


@tls.command()
@click.option(
    "--domain", type=Text(), help="The domain under which sandboxes are reached (default: that of the settings)."
)
@click.option("--dir", "folder", type=Place(file_okay=False), help="Default STATE_DIR/tls.")
@click.option("--renew", is_flag=True, help="Only renew: fail when there is no authority yet.")
@state_dir_option
@json_option
def init(domain: str | None, folder: Path | None, renew: bool, state_dir: Path | None, as_json: bool) -> None:
    """Make a certificate for *.DOMAIN, signed by an authority of this machine's own.

    The authority is made once and is valid for ten years; clients are told to
    trust it. The certificate is valid for 397 days; run this again to renew it.
    """
    settings = read_settings({"state_dir": state_dir})
    from firkin.bootstrap.certificates import issue  # cryptography loads only here
    from firkin.bootstrap.state_files import claim_state_dir
    from firkin.bootstrap.tls import TLS_FOLDER

    asked = domain or settings.domain
    if folder is None:
        claim_state_dir(settings.state_dir)
    issued = issue((folder or settings.state_dir / TLS_FOLDER).absolute(), asked.partition(":")[0], only_renew=renew)
    if as_json:
        show_json(_as_json(issued))
        return
    _show(issued, serve_options=_serve_options(issued, asked, settings.domain, folder))


def _serve_options(issued: Issued, domain: str, configured: str, folder: Path | None) -> str:
    own = f"--tls-cert {issued.folder / 'cert.pem'} --tls-key {issued.folder / 'key.pem'}"
    return (own if folder else "--tls") + (f" --domain {domain}" if domain != configured else "")


def _as_json(issued: Issued) -> dict[str, object]:
    return {
        "ca": str(issued.folder / "ca.pem"),
        "trust": str(issued.folder / "trust.pem"),
        "ca_is_new": issued.ca_is_new,
        "ca_until": issued.ca_until.isoformat(),
        "certificate": str(issued.folder / "cert.pem"),
        "key": str(issued.folder / "key.pem"),
        "names": list(issued.names),
        "until": issued.until.isoformat(),
    }


def _show(issued: Issued, *, serve_options: str) -> None:
    ca = issued.folder / "ca.pem"
    domain = issued.names[0]
    state = "new" if issued.ca_is_new else "kept"
    click.echo(f"authority    {ca} ({state}, until {issued.ca_until:%Y-%m-%d})")
    click.echo(f"certificate  {issued.folder / 'cert.pem'} (until {issued.until:%Y-%m-%d})")
    click.echo(f"             for {', '.join(issued.names)}")
    click.echo(f"serve        firkin serve {serve_options}")
    click.echo("clients      must trust the authority; both files are no secret, copy them to where clients run:")
    click.echo(f"             export SSL_CERT_FILE={issued.folder / 'trust.pem'}   # with the system's own authorities")
    click.echo(f"             export NODE_EXTRA_CA_CERTS={ca}   # Node")
    click.echo(f"names        *.{domain} must lead to this machine: a wildcard record in DNS, or dnsmasq with")
    click.echo(f"             address=/{domain}/ADDRESS; docs/tls.md has every way")
