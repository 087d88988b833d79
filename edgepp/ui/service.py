"""`edgepp service`: edgepp as a service of this machine, under systemd or launchd."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

import click

from edgepp.cluster.identity import load_cluster, load_identity
from edgepp.cluster.pairing.tokens import read_token
from edgepp.cluster.state_files import config_dir
from edgepp.errors import EdgeppError, UsageError
from edgepp.host_system.launchd import Launchd
from edgepp.host_system.service_definition import (
    Role,
    ServiceDefinition,
    ServiceManager,
    ServiceStatus,
    edgepp_program,
    facts,
    kept_environment,
)
from edgepp.host_system.systemd import Systemd, is_booted
from edgepp.ui.screen import say, say_json

_LINGER = (
    "A user's services stop when the user logs out, and start with the next login. Lingering keeps them running from"
    " the start of the machine."
)
_LOCAL_NETWORK = (
    "macOS may ask whether edgepp may find devices on your local network: allow it, or other machines are not reached."
    " A daemon needs no such permission: sudo edgepp service install --daemon …"
)


def manager(*, daemon: bool) -> ServiceManager:
    """The service manager of this machine.

    Raises:
        UsageError: ``daemon`` is set on Linux, or on macOS for root.
        EdgeppError: neither systemd nor launchd runs here.
    """
    if sys.platform == "darwin":
        return Launchd(daemon=daemon)
    if daemon:
        raise UsageError("--daemon is for macOS", "on Linux, --linger keeps the service running after a logout")
    if not is_booted() or shutil.which("systemctl") is None:
        raise EdgeppError(
            "neither systemd nor launchd runs here",
            "start edgepp from the init system of this machine; `edgepp service install --print` shows a unit to go by",
        )
    return Systemd()


def install(role: Role, options: tuple[str, ...], *, daemon: bool, linger: bool | None, as_json: bool) -> None:
    """Install and start the service, and print its command and file.

    ``linger`` keeps the service running after a logout; None asks the person at the terminal, if there is one.

    Raises:
        UsageError: an option is not one of this system, or the service could not start by itself.
        EdgeppError: this machine is not ready for ``role``, or the service manager refuses.
    """
    found = manager(daemon=daemon)
    _check_role(role, options)
    definition = _definition(role, options)
    if linger and not isinstance(found, Systemd):
        raise UsageError("--linger is for Linux", "on macOS, --daemon starts the service with the machine")
    found.install(definition)
    if isinstance(found, Systemd) and not found.lingers and _wants_linger(linger, quiet=as_json):
        found.linger()
    if as_json:
        say_json({"event": "installed", "command": list(definition.command), **facts(found.status())})
        return
    say(f"installed and started under {found.name}: {' '.join(definition.command)}")
    say(f"file: {found.path}")
    if os.environ.get("EDGEPP_TOKEN"):
        say(f"EDGEPP_TOKEN is not in this file; a later start needs the token in {config_dir() / 'token'} (mode 600)")
    if isinstance(found, Systemd) and not found.lingers:
        say(f"{_LINGER} To turn it on: loginctl enable-linger")
    if isinstance(found, Launchd) and not daemon:
        say(_LOCAL_NETWORK)
    say("`edgepp service status` shows it, `edgepp service logs -f` its output, `edgepp service remove` takes it away")


def show_file(role: Role, options: tuple[str, ...], *, daemon: bool, as_json: bool) -> None:
    """Print the file that would be installed, also where no service manager runs.

    Raises:
        UsageError: ``daemon`` is set for root on macOS, or an option contains a control character.
    """
    found: ServiceManager = Launchd(daemon=daemon) if sys.platform == "darwin" else Systemd()
    text = found.text(_definition(role, options))
    if as_json:
        say_json({"event": "file", "manager": found.name, "file": str(found.path), "text": text})
    else:
        click.echo(text, nl=False)


def show_status(*, daemon: bool, as_json: bool) -> None:
    """Print whether the service is installed and runs.

    Raises:
        EdgeppError: there is no service manager, or it does not answer.
    """
    status = manager(daemon=daemon).status()
    if as_json:
        say_json(facts(status))
    else:
        say(_sentence(status))


def _sentence(status: ServiceStatus) -> str:
    if not status.installed:
        return (
            f"no service is installed under {status.manager}; `edgepp service install serve` or `… join` installs one"
        )
    parts = [f"{status.state} under {status.manager}"]
    if status.pid is not None:
        parts.append(f"process {status.pid}")
    if status.restarts:
        parts.append(f"restarted {'once' if status.restarts == 1 else f'{status.restarts} times'}")
    if status.state == "failed" and status.last_exit_status is not None:
        parts.append(f"exit status {status.last_exit_status}: see `edgepp service logs`")
    if not status.starts_by_itself:
        parts.append("does not start by itself")
    elif status.lingers is not None:
        parts.append("starts with the machine" if status.lingers else "starts with a login, ends with the logout")
    return ", ".join(parts) + f"\n{status.file}"


def show_logs(lines: int, *, follow: bool, daemon: bool) -> None:
    """Replace this process by the command that shows the last ``lines`` lines of the service's output.

    ``follow`` shows further lines as they come.

    Raises:
        EdgeppError: there is no service manager, or the command is missing.
    """
    command = manager(daemon=daemon).log_command(lines, follow=follow)
    program = shutil.which(command[0])
    if program is None:
        raise EdgeppError(f"there is no {command[0]} here", "read the log of this machine's init system")
    sys.stdout.flush()
    os.execv(program, list(command))  # noqa: S606 - a fixed command


def remove(*, daemon: bool, as_json: bool) -> None:
    """Stop the service and remove it.

    Raises:
        EdgeppError: the service manager refuses.
    """
    found = manager(daemon=daemon)
    removed = found.remove()
    if as_json:
        say_json({"event": "removed", "removed": removed, "file": str(found.path)})
    elif not removed:
        say("no service was installed")
    else:
        say(f"stopped, and removed {found.path}; this machine's key, cluster and models stay")
        if isinstance(found, Systemd) and found.lingers:
            say("lingering stays on; to turn it off: loginctl disable-linger")


def _definition(role: Role, options: tuple[str, ...]) -> ServiceDefinition:
    """The definition of the service; folders in ``options`` become absolute, since a service runs in another folder."""
    absolute = tuple(
        str(Path(word).absolute()) if word.startswith(".") and Path(word).exists() else word for word in options
    )
    return ServiceDefinition(role, edgepp_program(), absolute, kept_environment())


def _check_role(role: Role, options: tuple[str, ...]) -> None:
    """Check that a service can start by itself: this machine is paired, and in the right cluster.

    Raises:
        UsageError: the service could not start by itself.
    """
    cluster = load_cluster()
    if role == "serve":
        if cluster is not None and cluster.coordinator.node != load_identity().node:
            raise UsageError(
                f"this machine belongs to the cluster of {cluster.coordinator.name}",
                "install `join` here, or run `edgepp leave` first",
            )
    elif cluster is None and not {"-m", "--model"} & set(options):
        if not os.environ.get("EDGEPP_TOKEN") and read_token():
            return
        raise UsageError(
            "this machine belongs to no cluster, and a service cannot be asked for a code",
            "run `edgepp join CODE` once, stop it by Ctrl-C, and install the service then; or put a token into"
            f" {config_dir() / 'token'} (mode 600)",
        )


def _wants_linger(linger: bool | None, *, quiet: bool) -> bool:
    """Whether to turn lingering on: as ``linger`` says, or if it is None as a person at the terminal answers."""
    if linger is not None or quiet or not sys.stdin.isatty():
        return bool(linger)
    say(_LINGER)
    return click.confirm("Turn lingering on?", default=True)
