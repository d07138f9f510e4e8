"""A node's HTTP listener: whether it is well, for machines and for people. It knows no node, only what it is given.

address.py      host:port -> sockets     connection.py   one client's requests, one after the other
listener.py     all connections          pages.py        which path shows what     page.py   the page for people
"""
