"""The Kubernetes operator of instructpt.

So far it holds the part of its runtime that needs no cluster: the work queue. What follows, and in which order, stands
in ``operator/README.md``.
"""
