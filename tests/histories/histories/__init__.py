"""Recorded histories of strong operations, and whether one copy that does one thing at a time could have given them.

A run (`run.py`) lets agents (`agents.py`) work on few memories of a cluster of real processes (`cluster.py`) while
faults come and go, writes down what they asked and were told (`history.py`), and looks for an order in which it makes
sense (`linearizability.py`, with the models of `models.py`); of one that has
none, `shortest.py` finds the part to look at.
`node.py` is a node whose clock, disk and way to the others can be wrong (`apart.py`), and which can be made to break a
rule (`broken.py`), to see that the checker notices.
"""
