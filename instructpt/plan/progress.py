"""Figures of several workers as one answer."""

from __future__ import annotations

from typing import Any


def merge_progress(figures: list[dict[str, Any]]) -> dict[str, Any]:
    """One answer for all replicas.

    Totals and their speed are the ledger's (the largest seen), rates and counts add up, gauges are those of the first
    that has some: of a training only the first rank tells. Notes are those of all, of one name the first.
    """
    merged: dict[str, Any] = {
        "done": max(f["done"] for f in figures),
        "total": max(f["total"] for f in figures),
        "unit": next((f["unit"] for f in figures if f["unit"]), ""),
        "gauges": next((f["gauges"] for f in figures if f["gauges"]), {}),
        "per_second": max((f.get("per_second") or 0.0 for f in figures), default=0.0),
    }
    notes = {name: text for f in reversed(figures) for name, text in f.get("notes", {}).items()}
    if notes:
        merged["notes"] = notes
    for part in ("counts", "rates"):
        names = {name for f in figures for name in f[part]}
        merged[part] = {name: sum(f[part].get(name, 0) for f in figures) for name in sorted(names)}
    return merged
