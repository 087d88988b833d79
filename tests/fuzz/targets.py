"""All fuzz targets."""

from __future__ import annotations

from tests.fuzz import http_targets, message_targets, text_targets, wire_targets

TARGETS = {
    target.name: target
    for targets in (wire_targets.TARGETS, message_targets.TARGETS, http_targets.TARGETS, text_targets.TARGETS)
    for target in targets
}
