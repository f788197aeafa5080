"""Attacks on bundles. A strategy sees an :class:`~shadownet.attacks.view.AdversaryView` and nothing else.

``view`` is what an adversary holds, ``base`` public models, ``recovery`` what an attack hands back. One module per
family of attacks. ``truth`` and ``score`` belong to the bench: strategies never import them (see setup.cfg).
"""
