"""What people see and do on the page, in Chromium: each sentence of the contract's last part, on a desktop and a phone.

The names by which things are found are their accessible names. Where axe-core lies is said by ``AXE`` (the path of its
``axe.min.js``); ``PICTURE=samples/page.png`` takes the picture that README shows.
"""

import csv
import os
import re
import shutil
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest

from conftest import (
    CAR,
    COMPOSED,
    DECOMPOSED,
    HERE,
    MARKS,
    NOT_FOUND,
    NUMBER,
    OTHER_CAR,
    PASSWORD,
    SAMPLES,
    USERNAME,
    at,
    length,
    sqlite_store,
)

sync_api = pytest.importorskip("playwright.sync_api", reason="needs Playwright (.ci/requirements.txt)")
expect = sync_api.expect

WIDTHS = (1280, 360)
LABELS = {"mark": "Mark", "max_speed": "Max speed", "distance": "Distance", "handler": "Handler", "stock": "Stock"}
# What a browser itself writes about an answer that refuses, or about none at all.
REFUSED = re.compile(r"Failed to load resource: (the server responded with a status of [45]\d\d|net::ERR_CONNECTION)")
SHOWN = 50  # cars a page
HEADER = "mark,max_speed,distance,handler,stock"
XSS = "<img src=x onerror=alert(1)>"


# ----------------------------------------------------------------------------------------------------------------------
# Fixtures
# ----------------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """The database of the module: the page sees nothing of it, so one kind is enough."""
    return sqlite_store(tmp_path_factory.mktemp("database"))


@contextmanager
def visit(browser, server, width, **options):
    """Give a page of a browser of its own, which must stay without a fault and with this server."""
    faults, elsewhere = [], []
    base = f"http://127.0.0.1:{server.port}/"
    viewport = {"width": width, "height": 800}
    with browser.new_context(base_url=base, viewport=viewport, locale="en-GB", **options) as context:
        context.set_default_timeout(10_000)

        def listen(page):
            page.on("pageerror", lambda error: faults.append(str(error)))
            page.on("console", lambda line: faults.append(line.text) if line.type in ("error", "warning") else None)
            page.on(
                "request",
                lambda request: None if request.url.startswith((base, "blob:")) else elsewhere.append(request.url),
            )
            page.on("dialog", lambda dialog: faults.append(dialog.message))
            page.on(
                "response",
                lambda answer: "/pages/" in answer.url and answer.status >= 400 and faults.append(answer.url),
            )

        context.on("page", listen)
        yield context.new_page()
    assert [fault for fault in faults if not REFUSED.match(fault)] == []
    assert elsewhere == []


@pytest.fixture(params=WIDTHS)
def width(request):
    """How many pixels wide the window is: a desktop's and a phone's."""
    return request.param


@pytest.fixture
def page(browser, server, width):
    """The page, not logged in."""
    with visit(browser, server, width) as page:
        page.goto("/")
        yield page


@pytest.fixture
def clerk(browser, server, width):
    """The page, logged in; what it is to show is put into the database first."""
    with visit(browser, server, width) as page:
        yield enter(page, server)


@pytest.fixture
def stocked(server):
    """A server with every car of the samples in stock."""
    assert server.request("POST", "/stock", list(SAMPLES.values())).status_int == 201
    return server


@pytest.fixture
def garage(server):
    """A server with one car in stock."""
    assert server.request("POST", at("BMW"), CAR).status_int == 201
    return server


def enter(page, server, address="/"):
    """Go to an address with a token of a server where the page keeps it, which is the tab's own."""
    page.add_init_script(f"if (!name) [name, sessionStorage.token] = ['clerk', '{server.token}']")
    page.goto(address)
    button(page, "Log out").wait_for()
    return page


def button(page, name):
    """Give the button of a name."""
    return page.get_by_role("button", name=name, exact=True)


def log_in(page, username=USERNAME, password=PASSWORD):
    """Fill in the form, and send it."""
    page.get_by_label("Username").fill(username)
    page.get_by_label("Password").fill(password)
    button(page, "Log in").click()


def marks(page):
    """Give the marks of the cars that are shown, once they are."""
    expect(page.get_by_role("region", name="Cars")).to_have_attribute("aria-busy", "false")
    return page.locator("tbody th").all_inner_texts()


def open_car(page, mark):
    """Open the dialog of a car by its row, and give it."""
    page.get_by_role("row").filter(has=page.get_by_role("button", name=mark, exact=True)).click()
    dialog = page.get_by_role("dialog", name=mark, exact=True)
    dialog.wait_for()
    return dialog


def import_file(page, text, choice="Only new cars", name="cars.csv"):
    """Choose a file with a text in it, and send it; gives the dialog."""
    if not page.get_by_role("dialog").is_visible():
        button(page, "Import").click()
    dialog = page.get_by_role("dialog", name="Import cars")
    dialog.get_by_label("CSV file").set_input_files({"name": name, "mimeType": "text/csv", "buffer": text.encode()})
    dialog.get_by_label(choice).check()
    button(dialog, "Import").click()
    return dialog


def stock_of(server):
    """Give the cars in stock as another client sees them."""
    return {car["mark"]: car for car in server.request("GET", "/stock").json}


# ----------------------------------------------------------------------------------------------------------------------
# Logged out
# ----------------------------------------------------------------------------------------------------------------------


def test_form_logs_in_by_the_keyboard(garage, page):
    expect(page.get_by_role("form", name="Log in")).to_be_visible()
    expect(page.get_by_label("Username")).to_be_focused()

    page.keyboard.type(USERNAME)
    page.keyboard.press("Tab")
    page.keyboard.type(PASSWORD)
    page.keyboard.press("Enter")

    expect(page.get_by_text(USERNAME, exact=True)).to_be_visible()
    expect(page.get_by_text("1 car", exact=True)).to_be_visible()


def test_refused_login_is_said_as_the_api_says_it(page):
    log_in(page, password="wrong")

    expect(page.get_by_role("alert")).to_have_text("Invalid username or password")
    expect(page.get_by_label("Username")).to_have_value(USERNAME)


def test_refused_value_stands_beside_its_input(page):
    log_in(page, username=" ")

    expect(page.get_by_role("alert")).to_contain_text("username: ")
    expect(page.get_by_label("Username")).to_be_focused()
    expect(page.get_by_label("Username")).to_have_accessible_description(re.compile("username: "))


def test_account_is_created_and_logged_in(page):
    page.get_by_label("Username").fill("bob")
    page.get_by_label("Password").fill("secret")
    button(page, "Create account").click()

    expect(page.get_by_text("bob", exact=True)).to_be_visible()


def test_name_that_is_taken_is_told(page):
    page.get_by_label("Username").fill(USERNAME)
    page.get_by_label("Password").fill("secret")
    button(page, "Create account").click()

    expect(page.get_by_role("alert")).to_have_text("User already exists")


def test_account_cannot_be_created_while_registration_is_closed(browser, launch, tmp_path, width):
    closed = launch(f"sqlite:///{tmp_path}/closed.db", REGISTRATION="closed")
    with visit(browser, closed, width) as page:
        page.goto("/")

        expect(button(page, "Log in")).to_be_visible()
        expect(button(page, "Create account")).to_have_count(0)


def test_reload_stays_logged_in_and_new_tab_asks_again(page):
    log_in(page)
    button(page, "Log out").wait_for()

    page.reload()
    expect(button(page, "Log out")).to_be_visible()
    other = page.context.new_page()
    other.goto("/")
    expect(button(other, "Log in")).to_be_visible()


def test_token_that_ends_leads_back_to_the_form_and_then_to_the_address(stocked, clerk):
    open_car(clerk, "BMW i4").get_by_label("Distance").fill("555")
    stocked.request("POST", "/logout")
    button(clerk, "Save").click()

    expect(clerk.get_by_role("alert")).to_contain_text("Log in again")
    log_in(clerk)

    dialog = clerk.get_by_role("dialog", name="BMW i4")
    expect(dialog.get_by_label("Distance")).to_have_value("555")
    button(dialog, "Save").click()
    expect(clerk.get_by_role("status")).to_have_text("Auto updated")


def test_login_shows_what_the_address_says(stocked, page):
    page.goto("/#/?search=tesla&order_by=-max_speed")
    page.reload()

    log_in(page)

    expect(page.get_by_label("Search")).to_have_value("tesla")
    assert marks(page)[0] == "Tesla Roadster"


def test_too_many_attempts_say_when_to_try_again(server, page):
    for _ in range(10):
        server.request("POST", "/auth", {"username": "nobody", "password": "wrong"})

    log_in(page, username="nobody")

    expect(page.get_by_role("alert")).to_contain_text("Too many attempts. Try again later")
    expect(page.get_by_role("alert")).to_contain_text(re.compile(r"You can try again in \d+ s, at \d"))


# ----------------------------------------------------------------------------------------------------------------------
# Logged in
# ----------------------------------------------------------------------------------------------------------------------


def test_logout_ends_every_token(server, clerk):
    button(clerk, "Log out").click()

    expect(button(clerk, "Log in")).to_be_visible()
    assert server.request("GET", "/history").status_int == 401
    assert clerk.evaluate("sessionStorage.length") == 0


def test_password_is_changed(server, clerk):
    def change(old, new):
        dialog.get_by_label("Password", exact=True).fill(old)
        dialog.get_by_label("New password").fill(new)
        button(dialog, "Change password").click()

    button(clerk, "Change password").click()
    dialog = clerk.get_by_role("dialog", name="Change password")
    change("wrong", "battery staple")
    expect(dialog.get_by_role("alert")).to_have_text("Invalid password")
    change(PASSWORD, "battery staple")

    expect(clerk.get_by_role("status")).to_have_text("Password changed")
    expect(dialog).to_have_count(0)
    assert server.request("GET", "/history").status_int == 401
    clerk.reload()
    expect(button(clerk, "Log out")).to_be_visible()


def test_page_leads_to_the_documentation(clerk):
    assert clerk.locator("a[href=docs]").count() == 1


# ----------------------------------------------------------------------------------------------------------------------
# Stock
# ----------------------------------------------------------------------------------------------------------------------


def test_empty_stock_is_said_in_words(clerk):
    expect(clerk.get_by_text("There are no cars in stock yet.")).to_be_visible()
    expect(clerk.get_by_role("table")).to_have_count(0)


def test_table_has_a_column_per_field(stocked, clerk):
    car = SAMPLES["Aiways U5"]
    expect(clerk.get_by_role("columnheader")).to_have_text(list(LABELS.values()))
    expect(clerk.locator("tbody tr").first.locator("th, td")).to_have_text([str(car[name]) for name in LABELS])


def test_header_sorts_by_its_column(stocked, clerk, subtests):
    cars = sorted(SAMPLES.values(), key=lambda car: car["mark"])
    marks(clerk)
    for name in reversed(LABELS):  # the mark, by which they are ordered at first, comes last
        header = clerk.get_by_role("columnheader", name=LABELS[name])
        for direction in ("ascending", "descending"):
            with subtests.test(column=name, direction=direction):
                header.get_by_role("button").click()

                expect(header).to_have_attribute("aria-sort", direction)
                ordered = sorted(cars, key=lambda car: car[name], reverse=direction == "descending")
                assert marks(clerk) == [car["mark"] for car in ordered][:SHOWN]
                assert clerk.locator("[aria-sort]").count() == 1


def test_search_finds_text_in_any_field(stocked, clerk):
    clerk.get_by_label("Search").fill("GERMANY")

    found = [mark for mark, car in sorted(SAMPLES.items()) if "Germany" in car.values()]
    expect(clerk.get_by_text(f"{len(found)} cars with “GERMANY”")).to_be_visible()
    assert marks(clerk) == found[:SHOWN]
    clerk.get_by_label("Search").fill("no such car")
    expect(clerk.get_by_text("No cars with “no such car”")).to_be_visible()


def test_search_is_one_step_in_the_history_of_the_browser(stocked, clerk):
    clerk.get_by_label("Search").press_sequentially("BMW i", delay=5)
    clerk.get_by_label("Search").press("Enter")
    expect(clerk.get_by_text("with “BMW i”")).to_be_visible()

    clerk.go_back()
    expect(clerk.get_by_text("102 cars", exact=True)).to_be_visible()
    expect(clerk.get_by_label("Search")).to_have_value("")


def test_pages_go_on_and_back_again(stocked, clerk):
    everything = sorted(SAMPLES)
    pages = [everything[:SHOWN], everything[SHOWN : 2 * SHOWN], everything[2 * SHOWN :]]

    expect(button(clerk, "Previous")).to_be_disabled()
    for number, cars in enumerate(pages, 1):
        count = "102 cars" + (f", page {number}" if number > 1 else "")
        expect(clerk.get_by_text(count, exact=True)).to_be_visible()
        assert marks(clerk) == cars
        if number < len(pages):
            button(clerk, "Next").click()
    expect(button(clerk, "Next")).to_be_disabled()
    for cars in pages[-2::-1]:
        button(clerk, "Previous").click()
        expect(clerk.locator("tbody th").first).to_have_text(cars[0])
        assert marks(clerk) == cars


def test_address_holds_what_is_shown(stocked, clerk, browser, width):
    """Back, forward, reload and a copied link show the same, and Previous works after each."""
    everything = [car["mark"] for car in sorted(SAMPLES.values(), key=lambda car: (-car["max_speed"], car["mark"]))]
    first, second, third = (everything[start : start + SHOWN] for start in range(0, 150, SHOWN))

    def shows(page, cars):
        expect(page.locator("tbody th").first).to_have_text(cars[0])
        assert marks(page) == cars

    clerk.goto("/#/?order_by=-max_speed")
    for cars in (first, second):
        shows(clerk, cars)
        button(clerk, "Next").click()
    shows(clerk, third)
    clerk.go_back()
    shows(clerk, second)
    clerk.go_forward()
    shows(clerk, third)
    clerk.reload()
    shows(clerk, third)
    with visit(browser, stocked, width) as other:
        enter(other, stocked, clerk.url)
        shows(other, third)
        button(other, "Previous").click()
        shows(other, second)
        button(other, "Previous").click()
        shows(other, first)
        expect(button(other, "Previous")).to_be_disabled()


def test_page_that_is_turned_begins_at_its_top(stocked, clerk):
    marks(clerk)
    button(clerk, "Next").click()
    expect(clerk.get_by_text("page 2")).to_be_visible()

    assert clerk.evaluate("scrollY") == 0


def test_no_more_than_a_page_is_ever_asked_for(stocked, clerk):
    limits = []
    clerk.on("request", lambda request: limits.append(re.search(r"limit=(\d+)|$", request.url)[1]))

    clerk.reload()
    marks(clerk)
    button(clerk, "Next").click()
    expect(clerk.get_by_text("page 2")).to_be_visible()

    limits = [int(limit) for limit in limits if limit]
    assert sorted(limits) == [1, SHOWN, SHOWN]


# ----------------------------------------------------------------------------------------------------------------------
# One car
# ----------------------------------------------------------------------------------------------------------------------


def test_row_opens_the_values_of_its_car(garage, clerk):
    dialog = open_car(clerk, "BMW")

    for name, label in LABELS.items():
        expect(dialog.get_by_label(label)).to_have_value(str({"mark": "BMW", **CAR}[name]))
    expect(dialog.get_by_label("Mark")).not_to_be_editable()
    expect(dialog.get_by_role("button")).to_have_text(["Save", "Cancel", "History", "Delete"])


@pytest.mark.parametrize("leave", ["Escape", "Cancel", "back"])
def test_dialog_is_left_without_a_change(garage, clerk, leave):
    open_car(clerk, "BMW").get_by_label("Distance").fill("1")
    if leave == "back":
        clerk.go_back()
    elif leave == "Cancel":
        button(clerk, "Cancel").click()
    else:
        clerk.keyboard.press("Escape")

    expect(clerk.get_by_role("dialog")).to_have_count(0)
    expect(button(clerk, "BMW")).to_be_focused()
    assert stock_of(garage)["BMW"]["distance"] == CAR["distance"]


def test_limits_come_from_the_description(clerk, server):
    button(clerk, "Add car").click()
    dialog = clerk.get_by_role("dialog", name="Add car")
    schemas = server.request("GET", "/openapi.json").json["components"]["schemas"]["Car"]["properties"]

    for name, label in LABELS.items():
        expected = {"min": "minimum", "max": "maximum", "maxlength": "maxLength"}
        for attribute, keyword in expected.items():
            value = dialog.get_by_label(label).get_attribute(attribute)
            assert value == (str(schemas[name][keyword]) if keyword in schemas[name] else None)


def test_save_sends_what_was_changed_and_of_what(garage, clerk):
    tag = garage.request("GET", at("BMW")).headers["ETag"]
    dialog = open_car(clerk, "BMW")
    dialog.get_by_label("Distance").fill("450")

    with clerk.expect_request(lambda request: request.method == "PATCH") as sent:
        dialog.get_by_label("Distance").press("Enter")

    assert (sent.value.post_data_json, sent.value.headers["if-match"]) == ({"distance": 450}, tag)
    expect(clerk.get_by_role("status")).to_have_text("Auto updated")
    expect(clerk.get_by_role("cell", name="450")).to_be_visible()
    expect(button(clerk, "BMW")).to_be_focused()


@pytest.mark.parametrize(
    ("label", "value", "sentence"),
    [
        ("Max speed", "", f"max_speed: {NUMBER}"),
        ("Distance", "1.5", f"distance: {NUMBER}"),
        ("Handler", "", f"handler: {length(255)}"),
        ("Stock", "  ", "stock: must not be blank"),
    ],
)
def test_refusal_stands_beside_the_input_that_it_names(garage, clerk, label, value, sentence):
    dialog = open_car(clerk, "BMW")
    dialog.get_by_label(label).fill(value)
    button(dialog, "Save").click()

    expect(dialog.get_by_role("alert")).to_have_text(sentence)
    expect(dialog.get_by_label(label)).to_be_focused()
    expect(dialog.get_by_label(label)).to_have_attribute("aria-invalid", "true")
    expect(dialog.get_by_label(label)).to_have_accessible_description(re.compile(re.escape(sentence)))
    assert stock_of(garage)["BMW"] == {"mark": "BMW", **CAR}


@pytest.fixture
def conflict(garage, clerk, browser, width):
    """The dialog of somebody who has changed two values of a car, while in another browser one of them was changed,
    and one more."""
    dialog = open_car(clerk, "BMW")
    dialog.get_by_label("Distance").fill("450")
    dialog.get_by_label("Handler").fill("Mine")
    with visit(browser, garage, width) as other:
        enter(other, garage)
        theirs = open_car(other, "BMW")
        theirs.get_by_label("Handler").fill("Theirs")
        theirs.get_by_label("Max speed").fill("300")
        button(theirs, "Save").click()
        expect(other.get_by_role("status")).to_have_text("Auto updated")
    button(dialog, "Save").click()
    expect(dialog.get_by_role("alert")).to_have_text("Auto was changed by someone else")
    return dialog


def test_two_who_change_one_car_see_both_values(conflict):
    rows = ["Max speed 280 (not changed) 300", "Distance 450 400", "Handler Mine Theirs"]
    expect(conflict.locator("tbody tr")).to_have_text(rows, use_inner_text=True)


def test_keep_mine_loses_nothing_that_others_did(conflict, garage, clerk):
    button(conflict, "Keep mine").click()

    expect(clerk.get_by_role("dialog")).to_have_count(0)
    assert stock_of(garage)["BMW"] == {"mark": "BMW", **CAR, "max_speed": 300, "distance": 450, "handler": "Mine"}


def test_take_theirs_shows_theirs(conflict, garage, clerk):
    button(conflict, "Take theirs").click()

    expect(conflict.get_by_label("Handler")).to_have_value("Theirs")
    expect(conflict.get_by_label("Distance")).to_have_value("400")
    assert stock_of(garage)["BMW"] == {"mark": "BMW", **CAR, "max_speed": 300, "handler": "Theirs"}
    conflict.get_by_label("Distance").fill("450")
    button(conflict, "Save").click()
    expect(clerk.get_by_role("dialog")).to_have_count(0)
    assert stock_of(garage)["BMW"]["distance"] == 450


@pytest.mark.parametrize(
    ("choice", "left"), [("Keep mine", {"BMW": {"mark": "BMW", **CAR, "distance": 450}}), ("Take theirs", {})]
)
def test_car_that_was_deleted_meanwhile_is_added_again_or_left(garage, clerk, choice, left):
    garage.request("POST", at("Audi"), CAR)
    dialog = open_car(clerk, "BMW")
    dialog.get_by_label("Distance").fill("450")
    garage.request("DELETE", at("BMW"))
    button(dialog, "Save").click()
    expect(dialog.get_by_role("alert")).to_have_text(NOT_FOUND)

    button(dialog, choice).click()

    expect(clerk.get_by_role("dialog")).to_have_count(0)
    assert marks(clerk) == sorted({"Audi", *left})
    assert stock_of(garage) == {"Audi": {"mark": "Audi", **CAR}, **left}


def test_delete_asks_once_more(garage, clerk):
    dialog = open_car(clerk, "BMW")
    button(dialog, "Delete").click()
    expect(dialog.get_by_role("alert")).to_have_text("Delete BMW for good?")
    expect(button(dialog, "Keep it")).to_be_focused()
    clerk.keyboard.press("Escape")
    button(dialog, "Delete").click()
    assert "BMW" in stock_of(garage)
    button(dialog, "Delete").click()

    expect(clerk.get_by_role("status")).to_have_text("Auto deleted")
    expect(clerk.get_by_text("There are no cars in stock yet.")).to_be_visible()


def test_delete_of_a_car_that_others_changed_shows_what_they_did(garage, clerk):
    dialog = open_car(clerk, "BMW")
    garage.request("PATCH", at("BMW"), {"max_speed": 300})
    button(dialog, "Delete").click()
    button(dialog, "Delete").click()
    expect(dialog.get_by_role("alert")).to_have_text("Auto was changed by someone else")
    expect(dialog.locator("tbody tr")).to_have_text(["Max speed 280 (not changed) 300"], use_inner_text=True)
    assert "BMW" in stock_of(garage)

    button(dialog, "Keep mine").click()

    expect(clerk.get_by_role("status")).to_have_text("Auto deleted")


# ----------------------------------------------------------------------------------------------------------------------
# Add car
# ----------------------------------------------------------------------------------------------------------------------


def add(page, mark, car=CAR):
    """Fill in a new car, and save it; gives the dialog."""
    if not page.get_by_role("dialog").is_visible():
        button(page, "Add car").click()
    dialog = page.get_by_role("dialog")
    for name, value in {"mark": mark, **car}.items():
        dialog.get_by_label(LABELS[name]).fill(str(value))
    button(dialog, "Save").click()
    return dialog


def test_car_is_added(server, clerk):
    button(clerk, "Add car").click()
    expect(clerk.get_by_role("dialog").get_by_role("button")).to_have_text(["Save", "Cancel"])
    expect(clerk.get_by_label("Mark")).to_be_focused()

    add(clerk, "BMW")

    expect(clerk.get_by_role("status")).to_have_text("Auto created")
    assert marks(clerk) == ["BMW"]
    assert stock_of(server) == {"BMW": {"mark": "BMW", **CAR}}


@pytest.mark.parametrize("mark", ["", ".."])
def test_mark_that_no_path_can_name_is_refused_beside_its_input(server, clerk, mark):
    dialog = add(clerk, mark)

    expect(dialog.get_by_role("alert")).to_have_text(re.compile("^mark: "))
    expect(dialog.get_by_label("Mark")).to_be_focused()
    assert server.request("GET", "/stock").status_int == 400


def test_mark_that_is_there_already_shows_both_cars(garage, clerk):
    dialog = add(clerk, "BMW", OTHER_CAR)
    expect(dialog.get_by_role("alert")).to_have_text("Auto with that mark exists")
    expect(dialog.locator("tbody tr")).to_have_count(len(CAR))

    button(dialog, "Take theirs").click()
    expect(clerk.get_by_role("dialog", name="BMW").get_by_label("Handler")).to_have_value(CAR["handler"])
    assert stock_of(garage)["BMW"] == {"mark": "BMW", **CAR}
    button(dialog, "Cancel").click()
    add(clerk, "BMW", OTHER_CAR)
    button(dialog, "Keep mine").click()

    expect(dialog).to_have_count(0)
    assert stock_of(garage)["BMW"] == {"mark": "BMW", **OTHER_CAR}


def test_every_mark_is_shown_as_it_is_and_can_be_changed(browser, server):
    cars = [XSS, *MARKS]
    server.request("POST", "/stock", [{"mark": mark, **CAR, "handler": XSS} for mark in cars])
    with visit(browser, server, 1280) as page:
        enter(page, server)
        assert marks(page) == sorted(cars)
        for mark in cars:
            dialog = open_car(page, mark)
            expect(dialog.get_by_label("Handler")).to_have_value(XSS)
            dialog.get_by_label("Distance").fill("1")
            button(dialog, "Save").click()
            expect(dialog).to_have_count(0)
        assert {car["distance"] for car in stock_of(server).values()} == {1}
        assert page.locator("img[src=x]").count() == 0


def test_reader_sees_nothing_that_changes(garage, database, clerk):
    database.execute("UPDATE users SET role = 'reader'")
    clerk.reload()

    assert marks(clerk) == ["BMW"]
    dialog = open_car(clerk, "BMW")
    expect(dialog.get_by_role("button")).to_have_text(["Cancel", "History"])
    for label in LABELS.values():
        expect(dialog.get_by_label(label)).not_to_be_editable()
    clerk.keyboard.press("Escape")
    for name in ("Add car", "Save", "Delete", "Import"):
        expect(button(clerk, name)).to_have_count(0)
    for name in ("Export", "History"):
        expect(button(clerk, name)).to_be_visible()


def test_editor_who_became_a_reader_is_told(garage, database, clerk):
    dialog = open_car(clerk, "BMW")
    dialog.get_by_label("Distance").fill("450")
    database.execute("UPDATE users SET role = 'reader'")
    button(dialog, "Save").click()

    expect(dialog.get_by_role("alert")).to_have_text("This account may only read")
    expect(dialog.get_by_label("Distance")).to_have_value("450")


# ----------------------------------------------------------------------------------------------------------------------
# Import and export
# ----------------------------------------------------------------------------------------------------------------------


def test_import_takes_new_cars_only_or_known_ones_too(garage, clerk):
    changed = f"{HEADER}\nBMW,1,2,h,s\nAudi,3,4,h,s\n"

    dialog = import_file(clerk, changed, "Only new cars")
    expect(dialog.get_by_role("listitem")).to_have_text("line 2: mark: Auto with that mark existsBMW,1,2,h,s")
    import_file(clerk, changed, "New and known cars")

    expect(clerk.get_by_role("status")).to_have_text("1 autos created, 1 updated")
    expect(dialog).to_have_count(0)
    assert marks(clerk) == ["Audi", "BMW"]
    assert stock_of(garage)["BMW"]["max_speed"] == 1


def test_every_bad_line_is_listed_with_its_text(server, clerk):
    text = f'{HEADER}\nA,1,2,h,s\nB,fast,2,h,s\n\n"C\nD",1,2,"h, ""x""\nmore",s\n"E, F",1,-2,h,s\n'

    dialog = import_file(clerk, text)

    expect(dialog.get_by_role("alert")).to_contain_text("Nothing was imported")
    expect(dialog.get_by_role("listitem")).to_have_count(3)
    assert dialog.get_by_role("listitem").all_inner_texts() == [
        f"line 3: max_speed: {NUMBER}\nB,fast,2,h,s",
        'line 5: mark: must not hold control or format characters\n"C\nD",1,2,"h, ""x""\nmore",s',
        f'line 8: distance: {NUMBER}\n"E, F",1,-2,h,s',
    ]
    assert server.request("GET", "/stock").status_int == 400


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        pytest.param("", "body: ", id="empty"),
        pytest.param(
            HEADER + "\n" + "A,1,2,h,s\n" * 50_001,
            "body: more than 50000 cars; send them in several uploads",
            id="too many",
        ),
    ],
)
def test_file_that_is_refused_as_a_whole(clerk, text, sentence):
    expect(import_file(clerk, text).get_by_role("alert")).to_contain_text(sentence)


def test_import_without_a_file_asks_for_one(clerk):
    button(clerk, "Import").click()
    dialog = clerk.get_by_role("dialog", name="Import cars")
    button(dialog, "Import").click()

    expect(dialog.get_by_role("alert")).to_have_text("Choose a CSV file first")


def test_import_of_many_cars_shows_its_progress(server, clerk):
    network = clerk.context.new_cdp_session(clerk)
    limits = {"offline": False, "latency": 0, "downloadThroughput": -1, "uploadThroughput": 400_000}
    network.send("Network.emulateNetworkConditions", limits)
    cars = "".join(f"Car {number},100,200,Somebody,Somewhere\n" for number in range(20_000))
    seen = """() => { const bar = document.querySelector("progress"); return bar && bar.value > 0 && bar.value < 1; }"""

    dialog = import_file(clerk, f"{HEADER}\n{cars}")

    expect(dialog.get_by_role("progressbar", name="Sending…")).to_be_visible()
    clerk.wait_for_function(seen)
    expect(clerk.get_by_role("status")).to_have_text("20000 autos created", timeout=30_000)
    expect(clerk.get_by_text("20000 cars", exact=True)).to_be_visible()


def test_export_is_what_is_shown_on_all_pages(stocked, clerk):
    expected = [car for car in SAMPLES.values() if any("e" in str(text).lower() for text in car.values())]
    expected.sort(key=lambda car: (-car["max_speed"], car["mark"]))
    assert SHOWN < len(expected) < len(SAMPLES)
    clerk.goto("/#/?search=E&order_by=-max_speed")
    expect(clerk.get_by_text(f"{len(expected)} cars with “E”")).to_be_visible()

    with clerk.expect_download() as download:
        button(clerk, "Export").click()

    with open(download.value.path(), encoding="utf-8", newline="") as file:
        assert list(csv.DictReader(file)) == [{name: str(value) for name, value in car.items()} for car in expected]
    assert download.value.suggested_filename == "stock.csv"


# ----------------------------------------------------------------------------------------------------------------------
# History
# ----------------------------------------------------------------------------------------------------------------------


def entries(page):
    """Give what the history shows, each entry as its words and the rows of its table."""
    page.get_by_role("listitem").first.wait_for()
    found = []
    for item in page.get_by_role("listitem").all():
        words = re.sub(r"\s+\d.*", "", item.locator("p").first.inner_text(), flags=re.DOTALL)
        found.append((words, *item.locator("tbody tr").all_inner_texts()))
    return found


def test_history_of_a_car_shows_old_and_new_side_by_side(garage, clerk):
    garage.request("PATCH", at("BMW"), {"max_speed": 300, "stock": "Poland"})
    garage.request("PUT", at("BMW"), {**CAR, "stock": "Poland"})
    garage.request("DELETE", at("BMW"))
    garage.request("POST", at("BMW"), OTHER_CAR)
    clerk.reload()
    dialog = open_car(clerk, "BMW")

    button(dialog, "History").click()

    expect(clerk.get_by_role("heading", name="History of BMW")).to_be_focused()
    was = {**CAR, "stock": "Poland"}
    others = [(LABELS[name], value) for name, value in OTHER_CAR.items()]
    assert entries(clerk) == [
        (f"{USERNAME} created BMW", *[f"{label}\t—\t{value}" for label, value in others]),
        (f"{USERNAME} deleted BMW", *[f"{LABELS[name]}\t{value}\t—" for name, value in was.items()]),
        (f"{USERNAME} updated BMW", "Max speed\t300\t280"),
        (f"{USERNAME} updated BMW", "Max speed\t280\t300", "Stock\tGermany\tPoland"),
        (f"{USERNAME} created BMW", *[f"{LABELS[name]}\t—\t{value}" for name, value in CAR.items()]),
    ]
    clerk.go_back()
    expect(clerk.get_by_role("dialog", name="BMW")).to_be_visible()


def test_history_of_all_goes_on_on_demand(stocked, clerk):
    stocked.request("PATCH", at("BMW i4"), {"max_speed": 300})
    button(clerk, "History").click()

    expect(clerk.get_by_role("listitem")).to_have_count(25)
    assert entries(clerk)[0] == (f"{USERNAME} updated BMW i4", "Max speed\t200\t300")
    for shown in (50, 75, 100, 103):
        button(clerk, "More").click()
        expect(clerk.get_by_role("listitem")).to_have_count(shown)
    expect(button(clerk, "More")).to_have_count(0)
    clerk.get_by_role("link", name="BMW i4").first.click()
    expect(clerk.get_by_role("listitem")).to_have_count(2)


def test_history_leads_back_to_what_was_shown(stocked, clerk):
    clerk.goto("/#/?search=tesla&order_by=-max_speed")
    expect(clerk.get_by_text("with “tesla”")).to_be_visible()
    button(clerk, "History").click()
    clerk.get_by_role("heading", name="History").wait_for()

    button(clerk, "Back").click()

    expect(clerk.get_by_label("Search")).to_have_value("tesla")
    assert marks(clerk)[0] == "Tesla Roadster"


def test_what_is_typed_outlives_a_look_at_the_history(garage, clerk):
    dialog = open_car(clerk, "BMW")
    dialog.get_by_label("Distance").fill("450")
    button(dialog, "History").click()
    clerk.get_by_role("heading", name="History of BMW").wait_for()

    clerk.go_back()

    expect(clerk.get_by_role("dialog", name="BMW").get_by_label("Distance")).to_have_value("450")


# ----------------------------------------------------------------------------------------------------------------------
# Trouble
# ----------------------------------------------------------------------------------------------------------------------


def test_lost_connection_is_said_and_what_was_typed_is_kept(garage, clerk):
    dialog = open_car(clerk, "BMW")
    dialog.get_by_label("Distance").fill("450")
    with lost(clerk):
        button(dialog, "Save").click()
        expect(dialog.get_by_role("alert")).to_contain_text("The server cannot be reached.")

    expect(dialog.get_by_label("Distance")).to_have_value("450")
    button(dialog, "Save").click()
    expect(clerk.get_by_role("status")).to_have_text("Auto updated")


@contextmanager
def lost(page):
    """Cut every connection of a page."""
    page.route("**", lambda route: route.abort("connectionfailed"))
    yield
    page.unroute("**")


def test_lost_answer_is_no_conflict(garage, clerk):
    def lose(route):
        if route.request.method == "PATCH":
            route.fetch()
            return route.abort("connectionreset")
        return route.continue_()

    dialog = open_car(clerk, "BMW")
    dialog.get_by_label("Handler").fill(DECOMPOSED)
    clerk.route("**/auto/*", lose)
    button(dialog, "Save").click()
    expect(dialog.get_by_role("alert")).to_contain_text("The server cannot be reached.")
    clerk.unroute("**/auto/*")

    button(dialog, "Save").click()

    expect(dialog).to_have_count(0)
    assert stock_of(garage)["BMW"]["handler"] == COMPOSED
    assert len(garage.request("GET", at("BMW").replace("auto", "history")).json) == 2


@pytest.mark.parametrize("address", ["/", "/#/history"])
def test_listing_that_failed_is_tried_again(garage, clerk, address):
    refusal = {
        "status": 503,
        "json": {"Error": "Database is not available. Try again later"},
        "headers": {"Retry-After": "5"},
    }
    for path in ("stock", "history"):
        clerk.route(f"**/{path}?*", lambda route: route.fulfill(**refusal))
    clerk.goto("about:blank")
    clerk.goto(address)

    alert = clerk.get_by_role("alert")
    expect(alert).to_contain_text("Database is not available. Try again later")
    expect(alert).to_contain_text("You can try again in 5 s, at ")
    clerk.unroute("**/stock?*")
    clerk.unroute("**/history?*")
    button(clerk, "Try again").click()

    expect(clerk.get_by_text("BMW", exact=True)).to_be_visible()
    expect(alert).to_have_count(0)


def test_start_that_failed_is_tried_again(page):
    page.route("**/openapi.json", lambda route: route.abort("connectionfailed"))
    page.reload()
    expect(page.get_by_role("alert")).to_contain_text("The server cannot be reached.")
    page.unroute("**/openapi.json")

    button(page, "Try again").click()

    expect(button(page, "Log in")).to_be_visible()


def test_change_that_takes_long_is_sent_once(garage, clerk):
    waiting = []
    clerk.route(
        "**/auto/*", lambda route: waiting.append(route) if route.request.method == "PATCH" else route.continue_()
    )
    dialog = open_car(clerk, "BMW")
    dialog.get_by_label("Distance").fill("450")
    button(dialog, "Save").dblclick()

    expect(dialog.locator("form")).to_have_attribute("aria-busy", "true")
    (route,) = waiting
    route.continue_()

    expect(clerk.get_by_role("status")).to_have_text("Auto updated")


def test_slow_answer_is_said_to_be_loading(garage, clerk):
    waiting = []
    clerk.route("**/stock?*", lambda route: waiting.append(route))
    clerk.get_by_role("columnheader").first.get_by_role("button").click()

    expect(clerk.get_by_text("Loading…")).to_be_visible()
    expect(clerk.get_by_role("region", name="Cars")).to_have_attribute("aria-busy", "true")
    for route in waiting:
        route.continue_()
    clerk.unroute("**/stock?*")

    expect(clerk.get_by_text("1 car", exact=True)).to_be_visible()


def test_earlier_answer_does_not_replace_a_later_one(stocked, clerk):
    waiting = []
    clerk.route("**/stock?search=bmw*", lambda route: waiting.append(route))
    clerk.get_by_label("Search").fill("bmw")
    clerk.wait_for_url("**search=bmw")
    clerk.get_by_label("Search").fill("tesla")
    expect(clerk.get_by_text("with “tesla”")).to_be_visible()

    with clerk.expect_response("**/stock?search=bmw*"):
        waiting[0].continue_()

    expect(clerk.get_by_text("with “tesla”")).to_be_visible()
    assert all("Tesla" in mark for mark in marks(clerk))


# ----------------------------------------------------------------------------------------------------------------------
# For everybody
# ----------------------------------------------------------------------------------------------------------------------

AXE = os.environ.get("AXE")


def show_log_in(page, server):
    page.goto("/")
    page.get_by_label("Username").wait_for()


def show_refused_log_in(page, server):
    page.goto("/")
    log_in(page, password="wrong")
    page.get_by_role("alert").wait_for()


def show_stock(page, server):
    enter(page, server)
    marks(page)


def show_empty_search(page, server):
    enter(page, server, "/#/?search=nothing+like+it")
    page.get_by_text("No cars with").wait_for()


def show_car(page, server):
    enter(page, server)
    open_car(page, "BMW i4")


def show_refused_car(page, server):
    show_car(page, server)
    page.get_by_label("Distance").fill("-1")
    button(page, "Save").click()
    page.get_by_role("alert").wait_for()


def show_question(page, server):
    show_car(page, server)
    button(page, "Delete").click()


def show_conflict(page, server):
    show_car(page, server)
    page.get_by_label("Distance").fill("450000")
    server.request("PATCH", at("BMW i4"), {"distance": 1, "stock": "s" * 255})
    button(page, "Save").click()
    button(page, "Keep mine").wait_for()


def show_bad_lines(page, server):
    enter(page, server)
    import_file(page, HEADER + "\n" + f"{'x' * 255},-1,2,h,s\n" * 30).get_by_role("alert").wait_for()


def show_password(page, server):
    enter(page, server)
    button(page, "Change password").click()


def show_history(page, server):
    server.request("PATCH", at("BMW i4"), {"distance": 1, "stock": "s" * 255})
    enter(page, server, "/#/history")
    page.get_by_role("listitem").first.wait_for()


VIEWS = [
    show_log_in, show_refused_log_in, show_stock, show_empty_search, show_car, show_refused_car, show_question,
    show_conflict, show_bad_lines, show_password, show_history,
]  # fmt: skip


@pytest.mark.skipif(not AXE, reason="needs axe-core (npm); AXE=…/axe.min.js")
@pytest.mark.parametrize("show", VIEWS)
def test_axe_finds_nothing_in_light_or_dark(browser, stocked, width, show):
    with visit(browser, stocked, width, bypass_csp=True) as page:
        show(page, stocked)
        page.add_script_tag(path=AXE)
        for scheme in ("light", "dark"):
            page.emulate_media(color_scheme=scheme)
            findings = page.evaluate("axe.run()")["violations"]
            assert [(finding["id"], [node["html"] for node in finding["nodes"]]) for finding in findings] == []


@pytest.mark.parametrize("show", VIEWS)
def test_page_fits_the_width_of_a_phone(browser, stocked, show):
    with visit(browser, stocked, 360) as page:
        show(page, stocked)
        assert page.evaluate("document.documentElement.scrollWidth") <= 360
        dialog = page.locator("dialog")
        assert not dialog.count() or dialog.evaluate("node => node.scrollWidth <= node.clientWidth")


def reach(page, role, name):
    """Go to an element by Tab alone, and see that what has the focus shows it."""
    target = page.get_by_role(role, name=name, exact=True)
    for _ in range(90):
        page.keyboard.press("Tab")
        if target.evaluate_all("nodes => nodes.includes(document.activeElement)"):
            outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
            assert outline != "none"
            return target
    raise AssertionError(f"Tab never gets to {name}")


def press(page, name):
    """Press a button by the keyboard alone."""
    reach(page, "button", name)
    page.keyboard.press("Enter")


def retype(page, role, name, text):
    """Go to an input by the keyboard alone, and type over what stands there."""
    reach(page, role, name)
    page.keyboard.press("Control+A")
    page.keyboard.type(text)


def choose(page, path):
    """Choose a file: go to its button by the keyboard alone (what opens then is the system's)."""
    target = page.get_by_label("CSV file")
    while not target.evaluate("node => node === document.activeElement"):
        page.keyboard.press("Shift+Tab")
    target.set_input_files(path)


def test_clerks_day_by_the_keyboard_alone(stocked, page, tmp_path):
    """Log in, search, sort, correct a car, add one, import with bad lines and mended, export, look up, log out."""
    said = page.get_by_role("status")
    expect(page.get_by_label("Username")).to_be_focused()
    page.keyboard.type(USERNAME)
    page.keyboard.press("Tab")
    page.keyboard.type(PASSWORD)
    press(page, "Log in")
    expect(page.get_by_text("102 cars", exact=True)).to_be_visible()

    retype(page, "searchbox", "Search", "bmw")
    expect(page.get_by_text("4 cars with “bmw”")).to_be_visible()
    press(page, "Max speed")
    expect(page.get_by_role("columnheader", name="Max speed")).to_have_attribute("aria-sort", "ascending")

    press(page, "BMW i4")
    page.get_by_role("dialog", name="BMW i4").wait_for()
    retype(page, "spinbutton", "Distance", "460")
    page.keyboard.press("Enter")
    expect(said).to_have_text("Auto updated")

    press(page, "Add car")
    page.get_by_role("dialog", name="Add car").wait_for()
    for value in ("BMW iX", 200, 630, "BMW", "Germany"):
        page.keyboard.type(str(value))
        page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    expect(said).to_have_text("Auto created")

    lines = [
        HEADER,
        "BMW 1,200,fast,BMW,Germany",
        "BMW 2,-1,1,BMW,Germany",
        "BMW 3,1,1,,Germany",
        "BMW 4,1,2,BMW,Spain",
    ]
    file = tmp_path / "new.csv"
    file.write_text("\n".join(lines))
    press(page, "Import")
    page.get_by_role("dialog", name="Import cars").wait_for()
    choose(page, file)
    press(page, "Import")
    expect(page.get_by_role("dialog").get_by_role("listitem")).to_have_count(3)
    mended = "\n".join(lines).replace("fast", "300").replace("-1", "10").replace(",,", ",BMW,")
    file.write_text(mended)
    choose(page, file)
    press(page, "Import")
    expect(said).to_have_text("4 autos created")
    expect(page.get_by_text("9 cars with “bmw”")).to_be_visible()

    with page.expect_download() as download:
        press(page, "Export")
    with open(download.value.path(), encoding="utf-8", newline="") as exported:
        rows = list(csv.DictReader(exported))
    assert [row["max_speed"] for row in rows] == sorted((row["max_speed"] for row in rows), key=int)
    assert {"BMW iX", "BMW 1", "BMW 4"} <= {row["mark"] for row in rows}

    press(page, "History")
    expect(page.get_by_role("listitem").nth(5)).to_contain_text(f"{USERNAME} updated BMW i4")
    rows = page.get_by_role("listitem").nth(5).locator("tbody tr")
    expect(rows).to_have_text(["Distance 450 460"], use_inner_text=True)

    press(page, "Log out")
    expect(button(page, "Log in")).to_be_visible()


# ----------------------------------------------------------------------------------------------------------------------
# A new field, and a picture
# ----------------------------------------------------------------------------------------------------------------------


def test_new_field_needs_no_change_of_the_page(browser, launch, tmp_path):
    """The program with one more field of `Car`, and the page as it is."""
    program = (HERE / "dealer.py").read_text()
    program = program.replace("    stock: Text(255)\n", "    stock: Text(255)\n    doors: Number\n", 1)
    program = program.replace('"stock": "Germany"}', '"stock": "Germany", "doors": 4}', 1)
    (tmp_path / "dealer.py").write_text(program)
    for folder in ("plugins", "pages"):
        shutil.copytree(HERE / folder, tmp_path / folder)
    garage = launch(f"sqlite:///{tmp_path}/garage.db", command=(sys.executable, str(tmp_path / "dealer.py")))
    with visit(browser, garage, 1280) as page:
        page.goto("/")
        page.get_by_label("Username").fill("bob")
        page.get_by_label("Password").fill("secret")
        button(page, "Create account").click()
        button(page, "Add car").click()
        page.get_by_label("Doors").fill("-3")
        add(page, "BMW")
        expect(page.get_by_role("alert")).to_contain_text("doors: ")
        page.get_by_label("Doors").fill("3")
        button(page, "Save").click()
        expect(page.get_by_role("columnheader", name="Doors")).to_be_visible()
        expect(page.locator("tbody td").last).to_have_text("3")
        import_file(page, f"{HEADER},doors\nAudi,1,2,h,s,5\n")
        expect(page.get_by_role("status")).to_have_text("1 autos created")
        with page.expect_download() as download:
            button(page, "Export").click()
        assert Path(download.value.path()).read_text().splitlines()[1] == "Audi,1,2,h,s,5"
        open_car(page, "BMW").get_by_label("Doors").fill("4")
        button(page, "Save").click()
        expect(page.get_by_role("status")).to_have_text("Auto updated")
        button(page, "History").click()
        assert entries(page)[0] == ("bob updated BMW", "Doors\t3\t4")


@pytest.mark.skipif("PICTURE" not in os.environ, reason="takes README's picture where PICTURE says")
def test_picture(browser, stocked):
    with visit(browser, stocked, 1280) as page:
        enter(page, stocked)
        marks(page)
        page.screenshot(path=os.environ["PICTURE"], clip={"x": 0, "y": 0, "width": 1280, "height": 520})
