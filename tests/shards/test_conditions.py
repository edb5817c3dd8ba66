"""Conditions: a mapping of names to columns, sliced by rows, that becomes an array in any order of names."""

from __future__ import annotations

import numpy as np
import pytest
from support import SMALL, toy

from calogen.errors import ShardError
from calogen.shards.conditions import Conditions

CONDITIONS = Conditions(["energy", "particle"], [[5, 0], [6, 1], [7, 0]], {"particle": ("gamma", "e+")})


def test_they_are_a_mapping_of_columns_and_rows_of_all_of_them() -> None:
    assert list(CONDITIONS) == ["energy", "particle"]
    assert (len(CONDITIONS), CONDITIONS.rows, "angle" in CONDITIONS) == (2, 3, False)
    assert {name: column.tolist() for name, column in CONDITIONS.items()} == {
        "energy": [5, 6, 7],
        "particle": [0, 1, 0],
    }
    for rows in (slice(1, 3), np.array([False, True, True]), np.array([1, 2])):
        some = CONDITIONS[rows]
        assert (some["energy"].tolist(), some.rows, some.labels) == ([6, 7], 2, CONDITIONS.labels)
    assert CONDITIONS.row(1) == {"energy": 6, "particle": 1}
    with pytest.raises(KeyError):
        CONDITIONS["angle"]


def test_the_array_has_the_order_of_the_names_asked_for() -> None:
    array = CONDITIONS.array(["particle", "energy"])
    assert array.tolist() == [[0, 5], [1, 6], [0, 7]]
    assert (array.dtype, array.flags.c_contiguous, CONDITIONS.array().shape) == (np.float32, True, (3, 2))
    assert CONDITIONS.array([]).shape == (3, 0)
    with pytest.raises(ShardError, match="lack the condition 'angle'"):
        CONDITIONS.array(["energy", "angle"])


def test_one_after_another_and_with_other_numbers_of_labels() -> None:
    both = Conditions.concatenate([CONDITIONS, CONDITIONS[:1].only(["particle", "energy"])])
    assert both["energy"].tolist() == [5, 6, 7, 5]
    other = both.relabelled({"particle": ("e-", "e+", "gamma")})
    assert other["particle"].tolist() == [2, 1, 2, 2]
    assert other.labels == {"particle": ("e-", "e+", "gamma")}


def test_samples_have_them_whatever_mapping_they_were_made_of() -> None:
    samples = toy(SMALL, 9)
    assert isinstance(samples.conditions, Conditions)
    some = samples.select(np.arange(9) % 2 == 0)
    np.testing.assert_array_equal(some.conditions["angle"], samples.conditions["angle"][::2])
    with pytest.raises(ShardError, match="'angle' and the samples differ in length"):
        Conditions.of({"angle": [1.0, 2.0]}, 3)
