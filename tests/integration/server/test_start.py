"""How the server starts, and how it says that it cannot."""

import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

ROOT = Path(__file__).resolve().parents[3]
COMMAND = Path(sys.executable).parent / "monailabel"


def run(environment, *arguments, command=(str(COMMAND),), timeout=120, **more):
    path = f"{COMMAND.parent}{os.pathsep}{os.environ['PATH']}"
    return subprocess.run(
        [*command, *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=timeout,
        env={**os.environ, "PATH": path, **environment, **more},
        check=False,
    )


@pytest.mark.parametrize(
    ("conf", "says"),
    [
        (["backbnoe", "vit_b"], "unknown option backbnoe"),
        (["backbone", "vit_x"], "lite_medsam"),
        (["window", "9,1"], "window"),
    ],
)
def test_an_option_that_cannot_be_is_one_sentence_and_an_exit_status(environment, drawn, conf, says):
    ended = run(
        environment,
        "start_server",
        "--app",
        "apps/medsa",
        "--studies",
        str(drawn.folder),
        "--port",
        "1",
        "--conf",
        *conf,
    )
    assert ended.returncode == 2
    last = ended.stderr.strip().splitlines()[-1]
    assert last.startswith("medsa cannot start:")
    assert says in last
    assert "Traceback" not in ended.stdout + ended.stderr


def test_missing_weights_are_one_sentence(environment, drawn):
    ended = run(
        environment,
        *["start_server", "--app", "apps/medsa", "--studies", str(drawn.folder), "--port", "1"],
        *["--conf", "backbone", "vit_h"],
        HTTPS_PROXY="http://127.0.0.1:9",
        https_proxy="http://127.0.0.1:9",
    )
    assert ended.returncode == 2
    assert "medsa cannot start:" in ended.stderr
    assert "Traceback" not in ended.stdout + ended.stderr


def test_a_background_interpreter_builds_the_app_without_the_server(environment, drawn):
    script = (
        "import sys; from monailabel.interfaces.utils.app import app_instance;"
        f"app = app_instance({str(ROOT / 'apps/medsa')!r}, {str(drawn.folder)!r});"
        "print(type(app).__name__, sorted(app._infers), 'monailabel.app' in sys.modules)"
    )
    ended = run(environment, "-c", script, command=(sys.executable,))
    built = "MedsaApp ['medsa_2d', 'medsa_3d', 'medsa_auto'] False"
    assert ended.stdout.strip().endswith(built), ended.stderr


def test_the_library_beside_the_app_is_enough(environment, drawn, tmp_path):
    """As in a plain clone: nothing of ours is installed, lib/ only lies where it lies."""
    shutil.copytree(
        ROOT / "apps", tmp_path / "apps", ignore=shutil.ignore_patterns("logs", "bin", "lib", "model")
    )
    (tmp_path / "lib").symlink_to(ROOT / "lib")
    script = (
        "import sys; sys.path[:] = [p for p in sys.path if not p.rstrip('/').endswith('/lib')];"
        "from monailabel.interfaces.utils.app import app_instance;"
        f"app = app_instance({str(tmp_path / 'apps/medsa')!r}, {str(drawn.folder)!r});"
        "import medsa; print(medsa.__file__)"
    )
    ended = run(environment, "-c", script, command=(sys.executable,))
    assert ended.stdout.strip().endswith(f"{tmp_path}/lib/medsa/__init__.py"), ended.stderr


def own_address():
    """An address of this machine that is not loopback; "" when it has none."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))
        except OSError:
            return ""
        return "" if probe.getsockname()[0].startswith("127.") else probe.getsockname()[0]


def test_the_plain_command_serves_this_machine_only(environment, drawn, tmp_path):
    """MONAI Label listens on every address by default; without authentication nobody else is answered."""
    from medsa.demo.orthanc import free_port
    from medsa.demo.server import Server

    port, log = free_port(), tmp_path / "log"
    path = f"{COMMAND.parent}{os.pathsep}{os.environ['PATH']}"
    with log.open("wb") as file:
        process = subprocess.Popen(
            [COMMAND, "start_server", "--app", "apps/medsa", "--studies", drawn.folder, "--port", str(port)],
            cwd=ROOT,
            stdout=file,
            stderr=subprocess.STDOUT,
            env={**os.environ, "PATH": path, **environment},
        )
    try:
        probe = Server(str(drawn.folder), log, port=port)
        for _ in range(300):
            if probe._answers() or process.poll() is not None:
                break
            __import__("time").sleep(0.2)
        assert httpx.get(f"http://127.0.0.1:{port}/info/").status_code == 200
        assert "other machines are not served" in log.read_text()
        if address := own_address():
            with pytest.raises(httpx.ConnectError):
                httpx.get(f"http://{address}:{port}/info/", trust_env=False)
    finally:
        process.terminate()
        process.wait(30)


def test_options_are_shown_and_temporary_files_are_private_and_gone_in_the_end(start, drawn, tmp_path):
    cache = tmp_path / "cache"
    conf = {"cache_mb": "64", "labels": "abdomen", "window": "lung"}
    server = start(drawn.folder, conf=conf, MEDSA_CACHE=str(cache))
    options = httpx.get(f"{server.url}/info/").json()["options"]
    assert {name: str(options[name]) for name in conf} == conf
    (folder,) = (cache / "tmp").iterdir()
    assert folder.stat().st_mode & 0o077 == 0
    content = (drawn.folder / "drawn.nii.gz").read_bytes()
    for _ in range(2):
        httpx.post(
            f"{server.url}/infer/medsa_2d",
            data={"params": '{"foreground": [[30, 24, 6]], "result_extension": ".nii.gz"}'},
            files={"file": ("a.nii.gz", content)},
            timeout=120,
        ).raise_for_status()
        httpx.put(f"{server.url}/session/", files={"files": ("a.nii", b"bad")})
    assert list(folder.iterdir()) == []
    process = server._process
    process.terminate()
    assert process.wait(timeout=60) == 0
    assert list((cache / "tmp").iterdir()) == []
