"""How a budget of tokens is shared among sources: repeats first, the rest by weight below caps. Exact and pure.

The same arithmetic refuses a mixture in the plan, as soon as the sizes of its sources are known, and again in the
worker before a weight is loaded.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

from instructpt.errors import ConfigError


@dataclass(frozen=True, slots=True, kw_only=True)
class Share:
    """What a source is to give.

    Attributes:
        name: In receipts and errors.
        available: Tokens of one pass over it.
        weight: Share of the tokens, relative to the other sources with a weight; not read where ``repeats`` is set.
        repeats: Passes over it, exactly so many; None shares by weight.
        max_tokens: Tokens at most; what is over it goes to the sources with a weight. None sets no limit.
        max_repeats: Passes over it at most, where it shares by weight.
    """

    name: str
    available: int
    weight: float = 1.0
    repeats: int | None = None
    max_tokens: int | None = None
    max_repeats: int = 4

    @property
    def fixed(self) -> int | None:
        """Tokens that it gives whatever the budget; None where it shares by weight."""
        if self.repeats is None:
            return None
        whole = self.repeats * self.available
        return whole if self.max_tokens is None else min(whole, self.max_tokens)

    @property
    def most(self) -> int:
        """Tokens that it can give."""
        limit = (self.repeats or self.max_repeats) * self.available
        return limit if self.max_tokens is None else min(limit, self.max_tokens)


def share_tokens(tokens: int, shares: Sequence[Share]) -> list[int]:
    """Tokens of each source; they add up to the budget exactly.

    Args:
        tokens: The budget.
        shares: The sources, in the order of the mixture.

    Raises:
        ConfigError: A source is empty, or has fewer tokens than its share even when it is read as often as it may;
            repeats alone are more than the budget; or repeats and caps leave a part of the budget to nobody.
    """
    for share in shares:
        if share.available <= 0:
            raise ConfigError(
                f"source {share.name!r} is empty: it has 0 tokens",
                field=f"mixture[{share.name}]",
                value=share.available,
                fix="drop it, or look at what it reads (split, format, field names)",
            )
    quotas, rest = _split(tokens, shares)
    if rest:
        raise _unmet(tokens, rest, shares)
    for share, quota in zip(shares, quotas, strict=True):
        if quota > share.most:
            raise _exhausted(tokens, share, quota, shares)
    return quotas


def _split(tokens: int, shares: Sequence[Share]) -> tuple[list[int], int]:
    """Quotas without regard to what is there, and what of the budget is left over (below 0: what is too much)."""
    quotas = [share.fixed or 0 for share in shares]
    rest = tokens - sum(quotas)
    open_ = [i for i, share in enumerate(shares) if share.fixed is None]
    while rest > 0 and open_:
        parts = split_tokens(rest, [shares[i].weight for i in open_])
        caps = {i: shares[i].max_tokens for i in open_}
        over = [i for i, part in zip(open_, parts, strict=True) if (cap := caps[i]) is not None and part > cap]
        if not over:
            for i, part in zip(open_, parts, strict=True):
                quotas[i] = part
            return quotas, 0
        for i in over:
            quotas[i] = caps[i] or 0
            rest -= quotas[i]
        open_ = [i for i in open_ if i not in over]
    return quotas, rest


def _unmet(tokens: int, rest: int, shares: Sequence[Share]) -> ConfigError:
    fixed = sum(share.fixed or 0 for share in shares)
    if rest < 0:
        named = ", ".join(f"{s.name} {s.fixed:,}" for s in shares if s.fixed is not None)
        return ConfigError(
            f"the sources with repeats alone give {fixed:,} tokens ({named})",
            field="tokens",
            value=tokens,
            fix=f"raise tokens to {fixed} or more, or lower repeats",
        )
    return ConfigError(
        f"repeats and maxTokens of the mixture allow {tokens - rest:,} tokens",
        field="tokens",
        value=tokens,
        fix=f"lower tokens to {tokens - rest}, raise maxTokens, or add a source with a weight",
    )


def _exhausted(tokens: int, share: Share, quota: int, shares: Sequence[Share]) -> ConfigError:
    """Which budget would do is found by bisection: every quota grows with the budget."""
    low, high = 0, tokens
    while low < high:
        middle = (low + high + 1) // 2
        quotas, rest = _split(middle, shares)
        fits = rest <= 0 and all(q <= s.most for q, s in zip(quotas, shares, strict=True))
        low, high = (middle, high) if fits else (low, middle - 1)
    return ConfigError(
        f"source {share.name!r} is to give {quota:,} tokens, but has {share.available:,} and may be read "
        f"{share.max_repeats} times; it would be read {quota / share.available:.1f} times",
        field="tokens",
        value=tokens,
        fix=f"lower tokens to {low}, raise maxRepeats to {-(-quota // share.available)}, lower the source's weight, "
        "or set its maxTokens",
    )


def split_tokens(tokens: int, weights: Sequence[float]) -> list[int]:
    """A budget by weights, in whole tokens that add up to it (largest remainder, the first source wins ties)."""
    exact = [Fraction(w) for w in weights]
    total = sum(exact)
    wanted = [tokens * w / total for w in exact]
    parts = [int(w) for w in wanted]
    by_rest = sorted(range(len(parts)), key=lambda i: (parts[i] - wanted[i], i))
    for index in by_rest[: tokens - sum(parts)]:
        parts[index] += 1
    return parts
