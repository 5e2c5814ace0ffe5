"""Networks in formats that other programs run without this package: one file per format.

``formats`` is the table of them, ``artefact`` writes one with what lies beside it, and ``check``
runs it in its own runtime and compares it to the network.
"""
