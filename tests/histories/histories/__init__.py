"""Recorded histories of strong operations, and whether one copy that does one thing at a time could have given them.

A run (`run.py`) lets agents (`agents.py`) work on few memories of a cluster of real processes (`cluster.py`) while
faults come and go, writes down what they asked and were told (`history.py`), and looks for an order in which it makes
sense (`linearizability.py`, with the models of `models.py`). `broken_node.py` is a node that breaks the promise, to see
that the checker notices.
"""
