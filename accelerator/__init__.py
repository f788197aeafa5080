"""The untrusted side: a worker that runs the public half of a bundle on whatever accelerator there is.

Imports ``shadownet.wire`` only, and runs with ``enclave/`` deleted.
"""
