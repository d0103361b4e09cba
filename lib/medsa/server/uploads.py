"""Images that a client sends for a while (PUT /session/): private, under a random id, removed in time."""

from __future__ import annotations

import json
import os
import shutil
import stat
import tempfile
import threading
import time
import zipfile
import zlib
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import IO
from uuid import UUID, uuid4

from medsa.data.read import read_volume
from medsa.data.volume import Volume
from medsa.errors import BadInputError, NotFoundError, TooLargeError
from medsa.server.scratch import IMAGE_ENDINGS, ending

MOST_FILES = 20_000
MOST_BYTES = 4 << 30
_VOLUMES_KEPT = 2


@dataclass(frozen=True)
class Upload:
    """What clients see of an upload; times in seconds since 1970, `expiry` in seconds."""

    name: str
    create_ts: int
    last_access_ts: int
    expiry: int
    owner: str = ""


class Uploads:
    """The uploads in `folder`, which outlive a restart of the server; nobody's file name is kept.

    An upload belongs to its owner (a user's name, "" without authentication); for others it does not exist.
    """

    def __init__(self, folder: Path, expiry: int = 3600) -> None:
        self.folder, self.expiry = folder, max(expiry, 60)
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        folder.chmod(0o700)
        self._volumes: OrderedDict[str, Volume] = OrderedDict()
        self._lock = threading.Lock()

    def add(
        self,
        files: Sequence[tuple[str, IO[bytes]]],
        owner: str = "",
        expiry: int = 0,
        uncompress: bool = False,
    ) -> Upload:
        """Keep one image: a file, or the slices of a DICOM series as files or in a zip archive.

        Raises `UnreadableImageError` when it is no image, `BadInputError` and `TooLargeError` for archives.
        """
        now = int(time.time())
        upload = Upload(
            str(uuid4()), now, now, min(expiry, self.expiry) if expiry > 0 else self.expiry, owner
        )
        incoming = Path(tempfile.mkdtemp(prefix="incoming-", dir=self.folder))
        try:
            image = incoming / "image"
            image.mkdir(mode=0o700)
            if uncompress:
                if len(files) != 1:
                    raise BadInputError("send one archive when it is to be unpacked")
                _unpack(files[0][1], image)
            else:
                for number, (name, content) in enumerate(files):
                    _keep(content, image / _stored(number, name))
            self._remember(upload.name, read_volume(_image_in(incoming)))
            (incoming / "upload.json").write_text(json.dumps(asdict(upload)), "utf-8")
            incoming.rename(self.folder / upload.name)
        except BaseException:
            shutil.rmtree(incoming, ignore_errors=True)
            raise
        return upload

    def get(self, name: str, owner: str = "", touch: bool = True) -> Upload:
        """The upload, its clock set back when `touch`; raises `NotFoundError` when it is gone."""
        upload = self._read(name)
        if upload is None or upload.owner != owner or _over(upload):
            raise NotFoundError("this session is not known (any more): send the image again")
        if touch:
            upload = Upload(upload.name, upload.create_ts, int(time.time()), upload.expiry, owner)
            meta = self.folder / name / "upload.json"
            fresh = meta.with_suffix(f".{uuid4().hex}")
            fresh.write_text(json.dumps(asdict(upload)), "utf-8")
            fresh.replace(meta)
        return upload

    def volume(self, name: str, owner: str = "") -> Volume:
        """The uploaded image."""
        upload = self.get(name, owner)
        with self._lock:
            known = self._volumes.get(upload.name)
        return known or self._remember(upload.name, read_volume(_image_in(self.folder / upload.name)))

    def path(self, name: str, owner: str = "") -> Path:
        """The uploaded file; raises `NotFoundError` when it is a series of many."""
        path = _image_in(self.folder / self.get(name, owner).name)
        if not path.is_file():
            raise NotFoundError("this session holds a series of files; they are not sent back")
        return path

    def remove(self, name: str, owner: str = "") -> Upload:
        """Forget the upload and delete its files."""
        upload = self.get(name, owner, touch=False)
        self._delete(upload.name)
        return upload

    def remove_expired(self) -> int:
        """Delete what has not been used for longer than its expiry, and what was never finished; how many."""
        count = 0
        for path in self.folder.iterdir():
            upload = self._read(path.name)
            age = time.time() - path.stat().st_mtime if path.exists() else 0
            if (upload is not None and _over(upload)) or (
                path.name.startswith("incoming-") and age > self.expiry
            ):
                self._delete(path.name)
                count += 1
        return count

    def _delete(self, name: str) -> None:
        with self._lock:
            self._volumes.pop(name, None)
        shutil.rmtree(self.folder / name, ignore_errors=True)

    def _remember(self, name: str, volume: Volume) -> Volume:
        with self._lock:
            self._volumes[name] = volume
            while len(self._volumes) > _VOLUMES_KEPT:
                self._volumes.popitem(last=False)
        return volume

    def _read(self, name: str) -> Upload | None:
        try:
            if str(UUID(name)) != name:
                return None
            return Upload(**json.loads((self.folder / name / "upload.json").read_text("utf-8")))
        except (ValueError, TypeError, OSError):
            return None


def _over(upload: Upload) -> bool:
    return upload.last_access_ts + upload.expiry < time.time()


def _image_in(folder: Path) -> Path:
    files = sorted((folder / "image").iterdir())
    if not files:
        raise BadInputError("no file was sent")
    return files[0] if len(files) == 1 else folder / "image"


def _stored(number: int, name: str | None) -> str:
    """The name under which a file is kept: a number and the kind, nothing of what the client called it."""
    bare = PurePosixPath((name or "").replace("\\", "/")).name
    suffix = ".dcm" if "." not in bare or bare.replace(".", "").isdigit() else ending(bare, IMAGE_ENDINGS)
    return f"{number:05d}{suffix}"


def _keep(content: IO[bytes], path: Path, left: int = MOST_BYTES) -> int:
    """Copy `content` to a new file, at most `left` bytes; how many are left then."""
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        while chunk := content.read(1 << 20):
            left -= len(chunk)
            if left < 0:
                raise TooLargeError(f"the unpacked files are larger than {MOST_BYTES >> 30} GiB")
            file.write(chunk)
    return left


def _unpack(archive: IO[bytes], folder: Path) -> None:
    """Take the plain files out of a zip archive; one link or name that leads elsewhere and all is refused."""
    left = MOST_BYTES
    try:
        with zipfile.ZipFile(archive) as packed:
            entries = [entry for entry in packed.infolist() if not entry.is_dir()]
            if len(entries) > MOST_FILES:
                raise TooLargeError(f"the archive holds more than {MOST_FILES} files")
            if any(map(_points_elsewhere, entries)):
                raise BadInputError(
                    "the archive holds a link or a name that leads out of it: pack plain files only"
                )
            for number, entry in enumerate(entries):
                with packed.open(entry) as content:
                    left = _keep(content, folder / _stored(number, entry.filename), left)
    except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError) as error:
        raise BadInputError(
            "the archive cannot be read: send a zip file that is whole and not encrypted"
        ) from error


def _points_elsewhere(entry: zipfile.ZipInfo) -> bool:
    path = PurePosixPath(entry.orig_filename.replace("\\", "/"))
    link = stat.S_ISLNK(entry.external_attr >> 16)
    return link or path.is_absolute() or ".." in path.parts or ":" in entry.orig_filename
