"""Rules that can be taken away, to see that the checkers notice."""
import contextlib

RULES={}
@contextlib.contextmanager
def taken_away(rule):
    yield
