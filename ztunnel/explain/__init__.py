"""Answers to "why?" and "what if?": the decisions of the data path, run once more and told. Pure.

Nothing here decides: `ztunnel.decide` does, with the same functions that connections go through. This package
finds what a question means (`names`), runs the decisions and gathers what else they looked at (`way`), and
writes it for people (`text`). What it asks of the mesh is a `MeshView` and a `Catalogue`, so it works on a
running data plane and on a saved dump (`saved`) alike.
"""
