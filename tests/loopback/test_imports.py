"""What commands import: nothing heavy before it is needed, and nothing that reports home."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
from pathlib import Path

from click.testing import CliRunner

from edgepp.cli.commands import cli
from edgepp.model.random_checkpoint import TINY, make_checkpoint
from tests.waiting import PATIENCE_S

_LOAD = """
import sys
from pathlib import Path
from edgepp.backend import choose
from edgepp.backend.base import BackendOptions
from edgepp.model.weights.checkpoint import Checkpoint
checkpoint = Checkpoint.open(Path(sys.argv[1]))
choose("onnx", checkpoint).load_embedding_and_head(checkpoint, BackendOptions())
"""


def test_a_backend_leaves_no_telemetry_store_behind(tmp_path: Path) -> None:
    """ONNX Runtime's official builds upload usage events unless told not to before import."""
    model = make_checkpoint(tmp_path / "tiny", TINY)
    home = tmp_path / "home"
    home.mkdir()
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("XDG_", "ORT_"))} | {"HOME": str(home)}
    subprocess.run([sys.executable, "-c", _LOAD, str(model)], env=environment, check=True)
    assert [path for path in home.rglob("*") if "Microsoft" in str(path) or "onnxruntime" in str(path)] == []


def test_help_teaches_and_loads_nothing_heavy() -> None:
    done = CliRunner().invoke(cli, ["bench", "--help"])
    assert done.exit_code == 0
    assert "edgepp bench --compare before after" in done.output
    code = "import sys, edgepp.cli; print(sorted({'numpy', 'zmq', 'rich', 'matplotlib'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_reading_the_catalogue_imports_no_tensor_library() -> None:
    script = (
        "import sys; from edgepp.model.catalogue.cards import catalogue; catalogue(); "
        "print([m for m in ('mlx', 'numpy', 'huggingface_hub', 'transformers') if m in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_importing_the_package_is_cheap() -> None:
    code = "import sys, edgepp; dir(edgepp); edgepp.EdgeppError; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"asyncio", "numpy", "zmq", "mlx", "click"} & set(loaded)


def test_nothing_heavy_is_imported_before_load() -> None:
    script = (
        "import sys; import edgepp.model.text.tokenizer, edgepp.model.fetch, edgepp.model.offline_model; "
        "print([m for m in ('mlx', 'transformers', 'tokenizers', 'huggingface_hub') if m in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


INTERRUPTED = """
import os, sys
from importlib import import_module
module, _, name = sys.argv[1].partition(":")

class Interrupter:
    def find_spec(self, imported, *_):
        if imported == "edgepp.cli":
            os.kill(os.getpid(), 2)

command = getattr(import_module(module), name)
sys.meta_path.insert(0, Interrupter())
command()
"""


def test_ctrl_c_while_the_command_line_is_imported_leaves_no_traceback() -> None:
    scripts = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]["scripts"]
    command = [sys.executable, "-c", INTERRUPTED, scripts["edgepp"]]
    result = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S, check=False)
    assert (result.returncode, result.stdout, result.stderr) == (130, "", "")


SEVENTY = "mlx-community/Llama-3.3-70B-Instruct-4bit"


OFFLINE = """
import socket, sys
def refuse(*_, **__): raise AssertionError("a socket was opened")
socket.socket.connect = socket.socket.bind = socket.create_connection = refuse
sys.argv = ["edgepp", "plan", *sys.argv[1:]]
from edgepp.cli import main
main()
heavy = {"mlx", "mlx_lm", "zmq", "onnx", "onnxruntime", "transformers", "huggingface_hub", "asyncio", "matplotlib"}
assert not heavy & {name.partition(".")[0] for name in sys.modules}, heavy & set(sys.modules)
"""


def test_70b_on_64_and_16_gb_is_answered_offline_and_without_a_tensor_library() -> None:
    """What keeps it under a second is that nothing heavy is imported and nobody is asked."""
    command = [sys.executable, "-c", OFFLINE, SEVENTY, "--node", "mem=64GB", "--node", "mem=16GB"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S, check=False)
    assert result.returncode == 0, result.stderr
    assert "llama-3.3-70b-4bit fits" in result.stdout
