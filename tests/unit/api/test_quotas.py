from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from instructpt.api.quotas import Share, share_tokens, split_tokens
from instructpt.errors import ConfigError


def share(name: str, available: int, **fields: object) -> Share:
    return Share(name=name, available=available, **fields)  # type: ignore[arg-type]


shares = st.lists(
    st.builds(
        Share,
        name=st.just("s"),
        available=st.integers(0, 10_000),
        weight=st.floats(0.001, 1000),
        repeats=st.none() | st.integers(1, 5),
        max_tokens=st.none() | st.integers(1, 20_000),
        max_repeats=st.integers(1, 5),
    ),
    min_size=1,
    max_size=8,
)


@given(shares=shares, tokens=st.integers(1, 100_000))
@settings(max_examples=300, deadline=None)
def test_quotas_add_up_keep_to_caps_and_repeats_and_have_the_ratio_of_the_weights(
    shares: list[Share], tokens: int
) -> None:
    try:
        quotas = share_tokens(tokens, shares)
    except ConfigError:
        return
    assert sum(quotas) == tokens
    free = []
    for quota, s in zip(quotas, shares, strict=True):
        assert 0 <= quota <= s.most
        if s.fixed is not None:
            assert quota == s.fixed
        elif quota != s.max_tokens:
            free.append((quota, s.weight))
    total, weights = sum(q for q, _ in free), sum(w for _, w in free)
    for quota, weight in free:
        assert abs(quota - total * weight / weights) <= 1 + 1e-9 * total


def test_the_two_settings_of_the_paper() -> None:
    general = [share("augmented", 60 * 10**9), share("tuning", 200 * 10**6, repeats=4)]
    assert share_tokens(100 * 10**9, general) == [99_200_000_000, 800_000_000]
    domain = [share("augmented", 3 * 10**9), share("instructions", 2 * 10**9)]
    assert share_tokens(8 * 10**9, domain) == [4 * 10**9, 4 * 10**9]


def test_what_is_over_a_cap_goes_to_the_others_by_weight() -> None:
    capped = [share("a", 1000, weight=2), share("b", 1000, max_tokens=50), share("c", 1000)]
    assert share_tokens(650, capped) == [400, 50, 200]
    # A cap that the others' caps push it over holds as well.
    assert share_tokens(100, [share("a", 99, max_tokens=30), share("b", 99, max_tokens=60), share("c", 99)]) == [
        30, 35, 35,
    ]  # fmt: skip
    assert share_tokens(150, [share("a", 30, repeats=4, max_tokens=100), share("b", 50)]) == [100, 50]


def refused(tokens: int, *shares: Share) -> str:
    with pytest.raises(ConfigError) as error:
        share_tokens(tokens, shares)
    return str(error.value)


def test_an_empty_source_is_refused() -> None:
    text = refused(10, share("none", 0), share("a", 10))
    assert "source 'none' is empty: it has 0 tokens" in text


def test_too_many_repeats_are_refused_with_the_numbers_and_the_budget_that_would_do() -> None:
    text = refused(1000, share("small", 100), share("large", 10_000))
    assert "'small' is to give 500 tokens, but has 100 and may be read 4 times; it would be read 5.0 times" in text
    assert "lower tokens to 801" in text or "lower tokens to 800" in text
    assert "maxRepeats to 5" in text
    share_tokens(800, [share("small", 100), share("large", 10_000)])
    share_tokens(1000, [share("small", 100, max_tokens=400), share("large", 10_000)])


def test_repeats_above_the_budget_and_caps_below_it_are_refused() -> None:
    assert "the sources with repeats alone give 400 tokens (a 400)" in refused(
        300, share("a", 100, repeats=4), share("b", 9)
    )
    assert "allow 450 tokens" in refused(500, share("a", 100, repeats=4), share("b", 100, max_tokens=50))


def test_explicit_repeats_are_no_matter_for_max_repeats() -> None:
    assert share_tokens(1100, [share("a", 100, repeats=10, max_repeats=4), share("b", 100)]) == [1000, 100]


def test_split_tokens_adds_up() -> None:
    assert split_tokens(10, [1, 1, 1]) == [4, 3, 3]
    assert split_tokens(1_000_000_007, [0.7, 0.3]) == [700000005, 300000002]
