"""``glm-int4 doctor``: what is wrong with a machine or an installation, and the cure.

``examination.py`` is the way in. What can kill a process (a package's import, compiled code) is tried in another one:
``isolated.py`` starts it, ``probes.py`` is what it does, ``verdicts.py`` what its facts mean. Nothing here imports a
package that may be missing or broken, but in such a process.
"""
