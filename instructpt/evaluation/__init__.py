"""Evaluation: held-out likelihood and question answering, scores with intervals, and the report.

Importing this package loads no torch; the modules that need it import it inside functions.
"""
