"""Errors: one tree, and every error says enough."""

from __future__ import annotations

import json
import pickle

import pytest

from perdure import errors
from perdure.errors import Conflict, PerdureError

KINDS = [getattr(errors, name) for name in errors.__all__]


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_an_error_is_never_empty_and_survives_pickling(kind: type[PerdureError]) -> None:
    error = kind(hint="do this", tenant="t", agent="a", version=3, expected=4)
    assert error.message == str(error) != ""
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is kind
    assert again.as_dict() == error.as_dict()


def test_codes_are_unique() -> None:
    codes = [kind.code for kind in KINDS]
    assert len(set(codes)) == len(codes)


def test_an_error_as_plain_values_leaves_out_what_does_not_apply() -> None:
    assert Conflict("late", agent="a", version=3, expected=2).as_dict() == {
        "code": "conflict",
        "message": "late",
        "retryable": False,
        "agent": "a",
        "version": 3,
        "expected": 2,
    }
    assert json.loads(json.dumps(PerdureError("x").as_dict())) == {"code": "error", "message": "x", "retryable": False}


@pytest.mark.parametrize(
    ("kind", "exit_code"),
    [
        (errors.PerdureError, 1),
        (errors.InvalidPatch, 2),
        (errors.AgentNotFound, 3),
        (errors.Fenced, 4),
        (errors.ChainBroken, 5),
        (errors.Overloaded, 6),
        (errors.KeyUnavailable, 7),
    ],
)
def test_exit_codes_follow_the_branch_of_the_tree(kind: type[PerdureError], exit_code: int) -> None:
    assert kind.exit_code == exit_code


def test_only_what_is_unavailable_can_be_retried() -> None:
    assert all(kind.retryable is issubclass(kind, errors.Unavailable) for kind in KINDS)
