"""The files of a service: systemd's units read back by systemd's rules, launchd's property lists by plistlib."""

from __future__ import annotations

import plistlib
import re
from collections.abc import Mapping
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgepp.errors import UsageError
from edgepp.host_system.launchd_plist import plist_text
from edgepp.host_system.service_definition import ServiceDefinition, edgepp_program, kept_environment
from edgepp.host_system.systemd_unit import unit_text

TEXT = st.text(st.characters(min_codepoint=32, exclude_characters="\x7f", exclude_categories=("Cs", "Cc")), min_size=1)


def definition(*options: str, **environment: str) -> ServiceDefinition:
    return ServiceDefinition("join", ("/opt/edge pp/bin/edgepp",), options, environment)


def settings(text: str, key: str) -> list[str]:
    return re.findall(rf"^{key}=(.*)$", text, re.MULTILINE)


def words(line: str) -> list[str]:
    """The words of a setting by the rules of systemd.syntax(7) and the specifiers of systemd.unit(5)."""
    found = re.findall(r'"((?:\\.|[^"\\])*)"|(\S+)', line)
    return [re.sub(r"\\(.)", r"\1", quoted).replace("%%", "%") if quoted else plain for quoted, plain in found]


@given(st.lists(TEXT))
def test_systemd_reads_the_command_that_was_meant(options: list[str]) -> None:
    (line,) = settings(unit_text(definition(*options)), "ExecStart")
    assert not re.search(r"(?<!\$)\$(\$\$)*(?!\$)", line), "a lone $ begins a variable"
    assert [word.replace("$$", "$") for word in words(line)] == ["/opt/edge pp/bin/edgepp", "join", *options]


@given(st.dictionaries(st.sampled_from(["EDGEPP_HOME", "EDGEPP_NAME"]), TEXT))
def test_systemd_reads_the_variables_that_were_meant(variables: Mapping[str, str]) -> None:
    lines = settings(unit_text(definition(**variables)), "Environment")
    read = dict(word.partition("=")[::2] for line in lines for word in words(line))
    assert read == variables


@given(st.lists(TEXT))
def test_launchd_reads_the_command_that_was_meant(options: list[str]) -> None:
    read = plistlib.loads(plist_text(definition(*options), Path("/log")).encode())
    assert read["ProgramArguments"] == ["/opt/edge pp/bin/edgepp", "join", *options]


@pytest.mark.parametrize("text", ["a\nExecStartPre=/bin/evil", "tab\t", "\x00", "\x7f"])
def test_control_characters_are_refused(text: str) -> None:
    with pytest.raises(UsageError, match="control character"):
        definition(text)
    with pytest.raises(UsageError, match="control character"):
        definition(EDGEPP_NAME=text)


def test_a_unit_starts_again_after_a_failure_and_stops_slowly_enough_to_drain() -> None:
    text = unit_text(definition())
    assert settings(text, "Restart") == ["on-failure"]
    assert settings(text, "RestartPreventExitStatus") == ["2"]
    assert "143" in settings(text, "SuccessExitStatus")[0].split()
    assert int(settings(text, "TimeoutStopSec")[0]) > 20
    assert settings(text, "OOMPolicy") == ["continue"]
    for breaking in ("PrivateDevices", "PrivateNetwork", "MemoryDenyWriteExecute", "PrivateUsers", "IPAddressDeny"):
        assert breaking not in text


def test_an_agent_belongs_to_whoever_is_logged_in_and_a_daemon_to_the_user() -> None:
    agent = plistlib.loads(plist_text(definition(), Path("/log")).encode())
    assert agent["KeepAlive"] == {"SuccessfulExit": False}
    assert agent["RunAtLoad"] is True
    assert "UserName" not in agent
    daemon = plistlib.loads(
        plist_text(definition(EDGEPP_NAME="mini"), Path("/log"), user="ann", home=Path("/Users/ann")).encode()
    )
    assert daemon["UserName"] == "ann"
    assert daemon["EnvironmentVariables"] == {"EDGEPP_NAME": "mini", "HOME": "/Users/ann", "USER": "ann"}


def test_no_secret_is_taken_over(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("EDGEPP_TOKEN", "EDGEPP_API_KEY", "HF_TOKEN"):
        monkeypatch.setenv(name, "secret")
    monkeypatch.setenv("EDGEPP_HOME", "here")
    monkeypatch.setenv("EDGEPP_NAME", "mini")
    kept = kept_environment()
    assert "secret" not in kept.values()
    assert (kept["EDGEPP_HOME"], kept["EDGEPP_NAME"]) == (str(tmp_path / "here"), "mini")


def test_the_program_has_an_absolute_path() -> None:
    assert Path(edgepp_program()[0]).is_absolute()


def test_without_the_script_nothing_is_imported_from_the_home_where_services_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sysconfig.get_path", lambda _: str(tmp_path))
    assert edgepp_program()[1:] == ("-P", "-m", "edgepp")
