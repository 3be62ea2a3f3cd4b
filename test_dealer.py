"""The assignment: accounts, tokens, cars, their values, and every way to be refused."""

import hashlib
import json
import re
import time
import unicodedata
from urllib.parse import quote

import argon2
import jwt
import pytest
import sqlalchemy

from conftest import (
    BEARER,
    CAR,
    COMPOSED,
    CREDENTIALS,
    DECOMPOSED,
    INVALID_TOKEN,
    LINES,
    MARKS,
    MIB,
    NO_OBJECT,
    NOT_FOUND,
    NUMBER,
    OTHER_CAR,
    PASSWORD,
    SAMPLES,
    SECRET,
    USERNAME,
    TestApp,
    assert_error,
    assert_headers,
    assert_json,
    at,
    changed,
    claims_of,
    encoded,
    forged,
    length,
    raw_car,
    raw_credentials,
    send,
    table,
)

# ----------------------------------------------------------------------------------------------------------------------
# Accounts
# ----------------------------------------------------------------------------------------------------------------------

WRONG_LOGIN = "Invalid username or password"


def test_register_new_name(testapp):
    answer = testapp.post_json("/register", CREDENTIALS, status=201)

    assert_json(answer, 201, {"Message": "User created. Try to auth"})


def test_register_taken_name_is_400(registered):
    answer = registered.post_json("/register", {"username": USERNAME, "password": "another"}, status=400)

    assert_error(answer, 400, "User already exists")


def test_register_taken_name_keeps_the_password(registered):
    registered.post_json("/register", {"username": USERNAME, "password": "another"}, status=400)

    registered.post_json("/auth", CREDENTIALS, status=200)


def test_names_differ_by_case(registered):
    answer = registered.post_json("/register", {"username": "Alice", "password": "x"}, status=201)

    assert_json(answer, 201, {"Message": "User created. Try to auth"})


def test_log_in(registered):
    answer = registered.post_json("/auth", CREDENTIALS, status=200)

    assert_json(answer, 200, {"access_token": answer.json["access_token"], "token_type": "Bearer", "expires_in": 3600})
    assert_headers(answer, Cache_Control="no-store")


def test_token_opens_the_cars(registered):
    token = registered.post_json("/auth", CREDENTIALS).json["access_token"]
    registered.authorization = ("Bearer", token)

    answer = registered.post_json("/auto/BMW", CAR, status=201)

    assert_json(answer, 201, {"Message": "Auto created"})


def test_token_is_a_jwt_of_the_account(account):
    header = jwt.get_unverified_header(account.token)
    claims = jwt.decode(account.token, SECRET, algorithms=["HS256"])

    assert header["alg"] == "HS256"
    assert claims["sub"] == USERNAME
    assert type(claims["iat"]) is int
    assert abs(claims["iat"] - time.time()) < 300
    assert claims["exp"] - claims["iat"] == 3600


def test_token_lives_as_long_as_set(make_app, database, account):
    testapp = TestApp(make_app(jwt_ttl=60))
    database.insert("users", account.row)

    answer = testapp.post_json("/auth", CREDENTIALS, status=200)

    claims = jwt.decode(answer.json["access_token"], SECRET, algorithms=["HS256"])
    assert (answer.json["expires_in"], claims["exp"] - claims["iat"]) == (60, 60)


@pytest.mark.parametrize(
    ("username", "password"),
    [
        pytest.param(USERNAME, "wrong", id="wrong password"),
        pytest.param(USERNAME, "WARIK", id="other case"),
        pytest.param(USERNAME, "warik ", id="trailing space"),
        pytest.param("bob", PASSWORD, id="unknown name"),
        pytest.param("Alice", PASSWORD, id="name in other case"),
    ],
)
def test_wrong_login_is_401(refused, username, password):
    answer = refused.post_json("/auth", {"username": username, "password": password}, status=401)

    assert_error(answer, 401, WRONG_LOGIN)
    assert_headers(answer, WWW_Authenticate=BEARER)


def test_wrong_password_and_unknown_name_look_alike(refused):
    wrong = refused.post_json("/auth", {"username": USERNAME, "password": "wrong"}, status=401)
    unknown = refused.post_json("/auth", {"username": "nobody", "password": "wrong"}, status=401)

    for answer in (wrong, unknown):
        answer.headers.pop("X-Request-ID")
    assert (wrong.status, wrong.headerlist, wrong.body) == (unknown.status, unknown.headerlist, unknown.body)


@pytest.mark.parametrize(
    "username",
    table(["a"], ["a" * 80], ["😀" * 80], ["e\u0301" * 80], ["Вася Пупкин"], ["a@b.c"], ["'; DROP TABLE users; --"]),
)
def test_username_that_is_fine(testapp, username):
    testapp.post_json("/register", {"username": username, "password": "x"}, status=201)

    testapp.post_json("/auth", {"username": username, "password": "x"}, status=200)


PASSWORDS = [" ", "\t\n", "p", "p" * 1024, "😀" * 1024, "e\u0301" * 1024, "пароль\u200b\x7f", "%s' OR 1=1"]


@pytest.mark.parametrize("password", table(*[[password] for password in PASSWORDS]))
def test_password_that_is_fine(testapp, password):
    testapp.post_json("/register", {"username": "bob", "password": password}, status=201)

    testapp.post_json("/auth", {"username": "bob", "password": password}, status=200)


def test_long_password_counts_to_its_end(testapp):
    testapp.post_json("/register", {"username": "bob", "password": "p" * 1024}, status=201)

    answer = testapp.post_json("/auth", {"username": "bob", "password": "p" * 1023 + "q"}, status=401)

    assert_error(answer, 401, WRONG_LOGIN)


@pytest.mark.parametrize(("first", "second"), [(COMPOSED, DECOMPOSED), (DECOMPOSED, COMPOSED)])
def test_both_unicode_forms_log_in(testapp, first, second):
    testapp.post_json("/register", {"username": first, "password": first}, status=201)

    answer = testapp.post_json("/auth", {"username": second, "password": second}, status=200)

    assert jwt.decode(answer.json["access_token"], SECRET, algorithms=["HS256"])["sub"] == COMPOSED


def test_name_in_the_other_unicode_form_is_taken(testapp):
    testapp.post_json("/register", {"username": COMPOSED, "password": "x"}, status=201)

    answer = testapp.post_json("/register", {"username": DECOMPOSED, "password": "x"}, status=400)

    assert_error(answer, 400, "User already exists")


def test_password_is_stored_as_argon2id(testapp, database):
    testapp.post_json("/register", CREDENTIALS, status=201)

    stored = database.query("SELECT password FROM users")[0]["password"]
    assert stored.startswith("$argon2id$v=19$m=19456,t=2,p=1$")


def test_same_password_is_stored_differently(testapp, database):
    testapp.post_json("/register", {"username": "alice", "password": "same"}, status=201)
    testapp.post_json("/register", {"username": "bob", "password": "same"}, status=201)

    first, second = database.query("SELECT password FROM users")
    assert first != second


@pytest.fixture
def old_hash(database, account, app):
    """The hash that `account` has, made with older parameters."""
    weak = argon2.PasswordHasher(time_cost=1, memory_cost=1024, parallelism=1).hash(PASSWORD)
    database.insert("users", {**account.row, "password": weak})
    return weak


def test_login_renews_an_older_hash(testapp, database, old_hash):
    testapp.post_json("/auth", CREDENTIALS, status=200)

    stored = database.query("SELECT password FROM users")[0]["password"]
    assert stored.startswith("$argon2id$v=19$m=19456,t=2,p=1$")
    assert argon2.PasswordHasher().verify(stored, PASSWORD)


def test_wrong_login_keeps_an_older_hash(testapp, database, old_hash):
    testapp.post_json("/auth", {"username": USERNAME, "password": "wrong"}, status=401)

    assert database.query("SELECT password FROM users") == [{"password": old_hash}]


# ----------------------------------------------------------------------------------------------------------------------
# Tokens
# ----------------------------------------------------------------------------------------------------------------------


def swapped(token, part, replacement):
    """Give a token with one of its three parts replaced."""
    parts = token.split(".")
    parts[part] = replacement(parts[part])
    return ".".join(parts)


def flipped(text):
    """Give a text with its first character changed."""
    return ("B" if text[0] == "A" else "A") + text[1:]


@pytest.mark.parametrize("scheme", ["Bearer", "bearer", "BEARER", "JWT", "jwt", "Jwt"])
def test_scheme_that_is_fine(client, account, scheme):
    answer = client.get("/stock", headers={"Authorization": f"{scheme} {account.token}"}, status=400)

    assert_error(answer, 400, "No one autos found in DataBase")


def test_forged_token_opens_where_it_is_right(client, account):
    token = forged(claims_of(account))

    answer = client.get("/stock", headers={"Authorization": f"Bearer {token}"}, status=400)

    assert_error(answer, 400, "No one autos found in DataBase")


def test_token_missing_is_401(testapp):
    answer = testapp.get("/stock", status=401)

    assert_error(answer, 401, "Token is missing")
    assert_headers(answer, WWW_Authenticate=BEARER)


@pytest.mark.parametrize(
    "authorization", table(["Basic YWxpY2U6d2FyaWs="], ["Digest x"], [""], ["Bearers x.y.z"], ["token x.y.z"])
)
def test_other_scheme_is_401(refused, authorization):
    answer = refused.get("/stock", headers={"Authorization": authorization}, status=401)

    assert_error(answer, 401, "Token is missing")
    assert_headers(answer, WWW_Authenticate=BEARER)


NOW = int(time.time())
BAD_TOKENS = {
    "scheme alone": lambda account: "",
    "blank": lambda account: "   ",
    "garbage": lambda account: "garbage",
    "two dots": lambda account: "..",
    "not ASCII": lambda account: "é.é.é",
    "10 KB": lambda account: "x" * 10240,
    "10 KB of dots": lambda account: "." * 10240,
    "10 KB of payload": lambda account: forged({"sub": "x" * 10240, "iat": NOW, "exp": NOW + 60}),
    "two parts": lambda account: account.token.rpartition(".")[0],
    "four parts": lambda account: account.token + ".x",
    "sent twice": lambda account: f"{account.token}, Bearer {account.token}",
    "followed by more": lambda account: account.token + " x",
    "quoted": lambda account: f'"{account.token}"',
    "alg none": lambda account: forged(claims_of(account), {"alg": "none"}).rpartition(".")[0] + ".",
    "alg None": lambda account: forged(claims_of(account), {"alg": "None"}).rpartition(".")[0] + ".",
    "alg none, but signed": lambda account: forged(claims_of(account), {"alg": "none"}),
    "alg missing": lambda account: forged(claims_of(account), {"typ": "JWT"}),
    "alg null": lambda account: forged(claims_of(account), {"alg": None}),
    "alg a list": lambda account: forged(claims_of(account), {"alg": ["HS256"]}),
    "HS512": lambda account: forged(claims_of(account), {"alg": "HS512"}, digest=hashlib.sha512),
    "HS384": lambda account: forged(claims_of(account), {"alg": "HS384"}, digest=hashlib.sha384),
    "RS256, signed with HMAC": lambda account: forged(claims_of(account), {"alg": "RS256"}),
    "ES256, signed with HMAC": lambda account: forged(claims_of(account), {"alg": "ES256"}),
    "critical extension": lambda account: forged(claims_of(account), {"alg": "HS256", "crit": ["x"], "x": 1}),
    "header no object": lambda account: forged(claims_of(account), []),
    "header not JSON": lambda account: forged(claims_of(account), b"{"),
    "other secret": lambda account: forged(claims_of(account), secret="another secret of thirty-two bytes"),
    "empty secret": lambda account: forged(claims_of(account), secret=""),
    "payload tampered": lambda account: swapped(
        account.token, 1, lambda _: encoded({**claims_of(account), "exp": NOW + 9000})
    ),
    "signature tampered": lambda account: swapped(account.token, 2, flipped),
    "signature empty": lambda account: swapped(account.token, 2, lambda _: ""),
    "signature short": lambda account: swapped(account.token, 2, lambda text: text[:-4]),
    "payload no object": lambda account: forged([1]),
    "payload not JSON": lambda account: forged(b"{"),
    "payload empty": lambda account: forged({}),
    "expired": lambda account: changed(account, iat=NOW - 3601, exp=NOW - 1),
    "without exp": lambda account: changed(account, exp=None),
    "without iat": lambda account: changed(account, iat=None),
    "without sub": lambda account: changed(account, sub=None),
    "exp null": lambda account: forged({**claims_of(account), "exp": None}),
    "exp a text": lambda account: changed(account, exp="tomorrow"),
    "exp a list": lambda account: changed(account, exp=[NOW + 60]),
    "exp negative": lambda account: changed(account, exp=-1),
    "exp infinite": lambda account: changed(account, exp=float("inf")),
    "exp no number": lambda account: changed(account, exp=float("nan")),
    "iat a text": lambda account: changed(account, iat="now"),
    "iat in the future": lambda account: changed(account, iat=NOW + 86400, exp=NOW + 90000),
    "nbf in the future": lambda account: changed(account, nbf=NOW + 86400),
    "sub a number": lambda account: changed(account, sub=1),
    "sub a list": lambda account: changed(account, sub=[USERNAME]),
    "sub null": lambda account: forged({**claims_of(account), "sub": None}),
    "sub empty": lambda account: changed(account, sub=""),
    "sub with NUL": lambda account: changed(account, sub="alice\0"),
    "sub a lone surrogate": lambda account: changed(account, sub="\ud800"),
    "sub in other case": lambda account: changed(account, sub="Alice"),
    "unknown account": lambda account: changed(account, sub="nobody"),
    "exp true": lambda account: changed(account, exp=True),
    "exp with a fraction": lambda account: changed(account, exp=NOW + 60.5),
    "exp beyond all numbers": lambda account: changed(account, exp=10**400),
    "iat true": lambda account: changed(account, iat=True),
    "iat no number": lambda account: changed(account, iat=float("nan")),
    "iat digits in a text": lambda account: changed(account, iat=str(NOW)),
    "without session": lambda account: changed(account, session=None),
    "session null": lambda account: forged({**claims_of(account), "session": None}),
    "session true": lambda account: changed(account, session=True),
    "session a number": lambda account: changed(account, session=10**400),
    "session a list": lambda account: changed(account, session=[claims_of(account)["session"]]),
    "session an object": lambda account: changed(account, session={}),
    "session with NUL": lambda account: changed(account, session="\0"),
    "session a lone surrogate": lambda account: changed(account, session="\ud800"),
    "another session": lambda account: changed(account, session="x"),
    "header nested deeply": lambda account: forged(claims_of(account), b"[" * 100_000),
}


@pytest.mark.parametrize("make", [pytest.param(make, id=name) for name, make in BAD_TOKENS.items()])
def test_bad_token_is_401(refused, account, make):
    answer = refused.get("/stock", headers={"Authorization": "Bearer " + make(account)}, status=401)

    assert_error(answer, 401, "Token is invalid or expired")
    assert_headers(answer, WWW_Authenticate=INVALID_TOKEN)


def test_token_ends_when_its_time_is_over(make_app, database, account, monkeypatch):
    client = TestApp(make_app())
    database.insert("users", account.row)
    client.authorization = ("Bearer", changed(account, exp=int(time.time()) + 60))
    client.get("/stock", status=400)

    now = time.time
    monkeypatch.setattr(time, "time", lambda: now() + 60)

    assert_error(client.get("/stock", status=401), 401, "Token is invalid or expired")


def test_token_ends_with_its_account(client, database):
    client.get("/stock", status=400)
    database.execute("DELETE FROM users")

    answer = client.get("/stock", status=401)

    assert_error(answer, 401, "Token is invalid or expired")
    assert_headers(answer, WWW_Authenticate=INVALID_TOKEN)


def test_token_of_an_earlier_account_of_that_name_is_401(client, database):
    database.execute("DELETE FROM users")
    TestApp(client.app).post_json("/register", CREDENTIALS, status=201)

    answer = client.get("/stock", status=401)

    assert_error(answer, 401, "Token is invalid or expired")


PUBLIC = {
    ("POST", "/register"),
    ("POST", "/auth"),
    ("GET", "/openapi.json"),
    ("GET", "/docs"),
    ("GET", "/"),
    ("GET", "/health"),
}


def example_of(rule):
    """Give a path that a rule matches."""
    return re.sub(r"<[^>]+>", "x", rule)


def test_every_route_that_is_not_public_asks_for_a_token(app):
    protected = [route for route in app.routes if (route.method, route.rule) not in PUBLIC]
    testapp = TestApp(app)

    statuses = {
        (route.method, route.rule): send(testapp, route.method, example_of(route.rule)).status_int
        for route in protected
        if not route.rule.startswith(("/docs/", "/pages/"))
    }

    assert len(statuses) >= 5
    assert set(statuses.values()) == {401}, statuses


# ----------------------------------------------------------------------------------------------------------------------
# Cars
# ----------------------------------------------------------------------------------------------------------------------


def test_find_auto(bmw):
    answer = bmw.get("/auto/BMW", status=200)

    assert_json(answer, 200, {"mark": "BMW", **CAR})
    assert_headers(answer, Cache_Control="private, no-cache")


def test_find_unknown_mark_is_404(client):
    answer = client.get("/auto/BMW", status=404)

    assert_error(answer, 404, NOT_FOUND)


def test_create_auto(client):
    answer = client.post_json("/auto/BMW", CAR, status=201)

    assert_json(answer, 201, {"Message": "Auto created"})
    assert_headers(answer, Location="/auto/BMW")


def test_create_known_mark_is_400(bmw):
    answer = bmw.post_json("/auto/BMW", OTHER_CAR, status=400)

    assert_error(answer, 400, "Auto with that mark exists")


def test_create_known_mark_keeps_the_car(bmw):
    bmw.post_json("/auto/BMW", OTHER_CAR, status=400)

    assert bmw.get("/auto/BMW").json == {"mark": "BMW", **CAR}


def test_update_auto(bmw):
    answer = bmw.put_json("/auto/BMW", OTHER_CAR, status=202)

    assert_json(answer, 202, {"Message": "Auto updated"})


def test_update_replaces_the_data(bmw):
    bmw.put_json("/auto/BMW", OTHER_CAR, status=202)

    assert bmw.get("/auto/BMW").json == {"mark": "BMW", **OTHER_CAR}


def test_update_to_the_same_data(bmw):
    answer = bmw.put_json("/auto/BMW", CAR, status=202)

    assert_json(answer, 202, {"Message": "Auto updated"})


def test_update_changes_no_other_car(bmw):
    bmw.post_json("/auto/Audi", CAR, status=201)

    bmw.put_json("/auto/BMW", OTHER_CAR, status=202)

    assert bmw.get("/auto/Audi").json == {"mark": "Audi", **CAR}


def test_update_unknown_mark_is_404(refused):
    answer = refused.put_json("/auto/BMW", CAR, status=404)

    assert_error(answer, 404, NOT_FOUND)


def test_delete_auto(bmw):
    answer = bmw.delete("/auto/BMW", status=202)

    assert_json(answer, 202, {"Message": "Auto deleted"})


def test_deleted_auto_is_gone(bmw):
    bmw.delete("/auto/BMW", status=202)

    assert_error(bmw.get("/auto/BMW", status=404), 404, NOT_FOUND)


def test_delete_deletes_no_other_car(bmw):
    bmw.post_json("/auto/Audi", CAR, status=201)

    bmw.delete("/auto/BMW", status=202)

    assert bmw.get("/stock").json == [{"mark": "Audi", **CAR}]


def test_delete_unknown_mark_is_404(refused):
    answer = refused.delete("/auto/BMW", status=404)

    assert_error(answer, 404, NOT_FOUND)


def test_deleted_mark_can_be_created_again(bmw):
    bmw.delete("/auto/BMW", status=202)

    bmw.post_json("/auto/BMW", OTHER_CAR, status=201)

    assert bmw.get("/auto/BMW").json == {"mark": "BMW", **OTHER_CAR}


def test_stock_without_a_car_is_400(client):
    answer = client.get("/stock", status=400)

    assert_error(answer, 400, "No one autos found in DataBase")


def test_stock_after_the_last_car_is_400(bmw):
    bmw.delete("/auto/BMW", status=202)

    assert_error(bmw.get("/stock", status=400), 400, "No one autos found in DataBase")


def test_stock_lists_whole_cars(bmw):
    answer = bmw.get("/stock", status=200)

    assert_json(answer, 200, [{"mark": "BMW", **CAR}])
    assert_headers(answer, Cache_Control="private, no-cache")


def test_stock_is_ordered_by_code_point(client):
    marks = ["a", "B", "b", "Z", "_", "10", "9", "Ä", "ä", "Ж", "宝马", "\ufffd", "😀", "A b", "A-b", "Ab"]
    for mark in marks:
        client.post_json(at(mark), CAR, status=201)

    answer = client.get("/stock", status=200)

    assert [car["mark"] for car in answer.json] == sorted(marks)


# The samples, and marks as people write them


def test_samples_hold_one_mark_twice():
    assert (len(LINES), len(SAMPLES)) == (103, 102)


def test_samples_from_registration_to_an_empty_stock(testapp):
    testapp.post_json("/register", CREDENTIALS, status=201)
    token = testapp.post_json("/auth", CREDENTIALS, status=200).json["access_token"]
    testapp.authorization = ("JWT", token)

    created = [(line["mark"], testapp.post_json(at(line["mark"]), line, status="*").status_int) for line in LINES]
    read = [testapp.get(at(mark)).json for mark in SAMPLES]
    listed = testapp.get("/stock").json
    updated = [testapp.put_json(at(mark), OTHER_CAR).status_int for mark in SAMPLES]
    relisted = testapp.get("/stock").json
    deleted = [testapp.delete(at(mark)).status_int for mark in SAMPLES]

    assert [mark for mark, status in created if status != 201] == ["Kia e-Soul 64 kWh"]
    assert read == list(SAMPLES.values())
    assert listed == [SAMPLES[mark] for mark in sorted(SAMPLES)]
    assert updated == [202] * 102
    assert relisted == [{"mark": mark, **OTHER_CAR} for mark in sorted(SAMPLES)]
    assert deleted == [202] * 102
    assert_error(testapp.get("/stock", status=400), 400, "No one autos found in DataBase")


def test_second_sample_of_one_mark_is_400(client):
    first, second = (line for line in LINES if line["mark"] == "Kia e-Soul 64 kWh")
    client.post_json(at(first["mark"]), first, status=201)

    answer = client.post_json(at(second["mark"]), second, status=400)

    assert_error(answer, 400, "Auto with that mark exists")


@pytest.mark.parametrize("mark", table(*[[mark] for mark in MARKS]))
def test_mark_as_people_write_it(client, mark):
    created = client.post_json(at(mark), CAR, status=201)

    assert_json(client.get(created.location, status=200), 200, {"mark": mark, **CAR})
    assert_json(client.get("/stock", status=200), 200, [{"mark": mark, **CAR}])
    assert_json(client.put_json(at(mark), OTHER_CAR, status=202), 202, {"Message": "Auto updated"})
    assert_json(client.delete(at(mark), status=202), 202, {"Message": "Auto deleted"})


@pytest.mark.parametrize("mark", ["VW Golf 1.9 TDI/4Motion", "/leading", "trailing/", "a//b"])
def test_slash_is_the_same_plain_and_encoded(client, mark):
    client.post_json("/auto/" + quote(mark, safe=""), CAR, status=201)

    assert_json(client.get("/auto/" + quote(mark, safe="/"), status=200), 200, {"mark": mark, **CAR})


def test_plus_in_a_path_is_no_space(client):
    client.post_json("/auto/a+b", CAR, status=201)

    assert_json(client.get("/auto/a%2Bb", status=200), 200, {"mark": "a+b", **CAR})
    assert_error(client.get("/auto/a%20b", status=404), 404, NOT_FOUND)


def test_marks_differ_by_case(bmw):
    assert_error(bmw.get("/auto/bmw", status=404), 404, NOT_FOUND)


@pytest.mark.parametrize(("first", "second"), [(COMPOSED, DECOMPOSED), (DECOMPOSED, COMPOSED)])
def test_both_unicode_forms_are_one_car(client, first, second):
    client.post_json(at(first), CAR, status=201)

    assert_error(client.post_json(at(second), CAR, status=400), 400, "Auto with that mark exists")
    assert_json(client.get(at(second), status=200), 200, {"mark": COMPOSED, **CAR})


def test_location_names_the_mark_as_it_is_stored(client):
    answer = client.post_json(at(DECOMPOSED + "/1"), CAR, status=201)

    assert_headers(answer, Location="/auto/%C5%A0koda%2F1")


def test_texts_are_stored_in_one_unicode_form(client):
    client.post_json("/auto/x", {**CAR, "handler": DECOMPOSED, "stock": DECOMPOSED}, status=201)

    answer = client.get("/auto/x")

    assert (answer.json["handler"], answer.json["stock"]) == (COMPOSED, COMPOSED)


@pytest.mark.parametrize(
    ("typed", "stored"),
    table(
        ["e\u0301" * 255, "\u00e9" * 255],
        ["\u03b1\u0313\u0300\u0345" * 255, "\u1f82" * 255],
        ["e\u0301\u0316" * 127, "\u00e9\u0316" * 127],
        ["e" + "\u0302\u0316" * 127, "\u00ea" + "\u0316" * 127 + "\u0302" * 126],
        ["e\u0344\u0316" * 85, "\u00eb\u0316\u0301" * 85],
    ),
)
def test_mark_is_measured_in_its_stored_form(client, typed, stored):
    client.post_json(at(typed), CAR, status=201)

    assert client.get("/stock").json == [{"mark": stored, **CAR}]


# The method in a header


def test_post_with_override_put_updates(bmw):
    answer = bmw.post_json("/auto/BMW", OTHER_CAR, headers={"X-HTTP-Method-Override": "PUT"}, status=202)

    assert_json(answer, 202, {"Message": "Auto updated"})
    assert bmw.get("/auto/BMW").json == {"mark": "BMW", **OTHER_CAR}


def test_post_with_override_put_of_unknown_mark_is_404(refused):
    answer = refused.post_json("/auto/BMW", CAR, headers={"X-HTTP-Method-Override": "PUT"}, status=404)

    assert_error(answer, 404, NOT_FOUND)


def test_post_with_override_delete_deletes(bmw):
    answer = bmw.post("/auto/BMW", headers={"X-HTTP-Method-Override": "DELETE"}, status=202)

    assert_json(answer, 202, {"Message": "Auto deleted"})
    assert_error(bmw.get("/auto/BMW", status=404), 404, NOT_FOUND)


OVERRIDE = "X-HTTP-Method-Override: must be PUT, PATCH or DELETE, and on POST"


@pytest.mark.parametrize("method", ["GET", "POST", "HEAD", "OPTIONS", "FETCH", "PUT, DELETE"])
def test_override_with_another_value_is_400(refused, method):
    answer = send(refused, "POST", "/auto/BMW", raw_car(), X_HTTP_Method_Override=method)

    assert_error(answer, 400, OVERRIDE)


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE"])
def test_override_on_another_method_is_400(refused, method):
    answer = send(refused, method, "/auto/BMW", raw_car(), X_HTTP_Method_Override="PUT")

    assert_error(answer, 400, OVERRIDE)


def test_override_needs_a_token(testapp):
    answer = send(testapp, "POST", "/auto/BMW", raw_car(), X_HTTP_Method_Override="PUT")

    assert_error(answer, 401, "Token is missing")


def test_override_with_a_method_the_path_has_not_is_405(refused):
    answer = send(refused, "POST", "/auth", raw_credentials(), X_HTTP_Method_Override="DELETE")

    assert_error(answer, 405, "Method not allowed")


# HEAD


@pytest.mark.parametrize("path", ["/auto/BMW", "/stock"])
def test_head_answers_as_get_without_the_body(bmw, path):
    got, headed = bmw.get(path), bmw.head(path, status=200)

    for answer in (got, headed):
        answer.headers.pop("X-Request-ID")
    assert (headed.headerlist, headed.body) == (got.headerlist, b"")


def test_head_of_unknown_mark_is_404(client):
    answer = client.head("/auto/BMW", status=404)

    assert answer.body == b""


def test_head_without_a_token_is_401(testapp):
    answer = testapp.head("/stock", status=401)

    assert_headers(answer, WWW_Authenticate=BEARER)


# ----------------------------------------------------------------------------------------------------------------------
# Values
# ----------------------------------------------------------------------------------------------------------------------

NOT_TEXT = "must be text"
BLANK = "must not be blank"
UNREADABLE = "must not hold control or format characters"
SURROGATE = "must not hold lone surrogates"
NOT_JSON = "body: must be JSON in UTF-8"

WRONG_NUMBERS = [
    "true",
    "false",
    "null",
    "280.5",
    "280.0",
    "-0.0",
    "2e2",
    "2E2",
    "2e0",
    "1e-1",
    '"280"',
    '""',
    '"many"',
    "[]",
    "[280]",
    "{}",
    '{"value": 280}',
    "-1",
    "-9007199254740991",
    "9007199254740992",
    "9223372036854775808",
    "18446744073709551616",
    "1" + "0" * 30,
    "-1" + "0" * 30,
    "1" + "0" * 5000,
    "1e400",
    "-1e400",
]
NO_NUMBERS = ["NaN", "Infinity", "-Infinity", "0280", "+280", ".5", "5.", "0x118", "1_000", "280k", "None", "True", ""]
WRONG_TYPES = ["true", "false", "null", "280", "0", "280.5", "[]", '["x"]', "{}", '{"x": "y"}']


def wrong_texts(limit):
    """Give texts that are refused wherever a text of `limit` characters is asked for, with the reason."""
    unreadable = ["\0", "a\0b", "a\nb", "a\rb", "a\tb", "a\x1bb", "a\x7fb", "a\x85b", "a\u00adb", "a\u061cb"]
    unreadable += ["a\u200bb", "a\u200eb", "a\u202eb", "a\u2060b", "a\ufeffb", "\ufeffa", "a\U000e0001b", "a\n"]
    surrogates = ["\ud800", "a\udfffb", "\udc00\ud800"]
    blank = [" ", "   ", "\u00a0", "\u2003\u3000", "\u2028"]
    return [
        ["", length(limit)],
        ["x" * (limit + 1), length(limit)],
        ["x" * 10000, length(limit)],
        ["😀" * (limit + 1), length(limit)],
        ["e\u0301" * (limit + 1), length(limit)],
        ["\u1f82" * (limit + 1), length(limit)],
        ["e" + "\u0301\u0316" * limit * 2, length(limit)],
        ["\u0958" * (limit // 2 + 1), length(limit)],  # NFC makes two characters of each
        *[[text, BLANK] for text in blank],
        *[[text, UNREADABLE] for text in unreadable],
        *[[text, SURROGATE] for text in surrogates],
    ]


@pytest.mark.parametrize("name", ["max_speed", "distance"])
@pytest.mark.parametrize("value", table(*[[value] for value in WRONG_NUMBERS]))
def test_wrong_number_is_400(refused, name, value):
    answer = send(refused, "POST", "/auto/BMW", raw_car(**{name: value}))

    assert_error(answer, 400, f"{name}: {NUMBER}")


@pytest.mark.parametrize("name", ["max_speed", "handler"])
@pytest.mark.parametrize("value", table(*[[value] for value in NO_NUMBERS]))
def test_value_that_is_not_json_is_400(refused, name, value):
    answer = send(refused, "POST", "/auto/BMW", raw_car(**{name: value}))

    assert_error(answer, 400, NOT_JSON)


@pytest.mark.parametrize("name", ["max_speed", "distance"])
@pytest.mark.parametrize("value", [0, 1, 280, 2**31, 2**53 - 1])
def test_number_that_is_fine(client, name, value):
    client.post_json("/auto/BMW", {**CAR, name: value}, status=201)

    assert_json(client.get("/auto/BMW"), 200, {"mark": "BMW", **CAR, name: value})


@pytest.mark.parametrize("name", ["handler", "stock", "mark"])
@pytest.mark.parametrize("value", table(*[[value] for value in WRONG_TYPES]))
def test_text_of_another_type_is_400(refused, name, value):
    answer = send(refused, "POST", "/auto/BMW", raw_car(**{name: value}))

    assert_error(answer, 400, f"{name}: {NOT_TEXT}")


@pytest.mark.parametrize("name", ["handler", "stock", "mark"])
@pytest.mark.parametrize(("text", "sentence"), table(*wrong_texts(255)))
def test_wrong_text_is_400(refused, name, text, sentence):
    answer = refused.post_json("/auto/BMW", {**CAR, name: text}, status=400)

    assert_error(answer, 400, f"{name}: {sentence}")


@pytest.mark.parametrize("name", ["handler", "stock"])
@pytest.mark.parametrize(
    "text",
    table(
        ["x"],
        ["x" * 255],
        ["😀" * 255],
        ["\u0958" * 127],
        ["می\u200cخواهم"],
        ["क्\u200dष"],
        ["a\u2028b"],
        ["Łódź & Sons, \"Ltd\" <x> 'y' \\ / ; --"],
        ["\ufdd0"],
        ["\U0010ffff"],
    ),
)
def test_text_that_is_fine(client, name, text):
    client.post_json("/auto/BMW", {**CAR, name: text}, status=201)

    assert client.get("/auto/BMW").json[name] == unicodedata.normalize("NFC", text)


def test_text_is_measured_in_its_stored_form(client):
    client.post_json("/auto/BMW", {**CAR, "handler": "e\u0301" * 255}, status=201)

    assert client.get("/auto/BMW").json["handler"] == "\u00e9" * 255


WRONG_MARKS = [
    [".", "must not be '.' or '..'"],
    ["..", "must not be '.' or '..'"],
    *[row for row in wrong_texts(255) if row[0] and row[1] != SURROGATE and len(row[0]) < 1000],
]


@pytest.mark.parametrize(("mark", "sentence"), table(*WRONG_MARKS))
def test_wrong_mark_in_the_path_is_400(refused, mark, sentence):
    answer = refused.get(at(mark), status=400)

    assert_error(answer, 400, f"mark: {sentence}")


@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "DELETE"])
def test_wrong_mark_is_400_with_every_method(refused, method):
    answer = send(refused, method, "/auto/%20", raw_car())

    assert_error(answer, 400, f"mark: {BLANK}")


@pytest.mark.parametrize("path", ["/auto/%FF", "/auto/%FFbmw", "/auto/bmw%C3", "/auto/%ED%A0%80", "/auto/%C0%AF"])
@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "DELETE"])
def test_path_that_is_not_utf8_is_400(refused, method, path):
    answer = send(refused, method, path, raw_car())

    assert_error(answer, 400, "path: must be UTF-8")


def test_mark_in_the_body_may_repeat_that_of_the_path(client):
    answer = client.post_json("/auto/BMW", {"mark": "BMW", **CAR}, status=201)

    assert_json(answer, 201, {"Message": "Auto created"})


def test_mark_in_the_body_may_be_in_another_unicode_form(client):
    answer = client.post_json(at(COMPOSED), {"mark": DECOMPOSED, **CAR}, status=201)

    assert_json(answer, 201, {"Message": "Auto created"})


def test_what_get_gave_can_be_sent_back(bmw):
    answer = bmw.put_json("/auto/BMW", bmw.get("/auto/BMW").json, status=202)

    assert_json(answer, 202, {"Message": "Auto updated"})


@pytest.mark.parametrize("mark", ["Audi", "bmw", "BMW ", "BMW/"])
@pytest.mark.parametrize("method", ["POST", "PUT"])
def test_another_mark_in_the_body_is_400(refused, method, mark):
    answer = send(refused, method, "/auto/BMW", json.dumps({"mark": mark, **CAR}))

    assert_error(answer, 400, "mark: must be the same as in the path")


@pytest.mark.parametrize("name", CAR)
@pytest.mark.parametrize("method", ["POST", "PUT"])
def test_missing_field_is_400(refused, method, name):
    answer = send(refused, method, "/auto/BMW", raw_car(**{name: None}))

    assert_error(answer, 400, f"{name}: is missing")


@pytest.mark.parametrize(
    ("name", "told"),
    table(
        ["price", "price"],
        ["Max_speed", "Max_speed"],
        ["max_speed ", "max_speed "],
        ["цвет", "цвет"],
        ["x" * 200, "x" * 80],
        ["a\nb\x00\u202ec\ud800", "abc"],
        ["\u200b" * 200 + "x" * 100, "x" * 80],
    ),
)
def test_unknown_field_is_400(refused, name, told):
    answer = refused.post_json("/auto/BMW", {**CAR, name: 1}, status=400)

    assert_error(answer, 400, f"{told}: unknown field")


@pytest.mark.parametrize("method", ["POST", "PUT"])
def test_unknown_field_is_400_with_every_method(refused, method):
    answer = send(refused, method, "/auto/BMW", raw_car(price="1"))

    assert_error(answer, 400, "price: unknown field")


def test_last_of_a_repeated_key_counts(client):
    body = '{"max_speed": "fast", "max_speed": 1, ' + raw_car(max_speed="2")[1:]

    answer = send(client, "POST", "/auto/BMW", body)

    assert_json(answer, 201, {"Message": "Auto created"})
    assert client.get("/auto/BMW").json == {"mark": "BMW", **CAR, "max_speed": 2}


def test_last_of_a_repeated_key_is_refused(refused):
    body = '{"max_speed": 1, ' + raw_car(max_speed='"fast"')[1:]

    answer = send(refused, "POST", "/auto/BMW", body)

    assert_error(answer, 400, f"max_speed: {NUMBER}")


@pytest.mark.parametrize(
    ("name", "value", "sentence"),
    [
        ("max_speed", "-1", NUMBER),
        ("distance", "true", NUMBER),
        ("handler", '" "', BLANK),
        ("stock", "null", NOT_TEXT),
    ],
)
def test_wrong_value_is_400_at_an_update(bmw, name, value, sentence):
    answer = send(bmw, "PUT", "/auto/BMW", raw_car(**{name: value}))

    assert_error(answer, 400, f"{name}: {sentence}")
    assert bmw.get("/auto/BMW").json == {"mark": "BMW", **CAR}


# Credentials

PATHS_OF_CREDENTIALS = ["/register", "/auth"]


@pytest.mark.parametrize("path", PATHS_OF_CREDENTIALS)
@pytest.mark.parametrize(("username", "sentence"), table(*wrong_texts(80)))
def test_wrong_username_is_400(refused, path, username, sentence):
    answer = refused.post_json(path, {"username": username, "password": "x"}, status=400)

    assert_error(answer, 400, f"username: {sentence}")


@pytest.mark.parametrize("username", table([" bob"], ["bob "], ["bob\u00a0"], ["\u3000bob"], ["bob\u2028"]))
def test_new_username_with_white_space_at_an_end_is_400(refused, username):
    answer = refused.post_json("/register", {"username": username, "password": "x"}, status=400)

    assert_error(answer, 400, "username: must not begin or end with white space")


def test_older_username_with_white_space_at_an_end_logs_in(testapp, database, account):
    database.insert("users", {**account.row, "username": " bob "})

    testapp.post_json("/auth", {"username": " bob ", "password": PASSWORD}, status=200)


@pytest.mark.parametrize("path", PATHS_OF_CREDENTIALS)
@pytest.mark.parametrize(
    ("password", "sentence"),
    table(
        ["", length(1024)],
        ["x" * 1025, length(1024)],
        ["😀" * 1025, length(1024)],
        ["\u0958" * 513, length(1024)],
        ["\0", "must not hold NUL"],
        ["secret\0", "must not hold NUL"],
        ["\ud800", SURROGATE],
        ["a\udfffb", SURROGATE],
    ),
)
def test_wrong_password_value_is_400(refused, path, password, sentence):
    answer = refused.post_json(path, {"username": "bob", "password": password}, status=400)

    assert_error(answer, 400, f"password: {sentence}")


@pytest.mark.parametrize("path", PATHS_OF_CREDENTIALS)
@pytest.mark.parametrize("name", ["username", "password"])
@pytest.mark.parametrize("value", table(*[[value] for value in WRONG_TYPES]))
def test_credentials_of_another_type_are_400(refused, path, name, value):
    answer = send(refused, "POST", path, raw_credentials(**{name: value}))

    assert_error(answer, 400, f"{name}: {NOT_TEXT}")


@pytest.mark.parametrize("path", PATHS_OF_CREDENTIALS)
@pytest.mark.parametrize("name", ["username", "password"])
def test_missing_credentials_are_400(refused, path, name):
    answer = send(refused, "POST", path, raw_credentials(**{name: None}))

    assert_error(answer, 400, f"{name}: is missing")


@pytest.mark.parametrize("path", PATHS_OF_CREDENTIALS)
@pytest.mark.parametrize("name", ["email", "session", "is_admin", "Password"])
def test_unknown_credentials_are_400(refused, path, name):
    answer = send(refused, "POST", path, raw_credentials(**{name: "true"}))

    assert_error(answer, 400, f"{name}: unknown field")


# ----------------------------------------------------------------------------------------------------------------------
# Errors
# ----------------------------------------------------------------------------------------------------------------------

MALFORMED_BODIES = {
    "empty": (b"", "body: is missing"),
    "blank": (b" \n ", NOT_JSON),
    "a word": (b"hello", NOT_JSON),
    "a form": (b"max_speed=280&distance=400", NOT_JSON),
    "truncated": (raw_car()[:-1].encode(), NOT_JSON),
    "truncated in a text": (b'{"max_speed": 280, "handler": "Aut', NOT_JSON),
    "trailing comma": (raw_car().replace("}", ",}").encode(), NOT_JSON),
    "trailing garbage": (raw_car().encode() + b" x", NOT_JSON),
    "two objects": (raw_car().encode() * 2, NOT_JSON),
    "single quotes": (raw_car().replace('"', "'").encode(), NOT_JSON),
    "comment": (b"/* car */" + raw_car().encode(), NOT_JSON),
    "raw line break in a text": (raw_car(handler='"a\nb"').encode(), NOT_JSON),
    "raw NUL": (raw_car().encode() + b"\0", NOT_JSON),
    "bad escape": (raw_car(handler=r'"\x41"').encode(), NOT_JSON),
    "half an escape": (raw_car(handler=r'"\u12"').encode(), NOT_JSON),
    "Latin-1": (raw_car(handler='"Citroën"').encode("latin-1"), NOT_JSON),
    "UTF-8 of a surrogate": (raw_car(handler='"\ud800"').encode("utf-8", "surrogatepass"), NOT_JSON),
    "overlong UTF-8": (b'{"\xc0\xaf": 1}', NOT_JSON),
    "UTF-16": (raw_car().encode("utf-16"), NOT_JSON),
    "UTF-16 without BOM": (raw_car().encode("utf-16-le"), NOT_JSON),
    "UTF-32": (raw_car().encode("utf-32"), NOT_JSON),
    "BOM": (raw_car().encode("utf-8-sig"), NOT_JSON),
    "100,000 arrays": (b"[" * 100_000, NOT_JSON),
    "100,000 arrays, closed": (b"[" * 100_000 + b"]" * 100_000, NOT_JSON),
    "100,000 objects": (b'{"a":' * 100_000 + b"1" + b"}" * 100_000, NOT_JSON),
    "array": (b"[]", NO_OBJECT),
    "array of a car": (f"[{raw_car()}]".encode(), NO_OBJECT),
    "text": (b'"max_speed"', NO_OBJECT),
    "number": (b"280", NO_OBJECT),
    "true": (b"true", NO_OBJECT),
    "null": (b"null", NO_OBJECT),
}
BODIES = [pytest.param(body, sentence, id=name) for name, (body, sentence) in MALFORMED_BODIES.items()]


@pytest.mark.parametrize(("body", "sentence"), BODIES)
def test_malformed_body_is_400(refused, body, sentence):
    answer = send(refused, "POST", "/auto/BMW", body)

    assert_error(answer, 400, sentence)


@pytest.mark.parametrize(("method", "path"), [("PUT", "/auto/BMW"), ("POST", "/register"), ("POST", "/auth")])
@pytest.mark.parametrize(
    ("body", "sentence"), [(b"", "body: is missing"), (b"{", NOT_JSON), (b"[]", NO_OBJECT), (b"\xff", NOT_JSON)]
)
def test_malformed_body_is_400_everywhere(refused, method, path, body, sentence):
    answer = send(refused, method, path, body)

    assert_error(answer, 400, sentence)


def test_body_missing_without_a_type_is_400(refused):
    answer = send(refused, "POST", "/auto/BMW", b"", content_type=None)

    assert_error(answer, 400, "body: is missing")


@pytest.mark.parametrize(
    "content_type",
    [
        "application/json",
        "application/json; charset=utf-8",
        "application/json;charset=UTF-8",
        "Application/JSON",
        "application/vnd.api+json",
        "application/problem+json; x=y",
    ],
)
def test_type_of_a_body_that_is_fine(client, content_type):
    answer = send(client, "POST", "/auto/BMW", raw_car(), content_type=content_type)

    assert_json(answer, 201, {"Message": "Auto created"})


@pytest.mark.parametrize(
    "content_type",
    table(
        [None],
        [""],
        ["text/plain"],
        ["application/x-www-form-urlencoded"],
        ["multipart/form-data; boundary=x"],
        ["text/json"],
        ["text/csv"],
        ["application/jsonp"],
        ["application/json-patch"],
        ["application/json+xml"],
        ["application/octet-stream"],
        ["application/xjson"],
        ["xapplication/json"],
        ["application/+json"],
        ["application/"],
        ["json"],
        ["*/*"],
        ["text/plain; application/json"],
        ["application/json, text/plain"],
    ),
)
def test_another_type_of_a_body_is_415(refused, content_type):
    answer = send(refused, "POST", "/auto/BMW", raw_car(), content_type=content_type)

    assert_error(answer, 415, "Content-Type must be application/json")


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("PUT", "/auto/BMW", raw_car()),
        ("POST", "/register", raw_credentials()),
        ("POST", "/auth", raw_credentials()),
    ],
)
def test_another_type_of_a_body_is_415_everywhere(refused, method, path, body):
    answer = send(refused, method, path, body, content_type="text/plain")

    assert_error(answer, 415, "Content-Type must be application/json")


def test_body_of_a_mebibyte_is_fine(client):
    answer = send(client, "POST", "/auto/BMW", raw_car().rjust(MIB))

    assert_json(answer, 201, {"Message": "Auto created"})


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("POST", "/auto/BMW", raw_car()),
        ("PUT", "/auto/BMW", raw_car()),
        ("POST", "/register", raw_credentials(username='"bob"')),
        ("POST", "/auth", raw_credentials()),
        ("DELETE", "/auto/BMW", ""),  # what takes no body takes no long one either
        ("GET", "/stock", ""),
        ("POST", "/logout", ""),
    ],
)
def test_body_over_a_mebibyte_is_413(refused, method, path, body):
    answer = send(refused, method, path, body.ljust(MIB + 1))

    assert_error(answer, 413, "Body is larger than 1048576 bytes")


UNKNOWN_PATHS = ["/auto", "/auto/", "/stock/", "/nothing", "/stock/x", "/register/", "/auth/", "/Stock", "/stock%0A"]


@pytest.mark.parametrize("path", [*UNKNOWN_PATHS, "/auto%00", "/<script>", "/%5C", "/auto%3Fx"])
@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "DELETE", "PATCH"])
def test_unknown_path_is_404(refused, method, path):
    answer = send(refused, method, path, raw_car())

    assert_error(answer, 404, "Not found")


def test_unknown_path_is_404_without_a_token(testapp):
    answer = testapp.get("/nothing", status=404)

    assert_error(answer, 404, "Not found")


def allowed(app, path):
    """Give the methods of a path: those that are routed, and HEAD where GET is."""
    methods = {route.method for route in app.routes if example_of(route.rule) == path}
    return methods | {"HEAD"} if "GET" in methods else methods


@pytest.mark.parametrize("path", ["/register", "/auth", "/auto/x", "/stock"])
@pytest.mark.parametrize("method", ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "TRACE", "PROPFIND"])
def test_method_that_a_path_has_not_is_405(lasting_app, method, path):
    methods = allowed(lasting_app, path)

    answer = send(TestApp(lasting_app, lint=False), method, path, raw_car())

    assert (answer.status_int == 405) == (method not in methods)
    if answer.status_int == 405:
        assert set(answer.headers["Allow"].split(", ")) == methods


def test_405_says_so_in_json(refused):
    answer = refused.delete("/register", status=405)

    assert_error(answer, 405, "Method not allowed")
    assert_headers(answer, Allow="POST")


def test_405_names_head(refused):
    answer = send(refused, "TRACE", "/auto/x")

    assert {"DELETE", "GET", "HEAD", "POST", "PUT"} <= set(answer.headers["Allow"].split(", "))


CANARY = "cAnArY"


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("GET", f"/{CANARY}", ""),
        ("TRACE", f"/auto/{CANARY}", ""),
        ("GET", f"/auto/{CANARY}", ""),
        ("GET", f"/auto/{CANARY}%00", ""),
        ("GET", f"/auto/{CANARY}%FF", ""),
        ("POST", f"/auto/{CANARY}", CANARY),
        ("POST", "/auto/x", raw_car(max_speed=f'"{CANARY}"')),
        ("POST", "/auto/x", raw_car(handler=rf'"{CANARY}\n"')),
        ("POST", "/auto/x", raw_car(mark=f'"{CANARY}"')),
        ("POST", "/auto/x", raw_car(handler=f'{{"{CANARY}": 1}}')),
        ("POST", "/register", raw_credentials(username=rf'"{CANARY}\n"')),
        ("POST", "/register", raw_credentials(username='"bob"', password=rf'"{CANARY}\u0000"')),
        ("POST", "/auth", raw_credentials(username=f'"{CANARY}"', password=f'"{CANARY}"')),
    ],
)
def test_error_does_not_repeat_the_input(refused, method, path, body):
    answer = send(refused, method, path, body)

    assert 400 <= answer.status_int < 500
    assert CANARY not in answer.text
    assert CANARY not in str(answer.headerlist)


def test_error_does_not_repeat_the_token(refused):
    answer = refused.get("/stock", headers={"Authorization": f"Bearer {CANARY}"}, status=401)

    assert CANARY not in answer.text + str(answer.headerlist)


@pytest.fixture
def faulty(app):
    """A client of an application that has a fault."""

    @app.get("/fault", public=True)
    def fault():
        raise RuntimeError(CANARY)

    return TestApp(app)


def test_fault_is_500(faulty):
    answer = faulty.get("/fault", status=500)

    assert_error(answer, 500, "Internal server error")


def test_fault_is_logged_with_its_traceback(faulty, caplog):
    faulty.get("/fault", status=500)

    assert f"RuntimeError: {CANARY}" in caplog.text
    assert "Traceback" in caplog.text


def test_fault_ends_nothing_else(faulty):
    faulty.get("/fault", status=500)

    faulty.post_json("/register", CREDENTIALS, status=201)


# Order of the checks: each request is wrong in many ways, and the first of them is told.

TYPE_MIME = "application/json"
TOO_LARGE = f"Body is larger than {MIB} bytes"
ORDER = {
    "path before token": ("GET", "/nothing", b"", TYPE_MIME, False, 404, "Not found"),
    "path before body": ("POST", "/auto/", b"x" * (MIB + 1), "text/plain", False, 404, "Not found"),
    "UTF-8 of the path before token": ("GET", "/auto/%FF", b"", TYPE_MIME, False, 400, "path: must be UTF-8"),
    "method before token": ("TRACE", "/stock", b"", TYPE_MIME, False, 405, "Method not allowed"),
    "method before size": ("TRACE", "/auto/x", b"x" * (MIB + 1), "text/plain", False, 405, "Method not allowed"),
    "token before size": ("POST", "/auto/x", b"x" * (MIB + 1), TYPE_MIME, False, 401, "Token is missing"),
    "token before type": ("POST", "/auto/x", b"{}", "text/plain", False, 401, "Token is missing"),
    "token before a missing body": ("POST", "/auto/x", b"", TYPE_MIME, False, 401, "Token is missing"),
    "token before values": ("POST", "/auto/x", b"{}", TYPE_MIME, False, 401, "Token is missing"),
    "token before the mark": ("GET", "/auto/%00", b"", TYPE_MIME, False, 401, "Token is missing"),
    "token before data": ("GET", "/auto/unknown", b"", TYPE_MIME, False, 401, "Token is missing"),
    "size before type": ("POST", "/auto/x", b"x" * (MIB + 1), "text/plain", True, 413, TOO_LARGE),
    "size before values": ("POST", "/auto/%00", b"x" * (MIB + 1), TYPE_MIME, True, 413, TOO_LARGE),
    "size before data": ("PUT", "/auto/unknown", b"x" * (MIB + 1), TYPE_MIME, True, 413, TOO_LARGE),
    "type before JSON": ("POST", "/auto/x", b"{", "text/plain", True, 415, "Content-Type must be application/json"),
    "type before values": ("POST", "/auto/x", b"{}", "text/plain", True, 415, "Content-Type must be application/json"),
    "type before the mark": (
        "POST",
        "/auto/%00",
        raw_car().encode(),
        "text/plain",
        True,
        415,
        "Content-Type must be application/json",
    ),
    "type before data": (
        "PUT",
        "/auto/unknown",
        raw_car().encode(),
        "text/plain",
        True,
        415,
        "Content-Type must be application/json",
    ),
    "values before data": ("PUT", "/auto/unknown", b"{}", TYPE_MIME, True, 400, "max_speed: is missing"),
    "mark before data": ("GET", "/auto/%00", b"", TYPE_MIME, True, 400, f"mark: {UNREADABLE}"),
    "mark before data at a deletion": ("DELETE", "/auto/%00", b"", TYPE_MIME, True, 400, f"mark: {UNREADABLE}"),
    "size of a login before its type": ("POST", "/auth", b"x" * (MIB + 1), "text/plain", False, 413, TOO_LARGE),
    "type of a login before its values": (
        "POST",
        "/auth",
        b"{}",
        "text/plain",
        False,
        415,
        "Content-Type must be application/json",
    ),
    "values of a login before data": ("POST", "/auth", b"{}", TYPE_MIME, False, 400, "username: is missing"),
}


@pytest.mark.parametrize(
    ("method", "path", "body", "content_type", "token", "status", "sentence"),
    [pytest.param(*row, id=name) for name, row in ORDER.items()],
)
def test_order_of_checks(refused, method, path, body, content_type, token, status, sentence):
    client = refused if token else TestApp(refused.app)

    answer = send(client, method, path, body, content_type)

    assert_error(answer, status, sentence)


@pytest.mark.parametrize("row", [row for name, row in ORDER.items() if name.startswith("token before")])
def test_account_comes_before_all_else_that_is_wrong(client, database, row):
    method, path, body, content_type, _, status, _ = row
    database.execute("DELETE FROM users")

    answer = send(client, method, path, body, content_type)

    assert_error(answer, status, "Token is invalid or expired")


def test_values_come_before_a_known_mark(bmw):
    answer = bmw.post_json("/auto/BMW", {**CAR, "max_speed": -1}, status=400)

    assert_error(answer, 400, f"max_speed: {NUMBER}")


def test_values_come_before_a_taken_name(refused):
    answer = refused.post_json("/register", {"username": USERNAME, "password": ""}, status=400)

    assert_error(answer, 400, f"password: {length(1024)}")


# ----------------------------------------------------------------------------------------------------------------------
# What the database holds
# ----------------------------------------------------------------------------------------------------------------------

ROW = {"mark": "BMW", **CAR}


def test_columns_of_a_car(lasting_app, database):
    columns = {
        (column["name"], type(column["type"]).__name__, column["nullable"])
        for column in sqlalchemy.inspect(database.engine).get_columns("autos")
    }

    number = "INTEGER" if database.name == "sqlite" else "BIGINT"  # INTEGER has 64 bits on SQLite
    assert columns >= {
        ("mark", "TEXT", False),
        ("max_speed", number, False),
        ("distance", number, False),
        ("handler", "TEXT", False),
        ("stock", "TEXT", False),
    }


@pytest.mark.parametrize("name", ROW)
def test_database_refuses_null_in_a_car(lasting_app, database, name):
    with pytest.raises(sqlalchemy.exc.IntegrityError):
        database.insert("autos", {**ROW, name: None})


@pytest.mark.parametrize("name", ["username", "password"])
def test_database_refuses_null_in_an_account(lasting_app, database, account, name):
    with pytest.raises(sqlalchemy.exc.IntegrityError):
        database.insert("users", {**account.row, name: None})


@pytest.mark.parametrize("name", ["max_speed", "distance"])
@pytest.mark.parametrize("value", [-1, 2**53])
def test_database_refuses_a_number_out_of_range(lasting_app, database, name, value):
    with pytest.raises(sqlalchemy.exc.IntegrityError):
        database.insert("autos", {**ROW, name: value})


@pytest.mark.parametrize("name", ["max_speed", "distance"])
@pytest.mark.parametrize("value", ["fast", b"\0"])
def test_database_refuses_what_is_no_number(lasting_app, database, name, value):
    with pytest.raises(sqlalchemy.exc.DBAPIError):
        database.insert("autos", {**ROW, name: value})


def test_database_holds_the_largest_numbers(lasting_app, database):
    row = {**ROW, "max_speed": 2**53 - 1, "distance": 2**53 - 1}

    database.insert("autos", row)

    assert database.query("SELECT mark, max_speed, distance, handler, stock FROM autos") == [row]


def test_database_refuses_a_second_car_of_a_mark(lasting_app, database):
    database.insert("autos", ROW)

    with pytest.raises(sqlalchemy.exc.IntegrityError):
        database.insert("autos", {**ROW, **OTHER_CAR})


def test_database_refuses_a_second_account_of_a_name(lasting_app, database, account):
    database.insert("users", account.row)

    with pytest.raises(sqlalchemy.exc.IntegrityError):
        database.insert("users", {**account.row, "password": "another"})


def test_database_sorts_by_code_point(lasting_app, database):
    marks = ["a", "B", "Ä", "b", "\ufffd", "😀", "A b", "Ab"]
    for mark in marks:
        database.insert("autos", {**ROW, "mark": mark})

    rows = database.query("SELECT mark FROM autos ORDER BY mark")

    assert [row["mark"] for row in rows] == sorted(marks)


def test_database_compares_by_case(lasting_app, database):
    database.insert("autos", ROW)

    assert database.query("SELECT * FROM autos WHERE mark = 'bmw'") == []


def test_second_application_finds_what_the_first_stored(make_app, database, account):
    first, second = TestApp(make_app()), TestApp(make_app())
    database.insert("users", account.row)
    first.authorization = second.authorization = ("Bearer", account.token)

    first.post_json("/auto/BMW", CAR, status=201)

    assert_json(second.get("/auto/BMW"), 200, {"mark": "BMW", **CAR})
