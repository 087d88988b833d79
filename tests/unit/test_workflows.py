"""The workflows name the Pythons of the package, and actions by commit; what else they say is checked by actionlint."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
BY_BRANCH = {"pypa/gh-action-pypi-publish@release/v1"}
"""Said in the workflow's first lines."""


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=lambda path: path.name)
def test_actions_are_pinned_and_tokens_can_read_only(workflow: Path) -> None:
    text = workflow.read_text()
    used = set(re.findall(r"uses: (\S+)", text))
    assert used
    assert {one for one in used if not re.fullmatch(r"[\w./-]+@[0-9a-f]{40}", one)} <= BY_BRANCH
    assert re.search(r"^permissions:\n  contents: read$", text, re.MULTILINE)
    assert text.count("persist-credentials: false") == text.count("uses: actions/checkout@")
    assert text.count("timeout-minutes:") == text.count("runs-on:")


def test_every_python_of_the_package_is_tested() -> None:
    classifiers = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["classifiers"]
    versions = [one.rpartition(" ")[2] for one in classifiers if re.search(r":: 3\.\d+$", one)]
    text = (ROOT / ".github" / "workflows" / "ci.yml").read_text()
    listed = ", ".join(f'"{one}"' for one in versions)
    assert f"python: [{listed}]" in text
