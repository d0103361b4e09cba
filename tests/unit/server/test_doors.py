"""What passes the doors, and what a client sees of an error."""

import logging

import pytest
from fastapi import FastAPI, Form, Request
from fastapi.testclient import TestClient
from monailabel.config import settings
from monailabel.interfaces.exception import LabelNotFoundException, MONAILabelError, MONAILabelException

from medsa.errors import LabelMismatchError, NotFoundError
from medsa.server import doors

ERRORS = {
    "missing": NotFoundError("there is no such series"),
    "mismatch": LabelMismatchError("the label does not fit"),
    "label": LabelNotFoundException("secret/path"),
    "monai": MONAILabelException(MONAILabelError.INVALID_INPUT, "a stock sentence"),
    "bug": RuntimeError("Doe^John 1.2.840.113619.2.55.3.4"),
}


def make(client=("127.0.0.1", 5), base_url="http://localhost:8000"):
    app = FastAPI()

    @app.get("/raise/{kind}")
    def fail(kind: str):
        raise ERRORS[kind]

    @app.get("/me")
    def me(request: Request):
        return request.state.user.name

    @app.post("/echo")
    async def echo(request: Request):
        return len(await request.body())

    @app.post("/form")
    def form(params: str = Form("{}")):
        return params

    @app.get("/number")
    def number(n: int):
        return n

    doors.install(app)
    return TestClient(app, raise_server_exceptions=False, client=client, base_url=base_url)


@pytest.mark.parametrize(
    ("kind", "status", "detail"),
    [
        ("missing", 404, "there is no such series"),
        ("mismatch", 422, "the label does not fit"),
        ("label", 404, "there is no such image or label in the datastore"),
        ("monai", 400, "a stock sentence"),
    ],
)
def test_an_error_is_its_status_and_one_sentence(kind, status, detail):
    answer = make().get(f"/raise/{kind}")
    assert (answer.status_code, answer.json()) == (status, {"detail": detail})


def test_what_nobody_expected_shows_a_number_and_nothing_else(caplog):
    with caplog.at_level(logging.ERROR):
        answer = make().get("/raise/bug")
    assert answer.status_code == 500
    number = answer.json()["detail"].split()[-1]
    assert "RuntimeError" not in answer.text
    assert number in caplog.text
    assert "test_doors.py" in caplog.text
    assert "Doe" not in caplog.text
    assert "1.2.840" not in caplog.text


def test_bad_parameters_and_unknown_addresses_are_sentences():
    client = make()
    assert "query.n" in client.get("/number?n=x").json()["detail"]
    assert client.get("/number?n=x").status_code == 422
    assert client.get("/nowhere").json() == {"detail": "Not Found"}


@pytest.mark.parametrize("sized", [True, False])
def test_a_body_beyond_the_limit_is_413(monkeypatch, sized):
    monkeypatch.setattr(doors, "OTHER_BYTES", 1 << 20)
    content = b"x" * ((1 << 20) + 1)
    client = make()
    body = content if sized else iter([content[: 1 << 19], content[1 << 19 :]])
    answer = client.post("/echo", content=body)
    assert answer.status_code == 413
    assert "too large" in answer.json()["detail"]
    assert client.post("/echo", content=content[:-1]).json() == 1 << 20


def test_a_form_beyond_the_limit_is_413(monkeypatch):
    monkeypatch.setattr(doors, "UPLOAD_BYTES", 1 << 20)
    answer = make().post("/form", files={"file": b"x" * (2 << 20)}, data={"params": "{}"})
    assert answer.status_code == 413


@pytest.mark.parametrize(
    "origin", ["http://evil.example", "null", "http://localhost:8000.evil.example", "http://["]
)
def test_a_page_of_another_site_cannot_act(origin):
    client = make()
    assert client.post("/echo", headers={"origin": origin}).status_code == 403
    answer = client.get("/me", headers={"origin": origin})
    assert "access-control-allow-origin" not in answer.headers


def test_a_page_of_the_server_can_act_also_behind_a_reverse_proxy():
    client = make()
    assert client.post("/echo", headers={"origin": "http://localhost:8000"}).status_code == 200
    proxied = {"origin": "https://pacs.example", "x-forwarded-host": "pacs.example"}
    assert client.post("/echo", headers=proxied).status_code == 200


def test_only_origins_that_were_named_share(monkeypatch):
    monkeypatch.setattr(settings, "MONAI_LABEL_CORS_ORIGINS", ["http://viewer.example/"])
    client = make()
    answer = client.post("/echo", headers={"origin": "http://viewer.example"})
    assert answer.status_code == 200
    assert answer.headers["access-control-allow-origin"] == "http://viewer.example"
    other = client.get("/me", headers={"origin": "http://evil.example"})
    assert "access-control-allow-origin" not in other.headers


@pytest.mark.parametrize("name", ["localhost:8000", "127.0.0.1", "[::1]:8000", "127.1.2.3:80"])
def test_this_machine_is_called_by_its_own_names(name):
    assert make(base_url=f"http://{name}").get("/me").status_code == 200


@pytest.mark.parametrize(
    "name", ["evil.example:8000", "127.0.0.1.evil.example", "127.evil.example", "[::2]:8000"]
)
def test_a_name_that_was_turned_to_this_machine_is_refused(name, monkeypatch):
    answer = make(base_url=f"http://{name}").get("/me")
    assert answer.status_code == 403
    assert make(client=("10.0.0.5", 1), base_url=f"http://{name}").get("/me").status_code == 200
    monkeypatch.setattr(settings, "MONAI_LABEL_CORS_ORIGINS", [f"https://{name}"])
    assert make(base_url=f"http://{name}").get("/me").status_code == 200


@pytest.mark.parametrize(
    ("arguments", "chosen"),
    [
        (["start_server", "--app", "x"], False),
        (["start_server", "--host", "0.0.0.0"], True),
        (["start_server", "--host=10.0.0.1"], True),
        (["start_server", "-i", "127.0.0.1"], True),
        (["--port", "1"], True),
    ],
)
def test_whether_somebody_chose_the_host(arguments, chosen):
    assert doors.host_was_chosen(arguments) is chosen


def test_without_a_chosen_host_other_machines_are_refused(monkeypatch):
    monkeypatch.setattr(doors, "this_machine_only", lambda: True)
    assert make(client=("127.0.0.1", 5)).get("/me").status_code == 200
    answer = make(client=("192.168.1.5", 5)).get("/me")
    assert answer.status_code == 403
    assert "--host" in answer.json()["detail"]


def test_with_authentication_on_everything_but_the_login_needs_a_token(monkeypatch):
    monkeypatch.setattr(settings, "MONAI_LABEL_AUTH_ENABLE", True)
    client = make()
    answer = client.get("/me")
    assert (answer.status_code, answer.headers["www-authenticate"]) == (401, "Bearer")
    assert client.get("/auth/").status_code == 404
    assert client.get("/ohif/../me").status_code in (401, 404)
    big = client.post("/echo", content=b"x", headers={"content-length": str(1 << 40)})
    assert big.status_code == 401
