"""Vectors as they are given, and scores as they are computed from them."""

from __future__ import annotations

import numpy as np
import pytest

from engines.types import Task, VectorInfo
from server.errors import InvalidRequest, UnsupportedParameter
from server.vectors import Shape, _check_dimensions, scores
from server.wire.rerank import Comparison, Side


def data(*numbers: float) -> bytes:
    return np.array(numbers, "<f4").tobytes()


def test_a_cut_vector_is_of_length_one_where_the_whole_one_is() -> None:
    vector = data(0.6, 0.0, 0.8)
    assert Shape(None, normalized=True).of(vector) is vector
    assert Shape(3, normalized=True).of(vector) is vector
    assert Shape(2, normalized=True).of(vector) == data(1.0, 0.0)
    assert Shape(2, normalized=False).of(vector) == data(0.6, 0.0)
    assert Shape(1, normalized=True).of(data(0.0, 1.0)) == data(0.0)


def test_dimensions_that_a_model_was_trained_for() -> None:
    info = VectorInfo(8, truncates=True, dimensions=[2, 4])
    for given in (None, 8, 4):
        _check_dimensions(given, info)
    with pytest.raises(InvalidRequest, match="expected one of 2, 4"):
        _check_dimensions(3, info)
    with pytest.raises(InvalidRequest, match="vectors have 8, which is less than 9"):
        _check_dimensions(9, info)
    with pytest.raises(UnsupportedParameter, match="can't be shortened from 8"):
        _check_dimensions(4, VectorInfo(8))


def test_scores() -> None:
    one = Comparison(Side("q", ["a"]), Side("d", ["b", "c"]))
    vectors = [data(2, 0), data(1, 1), data(0, 0)]
    assert scores(vectors, one, Task.EMBED) == [pytest.approx(2**-0.5), 0.0]
    two = Comparison(Side("q", ["a", "b"]), Side("d", ["c", "d"]))
    assert scores([data(1, 0), data(0, 1), data(1, 0), data(0, -3)], two, Task.EMBED) == [1.0, -1.0]
    assert scores([data(0.5), data(0.25)], one, Task.SCORE) == [0.5, 0.25]
    assert list(one.lefts()) == ["a", "a"]
