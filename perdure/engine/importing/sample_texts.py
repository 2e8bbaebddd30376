"""The words that samples are made of."""

from __future__ import annotations

import json
from typing import Any, Final, NamedTuple

__all__ = [
    "CITIES",
    "FAREWELLS",
    "FILES",
    "FIRST_NAMES",
    "GOODBYES",
    "GREETINGS",
    "ITEMS",
    "LAST_NAMES",
    "TESTS",
    "THEMES",
    "Scene",
    "Theme",
    "as_json",
]


class Scene(NamedTuple):
    """One kind of request: what the user asks, the tools called with their arguments, a row of a result, the answers. All are templates."""

    asks: tuple[str, ...]
    calls: tuple[tuple[str, dict[str, str]], ...]
    row: dict[str, str]
    answers: tuple[str, ...]


class Theme(NamedTuple):
    """A trade: its name, the instructions of its agents, what is asked of them."""

    name: str
    system: str
    scenes: tuple[Scene, ...]


def as_json(value: Any) -> str:
    """JSON as a tool would print it."""
    return json.dumps(value)


FIRST_NAMES: Final = (
    "Ada",
    "Bela",
    "Chidi",
    "Dana",
    "Elif",
    "Femi",
    "Greta",
    "Hana",
    "Ines",
    "Jonas",
    "Kofi",
    "Lena",
    "Mateo",
    "Noor",
    "Oskar",
    "Priya",
)
LAST_NAMES: Final = (
    "Abara",
    "Brandt",
    "Castillo",
    "Dubois",
    "Eriksen",
    "Farkas",
    "Grant",
    "Huang",
    "Iyer",
    "Jansen",
    "Kaya",
    "Lindqvist",
    "Moreau",
    "Novak",
)
ITEMS: Final = (
    "desk lamp",
    "hiking boots",
    "espresso machine",
    "noise-cancelling headphones",
    "travel backpack",
    "office chair",
    "rain jacket",
    "keyboard",
)
CITIES: Final = ("Lisbon", "Oslo", "Nairobi", "Toronto", "Kyoto", "Bogotá", "Hamburg", "Pune", "Kraków", "Seattle")
FILES: Final = (
    "src/billing/invoice.py",
    "src/search/index.py",
    "src/api/routes.py",
    "src/jobs/scheduler.py",
    "src/users/session.py",
    "src/common/dates.py",
)
TESTS: Final = (
    "test_total_is_rounded_once",
    "test_empty_query_finds_nothing",
    "test_expired_session_is_refused",
    "test_job_runs_after_restart",
)
GREETINGS: Final = ("Hello!", "Good morning.", "Hi there.", "Hello, I hope you can help me.", "Hi!")
FAREWELLS: Final = ("That was all, thank you.", "Great, thanks for your help!", "Perfect. Have a nice day.", "Thank you, that solves it.")
GOODBYES: Final = (
    "You are welcome. Have a good day!",
    "Glad I could help. Goodbye!",
    "My pleasure. Write again whenever you need something.",
)

_SHOP: Final = Theme(
    "shop",
    "You are the customer service agent of an online shop. Identify the customer before you look anything up. Explain every change of an order "
    "and ask for a yes before you make it. An order can be changed until it is sent; what has arrived can be returned within thirty days, and the "
    "money goes back to the method that was paid with. Make one call of a tool at a time, never invent a fact that no tool has returned, and hand "
    "over to a colleague when a request is outside of these rules.",
    (
        Scene(
            (
                "Where is my order {order}? It should have come to {city} by {date}.",
                "I am still waiting for the {item} from order {order}.",
            ),
            (("find_customer", {"name": "{name}"}), ("get_order", {"order_id": "{order}", "user_id": "{user}"})),
            {
                "order_id": "{order}",
                "user_id": "{user}",
                "item": "{item}",
                "status": "in transit",
                "city": "{city}",
                "due": "{date}",
                "paid": "{amount}",
            },
            (
                "Your order {order} with the {item} is on its way to {city} and should arrive on {date}.",
                "The parcel with the {item} has reached {city}.",
            ),
        ),
        Scene(
            (
                "The {item} I got is damaged. I would like my {amount} back.",
                "Please take back the {item} from order {order}; it does not fit.",
            ),
            (
                ("get_order", {"order_id": "{order}", "user_id": "{user}"}),
                ("open_return", {"order_id": "{order}", "item": "{item}", "reason": "damaged"}),
            ),
            {
                "return_id": "R-{order}",
                "order_id": "{order}",
                "item": "{item}",
                "refund": "{amount}",
                "method": "credit card",
                "send_until": "{date}",
            },
            (
                "I am sorry about that. I have opened a return for the {item}; please send it until {date}, and {amount} go back to your card.",
                "The return is open. As soon as the {item} is here, you get {amount} back, to the card that you paid with.",
            ),
        ),
        Scene(
            (
                "Can you send order {order} to my office in {city} instead?",
                "I have moved to {city}. Please change the address of order {order}.",
            ),
            (("change_address", {"order_id": "{order}", "city": "{city}"}),),
            {"order_id": "{order}", "city": "{city}", "status": "pending", "changed": "{date}"},
            ("Done: order {order} goes to {city} now.", "I have changed the address of order {order}. It will be sent to {city}."),
        ),
    ),
)

_TRAVEL: Final = Theme(
    "travel",
    "You are the booking assistant of a small airline. You can search connections, book seats, change dates and cancel bookings. List the details of "
    "what you are about to do and wait for the traveller to agree. Bookings can be cancelled within a day, later only with insurance. Methods of "
    "payment must be in the traveller's profile. Refuse politely what these rules do not allow.",
    (
        Scene(
            ("I need to fly to {city} on {date}, as cheaply as possible.", "What is there to {city} on {date} for less than {amount}?"),
            (("search_connections", {"to": "{city}", "date": "{date}", "sort": "price"}),),
            {"flight": "PD{line}", "to": "{city}", "date": "{date}", "price": "{amount}", "seats_left": "{line}", "stops": "0"},
            (
                "There is a direct flight to {city} on {date} for {amount}. Shall I book it?",
                "The cheapest seat to {city} costs {amount} on {date}.",
            ),
        ),
        Scene(
            ("Yes, please book it for {name}.", "Please go ahead; the passenger is {name}."),
            (
                ("get_traveller", {"user_id": "{user}"}),
                ("book", {"user_id": "{user}", "to": "{city}", "date": "{date}", "payment": "card"}),
            ),
            {"booking": "{order}", "passenger": "{name}", "to": "{city}", "date": "{date}", "paid": "{amount}", "bags": "1"},
            ("Booked: {name} to {city} on {date}, booking {order}, {amount} paid by card.", "It is done. Your booking number is {order}."),
        ),
        Scene(
            ("Something came up. Please cancel booking {order}.", "I cannot travel on {date} any more. Can I get my {amount} back?"),
            (("get_booking", {"booking": "{order}"}), ("cancel", {"booking": "{order}", "reason": "change of plan"})),
            {"booking": "{order}", "passenger": "{name}", "status": "cancelled", "refund": "{amount}", "date": "{date}"},
            (
                "Booking {order} is cancelled; {amount} will be back on your card within a week.",
                "I have cancelled it and started the refund of {amount}.",
            ),
        ),
    ),
)

_CODE: Final = Theme(
    "code",
    "You are a software engineer who works in a repository through tools: read_file, search, edit and run_tests. Find the cause before you change "
    "anything. Change as little as needed, run the tests after every change, and say what you saw. Never edit a test to make it pass. When you are "
    "done, describe the change in two sentences.",
    (
        Scene(
            ("{test} fails since {date}. Can you find out why?", "We have a bug in {file}: around line {line} the result is wrong."),
            (("search", {"pattern": "{test}", "path": "{file}"}), ("read_file", {"path": "{file}", "from_line": "{line}"})),
            {"path": "{file}", "line": "{line}", "text": "    return round(total, 2) if total else None  # see {test}"},
            (
                "The cause is in {file}, line {line}: the value is rounded before the parts are added up.",
                "{test} fails because {file} drops a case.",
            ),
        ),
        Scene(
            ("Please fix it and run the tests.", "Good. Change {file} accordingly and show me that {test} passes."),
            (("edit", {"path": "{file}", "line": "{line}", "text": "    return sum(parts)"}), ("run_tests", {"select": "{test}"})),
            {"test": "{test}", "outcome": "passed", "file": "{file}", "took_ms": "{milliseconds}"},
            (
                "{test} passes now, in {milliseconds} ms. I changed one line in {file}.",
                "Fixed in {file}: the sum is rounded once, at the end. All pass.",
            ),
        ),
        Scene(
            ("The search has become slow, {milliseconds} ms for one page. What takes so long?", "Profile {file}, please."),
            (("run_profile", {"path": "{file}", "seconds": "30"}),),
            {"function": "{file}:{line}", "calls": "{line}", "own_ms": "{milliseconds}", "share": "0.{line}"},
            (
                "Most of the time goes to {file}, line {line}: it reads the whole index for every row.",
                "{milliseconds} ms of it are one loop in {file}.",
            ),
        ),
    ),
)

THEMES: Final = (_SHOP, _TRAVEL, _CODE)
