"""A conversation in a terminal.

``conversation`` and ``saved`` hold the state, and print nothing; ``screen`` and ``markdown`` show; ``prompt``
and ``keyboard`` read; ``commands`` dispatches what starts with a slash; ``session`` is the loop over all.
"""
