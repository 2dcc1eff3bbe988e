"""What runs in a model's own environment: loads one model and answers framed requests.

Standard library only, and the grammar of Python 3.6: nothing is installed into a model's
environment for envd's sake. It is run as a folder, `python -I -B .../envd_worker MODE ...`
(see `__main__`), under a name of its own, so that nothing here can be taken for a module
of a model's, nor envd's for one of the environment's. The daemon imports `protocol`.
"""
