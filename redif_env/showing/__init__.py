"""A page to look at: teacher, solver and students side by side on the same noises. Read ``films`` first.

The page is static: its samples are made beforehand, and Python's own ``http.server`` hands it out. A server of widgets
(Gradio) would sample on request, but it brings a web framework of its own, and looks for scripts and fonts on the net.
This page needs nothing that is not installed, works without a network, and can be kept or sent as a folder.
"""
