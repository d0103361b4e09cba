import hashlib
import http.server
import os
import pickle
import re
import stat
import threading

import pytest
import torch
from safetensors.torch import load_file, save_file

from medsa.errors import WeightsError
from medsa.sam import load_sam, locate
from medsa.sam.weights import download, weights_folder


def sha256(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture
def checkpoint(tmp_path, small_sam):
    path = tmp_path / "published.pth"
    torch.save(small_sam().state_dict(), path)
    return path


@pytest.fixture
def load():
    """`load_sam` without compiling."""
    return lambda backbone, **options: load_sam(backbone, accelerate=False, **options)


class Server(http.server.ThreadingHTTPServer):
    """Serves `content` at any path; `cut` ends a response early, `ranges` allows resuming."""

    def __init__(self, content):
        super().__init__(("127.0.0.1", 0), Handler)
        self.content, self.cut, self.ranges, self.status, self.starts = content, None, True, 200, []

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}/weights.pth"


class Handler(http.server.BaseHTTPRequestHandler):
    server: Server

    def do_GET(self):
        if self.server.status != 200:
            self.send_error(self.server.status)
            return
        asked = re.match(r"bytes=(\d+)-", self.headers.get("Range", ""))
        start = int(asked[1]) if asked and self.server.ranges else 0
        self.server.starts.append(start)
        body = self.server.content[start:]
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[: self.server.cut])

    def log_message(self, *_):
        pass


@pytest.fixture
def server(checkpoint):
    server = Server(checkpoint.read_bytes())
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def remote(server, small):
    return small(url=server.url, sha256=hashlib.sha256(server.content).hexdigest(), bytes=len(server.content))


def test_weights_are_downloaded_once_and_kept_as_private_safetensors(server, remote, load, cache, checkpoint):
    first = load(remote)
    second = load(remote)
    assert server.starts == [0]
    assert first.digest == second.digest == sha256(checkpoint)
    (kept,) = [path for path in (cache / "weights").iterdir() if not path.name.endswith(".lock")]
    assert kept.suffix == ".safetensors"
    assert locate(remote) == kept
    assert stat.S_IMODE(kept.stat().st_mode) == 0o600
    assert stat.S_IMODE(kept.parent.stat().st_mode) == 0o700
    for name, value in torch.load(checkpoint, weights_only=True).items():
        assert torch.equal(second.state_dict()[name], value)


def test_a_download_that_broke_off_is_continued_where_it_ended(server, remote, load):
    server.cut = 10_000
    with pytest.raises(WeightsError, match="could not be downloaded"):
        load(remote)
    assert (weights_folder() / "small_tiny_vit.pth.part").stat().st_size == 10_000
    server.cut = None
    load(remote)
    assert server.starts == [0, 10_000]


def test_a_server_that_cannot_continue_is_asked_from_the_start(server, remote, load):
    part = weights_folder() / "small_tiny_vit.pth.part"
    part.write_bytes(b"x" * 500)
    server.ranges = False
    load(remote)
    assert server.starts == [0]


def test_a_file_with_another_hash_is_deleted_and_never_used(server, remote, load, cache):
    server.content = server.content[:-1] + b"?"
    with pytest.raises(WeightsError, match=f"sha256 is [0-9a-f]{{64}}, expected {remote.weights.sha256}"):
        load(remote)
    assert not [path for path in (cache / "weights").iterdir() if not path.name.endswith(".lock")]


def test_a_refusing_server_is_named_with_what_to_do(server, remote, load, cache):
    server.status = 404
    with pytest.raises(WeightsError, match=f"answered 404.*Put the file small_tiny_vit.pth into {cache}"):
        load(remote)


def test_without_a_network_the_error_says_which_file_to_put_where(remote, load, server, cache, small):
    offline = small(url="http://127.0.0.1:9/weights.pth", sha256=remote.weights.sha256)
    with pytest.raises(WeightsError, match=f"Put the file small_tiny_vit.pth into {cache / 'weights'}"):
        load(offline)
    (weights_folder() / "small_tiny_vit.pth").write_bytes(server.content)
    assert load(offline).digest == remote.weights.sha256


def test_two_downloads_at_once_fetch_the_file_once(server, remote):
    threads = [threading.Thread(target=download, args=(remote,)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert server.starts == [0]


def test_a_damaged_copy_in_the_cache_is_noticed_and_made_again(server, remote, load):
    load(remote)
    kept = locate(remote)
    content = bytearray(kept.read_bytes())
    content[-5] ^= 1
    kept.write_bytes(content)
    load(remote)
    assert server.starts == [0, 0]


def test_a_damaged_file_put_there_by_hand_is_refused(small, load, checkpoint):
    backbone = small(sha256=sha256(checkpoint))
    (weights_folder() / "small_tiny_vit.pth").write_bytes(checkpoint.read_bytes()[:-100])
    with pytest.raises(WeightsError, match="damaged or not the published file"):
        load(backbone)


@pytest.mark.parametrize("content", [b"", b"no checkpoint", b"PK\x03\x04 half a zip"])
def test_a_file_that_is_no_checkpoint_is_refused(content, small, load, tmp_path):
    path = tmp_path / "weights.pth"
    path.write_bytes(content)
    with pytest.raises(WeightsError, match=r"weights\.pth cannot be read as weights"):
        load(small(), weights=path)


def test_a_truncated_file_is_refused(small, load, checkpoint):
    checkpoint.write_bytes(checkpoint.read_bytes()[:20_000])
    with pytest.raises(WeightsError, match="cannot be read as weights"):
        load(small(), weights=checkpoint)


def test_code_hidden_in_a_checkpoint_is_not_run(small, load, tmp_path):
    class Attack:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "attacked"),)

    path = tmp_path / "weights.pth"
    path.write_bytes(pickle.dumps({"a": Attack()}, protocol=2))
    with pytest.raises(WeightsError, match="cannot be read as weights"):
        load(small(), weights=path)
    assert not (tmp_path / "attacked").exists()


def test_a_file_that_is_not_there_is_named(small, load, tmp_path):
    with pytest.raises(WeightsError, match=r"there is no weights file .*/nothing\.pth"):
        load(small(), weights=tmp_path / "nothing.pth")


def test_every_missing_extra_and_misshapen_tensor_is_named(small, load, checkpoint):
    tensors = torch.load(checkpoint, weights_only=True)
    del tensors["mask_decoder.iou_token.weight"]
    del tensors["image_encoder.neck.0.weight"]
    tensors["image_encoder.head.weight"] = torch.zeros(3)
    tensors["prompt_encoder.no_mask_embed.weight"] = torch.zeros(1, 31)
    torch.save(tensors, checkpoint)
    with pytest.raises(WeightsError) as caught:
        load(small(), weights=checkpoint)
    message = str(caught.value)
    assert "in 4 tensors" in message
    assert "missing mask_decoder.iou_token.weight" in message
    assert "missing image_encoder.neck.0.weight" in message
    assert "unexpected image_encoder.head.weight" in message
    assert "prompt_encoder.no_mask_embed.weight has shape (1, 31), not (1, 32)" in message
    assert locate(small()) is None


def test_tensors_that_the_configuration_ignores_may_be_there(small, load, checkpoint):
    tensors = torch.load(checkpoint, weights_only=True)
    tensors["image_encoder.head.weight"] = torch.zeros(3)
    torch.save({"model": tensors}, checkpoint)
    load(small(ignored=["image_encoder.head."]), weights=checkpoint)


def test_weights_without_a_pinned_hash_are_given_once_and_their_hash_is_recorded(small, load, checkpoint):
    with pytest.raises(WeightsError, match="have no download"):
        load(small())
    given = load(small(), weights=checkpoint)
    assert (weights_folder() / "small_tiny_vit.pth.sha256").read_text() == given.digest == sha256(checkpoint)
    checkpoint.unlink()
    assert load(small()).digest == given.digest


def test_weights_without_a_pinned_hash_may_be_put_into_the_cache_folder(small, load, checkpoint):
    (weights_folder() / "small_tiny_vit.pth").write_bytes(checkpoint.read_bytes())
    assert load(small()).digest == sha256(checkpoint)
    assert locate(small()).suffix == ".safetensors"


def test_a_cache_folder_without_room_prevents_nothing(small, load, checkpoint, monkeypatch, caplog):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("medsa.sam.weights.save_file", full)
    assert load(small(), weights=checkpoint).digest == sha256(checkpoint)
    assert "cannot be kept" in caplog.text
    assert not list(weights_folder().iterdir())


def test_own_weights_do_not_replace_the_published_ones(small, load, checkpoint, tmp_path, server, remote):
    tensors = torch.load(checkpoint, weights_only=True)
    own = tmp_path / "own.safetensors"
    save_file(
        {name: value + 1 if value.is_floating_point() else value for name, value in tensors.items()}, own
    )
    assert load(remote, weights=own).digest == sha256(own)
    assert load(remote).digest == sha256(checkpoint)


def test_the_embedded_weights_come_from_the_package_and_are_the_published_ones(lite_medsam, load):
    path = locate("lite_medsam")
    assert path.name == "lite_medsam.pth"
    assert lite_medsam.digest == sha256(path)
    load("lite_medsam")
    converted = load_file(locate("lite_medsam"))
    assert all(torch.equal(lite_medsam.state_dict()[name], value) for name, value in converted.items())
