"""Images sent for a session stay inside their folder and go when their time is over."""

import io
import stat
import zipfile

import nibabel
import numpy as np
import pytest

from medsa.errors import BadInputError, MedsaError, NotFoundError, TooLargeError, UnreadableImageError
from medsa.server import uploads
from medsa.server.uploads import Uploads


@pytest.fixture
def store(tmp_path):
    return Uploads(tmp_path / "sessions")


def nifti(value=7):
    image = nibabel.Nifti1Image(np.full((5, 4, 3), value, np.int16), np.diag([1, 2, 3, 1]))
    return io.BytesIO(image.to_bytes())


def zipped(*entries):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for entry, content in entries:
            archive.writestr(entry, content)
    buffer.seek(0)
    return buffer


def test_an_image_comes_back_as_it_was_also_after_a_restart(store):
    upload = store.add([("Doe_John.nii", nifti())])
    assert store.volume(upload.name).voxels[0, 0, 0] == 7
    again = Uploads(store.folder)
    assert again.volume(upload.name).shape == (5, 4, 3)
    assert again.path(upload.name).read_bytes() == nifti().getvalue()


def test_nothing_of_the_clients_file_name_is_kept_and_nobody_else_can_read(store):
    store.add([("../../Doe_John.nii", nifti())])
    paths = list(store.folder.rglob("*"))
    assert not [path for path in paths if "Doe" in path.name]
    assert store.folder.stat().st_mode & 0o077 == 0
    assert sorted(path.name for path in store.folder.parent.iterdir()) == ["sessions"]


def test_a_zip_archive_is_unpacked(store):
    upload = store.add([("a.zip", zipped(("folder/image.nii", nifti().getvalue())))], uncompress=True)
    assert store.volume(upload.name).shape == (5, 4, 3)


def link():
    entry = zipfile.ZipInfo("link.nii")
    entry.external_attr = (stat.S_IFLNK | 0o777) << 16
    return entry


@pytest.mark.parametrize(
    "name", ["../evil.nii", "a/../../evil.nii", "/etc/evil.nii", "..\\evil.nii", "C:\\evil.nii", link()]
)
def test_an_archive_that_points_outside_is_refused_and_writes_nothing(store, name):
    archive = zipped(("fine.nii", nifti().getvalue()), (name, nifti().getvalue()))
    with pytest.raises(BadInputError, match="plain files"):
        store.add([("a.zip", archive)], uncompress=True)
    assert list(store.folder.iterdir()) == []
    assert not list(store.folder.parent.rglob("evil*"))


def test_an_archive_that_grows_without_end_is_refused(store, monkeypatch):
    monkeypatch.setattr(uploads, "MOST_BYTES", 1 << 20)
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("bomb.nii", bytes(2 << 20))
    buffer.seek(0)
    with pytest.raises(TooLargeError):
        store.add([("a.zip", buffer)], uncompress=True)
    assert list(store.folder.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "content", "uncompress", "error"),
    [
        ("image.nii", b"no image", False, UnreadableImageError),
        ("image.nii", b"", False, UnreadableImageError),
        ("image.png", b"\x89PNG\r\n\x1a\n", False, UnreadableImageError),
        ("notes.txt", b"text", False, BadInputError),
        ("archive.zip", b"PK", False, BadInputError),
        ("archive.zip", b"PK\x03\x04 cut off", True, BadInputError),
        ("archive.tar", b"\0" * 1024, True, BadInputError),
        ("archive.zip", zipped().getvalue(), True, BadInputError),
        ("image", b"no DICOM", False, UnreadableImageError),
    ],
)
def test_what_is_no_image_is_refused_and_leaves_nothing(store, name, content, uncompress, error):
    with pytest.raises(error):
        store.add([(name, io.BytesIO(content))], uncompress=uncompress)
    assert list(store.folder.iterdir()) == []


@pytest.mark.parametrize("name", ["", ".", "..", "../sessions", "/etc", "x" * 300, "a\0b", "{id}/"])
def test_an_id_that_is_none_finds_nothing(store, name):
    upload = store.add([("a.nii", nifti())])
    for ask in (store.get, store.volume, store.path, store.remove):
        with pytest.raises(NotFoundError):
            ask(name.format(id=upload.name))
    assert store.get(upload.name)


def test_an_upload_belongs_to_its_owner(store):
    upload = store.add([("a.nii", nifti())], owner="ann")
    assert store.get(upload.name, "ann")
    for ask in (store.get, store.volume, store.remove):
        with pytest.raises(NotFoundError):
            ask(upload.name, "bob")


def test_expired_and_unfinished_uploads_are_removed(store, monkeypatch):
    short, long = (store.add([("a.nii", nifti())], expiry=expiry) for expiry in (100, 3000))
    (store.folder / "incoming-half").mkdir()
    now = uploads.time.time()
    monkeypatch.setattr(uploads.time, "time", lambda: now + 200)
    with pytest.raises(NotFoundError):
        store.volume(short.name)
    assert store.remove_expired() == 1
    assert store.get(long.name)
    monkeypatch.setattr(uploads.time, "time", lambda: now + 7200)
    assert store.remove_expired() == 2
    assert list(store.folder.iterdir()) == []


def test_no_file_at_all_is_refused(store):
    with pytest.raises(MedsaError, match="no file"):
        store.add([])
