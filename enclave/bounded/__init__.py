"""The enclave in little memory: the same bundles, run band by band within a budget; docs/secure_memory.md says how."""
