"""The trusted computing base: keys and sealing, obfuscation schemes, masks, and the worker that runs a bundle.

Imports ``shadownet.wire`` only. A process gives no hardware isolation: this is what an enclave would run, not one.
"""
