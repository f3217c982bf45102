import pytest

from quota.levels import DEFAULT_PLAN, FEATURES, Dimension, Layer, Level, LimitError, Limits, Plan

WHERE = "quota.plans.default.account"


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"rpm": "many"}, 'rpm: expected an integer >= 0, got "many"'),
        ({"rpm": -1}, "rpm: expected an integer >= 0, got -1"),
        ({"rpm": 1.5}, "rpm: expected an integer >= 0, got 1.5"),
        ({"tpm": True}, "tpm: expected an integer >= 0, got true"),
        ({"concurrent": None}, "concurrent: expected an integer >= 0, got null"),
        ({"concurrent": [1]}, "concurrent: expected an integer >= 0, got [1]"),
        ({"rpm": 10**11 + 1}, "rpm: expected at most 100000000000, got 100000000001"),
        ({"two words": 1}, '"two words": unknown limit, expected one of ' + ", ".join(Dimension)),
    ],
)
def test_a_bad_limit_is_named_by_its_path(table: object, message: str) -> None:
    with pytest.raises(LimitError) as error:
        Limits.parse(table, WHERE)
    assert str(error.value) == f"{WHERE}.{message}"


def test_a_limits_table_must_be_a_table() -> None:
    with pytest.raises(LimitError, match=r"^quota\.x: expected a table of limits, got 5$"):
        Limits.parse(5, "quota.x")


def test_an_error_stays_one_short_line() -> None:
    with pytest.raises(LimitError) as error:
        Limits.parse({"rpm": "a\nb" * 1000}, WHERE)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 200


def test_limits_parse() -> None:
    limits = Limits.parse({"rpm": 0, "tokens_per_month": 10**12}, WHERE)
    assert limits == Limits(rpm=0, tokens_per_month=10**12)
    assert limits.items() == [(Dimension.RPM, 0), (Dimension.TOKENS_PER_MONTH, 10**12)]
    assert limits
    assert not Limits()


def test_largest_limits_are_exact_in_a_double() -> None:
    for dimension in Dimension:
        scale = 60_000 if dimension.kind == "bucket" else 1
        assert dimension.max_limit * scale < 2**53


def test_plan_parse() -> None:
    plan = Plan.parse(
        "pro",
        {
            "account": {"rpm": 600},
            "key": {"rpm": 300},
            "models": {"big@2024.11": {"tpm": 5}},
            "features": {"websocket": {"concurrent": 16}},
        },
    )
    assert plan == Plan(
        "pro",
        account=Limits(rpm=600),
        key=Limits(rpm=300),
        models={"big@2024.11": Limits(tpm=5)},
        features={"websocket": Limits(concurrent=16)},
    )


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ([], "quota.plans.pro: expected a table, got []"),
        ({"modles": {}}, "quota.plans.pro.modles: unknown key, expected account, key, models or features"),
        ({"models": 3}, "quota.plans.pro.models: expected a table of tables of limits, got 3"),
        ({"models": {"m": 3}}, "quota.plans.pro.models.m: expected a table of limits, got 3"),
        (
            {"models": {"m@1": {"rpm": "x"}}},
            'quota.plans.pro.models."m@1".rpm: expected an integer >= 0, got "x"',
        ),
        (
            {"features": {"telepathy": {}}},
            "quota.plans.pro.features.telepathy: unknown feature, expected one of " + ", ".join(sorted(FEATURES)),
        ),
    ],
)
def test_a_bad_plan_is_named_by_its_path(table: object, message: str) -> None:
    with pytest.raises(LimitError) as error:
        Plan.parse("pro", table)
    assert str(error.value) == message


def test_layers_of_a_request() -> None:
    plan = Plan(
        "p",
        account=Limits(rpm=1),
        key=Limits(rpm=2),
        models={"m": Limits(rpm=3), "m@1": Limits(rpm=4), "m@2": Limits(rpm=5), "n": Limits(rpm=6)},
        features={"tools": Limits(rpm=7), "chat": Limits(rpm=8), "vision": Limits(rpm=9)},
    )
    assert plan.layers("k1", "m", "1", ["tools", "chat", "stream"]) == (
        Layer(Level.ACCOUNT, "", Limits(rpm=1)),
        Layer(Level.KEY, "k1", Limits(rpm=2)),
        Layer(Level.MODEL, "m", Limits(rpm=3)),
        Layer(Level.MODEL, "m@1", Limits(rpm=4)),
        Layer(Level.FEATURE, "chat", Limits(rpm=8)),
        Layer(Level.FEATURE, "tools", Limits(rpm=7)),
    )


def test_a_layer_without_limits_is_left_out() -> None:
    plan = Plan("p", models={"m": Limits()}, features={"chat": Limits()})
    assert plan.layers("k1", "m", "1", ["chat"]) == ()
    assert Plan.parse("p", {}).layers("k1", "m", "1", ["chat"]) == ()


def test_a_keys_own_limits_stand_in_place_of_the_plans_one_by_one() -> None:
    plan = Plan("p", key=Limits(rpm=100, tpm=100))
    (layer,) = plan.layers("k1", "m", "1", [], key_limits=Limits(rpm=0, concurrent=2))
    assert layer.limits == Limits(rpm=0, tpm=100, concurrent=2)


def test_default_plan() -> None:
    assert DEFAULT_PLAN.account == Limits(rpm=6000, tpm=10_000_000, concurrent=256)
