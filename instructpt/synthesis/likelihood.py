"""Groundedness by the synthesizer's own likelihood: by how much its document makes an answer likelier.

Of each token of the answer, log2 p(token | document, question) - log2 p(token | question), and of these the mean: the
pointwise mutual information of answer and document given the question, in bits a token (arXiv 2305.12191, section 3,
there as a sum). An answer that the model would have given without the document gains nothing, whether true or not.
"""

from __future__ import annotations

import asyncio
import math
from collections import Counter

from instructpt.errors import ConfigError, SynthesisError
from instructpt.synthesis.engine import Engine, ScoreRequest
from instructpt.synthesis.model import Pair
from instructpt.synthesis.profiles import Profile

NOT_GROUNDED = "not-grounded-by-likelihood"
MAX_ATTEMPTS = 3


class LikelihoodJudge:
    """Drops pairs whose answer gains less than a bound.

    Args:
        engine: Must be open and able to score.
        profile: Wire format of the synthesizer.
        min_gain: Bits a token.

    Raises:
        ConfigError: The engine gives no probabilities, or the profile does not say where an answer begins.
    """

    def __init__(self, engine: Engine, profile: Profile, min_gain: float) -> None:
        if not engine.can_score:
            raise ConfigError(
                "the engine gives no probabilities of a text",
                field="filters.minLikelihoodGain",
                value=min_gain,
                fix="use engine vllm or transformers, or engine openai with a server that is a vLLM and takes ids",
            )
        if not hasattr(profile, "lead_in"):
            raise ConfigError(
                f"profile {profile.name} has no lead_in, which says what stands before an answer",
                field="filters.minLikelihoodGain",
                value=min_gain,
                fix="take the bound out, or use a profile that has it",
            )
        self._engine = engine
        self._profile = profile
        self._min_gain = min_gain

    async def reason(self, pair: Pair, document: str, counts: Counter[str]) -> str | None:
        """Why to drop the pair; a pair too long to be scored stays and is counted as ``unscored_pairs``.

        Raises:
            SynthesisError: The engine failed on it.
            EnvironmentNotReadyError: The engine is gone.
        """
        requests = [self._request(shown, pair) for shown in (document, "")]
        # An engine generates one token at least.
        if any(request.tokens >= self._engine.context_window for request in requests):
            counts["unscored_pairs"] += 1
            return None
        grounded, bare = await asyncio.gather(*map(self._score, requests))
        counts["scored_pairs"] += 1
        gain = sum(with_it - without for with_it, without in zip(grounded, bare, strict=True))
        return NOT_GROUNDED if gain / len(grounded) / math.log(2) < self._min_gain else None

    def _request(self, document: str, pair: Pair) -> ScoreRequest:
        """The answer after its question, and after the document unless that is empty."""
        encode = self._engine.tokenizer.encode
        before = self._profile.render((), document) + self._profile.lead_in(pair.question)
        special = self._profile.bos_policy == "reference"
        return ScoreRequest(
            prompt_ids=tuple(encode(before, add_special_tokens=special)),
            continuation_ids=tuple(encode(f" {pair.answer}")),
        )

    async def _score(self, request: ScoreRequest) -> tuple[float, ...]:
        attempt = 0
        while True:
            attempt += 1
            try:
                return await self._engine.score(request)
            except SynthesisError as error:
                if not error.retryable or attempt >= MAX_ATTEMPTS:
                    raise
