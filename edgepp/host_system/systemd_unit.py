"""The unit file of a systemd user service."""

from __future__ import annotations

import re

from edgepp.host_system.service_definition import STOP_S, ServiceDefinition

_PLAIN = re.compile(r"[A-Za-z0-9_./:=,@+-]+")

# No option here needs a mount or user namespace, which a user's manager cannot make everywhere, hides /dev, which has
# the graphics card, or a network interface, which multicast DNS needs. Compilers of GPU libraries write and then run
# code, so memory may be both. The netlink family lists the addresses of this machine.
_UNIT = """\
[Unit]
Description=edgepp {role}: a language model on several machines
StartLimitIntervalSec=0

[Service]
Type=exec
ExecStart={command}
{environment}WorkingDirectory=~
Restart=on-failure
RestartSec=5
RestartSteps=6
RestartMaxDelaySec=120
RestartPreventExitStatus=2
SuccessExitStatus=129 130 143
KillMode=mixed
TimeoutStopSec={stop_s}
OOMPolicy=continue
UMask=0077
NoNewPrivileges=yes
RestrictSUIDSGID=yes
RestrictRealtime=yes
LockPersonality=yes
SystemCallArchitectures=native
RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6 AF_NETLINK

[Install]
WantedBy=default.target
"""


def unit_text(definition: ServiceDefinition) -> str:
    """The unit file.

    A failure starts the service again after 5 s and, where systemd is 254 or newer, after up to 2 min when failures
    follow each other; a wrong command line (exit status 2) does not. A stage process that runs out of memory does not
    end the service, since the node starts the stage again.
    """
    command = " ".join(_quoted(word).replace("$", "$$") for word in definition.command)
    environment = "".join(
        f"Environment={_quoted(f'{name}={value}')}\n" for name, value in sorted(definition.environment.items())
    )
    return _UNIT.format(role=definition.role, command=command, environment=environment, stop_s=STOP_S)


def _quoted(word: str) -> str:
    """``word`` as systemd reads one word of a unit file; in a command line ``$`` has to be doubled, too."""
    if _PLAIN.fullmatch(word):
        return word
    return '"' + word.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%") + '"'
