"""Settings: who wins, what is refused, and that a refusal names the culprit."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from firkin.law.errors import InvalidSpec
from firkin.law.pressure import BackpressurePolicy, PressurePolicy
from firkin.law.resources import MIB
from firkin.settings import Settings, default_state_dir, parse_api_key, read_settings

KEY = "e2b_0123456789abcdef"


def read(tmp_path: Path, toml: str = "", env: dict[str, str] | None = None, **given: object) -> Settings:
    (tmp_path / "config.toml").write_text(toml)
    return read_settings({"state_dir": tmp_path, **given}, environ=env or {})


def test_defaults_hold_when_nothing_is_said(tmp_path: Path) -> None:
    settings = read(tmp_path)
    assert (settings.host, settings.port, settings.driver) == ("127.0.0.1", 3000, "namespaces")
    assert settings.policies().default_resources.memory_bytes == 1024 * MIB


def test_the_command_line_beats_the_environment_beats_the_file(tmp_path: Path) -> None:
    toml = 'host = "10.0.0.1"\nport = 1\nmax_sandboxes = 7'
    settings = read(tmp_path, toml, {"FIRKIN_HOST": "10.0.0.2", "FIRKIN_PORT": "2"}, port=3)
    assert (settings.host, settings.port, settings.max_sandboxes) == ("10.0.0.2", 3, 7)


def test_options_not_given_do_not_hide_what_the_file_says(tmp_path: Path) -> None:
    assert read(tmp_path, "kill_on_exit = true", kill_on_exit=None).kill_on_exit is True


@pytest.mark.parametrize("env", [{"FIRKIN_DRIVR": "x"}, {"FIRKIN_": "x"}])
def test_an_unknown_variable_is_refused_by_name(tmp_path: Path, env: dict[str, str]) -> None:
    with pytest.raises(InvalidSpec, match="is not a setting; known are"):
        read(tmp_path, env=env)


def test_an_unknown_key_in_the_file_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(InvalidSpec, match=r"'max_sandbox' in .*config\.toml is not a setting"):
        read(tmp_path, "max_sandbox = 3")


def test_a_named_configuration_file_must_exist(tmp_path: Path) -> None:
    with pytest.raises(InvalidSpec, match="does not exist"):
        read_settings(environ={"FIRKIN_CONFIG": str(tmp_path / "none.toml")})


def test_a_file_that_is_not_toml_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidSpec, match="is not TOML"):
        read(tmp_path, "host = ")


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ({"port": 65536}, "whole number from 0 to 65535"),
        ({"port": -1}, "whole number"),
        ({"port": "x"}, "whole number"),
        ({"port": True}, "whole number"),
        ({"host": "a b"}, "host name"),
        ({"driver": "../x"}, "driver's name"),
        ({"domain": "UPPER"}, "domain name"),
        ({"log_level": "loud"}, "one of debug"),
        ({"kill_on_exit": "perhaps"}, "true or false"),
        ({"default_timeout_s": 0}, "seconds above 0"),
        ({"default_timeout_s": "nan"}, "seconds above 0"),
        ({"sandbox_memory_mb": 1}, "from 16"),
        ({"max_sandboxes": 1.5}, "whole number"),
        ({"driver_options": "a"}, "table"),
        ({"image_mirrors": "a"}, "table"),
        ({"image_mirrors": {"debian": 3}}, "table"),
        ({"tenant_registries": "quay.io"}, "list of texts"),
        ({"tenant_registries": ["quay.io", "10.0.0.5:5000"]}, "'10.0.0.5:5000' must be a name"),
        ({"tenant_registries": ["localhost:5000"]}, "no address and no local name"),
        ({"tenant_private_networks": "10.0.0.0/8"}, "list of texts"),
        ({"tenant_private_networks": ["10.0.0.300"]}, "Octet"),
        ({"tenant_private_networks": ["169.254.169.254"]}, "neither link-local nor this host's"),
        ({"tenant_private_networks": ["0.0.0.0/0"]}, "a private network such as"),
        ({"tenant_private_networks": ["127.0.0.0/8"]}, "neither link-local nor this host's"),
        ({"api_keys": ["short"]}, "8 to 256"),
        ({"api_keys": [f"a b:{KEY}"]}, "name"),
        ({"api_keys": [f"a:{KEY}:0"]}, "above 0"),
        ({"api_keys": [f"a:{KEY}:1:2"]}, "NAME:KEY"),
        ({"api_keys": [f"a:{KEY}", f"b:{KEY}"]}, "same name or the same key"),
        ({"api_keys": [3]}, "list of texts"),
        ({"state_dir": ""}, "a path"),
    ],
)
def test_a_wrong_value_says_what_is_allowed(tmp_path: Path, given: dict[str, object], text: str) -> None:
    with pytest.raises(InvalidSpec, match=text):
        read(tmp_path, **given)


def test_a_refused_key_is_not_shown(tmp_path: Path) -> None:
    with pytest.raises(InvalidSpec) as caught:
        read(tmp_path, api_keys=[f"a:{KEY}", f"b:{KEY}"])
    assert KEY not in str(caught.value)


def test_a_settings_text_does_not_hold_keys(tmp_path: Path) -> None:
    assert KEY not in repr(read(tmp_path, api_keys=[KEY]))


def test_mirrors_come_from_a_table_or_a_list_of_words(tmp_path: Path) -> None:
    toml = 'registry_auth_file = "/srv/auth.json"\n[image_mirrors]\n"docker.io/library/" = "127.0.0.1:5000/library/"\n'
    settings = read(tmp_path, toml)
    assert settings.image_mirrors == {"docker.io/library/": "127.0.0.1:5000/library/"}
    assert settings.registry_auth_file == Path("/srv/auth.json")
    env = {"FIRKIN_IMAGE_MIRRORS": "debian:12=oci:/srv/debian:12,e2bdev/=10.0.0.1:5000/e2b/"}
    assert read(tmp_path, env=env).image_mirrors == {"debian:12": "oci:/srv/debian:12", "e2bdev/": "10.0.0.1:5000/e2b/"}


def test_a_servers_tenants_and_their_networks_come_from_a_list_or_words(tmp_path: Path) -> None:
    assert read(tmp_path, 'tenant_private_networks = ["10.20.0.0/16"]').tenant_private_networks == ("10.20.0.0/16",)
    env = {"FIRKIN_TENANT_PRIVATE_NETWORKS": "10.20.0.0/16, 192.168.7.9", "FIRKIN_API_KEYS": f"a:{KEY},b:{KEY}2"}
    settings = read(tmp_path, env=env)
    assert settings.tenant_private_networks == ("10.20.0.0/16", "192.168.7.9/32")
    assert settings.is_shared
    env = {"FIRKIN_TENANT_REGISTRIES": "quay.io,*.Corp.example:5000"}
    assert read(tmp_path, env=env).tenant_registries == ("quay.io", "*.corp.example:5000")
    assert read(tmp_path, "tenant_registries = []").tenant_registries == ()
    assert "docker.io" in settings.tenant_registries
    assert not settings.tenants_use_registry_auth
    assert read(tmp_path, env={"FIRKIN_TENANTS_USE_REGISTRY_AUTH": "true"}).tenants_use_registry_auth
    assert not read(tmp_path, api_keys=[KEY]).is_shared


def test_none_lifts_a_limit(tmp_path: Path) -> None:
    settings = read(tmp_path, 'max_timeout_s = "none"\ndefault_timeout_s = "none"')
    assert settings.policies().deadlines.max_timeout_s is None
    assert settings.policies().deadlines.default_timeout_s is None


def test_keys_come_with_names_and_quotas(tmp_path: Path) -> None:
    settings = read(tmp_path, env={"FIRKIN_API_KEYS": f"{KEY},bob:{KEY}1:5"})
    assert [(key.name, key.key, key.max_sandboxes) for key in settings.api_keys] == [
        ("default", KEY, None),
        ("bob", f"{KEY}1", 5),
    ]


def test_a_second_bare_key_gets_a_name_of_its_own() -> None:
    assert parse_api_key(KEY, position=2).name == "key2"


def test_the_default_state_folder_depends_on_who_asks() -> None:
    expected = "/var/lib/firkin" if os.geteuid() == 0 else "/home/x/.local/share/firkin"
    assert str(default_state_dir({"HOME": "/home/x"})) == expected


def test_the_environment_names_the_state_folder_and_its_file_is_read(tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text("port = 4000")
    settings = read_settings(environ={"FIRKIN_STATE_DIR": str(tmp_path)})
    assert (settings.state_dir, settings.port) == (tmp_path, 4000)


def test_floors_queue_and_pressure_become_policies(tmp_path: Path) -> None:
    given = {"queue_max_pending": 3, "queue_max_wait_ms": 250, "refill_memory_floor_mb": 700, "launches_at_once": 2}
    policies = read_settings({"state_dir": tmp_path, **given}, environ={}).policies()
    assert policies.backpressure == BackpressurePolicy(max_pending=3, max_wait_s=0.25, launches_at_once=2)
    assert policies.pressure == PressurePolicy(refill_memory_bytes=700 * MIB)
    assert read_settings({"state_dir": tmp_path}, environ={}).policies().backpressure == BackpressurePolicy(
        max_wait_s=2
    )
    with pytest.raises(InvalidSpec, match="launches_at_once"):
        read_settings({"state_dir": tmp_path, "launches_at_once": 0}, environ={})


def test_the_quota_of_a_key_bounds_those_paused_with_their_memory_too(tmp_path: Path) -> None:
    settings = read_settings({"state_dir": tmp_path, "api_keys": ["ann:longenough:3", "bob:longenoughtoo"]}, environ={})
    assert settings.policies().most_frozen == {"ann": 3}


def test_the_default_lifetime_is_never_above_the_longest(tmp_path: Path) -> None:
    with pytest.raises(InvalidSpec, match="default_timeout_s is 600 and max_timeout_s 60; it must not be more"):
        read(tmp_path, "default_timeout_s = 600\nmax_timeout_s = 60")
    assert read(tmp_path, "max_timeout_s = 60").default_timeout_s == 60
    assert read(tmp_path, 'max_timeout_s = "none"').default_timeout_s == 300
    assert read(tmp_path, 'default_timeout_s = "none"').default_timeout_s is None


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "the key of 'default' is empty"),
        ("bob:", "the key of 'bob' is empty"),
        ("bob:short", "the key of 'bob' has 5 characters"),
        ("bob:has space inside", "the key of 'bob' has other characters than are allowed"),
    ],
)
def test_a_key_is_refused_for_what_is_wrong_with_it(text: str, says: str) -> None:
    with pytest.raises(InvalidSpec, match=says):
        parse_api_key(text)
