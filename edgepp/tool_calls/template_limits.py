"""What a chat template refuses or drops, found in its text. A template is only run in a process with limits."""

from __future__ import annotations

import re
from dataclasses import dataclass

_ROLE = r"(?:message|msg|m)(?:\.role|\[['\"]role['\"]\])"
_PRINTS_ROLE = re.compile(rf"[+~(]\s*{_ROLE}|{_ROLE}\s*[+~]|\{{\{{-?\s*{_ROLE}")
_LATE_SYSTEM = re.compile(
    r"role\s*==\s*['\"]system['\"]\s+and\s+not\s+loop\.first|not\s+loop\.first[^%]*['\"]system['\"]"
)


@dataclass(frozen=True)
class TemplateLimits:
    """What a template does not take as it is."""

    late_system: bool = False
    """A system message behind the beginning: refused, dropped, or moved to the front."""
    any_system: bool = False
    """A system message at all: refused or dropped."""
    repeated_roles: bool = False
    """Two user or two assistant messages in a row."""
    parallel_calls: bool = False
    """More than one call in a message."""
    long_call_ids: bool = False
    """Ids of calls that are not nine letters and digits."""
    no_user: bool = False
    """Tools, or any conversation, without a user message at the beginning."""

    @classmethod
    def of(cls, template: str) -> TemplateLimits:
        """The limits of the template with this text."""
        alternates = "must alternate" in template
        refuses = "must be at the beginning" in template or alternates
        takes_late = _PRINTS_ROLE.search(template) or _LATE_SYSTEM.search(template)
        refusals = ("ystem role not supported", "Only user and assistant roles are supported!")
        drops = "system" not in template and not takes_late
        any_system = drops or any(refusal in template for refusal in refusals)
        return cls(
            late_system=any_system or refuses or takes_late is None,
            any_system=any_system,
            repeated_roles=alternates,
            parallel_calls="single tool-call" in template,
            long_call_ids="length 9" in template or "length != 9" in template,
            no_user=alternates or "first user message" in template or "No user query" in template,
        )
