"""Joins the parts; the only package that knows them all.

`server` is the main process (supervisor, controller, job queue), `gateway` one that speaks to
clients: `python -m wherry.app` with an order.
"""
