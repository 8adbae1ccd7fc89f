"""Measures of texts that filters judge by: words and n-grams, repetition, language, similarity. Pure, no model."""
