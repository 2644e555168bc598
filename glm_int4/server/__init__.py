"""OpenAI-compatible HTTP around one engine.

``serving.py`` runs it; ``app.py`` has the routes; ``worker.py`` is the engine's thread, which drives
``generation/continuous.py``; ``access/`` and ``limits.py`` are what every request passes first, ``protocol/`` is
what it may say.
"""
