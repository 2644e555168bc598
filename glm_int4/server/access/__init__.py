"""The way of a request to its route and back: origins, paths, keys, bodies, the log.

Each module here is one stage; ``app.py`` puts them around the routes.
"""
