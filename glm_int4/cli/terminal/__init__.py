"""A conversation in a terminal.

``conversation`` holds the state, ``saved`` and ``autosave`` keep it on disk, and none of them prints; ``screen`` and
``markdown`` show (``markdown_rules``: what is markup; ``markdown_blocks``: how it looks); ``prompt`` and ``keyboard``
read; ``commands`` dispatches what starts with a slash; ``session`` is the loop over all.
"""
