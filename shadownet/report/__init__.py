"""The report: one self-contained page made of the JSON that the other verbs print.

:mod:`~shadownet.report.documents` reads that JSON, which may come from anywhere, and bounds it;
:mod:`~shadownet.report.assemble` makes one report of it; :mod:`~shadownet.report.page` writes the page.
:mod:`~shadownet.report.collect` gets the same JSON from a bundle, and :mod:`~shadownet.report.pictures` shows what
the accelerator sees.
"""
