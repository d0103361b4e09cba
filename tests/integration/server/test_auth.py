"""Tokens as Keycloak signs them, checked against a login server over HTTP; and who may do what with one."""

import json
import threading
import time
from base64 import b64encode
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import httpx
import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from monailabel.config import settings

from medsa.demo.server import Server
from medsa.server import auth

CLAIMS = {"preferred_username": "ann", "email": "ann@example.org", "name": "Ann", "typ": "Bearer"}


def new_key():
    return rsa.generate_private_key(public_exponent=65537, key_size=2048)


class GuardedServer(Server):
    """Counts as started when it asks for a login."""

    def _answers(self):
        try:
            return httpx.get(f"{self.url}/info/", timeout=5, trust_env=False).status_code == 401
        except httpx.HTTPError:
            return False


class LoginServer:
    """As much of Keycloak as clients see: the realm's key, the configuration, and tokens for one password."""

    def __init__(self):
        self.key, self.asked, self.broken = new_key(), 0, False
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                outer.asked += 1
                public = outer.key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
                answer = {"public_key": b64encode(public).decode(), "token_endpoint": f"{outer.realm}/token"}
                self.reply(500 if outer.broken else 200, answer)

            def do_POST(self):
                form = self.rfile.read(int(self.headers["content-length"])).decode()
                self.reply(200, {"access_token": outer.token("user"), "token_type": "Bearer", "more": 1}) if (
                    "password=right" in form
                ) else self.reply(401, {"error": "invalid_grant"})

            def reply(self, status, answer):
                content = json.dumps(answer).encode()
                self.send_response(status)
                self.send_header("content-length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *_):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.realm = f"http://127.0.0.1:{self.server.server_port}/realms/medsa"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def token(self, *roles, algorithm="RS256", key=None, **claims):
        names = [f"monailabel-{role}" for role in roles]
        payload = {"exp": time.time() + 60, **CLAIMS, "realm_access": {"roles": names}, **claims}
        payload = {name: value for name, value in payload.items() if value is not None}
        return jwt.encode(payload, key or self.key, algorithm=algorithm)

    def stop(self):
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture
def login_server(monkeypatch):
    server = LoginServer()
    monkeypatch.setattr(settings, "MONAI_LABEL_AUTH_ENABLE", True)
    monkeypatch.setattr(settings, "MONAI_LABEL_AUTH_REALM_URI", server.realm)
    monkeypatch.setattr(settings, "MONAI_LABEL_AUTH_TIMEOUT", 5)
    monkeypatch.setattr(auth, "_realm_key", auth._RealmKey())
    yield server
    server.stop()


def test_a_signed_token_says_who_asks(login_server):
    user = auth.from_header(f"Bearer {login_server.token('annotator')}")
    assert (user.name, user.email, user.full_name) == ("ann", "ann@example.org", "Ann")
    assert user.roles == ["monailabel-user", "monailabel-annotator"]


def test_a_role_includes_the_lower_ones(login_server):
    assert auth.from_token(login_server.token("admin")).rank == auth.ROLES.index(auth.ADMIN)
    assert auth.from_token(login_server.token()).rank == -1


@pytest.mark.parametrize(
    "header", [None, "", "Bearer", "Bearer ", "Basic YTpi", "Bearer x.y.z", "Bearer \x00"]
)
def test_without_a_token_nobody_is_let_in(login_server, header):
    with pytest.raises(auth.UnauthenticatedError):
        auth.from_header(header)


def test_forged_and_spoiled_tokens_are_refused(login_server):
    good = login_server.token("admin")
    head, body, signature = good.split(".")
    bad = [
        login_server.token("admin", key=new_key()),
        login_server.token("admin", exp=time.time() - 5),
        login_server.token("admin", exp=None),
        login_server.token("admin", nbf=time.time() + 60),
        login_server.token("admin", preferred_username=None),
        jwt.encode({"exp": time.time() + 60, **CLAIMS}, None, algorithm="none"),
        jwt.encode({"exp": time.time() + 60, **CLAIMS}, "k" * 64, algorithm="HS256"),
        login_server.token("admin", algorithm="RS512"),
        f"{head}.{body}.{signature[:-8]}AAAAAAAA",
        f"{head}.{body}.",
    ]
    for token in bad:
        with pytest.raises(auth.UnauthenticatedError):
            auth.from_token(token)


def test_the_audience_is_checked_where_one_is_named(login_server, monkeypatch):
    monkeypatch.setenv("MEDSA_AUTH_AUDIENCE", "medsa")
    assert auth.from_token(login_server.token("user", aud=["account", "medsa"])).name == "ann"
    for other in ({"aud": "account"}, {}):
        with pytest.raises(auth.UnauthenticatedError):
            auth.from_token(login_server.token("user", **other))


def test_the_key_is_asked_once_and_again_when_the_realm_changed_it(login_server, monkeypatch):
    for _ in range(3):
        auth.from_token(login_server.token("user"))
    assert login_server.asked == 1
    monkeypatch.setattr(auth, "_KEY_RETRY", 0.0)
    login_server.key = new_key()
    assert auth.from_token(login_server.token("user")).name == "ann"
    assert login_server.asked == 2


def test_a_login_server_that_is_down_is_named(login_server):
    login_server.broken = True
    with pytest.raises(auth.IdentityProviderError, match="login server"):
        auth.from_token(login_server.token("user"))
    assert auth.IdentityProviderError.status == 503


def test_a_password_gives_a_token(login_server):
    answer = auth.password_login("ann", "right")
    assert auth.from_token(answer["access_token"]).name == "ann"
    with pytest.raises(auth.UnauthenticatedError, match="refused"):
        auth.password_login("ann", "wrong")


def test_without_authentication_only_this_machine_administers():
    assert auth.without_authentication("127.0.0.1").rank == auth.ROLES.index(auth.ADMIN)
    assert auth.without_authentication("::1").rank == auth.ROLES.index(auth.ADMIN)
    assert auth.without_authentication("192.168.1.7").rank < auth.ROLES.index(auth.ADMIN)


@pytest.fixture(scope="module")
def realm():
    server = LoginServer()
    yield server
    server.stop()


@pytest.fixture(scope="module")
def guarded(realm, drawn, environment, tmp_path_factory):
    """A server that asks for a login."""
    settings = {"MONAI_LABEL_AUTH_ENABLE": "true", "MONAI_LABEL_AUTH_REALM_URI": realm.realm}
    log = tmp_path_factory.mktemp("log") / "log"
    with GuardedServer(str(drawn.folder), log, environment={**environment, **settings}) as server:
        yield server


@pytest.fixture
def ask(guarded, realm):
    """Sends a request with a token of the given role ("" for none at all)."""

    def send(role, method, path, **more):
        headers = {"authorization": f"Bearer {realm.token(role)}"} if role else {}
        return httpx.request(
            method, f"{guarded.url}{path}", headers=headers, timeout=120, trust_env=False, **more
        )

    return send


def test_clients_learn_where_to_log_in_and_do(ask, realm):
    assert ask("", "GET", "/auth/").json() == {
        "enabled": True,
        "client_id": "monailabel-app",
        "realm": realm.realm,
    }
    token = ask(
        "", "POST", "/auth/token", data={"username": "ann", "password": "right", "grant_type": "password"}
    )
    assert token.json()["token_type"] == "Bearer"
    assert set(token.json()) == {"access_token", "token_type"}
    assert ask("", "POST", "/auth/token", data={"username": "ann", "password": "no"}).status_code == 401
    assert ask("user", "GET", "/auth/token/valid").json()["username"] == "ann"
    assert ask("", "GET", "/auth/token/valid").status_code == 401
    assert ask("", "GET", "/ohif/").status_code == 200


@pytest.mark.parametrize(
    ("role", "method", "path"),
    [
        ("user", "GET", "/info/"),
        ("user", "GET", "/datastore/"),
        ("user", "GET", "/train/"),
        ("user", "POST", "/activelearning/random"),
        ("user", "POST", "/infer/medsa_2d"),
        ("user", "PUT", "/session/"),
        ("user", "GET", "/proxy/dicom/qido/studies"),
        ("annotator", "POST", "/proxy/dicom/wado/studies"),
        ("annotator", "PUT", "/datastore/label?image=drawn"),
        ("annotator", "PUT", "/datastore/image?image=x"),
        ("annotator", "GET", "/datastore/dataset"),
        ("annotator", "POST", "/scoring/"),
        ("admin", "DELETE", "/datastore/image?id=none"),
        ("admin", "DELETE", "/datastore/label?id=none&tag=final"),
        ("admin", "GET", "/model/medsa_2d"),
        ("admin", "PUT", "/model/medsa_2d"),
        ("admin", "DELETE", "/model/none"),
        ("admin", "GET", "/logs/"),
        ("admin", "POST", "/reload"),
        ("admin", "POST", "/train/"),
        ("admin", "DELETE", "/train/"),
        ("admin", "POST", "/batch/infer/medsa_2d"),
    ],
)
def test_each_request_needs_its_role_and_no_more(ask, role, method, path):
    assert ask("", method, path).status_code == 401
    lower = auth.ROLES.index(role)
    if lower:
        answer = ask(auth.ROLES[lower - 1], method, path)
        assert answer.status_code == 403, answer.text
        assert role in answer.json()["detail"]
    assert ask(role, method, path).status_code not in (401, 500)


def test_an_upload_belongs_to_the_user_who_sent_it(guarded, realm, drawn):
    content = (drawn.folder / "drawn.nii.gz").read_bytes()
    ann = {"authorization": f"Bearer {realm.token('user')}"}
    bob = {"authorization": f"Bearer {realm.token('user', preferred_username='bob')}"}
    with httpx.Client(base_url=guarded.url, timeout=120, trust_env=False) as client:
        put = client.put("/session/", headers=ann, files={"files": ("a.nii.gz", content)})
        session = put.json()["session_id"]
        assert client.get(f"/session/{session}", headers=ann).status_code == 200
        assert client.get(f"/session/{session}", headers=bob).status_code == 404
        assert client.delete(f"/session/{session}", headers=bob).status_code == 404
