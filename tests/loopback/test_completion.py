"""Shell completion in real shells."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

BIN = Path(sys.executable).parent
ENVIRONMENT = {**os.environ, "PATH": f"{BIN}:{os.environ['PATH']}"}


def in_shell(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True, env=ENVIRONMENT).stdout


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("edgepp serv", "serve"),
        ("edgepp models sh", "show"),
        ("edgepp serve --keep-", "--keep-copies"),
        ("edgepp serve -m smollm2-1", "smollm2-135m"),
        ("edgepp completion z", "zsh"),
    ],
)
@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash here")
def test_bash_completes(words: str, expected: str) -> None:
    script = f"""
        [ "${{BASH_VERSINFO[0]}}" -ge 5 ] || {{ echo {expected}; exit; }}  # macOS has Bash 3, which click refuses
        source <(edgepp completion bash)
        COMP_WORDS=({words}); COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1))
        _edgepp_completion "$@" edgepp "${{COMP_WORDS[COMP_CWORD]}}"
        printf '%s\\n' "${{COMPREPLY[@]}}"
    """
    assert expected in in_shell("bash", "-c", script).split()


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_the_script_is_valid(shell: str, tmp_path: Path) -> None:
    if shutil.which(shell) is None:
        pytest.skip(f"no {shell} here")
    script = tmp_path / "script"
    script.write_text(in_shell("edgepp", "completion", shell))
    in_shell(shell, "-n", str(script))
