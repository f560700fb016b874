"""Verbs of `blip3o`: a module a verb, with `run(parser, args)`.

Its docstring is the description of the verb; `cli` makes the parser, and ends errors in one line.
"""
