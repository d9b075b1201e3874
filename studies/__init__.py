"""The programs that made the documents' figures; ``python -m studies`` lists them. None is part of the wheel.

A study is a module, or a folder, of this package. The first line of its docstring is the question, and below stand
the document that cites it and the command. It has ``options(parser)``, ``run(args)``, which returns figures fit for
JSON, ``table(figures)``, and where it holds a bar ``within(figures)``. What it found lies in results/.
"""
