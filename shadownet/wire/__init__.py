"""The only vocabulary all trust domains share: errors, tensor specs, messages, the arena and the manifest.

NumPy and the standard library only. Everything parsed here may come from an enemy: sizes are bounded, types
are checked, and what does not fit raises one of the typed errors.
"""
