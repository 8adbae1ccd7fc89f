"""Logs, progress and metrics. Nothing here knows what is measured."""
