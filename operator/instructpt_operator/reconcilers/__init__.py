"""Pure decisions: (object, observed, now) -> Outcome. No client, clock, randomness or environment."""
