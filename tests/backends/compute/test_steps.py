"""Functions that work in steps."""

from __future__ import annotations

import pytest

from storage_backends.compute import steps


def test_a_step_is_done_for_all_before_the_next() -> None:
    done: list[tuple[str, int]] = []

    def work(item: int) -> steps.Steps[None]:
        done.append(("first", item))
        yield
        done.append(("second", item))
        for _ in range(item):
            yield
        done.append(("last", item))

    steps.together(work, [2, 0, 1])
    assert done == [
        *(("first", item) for item in (2, 0, 1)),
        *[("second", 2), ("second", 0), ("last", 0), ("second", 1)],
        *[("last", 1), ("last", 2)],
    ]


def test_functions_without_steps_are_called_in_order() -> None:
    done: list[int] = []
    steps.together(done.append, range(5))
    assert done == [*range(5)]


def test_the_result_of_steps() -> None:
    def one() -> steps.Steps[int]:
        yield
        return 3

    def several() -> steps.Steps[int]:
        return (yield from one()) + (yield from one())

    assert steps.result(several()) == 6


def test_an_error_ends_the_steps_of_all() -> None:
    ended: list[int] = []

    def work(item: int) -> steps.Steps[None]:
        try:
            yield
            if item == 1:
                raise OSError(f"{item} is damaged")
            yield
        finally:
            ended.append(item)

    # The error is kept, and with it the frames of its traceback.
    with pytest.raises(OSError, match="1 is damaged") as error:
        steps.together(work, range(3))
    assert sorted(ended) == [0, 1, 2]
    assert error.value.__traceback__
