"""Made-up agent events: what customer-service, coding and research agents write, for training the built-in dictionary.

Every sentence here was written for this file. `generate` is deterministic for a seed.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from random import Random
from typing import Any

Message = dict[str, Any]

NAMES = [
    "anna",
    "ben",
    "carla",
    "david",
    "emma",
    "felix",
    "grace",
    "henry",
    "ines",
    "jonas",
    "kate",
    "liam",
    "mia",
    "noah",
    "olivia",
    "paul",
    "rosa",
    "sam",
    "tina",
    "victor",
]
CITIES = ["New York", "Boston", "Chicago", "Denver", "Seattle", "San Francisco", "London", "Paris", "Berlin", "Madrid", "Tokyo", "Toronto"]
THINGS = [
    "order",
    "account",
    "reservation",
    "booking",
    "refund",
    "payment",
    "invoice",
    "subscription",
    "ticket",
    "delivery",
    "return",
    "password",
]
STATUSES = [
    "pending",
    "processed",
    "shipped",
    "delivered",
    "cancelled",
    "confirmed",
    "available",
    "active",
    "closed",
    "failed",
    "completed",
]
FILES = [
    "src/main.py",
    "src/utils.py",
    "tests/test_main.py",
    "setup.py",
    "README.md",
    "src/models/user.py",
    "lib/parser.py",
    "config/settings.py",
]
SYMBOLS = [
    "parse_config",
    "load_data",
    "get_user",
    "validate_input",
    "process_request",
    "to_string",
    "write_output",
    "find_matches",
    "update_state",
]
ERRORS = [
    "ValueError",
    "TypeError",
    "KeyError",
    "AttributeError",
    "IndexError",
    "ImportError",
    "RuntimeError",
    "FileNotFoundError",
    "AssertionError",
]
TOPICS = ["population", "revenue", "temperature", "opening hours", "publication date", "distance", "price", "author", "number of employees"]
TOOLS: dict[str, tuple[str, ...]] = {
    "get_user_details": ("user_id",),
    "get_order_details": ("order_id",),
    "get_reservation_details": ("reservation_id",),
    "search_web": ("query", "max_results"),
    "search_products": ("query", "category", "max_price"),
    "cancel_order": ("order_id", "reason"),
    "update_address": ("user_id", "address1", "address2", "city", "state", "country", "zip"),
    "send_email": ("to", "subject", "body"),
    "book_flight": ("user_id", "origin", "destination", "date", "passengers", "payment_id"),
    "calculate": ("expression",),
    "read_file": ("path", "start_line", "end_line"),
    "edit_file": ("path", "old_text", "new_text"),
    "run_command": ("command", "timeout"),
    "transfer_to_human_agent": ("summary",),
}

USER_LINES = (
    "Hi, I need help with my {thing}. I would like to change it, please.",
    "Hello! I'd like to cancel my {thing} because my plans have changed. Can you help me with that?",
    "My user id is {name}_{number}. My {thing} number is #{code}.",
    "Yes, that is correct. Please proceed with the {thing}.",
    "Thank you for your help! That's all I needed today.",
    "No, I don't remember my {thing} number, but I can give you my name and email: {name}{number}@example.com.",
    "I'm not sure about that. Could you please tell me what other options are available?",
    "I want to travel from {city} to {city2} on {date}. What is the cheapest option?",
    "Why was I charged ${price} for this {thing}? I was told it would be less than that.",
    "Can you look into why {symbol} in {file} raises {error}?",
    "What is the {topic} of {city}? Please answer with a single number.",
)
ASSISTANT_LINES = (
    "I'm sorry to hear that. Could you please provide your user id so that I can look up your {thing}?",
    "Thank you for providing your information, {name}. I have found your {thing} with the number #{code}.",
    "To proceed with your {thing}, I need your confirmation. Would you like me to continue? (yes/no)",
    "Your {thing} has been successfully {status}. The total amount of ${price} will be refunded to your original payment method within "
    "5 to 7 business days.",
    "Here are the details of your {thing}:\n\n- **Status**: {status}\n- **From**: {city}\n- **To**: {city2}\n- **Date**: {date}\n"
    "- **Price**: ${price}\n\nIs there anything else I can help you with?",
    "I understand that you would like to change your {thing}. Unfortunately, I am unable to do that because it has already been {status}.",
    "You're welcome! If you have any more questions or need further assistance, feel free to ask. Have a great day!",
    "Let me check the available options for you. One moment, please.",
    "First, I will reproduce the problem. Then I will look at the function `{symbol}` in `{file}` to find out why it raises `{error}`.",
    "The test passes now. Let me run the whole test suite to make sure that nothing else is broken.",
    "We need to find the {topic} of {city}. According to the search results, the answer is {number}.",
    "Based on the information above, I need to verify the {topic} with another source before I give the final answer.",
    "There seems to be an error in the code. Let's fix it and run it again:\n\n```python\n{code_block}\n```",
    "I have made the following changes:\n\n1. Updated `{symbol}` in `{file}` to handle the missing value.\n2. Added a test for it.\n",
)
SYSTEM_LINES = (
    "You are a helpful assistant. You can use the tools that are provided to help the user. Make only one tool call at a time, and do not "
    "make up any information that was not provided by the user or the tools.",
    "# Policy\n\nAs a customer service agent, you can help users to cancel or modify a {thing}.\n\n- Before you take any action that "
    "changes the database, list the details of the action and obtain explicit confirmation (yes) from the user.\n- You should deny "
    "requests that are against this policy.\n- Transfer the user to a human agent if and only if the request cannot be handled.\n",
    "You are an autonomous programmer working in a repository. You have access to a shell and a file editor. Your task is to resolve the "
    "issue that is described below. Always think step by step before you run a command.\n\nISSUE:\n`{symbol}` raises {error} in `{file}`.",
    "You are the orchestrator of a team of agents: WebSurfer, Coder, FileReader and Reviewer. Make a plan, assign the next task to one of "
    "them, and check whether the request is satisfied. The current date is {date}.",
)
CODE_BLOCKS = (
    "def {symbol}(self, value: str, default: int | None = None) -> dict[str, Any]:\n    if value is None:\n        return default\n"
    "    for index, item in enumerate(self.items):\n        if item.name == value:\n            return item\n"
    '    raise {error}(f"not found: {{value}}")\n',
    "import os\nimport sys\nimport json\nimport requests\n\ntry:\n    with open('{file}', 'r') as f:\n        data = json.load(f)\n"
    "except Exception as e:\n    print('Error:', e)\nelse:\n    print(data['{topic}'])\n",
    "class {name}(unittest.TestCase):\n    def setUp(self):\n        self.client = Client()\n\n    def test_{symbol}(self):\n"
    "        result = {symbol}('{city}')\n        self.assertEqual(result, {number})\n",
)
OUTPUTS = (
    'Traceback (most recent call last):\n  File "{file}", line {number}, in <module>\n    main()\n  File "{file}", line {number}, in '
    "{symbol}\n    return {symbol}(value)\n{error}: unsupported value for '{name}'\n",
    "============================= test session starts ==============================\nplatform linux -- Python 3.11, pytest\n"
    "collected {number} items\n\n{file} ......F..                                    [100%]\n\n"
    "FAILED {file}::test_{symbol} - {error}\n1 failed, {number} passed in 0.{number}s\n",
    "[File: {file} ({number} lines total)]\n(12 more lines above)\n13:\n14:def {symbol}(value):\n15:    return value\n"
    "(80 more lines below)\n(Current directory: /repo)\n(Open file: /repo/{file})\nbash-$",
    "total {number}\ndrwxr-xr-x  2 root root  4096 Jan  1 00:00 .\n-rw-r--r--  1 root root  {number} Jan  1 00:00 {file}\n",
    "Title: {topic} of {city} - an overview\nURL: https://www.example.com/{name}/{symbol}\nSnippet: The {topic} of {city} was {number} in "
    "2023, compared to {number} in the year before.\n",
    "Exit code: 0\nCode output: {number}\n",
    "Your command ran successfully and did not produce any output.",
    "Error: {thing} not found",
)


def generate(seed: int, conversations: int) -> Iterator[list[Any]]:
    """Payloads of events in the layout in which the log encodes them, conversation after conversation."""
    random = Random(seed)  # noqa: S311 - repeatable on purpose
    for _ in range(conversations):
        tools = random.sample(sorted(TOOLS), 4)
        messages = [_say("system", SYSTEM_LINES, random)]
        for _ in range(random.randint(2, 7)):
            messages.append(_say("user", USER_LINES, random))
            messages.extend(_turn(random, tools))
            messages.append(_say("assistant", ASSISTANT_LINES, random))
        for message in messages:
            yield _payload(message, random)


def _fill(template: str, random: Random) -> str:
    name, number = random.choice(NAMES), random.randint(2, 9_999)
    return template.format(
        name=name,
        number=number,
        thing=random.choice(THINGS),
        status=random.choice(STATUSES),
        city=random.choice(CITIES),
        city2=random.choice(CITIES),
        date=f"2024-{random.randint(1, 12):02d}-{random.randint(1, 28):02d}",
        price=random.randint(10, 900),
        code=f"{random.getrandbits(32):08X}",
        symbol=random.choice(SYMBOLS),
        file=random.choice(FILES),
        error=random.choice(ERRORS),
        topic=random.choice(TOPICS),
        code_block="" if "{code_block}" not in template else _fill(random.choice(CODE_BLOCKS), random),
    )


def _say(role: str, lines: tuple[str, ...], random: Random) -> Message:
    text = " ".join(_fill(random.choice(lines), random) for _ in range(random.choice((1, 1, 1, 2))))
    return {"role": role, "content": text}


def _turn(random: Random, tools: list[str]) -> list[Message]:
    kind: Callable[[Random, list[str]], list[Message]] = random.choice((_tool_call, _tool_call, _shell_step, _team_step))
    return kind(random, tools)


def _tool_call(random: Random, tools: list[str]) -> list[Message]:
    name = random.choice(tools)
    arguments = {argument: _value(argument, random) for argument in TOOLS[name]}
    call_id = "call_" + "".join(random.choices("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789", k=24))
    function = {"arguments": json.dumps(arguments), "name": name}
    call: Message = {"content": None, "role": "assistant", "tool_calls": [{"id": call_id, "function": function, "type": "function"}]}
    if random.random() < 0.5:
        call |= {"function_call": None}
    result = _result(random) if random.random() < 0.7 else _fill(random.choice(OUTPUTS), random)
    return [call, {"role": "tool", "tool_call_id": call_id, "name": name, "content": result}]


def _shell_step(random: Random, _tools: list[str]) -> list[Message]:
    action = _fill(random.choice(('search_dir "{symbol}" src', "open {file} {number}", "python {file}", "ls -la", "submit")), random)
    thought = _fill(random.choice(ASSISTANT_LINES), random)
    output = _fill(random.choice(OUTPUTS), random)
    step = {"action": action, "observation": output, "response": f"{thought}\n\n```\n{action}\n```", "thought": thought}
    said = {"role": "assistant", "content": step["response"], "thought": thought, "action": action, "agent": "primary"}
    return [said | {"state": json.dumps({"open_file": "n/a", "working_dir": "/repo"})}, {"role": "user", "content": output}, step]


def _team_step(random: Random, _tools: list[str]) -> list[Message]:
    agent = random.choice(("WebSurfer", "Coder", "FileReader", "Reviewer"))
    plan = {
        "is_request_satisfied": {"reason": _fill(ASSISTANT_LINES[11], random), "answer": False},
        "is_in_loop": {"reason": "The last steps made progress.", "answer": False},
        "next_speaker": {"reason": "The next step needs a look at a web page.", "answer": agent},
    }
    return [
        {"role": "Orchestrator (thought)", "content": json.dumps(plan, indent=4)},
        {"role": f"Orchestrator (-> {agent})", "content": _fill("Please look up the {topic} of {city}.", random)},
        {"role": "assistant", "name": agent, "content": _fill(random.choice(OUTPUTS), random)},
    ]


def _value(argument: str, random: Random) -> Any:
    if argument in {"passengers"}:
        return [{"first_name": random.choice(NAMES).title(), "last_name": random.choice(NAMES).title(), "dob": _fill("{date}", random)}]
    if argument.endswith(("results", "line", "timeout", "price")):
        return random.randint(1, 500)
    if argument.endswith("_id"):
        return _fill(random.choice(("{name}_{number}", "#W{number}", "{code}")), random)
    return _fill(random.choice(("{city}", "{file}", "{topic} of {city}", "{date}", "{name}{number}@example.com")), random)


def _result(random: Random) -> str:
    person = random.choice(NAMES)
    record = {
        "name": {"first_name": person.title(), "last_name": random.choice(NAMES).title()},
        "address": {
            "address1": f"{random.randint(1, 999)} Main Street",
            "address2": f"Suite {random.randint(1, 999)}",
            "city": random.choice(CITIES),
            "country": "USA",
            "state": random.choice(["NY", "CA", "TX", "WA", "IL", "CO"]),
            "zip": str(random.randint(10_000, 99_999)),
        },
        "email": f"{person}{random.randint(1, 999)}@example.com",
        "status": random.choice(STATUSES),
        "payment_methods": {f"credit_card_{random.randint(1_000_000, 9_999_999)}": {"source": "credit_card", "brand": "visa"}},
        "items": [
            {
                "name": random.choice(THINGS),
                "item_id": str(random.getrandbits(33)),
                "price": round(random.uniform(5, 600), 2),
                "options": {},
            }
            for _ in range(random.randint(1, 3))
        ],
        "created_at": _fill("{date}T10:15:00", random),
    }
    return json.dumps({key: record[key] for key in random.sample(sorted(record), random.randint(3, len(record)))})


def _payload(message: Message, random: Random) -> list[Any]:
    changes: list[Any] = [["append", ["messages"], message]]
    if random.random() < 0.3:
        changes.append(["set", [random.choice(("status", "step", "current_task"))], random.choice(("running", "waiting", "done"))])
    data = None if random.random() < 0.7 else {"model": "default", "usage": {"prompt_tokens": 100, "completion_tokens": 20}}
    return [changes, data, {}, random.choice(("", "sdk")), random.choice(("", "agent", "user")), 1, True]
