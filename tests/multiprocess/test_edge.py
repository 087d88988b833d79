"""Every command from outside: planted modules do not run, and errors end in one sentence and an exit status."""

from __future__ import annotations

import json
import os
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import click
import psutil
import pytest
from filelock import FileLock

from edgepp.cli.commands import cli
from edgepp.model.random_checkpoint import TINY, make_checkpoint
from tests.builders.checkpoints import Checkpoints
from tests.cluster import EDGEPP
from tests.waiting import PATIENCE_S

SHAPE = replace(TINY, context=8192)
PLANTED = (
    *("asyncio", "click", "dotenv", "filelock", "huggingface_hub", "jinja2", "json", "llguidance", "mlx", "mlx_lm"),
    *("msgpack", "numpy", "onnx", "onnxruntime", "pathlib", "pip", "platformdirs", "psutil", "random", "rich"),
    *("sitecustomize", "ssl", "tempfile", "torch", "transformers", "typing", "usercustomize", "zeroconf", "zmq"),
)
ASK = ("--raw", "-p", "Once upon a time", "-n", "2", "--exact", "--threads", "1")
COMMANDS: dict[str, tuple[str, ...]] = {
    "chat": ("-m", "MODEL", "--alone", *ASK),
    "serve": ("-m", "MODEL", "--listen", "127.0.0.1:0", "--threads", "1"),
    "invite": (),
    "join": ("--peer", "127.0.0.1:9"),
    "status": ("--peer", "127.0.0.1:9"),
    "doctor": (),
    "peers": (),
    "revoke": ("nobody",),
    "token": (),
    "keys add": ("me",),
    "keys list": (),
    "keys revoke": ("nobody",),
    "use": ("MODEL",),
    "drain": ("nobody",),
    "launch": ("codex", "--print", "--url", "http://127.0.0.1:9"),
    "leave": (),
    "plan": ("MODEL", "--node", "mem=4GB"),
    "bench": (
        "-m",
        "MODEL",
        "--stages",
        "1",
        "--threads",
        "1",
        "--quick",
        "--rounds",
        "1",
        "--words",
        "5",
        "--requests",
        "1",
    ),
    "selftest": ("-m", "MODEL", "--only", "accuracy"),
    "trace": ("--peer", "127.0.0.1:9"),
    "models list": (),
    "models show": ("MODEL",),
    "models pull": ("MODEL",),
    "models rm": ("MODEL", "--yes"),
    "service install": ("serve", "--print"),
    "service status": (),
    "service logs": (),
    "service remove": ("--help",),  # anything else would remove a service of whoever runs the tests
    "version": (),
    "completion": ("zsh",),
}
"""Arguments with which each command does some work without reaching another machine."""
UNTIL_STOPPED = ("serve",)


def leaves(group: click.Group, before: str = "") -> Iterator[str]:
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            yield from leaves(command, f"{before}{name} ")
        else:
            yield before + name


@pytest.fixture
def model(checkpoints: Checkpoints) -> Path:
    return checkpoints(SHAPE)


def run(
    arguments: Sequence[str],
    *,
    home: Path,
    cwd: Path | None = None,
    stdout: int = subprocess.PIPE,
    timeout_s: float = 120,
    **env: str,
) -> subprocess.CompletedProcess[str]:
    home.mkdir(mode=0o700, exist_ok=True)
    return subprocess.run(
        [*EDGEPP, *arguments],
        cwd=cwd,
        stdin=subprocess.DEVNULL,
        stdout=stdout,
        stderr=subprocess.PIPE,
        text=True,
        timeout=timeout_s,
        env={**os.environ, "EDGEPP_HOME": str(home), **env},
    )


@contextmanager
def started(arguments: Sequence[str], *, home: Path, cwd: Path, **env: str) -> Iterator[subprocess.Popen[str]]:
    home.mkdir(mode=0o700, exist_ok=True)
    process = subprocess.Popen(
        [*EDGEPP, *arguments],
        cwd=cwd,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "EDGEPP_HOME": str(home), **env},
    )
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate()


def words(command: str, model: Path) -> list[str]:
    return [*command.split(), *(str(model) if word == "MODEL" else word for word in COMMANDS[command])]


def plant(folder: Path, canary: Path) -> None:
    folder.mkdir(mode=0o700, exist_ok=True)
    for name in PLANTED:
        (folder / f"{name}.py").write_text(f"open({str(canary)!r}, 'a').write({name!r} + ' in {folder.name}\\n')\n")
    (folder / "pip.conf").write_text("[global]\nindex-url = http://127.0.0.1:9/\n")
    (folder / "matplotlibrc").write_text("backend: module://psutil\n")
    (folder / ".env").write_text("EDGEPP_HOME=/nonexistent\n")


def test_every_command_is_tried() -> None:
    assert set(leaves(cli)) == set(COMMANDS)


@pytest.fixture
def canaries(tmp_path: Path) -> tuple[Path, Path]:
    """A model folder and a configuration folder with modules that write to a file when they run, and that file."""
    canary, folder, home = tmp_path / "canary", tmp_path / "tiny", tmp_path / "home"
    make_checkpoint(folder, SHAPE)
    plant(folder, canary)
    plant(home, canary)
    return folder, canary


@pytest.mark.parametrize("command", COMMANDS)
def test_nothing_in_the_current_folder_runs(command: str, canaries: tuple[Path, Path], tmp_path: Path) -> None:
    folder, canary = canaries
    arguments = words(command, Path())
    if command in UNTIL_STOPPED:
        with started([*arguments, "--json"], home=tmp_path / "home", cwd=folder) as process:
            assert process.stdout is not None
            events = (json.loads(line)["event"] for line in process.stdout)
            assert "ready" in events, process.communicate()
            process.send_signal(signal.SIGTERM)
            process.wait(PATIENCE_S)
    else:
        done = run(arguments, home=tmp_path / "home", cwd=folder)
        assert "Traceback" not in done.stderr
        assert "report this" not in done.stderr
        if command in ("chat", "plan", "bench", "models list", "models show", "models pull", "leave"):
            assert done.returncode == 0, done.stderr
    assert not canary.exists(), canary.read_text()


@pytest.mark.parametrize(
    "arguments",
    [
        ("chat", "-m", ".", "--stages", "2", *ASK),
        ("chat", "-m", ".", "--stages", "1", *ASK, "--regex", "[a-z]+"),
        ("join", "-m", ".", "--layers", "0-1", "--threads", "1", "--json"),
    ],
    ids=["stages", "grammar", "join by hand"],
)
@pytest.mark.parametrize("python_path", ["", ":"], ids=["plain", "with an empty PYTHONPATH entry"])
def test_no_child_runs_the_current_folder(
    arguments: tuple[str, ...], python_path: str, canaries: tuple[Path, Path], tmp_path: Path
) -> None:
    folder, canary = canaries
    if python_path:  # Python itself runs these then, before any of our code
        for name in ("sitecustomize", "usercustomize", "typing", "pathlib", "random", "ssl", "tempfile"):
            (folder / f"{name}.py").unlink()
    with started(arguments, home=tmp_path / "home", cwd=folder, PYTHONPATH=python_path) as process:
        assert process.stdout is not None
        said = process.stdout.readline()  # join runs until it is stopped
        process.send_signal(signal.SIGINT)
        rest, error = process.communicate(timeout=PATIENCE_S)
    assert said + rest, error
    assert not canary.exists(), canary.read_text()


def one_sentence(done: subprocess.CompletedProcess[str], status: int) -> None:
    assert done.returncode == status, (done.returncode, done.stderr)
    assert "Traceback" not in done.stderr
    assert "report this" not in done.stderr
    assert sum(line.startswith(("error: ", "Error: ")) for line in done.stderr.splitlines()) == 1, done.stderr


SAYING = ("doctor", "plan", "models list", "models show", "models pull", "leave", "chat", "keys list")
"""Commands that print to standard output without a cluster."""


@pytest.mark.parametrize("command", SAYING)
def test_output_that_cannot_be_written(command: str, model: Path, tmp_path: Path) -> None:
    with Path("/dev/full").open("w") as full:
        one_sentence(run(words(command, model), home=tmp_path / "home", stdout=full.fileno()), 1)


@pytest.mark.parametrize("command", SAYING)
def test_output_to_a_closed_pipe(command: str, model: Path, tmp_path: Path) -> None:
    reads, writes = os.pipe()
    os.close(reads)
    done = run(words(command, model), home=tmp_path / "home", stdout=writes)
    os.close(writes)
    assert done.returncode == 141, done.stderr
    assert "Traceback" not in done.stderr
    assert "error" not in done.stderr


@pytest.mark.parametrize("options", [(), ("--json",)])
def test_a_reader_that_leaves_ends_serving_without_a_traceback(
    options: tuple[str, ...], model: Path, tmp_path: Path
) -> None:
    with started([*words("serve", model), *options], home=tmp_path / "home", cwd=tmp_path) as process:
        assert process.stdout is not None
        assert process.stdout.readline()
        process.stdout.close()
        assert process.stderr is not None
        said = process.stderr.read()
        assert process.wait(PATIENCE_S) == 141, said
    assert "Traceback" not in said


def test_an_answer_needs_no_standard_error(model: Path, tmp_path: Path) -> None:
    line = f"exec {sys.executable} -m edgepp {shlex.join(words('chat', model))} 2>/dev/full"
    done = subprocess.run(
        ["/bin/sh", "-c", line], capture_output=True, env={**os.environ, "EDGEPP_HOME": str(tmp_path)}
    )
    assert (done.returncode, done.stdout) == (0, run(words("chat", model), home=tmp_path).stdout.encode())


@pytest.mark.parametrize(
    ("closing", "status", "says"),
    [
        ("<&-", 2, "the prompt is empty"),
        (">&- </dev/null -p hi", 1, "standard output cannot be written"),
        ("2>&- -p hi", 0, ""),
    ],
)
def test_a_closed_stream(closing: str, status: int, says: str, model: Path, tmp_path: Path) -> None:
    line = f"exec {sys.executable} -m edgepp chat -m {model} --alone --raw -n 2 --threads 1 {closing}"
    done = subprocess.run(
        ["/bin/sh", "-c", line], capture_output=True, text=True, env={**os.environ, "EDGEPP_HOME": str(tmp_path)}
    )
    assert done.returncode == status, done.stderr
    assert says in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("command", ["invite", "join", "status", "leave"])
def test_a_file_where_the_configuration_belongs(command: str, model: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("a file")
    for place in (tmp_path / "file", tmp_path / "file" / "below"):
        done = run(words(command, model), home=tmp_path / "home", EDGEPP_HOME=str(place))
        one_sentence(done, 2)
        assert "EDGEPP_HOME" in done.stderr


def folder(place: Path) -> None:
    place.mkdir()


def fifo(place: Path) -> None:
    os.mkfifo(place, 0o600)


def link_to_itself(place: Path) -> None:
    place.symlink_to(place.name)


def binary(place: Path) -> None:
    place.write_bytes(b"\xff\xfe\x00")
    place.chmod(0o600)


def device(place: Path) -> None:
    place.symlink_to("/dev/zero")


@pytest.mark.parametrize("kind", [folder, fifo, link_to_itself, binary, device], ids=lambda kind: str(kind.__name__))
@pytest.mark.parametrize("name", ["cluster.json", "identity.json", "identity.lock"])
def test_a_state_file_of_the_wrong_kind(kind: object, name: str, model: Path, tmp_path: Path) -> None:
    """No command hangs on such a file, and a command that needs the file names it."""
    home = tmp_path / "home"
    home.mkdir(mode=0o700)
    assert callable(kind)
    kind(home / name)
    command = {"cluster.json": "status"}.get(name, "join")
    done = run(words(command, model), home=home, timeout_s=PATIENCE_S)
    if name.endswith(".lock") and kind in (binary, device, fifo):
        assert "Traceback" not in done.stderr  # one can lock them
        return
    one_sentence(done, 1)
    assert name in done.stderr


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_while_loading_ends_with_its_exit_status(number: int, model: Path, tmp_path: Path) -> None:
    """While `edgepp serve` waits for the lock of its configuration, which this test holds."""
    home = tmp_path / "home"
    home.mkdir(mode=0o700)
    with (
        FileLock(home / "identity.lock"),
        started(["serve", "-m", str(model), "--listen", "127.0.0.1:0"], home=home, cwd=tmp_path) as process,
    ):
        alive = psutil.Process(process.pid)
        deadline = time.monotonic() + PATIENCE_S
        while not any("zmq" in each.path for each in alive.memory_maps()):  # it is past its first imports
            assert time.monotonic() < deadline
            time.sleep(0.02)
        process.send_signal(number)
        _, said = process.communicate(timeout=PATIENCE_S)
    assert said == ("interrupted\n" if number == signal.SIGINT else "")
    assert process.returncode == 128 + number


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_stops_a_chat_and_its_stages(number: int, model: Path, tmp_path: Path) -> None:
    """In the middle of an answer; a fixture of every test checks that no stage process remains."""
    endless = ("--raw", "-p", "x", "-n", "8000", "--ignore-eos", "--threads", "1", "--stages", "2")
    with started(["chat", "-m", str(model), *endless], home=tmp_path / "home", cwd=tmp_path) as process:
        assert process.stdout is not None
        assert process.stdout.read(1)
        process.send_signal(number)
        _, said = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 128 + number, said
    assert "Traceback" not in said


@pytest.mark.parametrize("options", [(), ("--choices", "2", "--temperature", "1")])
def test_an_answer_that_ctrl_c_stops_is_printed_and_the_status_says_so(
    options: tuple[str, ...], model: Path, tmp_path: Path
) -> None:
    endless = ("--raw", "-p", "x", "-n", "8000", "--ignore-eos", "--threads", "1", "--alone", "--exact")
    with started(["chat", "-m", str(model), *endless, *options], home=tmp_path / "home", cwd=tmp_path) as process:
        assert process.stderr is not None
        assert "on this machine" in process.stderr.readline()
        if not options:
            assert process.stdout is not None
            assert process.stdout.read(1)
        process.send_signal(signal.SIGINT)
        text, said = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 130, said
    assert said.endswith("interrupted\n")
    assert text or not said.count(" tokens ")


def test_json_has_errors_too(tmp_path: Path) -> None:
    done = run(["models", "show", "no-such-model", "--json"], home=tmp_path / "home")
    one_sentence(done, 1)
    said = json.loads(done.stdout.splitlines()[-1])
    assert (said["event"], said["error"]) == ("error", "ModelError")
    assert "no-such-model" in said["message"]
    done = run(["chat", "--no-such-option", "--json"], home=tmp_path / "home")
    assert done.returncode == 2
    assert json.loads(done.stdout)["error"] == "NoSuchOption"


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--choices", "1000000000"), "1 to 16 choices"),
        (("-n", "0"), "at least 1 token"),
        (("--logprobs", "1000000000"), "logprobs must lie between 0 and 20"),
        (("--seed", str(1 << 70)), "seed must lie between"),
        (("--temperature", "nan"), "temperature must lie between"),
        (("--grammar", "GRAMMAR"), "a constraint may have 262144 bytes"),
        (("--schema", "UTF-16"), "iconv -f utf-16 -t utf-8"),
        (("--schema", "/dev/zero"), "larger than 4 MB"),
        (("--stages", "0"), "stages must be at least 1"),
        (("--trace", "no/such/folder/file"), "no/such/folder/file cannot be written"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_an_option_out_of_bounds_is_refused_before_a_model_is_loaded(
    options: tuple[str, str], says: str, tmp_path: Path
) -> None:
    files = {
        "GRAMMAR": b"start: " + b"(" * 150_000 + b'"x"' + b")" * 150_000,
        "UTF-16": '{"const": 1}'.encode("utf-16"),
    }
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    done = run(["chat", "-m", "no-such-model", "--alone", "-p", "hi", *options], home=tmp_path / "home", cwd=tmp_path)
    one_sentence(done, 2)
    assert says in done.stderr
    assert "  try: " in done.stderr


@pytest.mark.parametrize(
    ("address", "says"),
    [
        ("127.0.0.1:70000", "HOST:PORT"),
        ("127.0.0.1:-1", "HOST:PORT"),
        ("256.1.1.1:0", "give an address of this machine"),
        ("192.0.2.1:0", "give an address of this machine"),
        ("TAKEN", "choose another port"),
    ],
)
def test_an_address_that_cannot_be_listened_on(address: str, says: str, model: Path, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = address.replace("TAKEN", f"127.0.0.1:{taken.getsockname()[1]}")
        done = run(["serve", "-m", str(model), "--listen", address, "--threads", "1"], home=tmp_path / "home")
    one_sentence(done, 2)
    assert says in done.stderr


def test_a_model_that_does_not_exist_leaves_no_cluster_behind(tmp_path: Path) -> None:
    home = tmp_path / "home"
    one_sentence(run(["serve", "-m", "no-such-model", "--listen", "127.0.0.1:0", "--http", "off"], home=home), 1)
    done = run(["status"], home=home)
    one_sentence(done, 1)
    assert "belongs to no cluster" in done.stderr


def test_a_folder_that_holds_no_model(tmp_path: Path) -> None:
    done = run(["models", "show", str(tmp_path)], home=tmp_path / "home")
    one_sentence(done, 1)
    assert "config.json" in done.stderr


def test_a_message_does_not_repeat_an_argument_of_any_length(tmp_path: Path) -> None:
    for words in (["models", "show", "a" * 100_000], ["chat", "-m", "a/" + "b" * 100_000, "-p", "hi"]):
        done = run(words, home=tmp_path / "home")
        one_sentence(done, 1)
        assert len(done.stderr) < 3000


def test_a_name_with_control_characters_stays_on_its_line(model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "x\x1b]52;c;AAAA\x07\nerror: y"
    folder.symlink_to(model)
    done = run(["chat", "-m", str(folder), "--alone", *ASK], home=tmp_path / "home")
    assert done.returncode == 0, done.stderr
    assert "\x1b" not in done.stderr
    assert "error: y on this machine" in done.stderr.splitlines()[0]
    one_sentence(run(["chat", "-m", f"{folder}z", "--alone", *ASK], home=tmp_path / "home"), 1)


@pytest.mark.parametrize("option", [["--schema"], ["--grammar"], ["-p", "x"]], ids=["schema", "grammar", "argument"])
def test_a_file_with_control_characters_in_its_name_stays_on_its_line(option: list[str], tmp_path: Path) -> None:
    name = str(tmp_path / "x\x1b]52;c;AAAA\x07\u202e\nerror: y")
    done = run(["chat", *option, name, "--json"], home=tmp_path / "home")
    assert done.returncode == 2
    assert not set("\x1b\x07\u202e") & set(done.stderr + done.stdout)
    assert "error: y" in done.stderr.splitlines()[-1]


@pytest.mark.parametrize("size", ["64k", "full"])
def test_a_disk_without_room(size: str, model: Path, tmp_path: Path) -> None:
    """A command that must write a file says which folder is full; a chat writes none."""
    can = subprocess.run(["unshare", "-Ur", "-m", "mount", "-t", "tmpfs", "none", str(tmp_path)], capture_output=True)
    if can.returncode:
        pytest.skip("this user may not mount a file system of its own")
    place = tmp_path / "disk"
    place.mkdir()
    fill = f"head -c 65536 /dev/zero >{place}/x;" if size == "full" else ""
    chat = f"{sys.executable} -m edgepp chat -m {model} --alone --raw -n 2 --threads 1 -p hi"
    serve = f"{sys.executable} -m edgepp serve -m {model} --listen 127.0.0.1:0 --threads 1"
    pull = f"{sys.executable} -m edgepp models pull smollm2-135m"
    for command, status in ((chat, 0), (pull, 1), *(((serve, 1),) if fill else ())):
        line = f"mount -t tmpfs -o size=64k none {place}; {fill} exec {command}"
        done = subprocess.run(
            ["unshare", "-Ur", "-m", "/bin/sh", "-c", line],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            env={**os.environ, **dict.fromkeys(("EDGEPP_HOME", "EDGEPP_CACHE", "TMPDIR"), str(place))},
        )
        if status:
            one_sentence(done, status)
            assert "free some space" in done.stderr
        else:
            assert done.returncode == 0, done.stderr
