"""What every state cache must do with builds beside what is read; a part of the kit (`perdure.testing.cache_kit`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from perdure.projections.contract import CachedState, CellWrite, CutOver, Outcome, StateCache, Token

__all__ = ["CacheBuildCases", "step", "whole"]

BUILD = 7


def whole(agent: tuple[str, str], token: Token, cells: Mapping[bytes, bytes], *, layout: str = "") -> CellWrite:
    """A write that replaces whatever is older."""
    return CellWrite(*agent, None, token, dict(cells), (), len(cells), layout)


def step(
    agent: tuple[str, str],
    expected: int,
    token: Token,
    put: Mapping[bytes, bytes],
    *,
    remove: Sequence[bytes] = (),
    count: int,
    layout: str = "",
) -> CellWrite:
    """A write that goes on from a version."""
    return CellWrite(*agent, expected, token, dict(put), tuple(remove), count, layout)


class CacheBuildCases:
    """Tests on the fixtures `cache` and `agent` of the kit."""

    async def test_what_is_built_is_not_read_until_it_is_cut_over(self, cache: StateCache, agent: tuple[str, str]) -> None:
        old, new = Token(1, 0, 3), Token(1, 0, 4)
        await cache.apply([whole(agent, old, {b"a": b"old"})])
        assert await cache.build(BUILD, [whole(agent, new, {b"a": b"new"}, layout="ab12")]) == [new]
        assert (await cache.tokens([agent]), await cache.built(BUILD, [agent])) == ([old], [new])
        assert await cache.get([agent]) == [CachedState(old, {b"a": b"old"})]
        assert await cache.cut_over(BUILD, [agent]) == [CutOver(Outcome.DONE, new)]
        assert await cache.get([agent]) == [CachedState(new, {b"a": b"new"}, "ab12", BUILD)]
        assert (await cache.token(*agent), await cache.built(BUILD, [agent])) == (new, [None])

    async def test_a_built_state_of_the_same_version_takes_the_place_and_one_that_is_behind_does_not(
        self, cache: StateCache, agent: tuple[str, str]
    ) -> None:
        token = Token(1, 0, 3)
        await cache.apply([whole(agent, token, {b"a": b"wrong"})])
        await cache.build(BUILD, [whole(agent, token, {b"a": b"right"})])
        assert await cache.cut_over(BUILD, [agent]) == [CutOver(Outcome.DONE, token)]
        await cache.build(BUILD + 1, [whole(agent, token, {b"a": b"late"})])
        newer = token._replace(version=4)
        await cache.apply([step(agent, 3, newer, {b"a": b"newer"}, count=1)])
        assert await cache.cut_over(BUILD + 1, [agent]) == [CutOver(Outcome.BEHIND, newer)]
        assert await cache.get([agent]) == [CachedState(newer, {b"a": b"newer"}, "", BUILD)]
        assert await cache.build(BUILD + 1, [whole(agent, newer, {b"a": b"again"})]) == [newer]
        assert await cache.cut_over(BUILD + 1, [agent]) == [CutOver(Outcome.DONE, newer)]

    async def test_an_older_build_never_comes_back_however_new_its_state(self, cache: StateCache, agent: tuple[str, str]) -> None:
        token, newer = Token(1, 0, 3), Token(1, 0, 9)
        await cache.build(BUILD, [whole(agent, newer, {b"a": b"zombie"})])
        await cache.build(BUILD + 1, [whole(agent, token, {b"a": b"1"})])
        assert await cache.cut_over(BUILD + 1, [agent]) == [CutOver(Outcome.DONE, token)]
        assert await cache.cut_over(BUILD, [agent]) == [CutOver(Outcome.OVER, token)]
        assert await cache.built(BUILD, [agent]) == [None]
        # Whole writes and steps keep the number.
        await cache.apply([whole(agent, Token(1, 0, 4), {b"a": b"4"}), step(agent, 4, Token(1, 0, 5), {b"a": b"5"}, count=1)])
        await cache.build(BUILD, [whole(agent, newer, {b"a": b"zombie"})])
        assert [each.outcome for each in await cache.cut_over(BUILD, [agent])] == [Outcome.OVER]
        assert await cache.get([agent]) == [CachedState(Token(1, 0, 5), {b"a": b"5"}, "", BUILD + 1)]

    async def test_the_same_cut_over_twice_changes_nothing_more(self, cache: StateCache, agent: tuple[str, str]) -> None:
        other = (agent[0], "other")
        assert await cache.cut_over(BUILD, [agent]) == [CutOver(Outcome.NOTHING, None)]
        await cache.apply([whole(other, Token(1, 0, 1), {})])
        assert await cache.cut_over(BUILD, [other]) == [CutOver(Outcome.NOTHING, Token(1, 0, 1))]
        await cache.build(BUILD, [whole(agent, Token(1, 0, 1), {b"a": b"1"})])
        await cache.cut_over(BUILD, [agent])
        assert await cache.cut_over(BUILD, [agent]) == [CutOver(Outcome.OVER, Token(1, 0, 1))]

    async def test_what_is_discarded_is_gone_and_what_is_read_stays(self, cache: StateCache, agent: tuple[str, str]) -> None:
        await cache.apply([whole(agent, Token(1, 0, 1), {b"a": b"1"})])
        await cache.build(BUILD, [whole(agent, Token(1, 0, 2), {b"a": b"2"})])
        await cache.discard(BUILD, [agent])
        await cache.discard(BUILD + 1, [agent])
        assert await cache.built(BUILD, [agent]) == [None]
        assert await cache.cut_over(BUILD, [agent]) == [CutOver(Outcome.NOTHING, Token(1, 0, 1))]

    async def test_a_step_lands_on_no_cells_but_those_of_its_own_whole_write(self, cache: StateCache, agent: tuple[str, str]) -> None:
        token, next_token = Token(1, 0, 3), Token(1, 0, 4)
        await cache.apply([whole(agent, token, {b"a": b"1"}, layout="0a")])
        await cache.build(BUILD, [whole(agent, token, {b"a": b"1"}, layout="0b")])
        await cache.cut_over(BUILD, [agent])
        zombie = step(agent, 3, next_token, {b"a": b"x"}, count=1, layout="0a")
        assert await cache.apply([zombie]) == [token]
        assert await cache.apply([zombie._replace(layout="0b")]) == [next_token]
        assert await cache.get([agent]) == [CachedState(next_token, {b"a": b"x"}, "0b", BUILD)]
