"""OpenAI-compatible HTTP around one engine.

``serving.py`` runs it; ``app.py`` has the routes; ``worker.py`` is the engine's thread, which drives
``generation/continuous.py``; ``limits.py`` is what every request passes first.
"""
