"""``firkin tls init``, and which certificates ``firkin serve`` refuses."""

from __future__ import annotations

import datetime
import json
import re
import ssl
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from firkin.bootstrap.certificates import issue
from firkin.bootstrap.tls import served_certificate
from firkin.cli.findings import Status
from firkin.cli.main import main
from firkin.cli.tool_checks import tls_findings
from firkin.host import certificates
from firkin.law.errors import InvalidSpec
from firkin.settings import Settings, read_settings

FILES = ("ca-key.pem", "ca.pem", "cert.pem", "key.pem", "trust.pem")


def _loaded(path: Path) -> x509.Certificate:
    return x509.load_pem_x509_certificate(path.read_bytes())


def _run(*words: str) -> int:
    with pytest.raises(SystemExit) as ended:
        main(words)
    return int(ended.value.code or 0)


def test_init_makes_an_authority_for_nothing_else(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert _run("tls", "init", "--domain", "sbx.test:8443", "--state-dir", str(tmp_path)) == 0
    said = capsys.readouterr().out
    folder = tmp_path / "tls"
    assert sorted(path.name for path in folder.iterdir()) == sorted(FILES)
    assert {path.stat().st_mode & 0o777 for path in folder.iterdir()} == {0o600}
    for part in ("firkin serve --tls --domain sbx.test:8443", "SSL_CERT_FILE=", "NODE_EXTRA_CA_CERTS=", "*.sbx.test"):
        assert part in said
    ca, cert = _loaded(folder / "ca.pem"), _loaded(folder / "cert.pem")
    cert.verify_directly_issued_by(ca)
    limits = ca.extensions.get_extension_for_class(x509.NameConstraints)
    assert limits.critical
    assert [str(each.value) for each in limits.value.permitted_subtrees or ()] == [
        "sbx.test",
        "localhost",
        "127.0.0.1/32",
        "::1/128",
    ]
    names = cert.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert [str(each.value) for each in names] == ["sbx.test", "*.sbx.test", "localhost", "127.0.0.1", "::1"]
    assert (cert.not_valid_after_utc - cert.not_valid_before_utc).days == 397
    assert (ca.not_valid_after_utc - ca.not_valid_before_utc).days == 3653


def test_again_renews_the_certificate_and_keeps_the_authority(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _run("tls", "init", "--dir", str(tmp_path), "--domain", "sbx.test", "--renew") == 2
    assert "without --renew" in capsys.readouterr().err
    issue(tmp_path, "sbx.test")
    before = {name: (tmp_path / name).read_bytes() for name in FILES}
    assert _run("tls", "init", "--dir", str(tmp_path), "--domain", "deep.sbx.test", "--renew", "--json") == 0
    assert json.loads(capsys.readouterr().out)["ca_is_new"] is False
    changed = {name for name in FILES if (tmp_path / name).read_bytes() != before[name]}
    assert changed == {"cert.pem", "key.pem"}


@pytest.mark.parametrize("domain", ["localhost", "1.2.3.4", "Sbx.test", "a..b", "-a.b", "a.b/c", "", "a." * 120 + "b"])
def test_a_domain_that_no_wildcard_is_for_is_refused(tmp_path: Path, domain: str) -> None:
    with pytest.raises(InvalidSpec, match="domain"):
        issue(tmp_path / "tls", domain)
    assert not (tmp_path / "tls").exists()


def test_an_authority_is_not_used_for_what_it_may_not_sign(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    issue(tmp_path, "sbx.test")
    with pytest.raises(InvalidSpec, match=r"sbx\.test only"):
        issue(tmp_path, "other.test")
    with pytest.raises(InvalidSpec, match=r"sbx\.test only"):
        issue(tmp_path, "evilsbx.test")
    later = certificates.now() + datetime.timedelta(days=3653)
    with monkeypatch.context() as patched:
        patched.setattr(certificates, "now", lambda: later)
        with pytest.raises(InvalidSpec, match="expired"):
            issue(tmp_path, "sbx.test")
    (tmp_path / "ca-key.pem").write_bytes((tmp_path / "key.pem").read_bytes())
    with pytest.raises(InvalidSpec, match="belong together"):
        issue(tmp_path, "sbx.test")
    (tmp_path / "ca-key.pem").unlink()
    with pytest.raises(InvalidSpec, match="cannot be read"):
        issue(tmp_path, "sbx.test")


def test_serving_without_tls_needs_no_certificate(tmp_path: Path) -> None:
    assert served_certificate(Settings(state_dir=tmp_path)) is None


def test_a_made_certificate_is_served(tmp_path: Path) -> None:
    issue(tmp_path / "tls", "sbx.test")
    served = served_certificate(Settings(state_dir=tmp_path, tls=True, domain="sbx.test:8443"))
    assert served is not None
    assert served.ca == tmp_path / "tls" / "ca.pem"
    assert served.context().minimum_version is ssl.TLSVersion.TLSv1_2


def test_the_settings_come_from_everywhere(tmp_path: Path) -> None:
    config = tmp_path / "config.toml"
    config.write_text('tls = true\ntls_cert = "/file/cert.pem"\n')
    environ = {"FIRKIN_TLS_KEY": "/variable/key.pem", "FIRKIN_STATE_DIR": str(tmp_path)}
    found = read_settings({"tls_cert": Path("/option/cert.pem")}, environ=environ)
    assert (found.tls, found.tls_cert, found.tls_key) == (True, Path("/option/cert.pem"), Path("/variable/key.pem"))


def _refusal(folder: Path, **more: object) -> str:
    cert, key = folder / "tls" / "cert.pem", folder / "tls" / "key.pem"
    fields = {"tls_cert": cert, "tls_key": key, "domain": "sbx.test", **more}
    with pytest.raises(InvalidSpec) as refused:
        served_certificate(Settings(state_dir=folder, **fields))  # type: ignore[arg-type]
    return str(refused.value)


def test_what_clients_would_refuse_is_refused_at_the_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "tls"
    assert "does not exist; make it with: firkin tls init" in _refusal(tmp_path, tls=True, tls_cert=None, tls_key=None)
    assert "give both" in _refusal(tmp_path, tls_key=None)
    assert re.search(r"cert\.pem does not exist$", _refusal(tmp_path))
    issue(folder, "sbx.test")
    assert "not for *.other.test" in _refusal(tmp_path, domain="other.test:8443")
    assert "does not belong to the certificate" in _refusal(tmp_path, tls_key=folder / "ca-key.pem")
    assert "is not a private key" in _refusal(tmp_path, tls_key=folder / "cert.pem")
    assert "is not a certificate" in _refusal(tmp_path, tls_cert=folder / "key.pem")
    assert "cannot be read" in _refusal(tmp_path, tls_cert=folder)
    secret = ec.generate_private_key(ec.SECP256R1()).private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.BestAvailableEncryption(b"passphrase"),
    )
    (folder / "locked.pem").write_bytes(secret)
    assert "is encrypted" in _refusal(tmp_path, tls_key=folder / "locked.pem")
    now = certificates.now()
    for shift, says in ((-400, "expired on"), (+30, "valid only from")):
        with monkeypatch.context() as patched:
            patched.setattr(certificates, "now", lambda shift=shift: now + datetime.timedelta(days=shift))
            issue(folder, "sbx.test")
        assert says in _refusal(tmp_path)


def test_an_operators_certificate_without_names_is_refused(tmp_path: Path) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "*.sbx.test")])
    now = certificates.now()
    bare = x509.CertificateBuilder(
        issuer_name=name,
        subject_name=name,
        public_key=key.public_key(),
        serial_number=1,
        not_valid_before=now - datetime.timedelta(days=1),
        not_valid_after=now + datetime.timedelta(days=1),
    ).sign(key, hashes.SHA256())
    (tmp_path / "tls").mkdir()
    (tmp_path / "tls" / "cert.pem").write_bytes(bare.public_bytes(serialization.Encoding.PEM))
    plain = serialization.NoEncryption()
    (tmp_path / "tls" / "key.pem").write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, plain)
    )
    assert "is for no name" in _refusal(tmp_path)


def test_the_doctor_looks_at_the_certificate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert list(tls_findings(Settings(state_dir=tmp_path))) == []
    settings = Settings(state_dir=tmp_path, tls=True, domain="sbx.test")
    (missing,) = tls_findings(settings)
    assert (missing.status, missing.mend) == (Status.DEGRADED, "firkin tls init")
    issue(tmp_path / "tls", "sbx.test")
    assert [each.status for each in tls_findings(settings)] == [Status.OK]
    earlier = certificates.now() - datetime.timedelta(days=380)
    monkeypatch.setattr(certificates, "now", lambda: earlier)
    issue(tmp_path / "old" / "tls", "sbx.test")
    (old,) = tls_findings(Settings(state_dir=tmp_path / "old", tls=True, domain="sbx.test"))
    assert (old.status, "until" in old.detail) == (Status.DEGRADED, True)
