"""Answers to "why?" and "what if?": runs the decisions of the data path once more and explains them. Pure.

This package decides nothing: it calls the functions of `ztunnel.decide` that connections use. It finds what a
name in a question means (`name_lookup`), runs the decisions and collects what else they looked at
(`connection_path`), and writes it for people (`text`). It reads the mesh through a `MeshView` and a
`Catalogue`, so it works on a running data plane and on a saved dump (`saved_dump`).
"""
