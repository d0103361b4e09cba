"""The realm's key: what a login server that is away, slow or wrong does to people who are logged in."""

import threading
import time
from base64 import b64encode
from types import SimpleNamespace

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from medsa.server import auth


class Realm:
    """A login server; `answer` is what it says, an exception what becomes of asking it."""

    def __init__(self):
        self.asked, self.waits = 0, threading.Event()
        self.waits.set()
        self.change_key()

    def change_key(self):
        self.key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
        public = self.key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        self.answer = {"public_key": b64encode(public).decode()}

    def ask(self, _url):
        self.asked += 1
        self.waits.wait(20)
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer

    def token(self):
        claims = {"preferred_username": "ann", "exp": time.time() + 60}
        return jwt.encode(claims, self.key, algorithm="RS256")


@pytest.fixture
def realm(monkeypatch):
    realm = Realm()
    monkeypatch.setattr(auth, "_ask_json", realm.ask)
    monkeypatch.setattr(auth, "_realm_key", auth._RealmKey())
    return realm


@pytest.fixture
def clock(monkeypatch):
    """Seconds that `auth` believes have passed."""
    passed = [0.0]
    monkeypatch.setattr(auth, "time", SimpleNamespace(monotonic=lambda: passed[0]))
    return passed


AWAY = auth.IdentityProviderError("away")
NONSENSE = [AWAY, {}, {"public_key": None}, {"public_key": "AAAA"}, {"public_key": "ünd"}]


@pytest.mark.parametrize("answer", NONSENSE)
def test_the_last_key_serves_on_and_is_asked_for_again_after_a_pause(realm, clock, answer):
    token, good = realm.token(), realm.answer
    assert auth.from_token(token).name == "ann"
    realm.answer = answer
    clock[0] = auth._KEY_LIVES + 1
    for _ in range(3):
        assert auth.from_token(token).name == "ann"
    assert realm.asked == 2
    clock[0] += auth._KEY_RETRY + 1
    assert auth.from_token(token).name == "ann"
    assert realm.asked == 3
    realm.answer = good
    clock[0] += auth._KEY_RETRY + 1
    assert auth.from_token(token).name == "ann"
    clock[0] += auth._KEY_RETRY + 1
    assert auth.from_token(token).name == "ann"
    assert realm.asked == 4


@pytest.mark.parametrize("answer", NONSENSE)
def test_what_is_no_key_is_not_kept(realm, clock, answer):
    token, good = realm.token(), realm.answer
    realm.answer = answer
    for _ in range(3):
        with pytest.raises(auth.IdentityProviderError):
            auth.from_token(token)
    assert realm.asked == 1
    realm.answer = good
    clock[0] += 5
    assert auth.from_token(token).name == "ann"


def test_a_signature_that_does_not_fit_asks_a_login_server_that_is_away_once(realm, clock):
    stranger = Realm().token()
    auth.from_token(realm.token())
    realm.answer = AWAY
    clock[0] = auth._KEY_RETRY + 1
    for _ in range(3):
        with pytest.raises(auth.UnauthenticatedError):
            auth.from_token(stranger)
    assert realm.asked == 2


def test_a_key_that_changed_is_had_at_once(realm, clock):
    auth.from_token(realm.token())
    realm.change_key()
    clock[0] = auth._KEY_RETRY + 1
    assert auth.from_token(realm.token()).name == "ann"


def test_nobody_with_a_key_waits_for_a_slow_login_server(realm, clock):
    token = realm.token()
    auth.from_token(token)
    clock[0] = auth._KEY_LIVES + 1
    realm.waits.clear()
    first = threading.Thread(target=auth.from_token, args=(token,), daemon=True)
    first.start()
    try:
        while realm.asked < 2:
            time.sleep(0.01)
        started = time.perf_counter()
        assert auth.from_token(token).name == "ann"
        assert time.perf_counter() - started < 5
    finally:
        realm.waits.set()
        first.join()
