"""Threads, queues and clients that reconcile objects of any kind. Nothing here knows a kind of instructpt."""
